"""What both servers serve: classes as dlproxy takes them, which triton_model.py runs in Triton's Python backend.

Read by repository.py, which copies it into the models' folders; so it imports nothing but numpy.
"""

from collections.abc import Iterator, Mapping
from time import sleep
from typing import Any, ClassVar

import numpy as np

Arrays = Mapping[str, Any]

MAX_ROWS = 8
"""Of a request, for models whose shapes begin with a batch axis."""
TOO_MUCH = 1e6


class AddSub:
    inputs: ClassVar = {"A": "FP32[batch,4]", "B": "FP32[batch,4]"}
    outputs: ClassVar = {"SUM": "FP32[batch,4]", "DIFF": "FP32[batch,4]"}

    def predict(self, batch: Arrays) -> Arrays:
        return {"SUM": batch["A"] + batch["B"], "DIFF": batch["A"] - batch["B"]}


class Upper:
    inputs: ClassVar = {"TEXT": "BYTES[batch,2]"}
    outputs: ClassVar = {"UPPER": "BYTES[batch,2]"}

    def predict(self, batch: Arrays) -> Arrays:
        text = batch["TEXT"]
        return {"UPPER": np.array([each.upper() for each in text.ravel()], object).reshape(text.shape)}


class Fixed:
    inputs: ClassVar = {"M": "FP32[2,3]"}
    outputs: ClassVar = {"T": "FP32[3,2]"}

    def predict(self, batch: Arrays) -> Arrays:
        return {"T": np.ascontiguousarray(batch["M"].T)}


class Varied:
    inputs: ClassVar = {"X": "FP64[batch,-1]"}
    outputs: ClassVar = {"TOTAL": "FP64[batch,1]"}

    def predict(self, batch: Arrays) -> Arrays:
        return {"TOTAL": batch["X"].sum(axis=1, keepdims=True)}


class _Same:
    def predict(self, batch: Arrays) -> Arrays:
        return {"Y": batch["X"]}


class Half(_Same):
    inputs: ClassVar = {"X": "FP16[batch,2]"}
    outputs: ClassVar = {"Y": "FP16[batch,2]"}


class Flags(_Same):
    inputs: ClassVar = {"X": "BOOL[batch,2]"}
    outputs: ClassVar = {"Y": "BOOL[batch,2]"}


class Wide(_Same):
    inputs: ClassVar = {"X": "INT64[batch,2]"}
    outputs: ClassVar = {"Y": "INT64[batch,2]"}


class Small(_Same):
    inputs: ClassVar = {"X": "UINT8[batch,2]"}
    outputs: ClassVar = {"Y": "UINT8[batch,2]"}


class Spare(_Same):
    """Is unloaded and loaded."""

    inputs: ClassVar = {"X": "FP32[batch,1]"}
    outputs: ClassVar = {"Y": "FP32[batch,1]"}


class Faulty:
    """Fails on large numbers."""

    inputs: ClassVar = {"X": "FP32[batch,1]"}
    outputs: ClassVar = {"Y": "FP32[batch,1]"}

    def predict(self, batch: Arrays) -> Arrays:
        if batch["X"].max() > TOO_MUCH:
            raise ValueError("that is too much")
        return {"Y": batch["X"]}


class Slow:
    """Takes as many milliseconds as it is given."""

    inputs: ClassVar = {"MS": "UINT8[1]"}
    outputs: ClassVar = {"Y": "UINT8[1]"}

    def predict(self, batch: Arrays) -> Arrays:
        sleep(batch["MS"][0] / 1e3)
        return {"Y": batch["MS"]}


class Count:
    """A stream of as many numbers as it is asked for."""

    streams = True
    inputs: ClassVar = {"N": "INT32[1]"}
    outputs: ClassVar = {"I": "INT32[1]"}

    def predict(self, batch: Arrays) -> Iterator[Arrays]:
        for number in range(int(batch["N"][0])):
            yield {"I": np.array([number], np.int32)}


class Say:
    """Text in, text out, at once."""

    inputs: ClassVar = {"text_input": "BYTES[1]", "times": "INT32[1]"}
    outputs: ClassVar = {"text_output": "BYTES[1]"}

    def predict(self, batch: Arrays) -> Arrays:
        return {"text_output": np.array([batch["text_input"][0] * int(batch["times"][0])], object)}


class Tell:
    """Text in, its words out one by one."""

    streams = True
    inputs: ClassVar = {"text_input": "BYTES[1]"}
    outputs: ClassVar = {"text_output": "BYTES[1]"}

    def predict(self, batch: Arrays) -> Iterator[Arrays]:
        for word in batch["text_input"][0].split():
            yield {"text_output": np.array([word], object)}


MODELS: dict[str, type[Any]] = {
    "add_sub": AddSub,
    "upper": Upper,
    "fixed": Fixed,
    "varied": Varied,
    "half": Half,
    "flags": Flags,
    "wide": Wide,
    "small": Small,
    "spare": Spare,
    "faulty": Faulty,
    "slow": Slow,
    "count": Count,
    "say": Say,
    "tell": Tell,
}
