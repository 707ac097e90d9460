"""A class of models.py as a model of Triton's Python backend, which imports this file as `model` from the model's folder."""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # only inside Triton
from conformance_models import MODELS  # type: ignore[import-not-found]  # models.py, under a name of its own


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.model = MODELS[config["name"]]()
        self.outputs = [output["name"] for output in config["output"]]
        self.inputs = [each["name"] for each in config["input"]]

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Each by itself: what is compared is protocols."""
        if getattr(self.model, "streams", False):
            for request in requests:
                self._stream(request)
            return None
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        return self._response(request, self.model.predict(self._arrays(request)))

    def _stream(self, request: Any) -> None:
        sender = request.get_response_sender()
        for part in self.model.predict(self._arrays(request)):
            sender.send(self._response(request, part))
        sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _arrays(self, request: Any) -> dict[str, Any]:
        return {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}

    def _response(self, request: Any, arrays: Any) -> Any:
        wanted = request.requested_output_names()
        tensors = [triton.Tensor(name, np.ascontiguousarray(arrays[name])) for name in self.outputs if name in wanted]
        return triton.InferenceResponse(output_tensors=tensors)
