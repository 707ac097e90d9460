"""A gRPC call without a connection, and messages of the Open Inference Protocol, for the tests of its methods."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.message import ANONYMOUS, DType, Failure, InferenceError, PartTo, Principal, Request, Response, Signature, Tensor
from dlproxy.policy.why import Phase
from dlproxy.protos.oip import SERVICE, TYPED, oip
from dlproxy.service import ReplyTo
from dlproxy.tensors import to_bytes
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.grpc.call import Call, Status, in_grpc
from dlproxy.wire.grpc.oip import OipService
from dlproxy.wire.operations import ModelRepository

from ..fixtures import EchoService, echo_signature

A = np.array([[1.5, 2.5]], np.float32)
B = np.array([[7]], np.int64)
PAIR = echo_signature(("a", DType.FP32, (-1, 2)), ("b", DType.INT64, (-1, 1)))


class FakeCall:
    """Keeps what is sent and how it ended. `stuck`: the client does not read."""

    def __init__(self, headers: Mapping[bytes, bytes] | None = None, *, stuck: bool = False) -> None:
        self.headers = dict(headers or {})
        self.principal: Principal = ANONYMOUS
        self.on_message: Callable[[bytes], None] | None = None
        self.on_half_closed: Callable[[], None] | None = None
        self.on_abandoned: Callable[[], object] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.waited: dict[Phase, float] | None = None
        self.messages: list[bytes] = []
        self.status: Status | None = None
        self.noted: list[Failure] = []
        self.text = ""
        self.extra: tuple[tuple[bytes, bytes], ...] = ()
        self.stuck = stuck
        self.paused = False
        self._arrived: deque[bytes] = deque()
        self._half_closed = self._delivering = False

    # For methods

    def asks(self, request: Request) -> None:
        assert self.on_abandoned is not None, "whoever leaves now is not heard"

    def asks_again(self) -> Principal:
        return self.principal

    def reply(self, *message: bytes | memoryview, of: Response | None = None) -> None:
        self.send(*message)
        told = () if of is None else ((b"x-dlproxy-cache", of.cache), (b"x-dlproxy-variant", of.variant))
        self.end(extra=tuple((name, value.encode()) for name, value in told if value))

    def note(self, failure: Failure) -> None:
        self.noted.append(failure)

    def send(self, *message: bytes | memoryview) -> None:
        if not self.ended:
            self.messages.append(b"".join(message))

    def end(self, status: Status = Status.OK, text: str = "", extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        if self.status is Status.CANCELLED:  # the client has left
            return
        assert not self.ended, "a call ends once"
        self.status, self.text, self.extra = status, text, extra

    def refuse(self, failure: Failure) -> None:
        self.end(*in_grpc(failure))

    def give_up(self) -> None:
        raise AssertionError("a defect")

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._deliver()

    @property
    def writable(self) -> bool:
        return not self.stuck

    @property
    def ended(self) -> bool:
        return self.status is not None

    # For tests

    def receive(self, *messages: bytes) -> None:
        self._arrived.extend(messages)
        self._deliver()

    def half_close(self) -> None:
        self._half_closed = True
        self._deliver()

    def read(self) -> None:
        """The client reads again."""
        self.stuck = False
        assert self.on_writable is not None
        self.on_writable()

    def leave(self) -> None:
        self.status = Status.CANCELLED
        told, self.on_abandoned = self.on_abandoned, None
        if told is not None:
            told()

    def _deliver(self) -> None:
        if self._delivering:
            return
        self._delivering = True
        while self._arrived and not self.paused and not self.ended:
            assert self.on_message is not None
            self.on_message(self._arrived.popleft())
        self._delivering = False
        if self._half_closed and not self._arrived and not self.paused and not self.ended:
            assert self.on_half_closed is not None
            self._half_closed = False
            self.on_half_closed()

    def as_call(self) -> Call:
        return cast(Call, self)

    def answer(self, kind: str) -> Any:
        """The one message, parsed."""
        assert self.status is Status.OK, f"{self.status}: {self.text}"
        (message,) = self.messages
        return getattr(oip, kind).FromString(message)

    def take(self) -> list[Any]:
        """What the stream has answered since the last time, parsed."""
        taken, self.messages = self.messages, []
        return [oip.ModelStreamInferResponse.FromString(message) for message in taken]


def service(
    *models: ServedModel, repository: ModelRepository | None = None, catalog: Catalog | None = None, **limits: Any
) -> OipService:
    catalog = catalog or Catalog()
    for model in models:
        catalog.add(model)
    return OipService(catalog, repository, HttpLimits(**limits), clock=lambda: 100.0, tenant_header="x-tenant-id")


def ask(of: OipService, method: str, message: bytes | Any = b"", headers: Mapping[bytes, bytes] | None = None) -> FakeCall:
    """A unary call, as the connection makes it."""
    call = FakeCall(headers)
    data = message if isinstance(message, bytes) else message.SerializeToString()
    try:
        of.methods().unary[f"{SERVICE}/{method}".encode()](call.as_call(), data)
    except InferenceError as error:
        call.refuse(error.failure)
    return call


def open_stream(of: OipService, headers: Mapping[bytes, bytes] | None = None) -> FakeCall:
    call = FakeCall(headers)
    of.methods().streaming[f"{SERVICE}/ModelStreamInfer".encode()](call.as_call())
    return call


def raw(*arrays: np.ndarray[Any, Any], names: Sequence[str] = "ab", model: str = "m", **fields: Any) -> Any:
    """A ModelInferRequest with raw contents."""
    types = {np.dtype(np.float32): DType.FP32, np.dtype(np.int64): DType.INT64, np.dtype(object): DType.BYTES}
    inputs = [
        {"name": name, "datatype": types[array.dtype].value, "shape": array.shape}
        for name, array in zip(names, arrays, strict=False)
    ]
    contents = [bytes(to_bytes(types[array.dtype], array)) for array in arrays]
    return oip.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=contents, **fields)


def parameter(value: Any) -> Any:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return oip.InferParameter(**{kinds[type(value)]: value})


class FakeRest:
    """Parts that the test gives, one for each ask. A Rest."""

    def __init__(self) -> None:
        self.to: PartTo | None = None
        self.asks = 0
        self.stopped = False

    def ask(self, to: PartTo) -> None:
        assert self.to is None, "one at a time"
        self.asks += 1
        self.to = to

    def stop(self) -> None:
        self.stopped = True

    def take(self) -> PartTo:
        assert self.to is not None, "no part was asked for"
        to, self.to = self.to, None
        return to


class PartsService(EchoService):
    """Echoes in parts: the first when it is answered, the others by its rest, None where there is no further one."""

    def __init__(self, signature: Signature, **options: Any) -> None:
        super().__init__(signature, **options)
        self.rests: list[FakeRest] = []
        self.replies: list[ReplyTo] = []
        self.in_parts = True

    def echo(self, request: Request) -> Response:
        response = super().echo(request)
        if self.in_parts:
            response.rest = FakeRest()
            self.rests.append(response.rest)
        return response


def part(*values: float) -> list[Tensor]:
    """Of the output out_x, FP32 in one column."""
    data = np.array(values, np.float32).tobytes()
    return [Tensor("out_x", DType.FP32, (len(values), 1), data)]


def typed(dtype: str, values: list[Any], field: str = "", shape: tuple[int, ...] = (1, 4)) -> Any:
    contents = {field or TYPED[DType(dtype)]: values}
    return oip.ModelInferRequest(
        model_name="m", inputs=[{"name": "x", "datatype": dtype, "shape": shape, "contents": contents}]
    )


SEEDS = [
    raw(A, B),
    raw(A, B, id="r-1"),
    raw(A, B, id="r-2", model_version="1", outputs=[{"name": "out_a"}], parameters={"timeout": parameter(10)}),
    raw(np.repeat(A, 3, 0), np.repeat(B, 3, 0), id="r-3"),
    raw(A, B, model="n"),
    typed("FP32", [1, 2, 3, 4]),
]
MESSAGES = [seed.SerializeToString() for seed in SEEDS]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A message of the models m and n, both PAIR, broken in up to three places."""
    message = bytearray(draw(st.sampled_from(MESSAGES)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(message)))
        kind = draw(st.sampled_from(["set", "insert", "delete", "splice"]))
        if kind == "set" and at < len(message):
            message[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            message[at:at] = draw(
                st.binary(max_size=4) | st.sampled_from([b"\x1a\x01z", b"\x1a\x00", b"\x3a\x08" + bytes(8), b"\x0a\x01m"])
            )
        elif kind == "delete":
            del message[at : at + draw(st.integers(1, 8))]
        else:
            message[at:] = draw(st.sampled_from(MESSAGES))[at:]
    return bytes(message)
