"""One inference request for a model in the Open Inference Protocol's binary form, and the answer it must get.

The same bytes go to wrk and to the check before each timed run, so what is timed is what was checked.
"""

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.processes import BenchmarkError

ID_PLACEHOLDER = "00000000"  # load.lua writes each request's number over it
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
ANSWER_SECONDS = 30
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Sample:
    model: str
    json_header: bytes
    tensor: bytes
    expected: dict[str, NDArray[np.float32]]

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @property
    def body(self) -> bytes:
        return self.json_header + self.tensor

    def check_answer(self, port: int) -> int:
        """Sends the request once, compares every output with ONNX Runtime's own and returns the reply's size."""
        try:
            reply, json_length = self._send(port)
            outputs = _decode_outputs(reply, json_length)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"no usable answer to {self.path}: {type(error).__name__}: {error}") from error
        for name, expected in self.expected.items():
            if name not in outputs:
                raise BenchmarkError(f"the answer to {self.path} lacks output {name!r}")
            if outputs[name].shape != expected.shape:
                raise BenchmarkError(f"output {name!r} has shape {outputs[name].shape}, not {expected.shape}")
            if not np.allclose(outputs[name], expected, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE):
                raise BenchmarkError(f"output {name!r} differs from ONNX Runtime's own")
        return len(reply)

    def _send(self, port: int) -> tuple[bytes, int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
        try:
            headers = {"Content-Type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(self.json_header))}
            connection.request("POST", self.path, self.body, headers)
            response = connection.getresponse()
            reply = response.read()
            if response.status != 200:
                raise BenchmarkError(f"{self.path} answered {response.status}: {reply[:300].decode(errors='replace')}")
            return reply, int(response.headers[JSON_LENGTH_HEADER])
        finally:
            connection.close()


def _decode_outputs(reply: bytes, json_length: int) -> dict[str, NDArray[np.float32]]:
    decoded = {}
    start = json_length
    for output in json.loads(reply[:json_length])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        decoded[output["name"]] = np.frombuffer(reply[start:end], np.float32).reshape(output["shape"])
        start = end
    return decoded


def sample_for(path: Path, *, with_id: bool = False) -> Sample:
    """A request of one item with random values for the FP32 model at `path`, served under its file's name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    item = np.random.default_rng(7).random((1, *wanted.shape[1:]), dtype=np.float32)
    results = session.run(names, {wanted.name: item})
    header: dict[str, Any] = {"id": ID_PLACEHOLDER} if with_id else {}
    described = {"name": wanted.name, "shape": list(item.shape), "datatype": "FP32"}
    header["inputs"] = [described | {"parameters": {"binary_data_size": item.nbytes}}]
    header["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in names]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return Sample(path.stem, encoded, item.tobytes(), dict(zip(names, results, strict=True)))
