"""Everything that the OCR example's pipeline does, in one Python class: what pipelines are compared with.

The models and characters lie in the folder `models` beside it, as do the example's steps: the benchmark copies all of them.
"""

from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnxruntime

import steps
from dlproxy.steps.image import Decode

MODELS = Path(__file__).with_name("models")


class Ocr:
    """Lines of one width are read together. `threads`: of each session; 0: ONNX Runtime's own choice, all cores."""

    inputs: ClassVar = {"picture": "BYTES[1]"}
    outputs: ClassVar = {"text": "BYTES[-1]", "sure": "FP32[-1]", "corners": "FP32[-1,4,2]"}
    threads = 0

    def load(self):
        self.decode = Decode()
        self.detect, self.classify, self.read = map(self._session, ("detect", "classify", "read"))
        self.spell = steps.Spell(MODELS / "characters.txt")

    def _session(self, name):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        return onnxruntime.InferenceSession(MODELS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])

    def predict(self, batch):
        image = self.decode(image=batch["picture"])["image"]
        (heat,) = self.detect.run(None, {"x": steps.page(image)})
        corners = steps.boxes(heat, image)
        cut = steps.lines(image, corners)
        directions = in_batches(self.classify, cut["glance"])
        found = self.spell(in_batches(self.read, steps.upright(cut["line"], directions)))
        return found | {"corners": corners}


class OcrOfOneThread(Ocr):
    threads = 1


def in_batches(session, items):
    """Those of one shape at once, in the order of the items."""
    by_shape = defaultdict(list)
    for number, item in enumerate(items):
        by_shape[item.shape].append(number)
    answers = [None] * len(items)
    for numbers in by_shape.values():
        (rows,) = session.run(None, {"x": np.stack([items[number] for number in numbers])})
        for number, row in zip(numbers, rows, strict=True):
            answers[number] = row
    return answers
