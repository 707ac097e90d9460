"""ONNX Runtime as every peer's server program uses it, in that peer's own environment: on one thread, unless PEER_THREADS says.

Imports nothing but ONNX Runtime and NumPy, so that it loads beside any framework.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Rows = NDArray[Any]  # FP32, or token ids of one row or several, padded to the longest with PAD

THREADS = int(os.environ.get("PEER_THREADS", "1"))
PAD = 0  # no token of a text


def open_session(path: str) -> "Session":
    """By what the model takes: one FP32 input, or the token ids of texts."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return TextSession(session) if session.get_inputs()[0].type == "tensor(int64)" else Session(session)


class Session:
    def __init__(self, session: Any) -> None:
        self._session = session
        (wanted,) = self._session.get_inputs()
        (given,) = self._session.get_outputs()
        self.input_name, self.output_name = wanted.name, given.name
        self.item_shape = tuple(int(size) for size in wanted.shape[1:])
        self.answer_shape = tuple(int(size) for size in given.shape[1:])

    def item(self, data: bytes) -> Rows:
        """One request's bytes as a batch of one: a view, no copy."""
        return np.frombuffer(data, np.float32).reshape(1, *self.item_shape)

    def stack(self, items: Sequence[Rows]) -> Rows:
        return np.concatenate(items)

    def run(self, rows: Rows) -> Rows:
        answers: Rows = self._session.run([self.output_name], {self.input_name: rows})[0]
        return answers


class TextSession(Session):
    """A model of token ids, a mask, and the types of tokens."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [wanted.name for wanted in session.get_inputs()]

    def item(self, data: bytes) -> Rows:
        return np.frombuffer(data, np.int64)[None]

    def stack(self, items: Sequence[Rows]) -> Rows:
        rows = np.full((len(items), max(item.shape[1] for item in items)), PAD, np.int64)
        for row, item in zip(rows, items, strict=True):
            row[: item.shape[1]] = item[0]
        return rows

    def run(self, rows: Rows) -> Rows:
        tensors = (rows, (rows != PAD).astype(np.int64), np.zeros_like(rows))
        answers: Rows = self._session.run(None, dict(zip(self._names, tensors, strict=True)))[0]
        return answers
