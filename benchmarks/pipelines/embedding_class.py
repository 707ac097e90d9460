"""Everything that the embedding example's pipeline does, in one Python class: what pipelines are compared with.

The model and the tokenizer lie in the folder `models` beside it: the benchmark copies them.
"""

from pathlib import Path
from typing import ClassVar

import onnxruntime

from dlproxy.steps.scores import Pool
from dlproxy.steps.tokens import Tokenize

MODELS = Path(__file__).with_name("models")


class Embed:
    """Texts of several clients share a batch, which is as long as its longest. `threads`: 0: all cores."""

    inputs: ClassVar = {"text": "BYTES[-1]"}
    outputs: ClassVar = {"embedding": "FP32[-1,384]"}
    threads = 0

    def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.tokenize = Tokenize(file=str(MODELS / "tokenizer.json"), max_length=256)
        self.transformer = onnxruntime.InferenceSession(
            MODELS / "transformer.onnx", options, providers=["CPUExecutionProvider"]
        )
        self.pool = Pool(how="mean", normalise=True)

    def predict(self, batch):
        tokens = self.tokenize(text=batch["text"])
        (hidden,) = self.transformer.run(None, tokens)
        return self.pool(hidden=hidden, mask=tokens["attention_mask"])


class EmbedOfOneThread(Embed):
    threads = 1
