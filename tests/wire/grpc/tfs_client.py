"""Calls of TensorFlow Serving's services without sockets, and messages for them."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np
from hpack import Decoder

from dlproxy.message import ANONYMOUS, Failure, InferenceError
from dlproxy.protos.tfs import PREDICTION, tfs
from dlproxy.telemetry.journal import Journal
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.server import Methods
from dlproxy.wire.grpc.tfs import TfsService
from tests.wire.tfs_models import catalog_of

PREDICT = f"{PREDICTION}/Predict"
REGRESS = "0a030a016d12120a100a0e0a0c0a0a0a017812051a030a0150"  # x: [80], as whole numbers


class Connection:
    """Takes down what the service answers."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.message = b""
        self.trailers: dict[str, str] = {}
        self.noted: Failure | None = None

    def send(self, call: Call, message: Sequence[bytes | bytearray | memoryview], trailers: bytes | None) -> None:
        assert not self.trailers, "answered twice"
        self.message = b"".join(message)
        self.end(call, trailers or b"")

    def end(self, call: Call, trailers: bytes) -> None:
        assert not self.trailers, "ended twice"
        call.ended = True
        self.trailers = dict(Decoder().decode(trailers))

    def refused(self, call: Call, failure: Failure) -> None:
        self.noted = failure

    @property
    def status(self) -> Status:
        return Status(int(self.trailers["grpc-status"]))

    @property
    def text(self) -> str:
        return unquote(self.trailers.get("grpc-message", ""))


class Client:
    """Calls methods of the service over some models."""

    def __init__(self, *services: Any, repository: Any = None, methods: Methods | None = None) -> None:
        self.catalog = catalog_of(*services)
        service = TfsService(self.catalog, repository, clock=lambda: 100.0, tenant_header="x-tenant-id")
        self.methods = methods or service.methods()
        self.call: Call

    def begin(self, method: str, message: Any, headers: Mapping[bytes, bytes] | None = None) -> Connection:
        """As connection.py does it."""
        if isinstance(message, str):
            message = bytes.fromhex(message)
        data = message if isinstance(message, bytes) else message.SerializeToString()
        connection = Connection()
        self.call = call = Call(connection, 1, method.encode(), dict(headers or {}), ANONYMOUS, 1 << 16)  # type: ignore[arg-type]
        try:
            self.methods.unary[method.encode()](call, data)
        except InferenceError as error:
            call.refuse(error.failure)
        return connection

    def ask(self, method: str, message: Any, **headers: str) -> bytes:
        found = self.begin(method, message, {name.encode(): value.encode() for name, value in headers.items()})
        assert found.status is Status.OK, found.text
        return found.message

    def refused(self, method: str, message: Any) -> tuple[Status, str]:
        found = self.begin(method, message)
        assert found.status is not Status.OK
        return found.status, found.text


def predict(model: str = "m", **inputs: Any) -> Any:
    asked = tfs.PredictRequest()
    asked.model_spec.name = model
    for name, array in inputs.items():
        asked.inputs[name].CopyFrom(floats(array))
    return asked


def floats(array: Any) -> Any:
    given = np.array(array, np.float32)
    tensor = tfs.TensorProto(dtype=1, tensor_content=given.tobytes())
    tensor.tensor_shape.SetInParent()
    for size in given.shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def multi(*tasks: tuple[str, str], signature: str = "") -> Any:
    asked = tfs.MultiInferenceRequest()
    for name, method in tasks:
        task = asked.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = name, signature
    return asked
