"""ONNX Runtime on one thread, as every peer's server program uses it, in that peer's own environment.

Imports nothing but ONNX Runtime and NumPy, so that it loads beside any framework.
"""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class Session:
    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (wanted,) = self._session.get_inputs()
        (given,) = self._session.get_outputs()
        self.input_name, self.output_name = wanted.name, given.name
        self.item_shape = tuple(int(size) for size in wanted.shape[1:])
        self.answer_shape = tuple(int(size) for size in given.shape[1:])

    def item(self, data: bytes) -> Rows:
        """One request's bytes as a batch of one: a view, no copy."""
        return np.frombuffer(data, np.float32).reshape(1, *self.item_shape)

    def run(self, rows: Rows) -> Rows:
        answers: Rows = self._session.run([self.output_name], {self.input_name: rows})[0]
        return answers
