"""model.onnx beside this file as a model of Triton's Python backend, which imports it: all requests of a batch in one run."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # only inside Triton


class TritonPythonModel:
    def initialize(self, _: dict[str, str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(__file__).with_name("model.onnx")
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [triton.get_input_tensor_by_name(request, "input").as_numpy() for request in requests]
        (answer,) = self.session.run(["output"], {"input": np.concatenate(inputs) if len(inputs) > 1 else inputs[0]})
        ends = np.cumsum([len(rows) for rows in inputs])
        parts = np.split(answer, ends[:-1])
        return [triton.InferenceResponse(output_tensors=[triton.Tensor("output", part)]) for part in parts]
