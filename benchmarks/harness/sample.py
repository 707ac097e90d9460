"""One inference request for a model in the Open Inference Protocol's binary form, and the answer it must get.

The same bytes go to wrk and to the check before each timed run, so what is timed is what was checked.
"""

import contextlib
import http.client
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.harness.processes import BenchmarkError

ID_PLACEHOLDER = "00000000"  # load.lua writes each request's number over it
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
ANSWER_SECONDS = 30
RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 1e-5
DATATYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8, "BOOL": np.bool_}

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Sample:
    model: str
    json_header: bytes
    tensor: bytes
    expected: Tensors
    tolerance: float | None = None
    """Of an output's largest value; None for the two above, element by element."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(self.json_header))}

    @property
    def path(self) -> str:
        return f"/v2/models/{self.model}/infer"

    @property
    def body(self) -> bytes:
        return self.json_header + self.tensor

    def check_answer(self, port: int) -> int:
        """Sends the request once, compares every output with ONNX Runtime's own and returns the reply's size."""
        with contextlib.closing(connect(port)) as connection:
            self.ask(connection)
            return self.judge(connection)

    def ask(self, connection: http.client.HTTPConnection, more: Iterable[str] = ()) -> None:
        """Sends the request, and does not wait for the answer. `more`: headers as wrk takes them, "NAME: VALUE"."""
        try:
            connection.request("POST", self.path, self.body, self.headers | dict(line.split(": ", 1) for line in more))
        except OSError as error:
            raise BenchmarkError(f"{self.path} cannot be asked: {error}") from error

    def answer(self, connection: http.client.HTTPConnection) -> tuple[dict[str, NDArray[np.generic]], int]:
        """The outputs, once the request is sent, and the reply's size. Raises BenchmarkError."""
        try:
            reply, json_length = self._receive(connection)
            return _decode_outputs(reply, json_length), len(reply)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(f"no usable answer to {self.path}: {type(error).__name__}: {error}") from error

    def judge(self, connection: http.client.HTTPConnection) -> int:
        """What `check_answer` does once the request is sent."""
        outputs, size = self.answer(connection)
        for name, expected in self.expected.items():
            if name not in outputs:
                raise BenchmarkError(f"the answer to {self.path} lacks output {name!r}")
            if outputs[name].shape != expected.shape:
                raise BenchmarkError(f"output {name!r} has shape {outputs[name].shape}, not {expected.shape}")
            if not self._alike(outputs[name], expected):
                raise BenchmarkError(f"output {name!r} differs from ONNX Runtime's own")
        return size

    def _alike(self, given: NDArray[np.generic], expected: NDArray[np.generic]) -> bool:
        if self.tolerance is None:
            return np.allclose(given, expected, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)
        largest = float(np.abs(expected).max(initial=0.0))
        return np.allclose(given, expected, self.tolerance, self.tolerance * largest)

    def _receive(self, connection: http.client.HTTPConnection) -> tuple[bytes, int]:
        response = connection.getresponse()
        reply = response.read()
        if response.status != 200:
            raise BenchmarkError(f"{self.path} answered {response.status}: {reply[:300].decode(errors='replace')}")
        return reply, int(response.headers[JSON_LENGTH_HEADER])


def connect(port: int) -> http.client.HTTPConnection:
    """To a server on this machine. Raises BenchmarkError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.connect()
    except OSError as error:
        raise BenchmarkError(f"nobody answers on port {port}: {error}") from error
    return connection


def _decode_outputs(reply: bytes, json_length: int) -> dict[str, NDArray[np.generic]]:
    decoded: dict[str, NDArray[np.generic]] = {}
    start = json_length
    for output in json.loads(reply[:json_length])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        decoded[output["name"]] = np.frombuffer(reply[start:end], DATATYPES[output["datatype"]]).reshape(output["shape"])
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
    identity = ID_PLACEHOLDER if with_id else None
    return sample_of(path.stem, {wanted.name: item}, dict(zip(names, results, strict=True)), identity)


def sample_of(
    model: str, inputs: Tensors, expected: Tensors, identity: str | None = None, tolerance: float | None = None
) -> Sample:
    """The request with these inputs, which must be answered with these outputs."""
    header: dict[str, Any] = {"id": identity} if identity is not None else {}
    header["inputs"] = [_described(name, array) for name, array in inputs.items()]
    header["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in expected]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return Sample(model, encoded, b"".join(array.tobytes() for array in inputs.values()), expected, tolerance)


def _described(name: str, array: NDArray[np.generic]) -> dict[str, Any]:
    datatype = next(known for known, dtype in DATATYPES.items() if array.dtype == dtype)
    described = {"name": name, "shape": list(array.shape), "datatype": datatype}
    return described | {"parameters": {"binary_data_size": array.nbytes}}
