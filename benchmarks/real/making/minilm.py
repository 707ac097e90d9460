"""all-MiniLM-L6-v2 as ONNX, by the example that writes it from its safetensors file."""

import json
import shutil
import tempfile
from pathlib import Path

from onnxruntime.quantization import quantize_dynamic

from benchmarks.real.catalog import MINILM
from benchmarks.real.making.places import Places
from benchmarks.real.making.texts import MINILM_FOLDER as FOLDER
from benchmarks.real.making.texts import sentences_with_texts
from examples.embedding.bert import bert


def minilm(places: Places) -> bytes:
    return bert(places.of(MINILM) / FOLDER, pooled=True)


def minilm_dynamic(places: Places) -> bytes:
    """Its activations are quantised while it runs, with one scale for all rows of a batch."""
    with tempfile.TemporaryDirectory() as directory:
        whole, quantised = (Path(directory) / name for name in ("whole.onnx", "int8.onnx"))
        whole.write_bytes(minilm(places))
        quantize_dynamic(whole, quantised)
        return quantised.read_bytes()


def minilm_more(places: Places, folder: Path) -> None:
    """The model as Hugging Face lays it out, which gives an embedding of each token, and the texts by their tokens."""
    shutil.copytree(places.of(MINILM) / FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.onnx").write_bytes(bert(places.of(MINILM) / FOLDER, pooled=False))
    texts = {ids.tobytes().hex(): text for ids, text in sentences_with_texts(places)}
    (folder / "texts.json").write_text(json.dumps(texts))
