"""What the wire tests share: a service that echoes, a catalog of models, an HTTP client without sockets, one with.

Replies are parsed strictly: whatever is no well-formed HTTP/1.1 fails the test.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from dlproxy.config import HttpLimits
from dlproxy.message import (
    Cached,
    DType,
    Failure,
    FailureKind,
    Request,
    Response,
    Signature,
    Tensor,
    TensorSpec,
    Timing,
)
from dlproxy.policy.events import InstanceUp
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.service import ReplyTo
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.http.connection import HttpConnection
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.oip.http import OipApp

TIMING = Timing(0.001, 0.002, 0.003)
HIGH_WATER = 64 * 1024
CANCELLED = Failure(FailureKind.CANCELLED, "cancelled")


def specs(*described: tuple[str, DType, tuple[int, ...]], text: bool = False) -> tuple[TensorSpec, ...]:
    """Tensor specs of (name, type, shape)."""
    return tuple(TensorSpec(name, dtype, shape, text and dtype is DType.BYTES) for name, dtype, shape in described)


class EchoService:
    """Gives input i as output i. `at_once`: on the loop's next turn; else when `answer` is called. Keeps what it was asked."""

    def __init__(self, signature: Signature, *, model: str = "m", version: str = "1", at_once: bool = False) -> None:
        self.signature = signature
        self.model, self.version = model, version
        self.variant = ""
        self.cache: Cached = ""
        self.at_once = at_once
        self.waiting: deque[tuple[Request, ReplyTo]] = deque()
        self.requests: list[Request] = []
        self.cancelled: list[Request] = []
        self.keep = True

    def submit(self, request: Request, reply: ReplyTo) -> None:
        if self.keep:
            self.requests.append(request)
        self.waiting.append((request, reply))
        if self.at_once:
            asyncio.get_running_loop().call_soon(self.answer)

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request)
        for entry in self.waiting:
            if entry[0] is request:
                self.waiting.remove(entry)
                entry[1].failed(CANCELLED)
                return

    def answer(self, index: int = 0) -> None:
        """Answer the request that stands at `index` of those that wait."""
        if self.waiting:
            request, reply = self.waiting[index]
            del self.waiting[index]
            reply.completed(self.echo(request))

    def answer_all(self) -> None:
        while self.waiting:
            self.answer()

    def echo(self, request: Request) -> Response:
        outputs = []
        for index in request.outputs:
            spec, tensor = self.signature.outputs[index], request.inputs[index]
            outputs.append(Tensor(spec.name, spec.dtype, tensor.shape, tensor.data))
        return Response(request.id, self.model, self.version, outputs, TIMING, None, self.cache, self.variant)


def echo_signature(*inputs: tuple[str, DType, tuple[int, ...]], batched: bool = True, text: bool = False) -> Signature:
    """A signature whose outputs are its inputs, each with "out_" before its name. `text`: its BYTES are."""
    outputs = [(f"out_{name}", dtype, shape) for name, dtype, shape in inputs]
    return Signature(specs(*inputs, text=text), specs(*outputs, text=text), batched, "fake")


PLAIN = echo_signature(("x", DType.FP32, (-1, 2)))


def served(service: EchoService, *, max_batch: int = 8, slo_s: float | None = None, ready: bool = True) -> ServedModel:
    """The service as the catalog keeps it."""
    lane = Lane(LaneKnobs(max_batch=max_batch, max_queue_rows=1))
    if ready:
        lane.on(InstanceUp("m-0"), 0.0)
    return ServedModel(
        name=service.model,
        version=service.version,
        signature=service.signature,
        service=service,
        stats=ModelStats(),
        max_batch=max_batch,
        slo_s=slo_s,
        view=lane.view,
    )


def app_of(*models: ServedModel, max_body_bytes: int = 1 << 20, server_timing: bool = False) -> OipApp:
    catalog = Catalog()
    for model in models:
        catalog.add(model)
    return OipApp(catalog, HttpLimits(max_body_bytes=max_body_bytes), clock=lambda: 100.0, server_timing=server_timing)


# HTTP as a client sees it


class Reply(msgspec.Struct):
    """One reply, parsed. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> str:
        text: str = self.json()["error"]
        return text

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


def parse_replies(data: bytes, *, heads: Iterable[bool] = ()) -> list[Reply]:
    """Every reply in `data`, which must end with the last one. `heads`: for each, whether it answers a HEAD request.

    An interim reply (100) is kept, without asking `heads`. Raises AssertionError for malformed HTTP.
    """
    replies, is_head = [], iter(heads)
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, f"the reply's header does not end: {head[:200]!r}"
        status_line, *lines = head.split(b"\r\n")
        version, status, reason = status_line.split(b" ", 2)
        assert version == b"HTTP/1.1", status_line
        assert len(status) == 3, status_line
        assert reason.strip(), status_line
        headers = {}
        for line in lines:
            name, colon, value = line.decode("ascii").partition(":")
            assert colon, line
            assert name, line
            assert name.strip() == name, line
            assert not {10, 13} & set(line), line
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value.strip()
        body = b""
        if status != b"100":
            length = int(headers["content-length"])
            if not next(is_head, False):
                body, data = data[:length], data[length:]
                assert len(body) == length, f"{length} bytes of body announced, {len(body)} came"
        replies.append(Reply(int(status), headers, body))
    return replies


def request(
    target: str = "/", method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> bytes:
    """One request, with Host, and Content-Length if there is a body."""
    lines = {"Host": "test", **({} if body is None else {"Content-Length": str(len(body))}), **(headers or {})}
    text = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return text.encode() + b"\r\n" + (body or b"")


def post(target: str, body: bytes, **headers: str) -> bytes:
    return request(target, "POST", headers, body)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b""))


class FakeTransport(asyncio.Transport):
    """Behaves like a socket's transport, but keeps what is written. `stuck`: the client does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: HttpConnection
        self.written = bytearray()
        self.unsent = bytearray()
        self.stuck = False
        self.sock: socket.socket | None = None
        self.reading_paused = self.closing = self.eof = self.aborted = False
        self._told_to_pause = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof, "written after write_eof"
        assert not self.closing, "written after close"
        if self.stuck:
            self.unsent += data
            if len(self.unsent) > HIGH_WATER and not self._told_to_pause:
                self._told_to_pause = True
                self.protocol.pause_writing()
        else:
            self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def unstick(self) -> None:
        """The client reads again, everything."""
        self.stuck = False
        self.written += self.unsent
        self.unsent.clear()
        if self._told_to_pause:
            self._told_to_pause = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.unsent.clear()
        self.closing = self.aborted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.sock if name == "socket" else default


class Wire:
    """One client of an HttpConnection without sockets: `feed` it bytes, look at `replies`."""

    def __init__(
        self, app: Callable[[Exchange], None], limits: HttpLimits | None = None, server: HttpServer | None = None
    ) -> None:
        self.exchanges: list[Exchange] = []
        self._app = app
        self.server = server or HttpServer(self._record, limits or HttpLimits())
        self.connection = HttpConnection(self.server)
        self.transport = FakeTransport()
        self.transport.protocol = self.connection
        self._undelivered: deque[bytes] = deque()
        self._lost = False
        self.connection.connection_made(self.transport)

    def _record(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._app(exchange)

    def feed(self, *pieces: bytes) -> "Wire":
        """Deliver these reads, later ones only once the server reads again."""
        self._undelivered.extend(pieces)
        self.deliver()
        return self

    def deliver(self) -> None:
        while self._undelivered and not self.transport.reading_paused and not self.transport.closing:
            self.connection.data_received(self._undelivered.popleft())
        if self.transport.closing and not self.transport.unsent:
            self.lose()

    def lose(self) -> None:
        """The connection is gone."""
        if not self._lost:
            self._lost = True
            self.transport.closing = True
            self.connection.connection_lost(None)

    def age(self, seconds: float) -> "Wire":
        """Let time pass."""
        self.connection.age(seconds)
        self.deliver()
        return self

    @property
    def lost(self) -> bool:
        return self._lost

    @property
    def ended(self) -> bool:
        """The server has said that it sends nothing more."""
        return self.transport.closing or self.transport.eof

    @property
    def replies(self) -> list[Reply]:
        return parse_replies(bytes(self.transport.written), heads=[e.method == b"HEAD" for e in self.exchanges])

    def take(self) -> list[Reply]:
        """The replies since the last call, on a connection without HEAD requests."""
        replies = parse_replies(bytes(self.transport.written))
        self.transport.written.clear()
        return replies


class Answers:
    """An application that answers at once, with what it was asked, or keeps exchanges for the test to answer."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.seen: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        self.seen.append(exchange)
        if self.at_once:
            self.answer(exchange)

    @staticmethod
    def answer(exchange: Exchange, body: bytes | None = None) -> None:
        text = b"%b %b %d" % (exchange.method, exchange.target, len(exchange.body))
        exchange.reply(200, b"text/plain", text if body is None else body)


# Real sockets


class Client:
    """A real connection that reads replies one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Reply:
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            body = b"" if head.startswith(b"HTTP/1.1 100") else await self.reader.readexactly(length)
        return parse_replies(head + body)[0]

    async def rest(self) -> bytes:
        """Everything until the server ends the connection."""
        async with asyncio.timeout(10):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


class Running:
    """A server on a free port of this machine, and its clients."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server, self.port = server, port
        self._clients: list[Client] = []

    async def connect(self, limit: int = 1 << 16) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=limit))
        self._clients.append(client)
        return client

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the loop run until something holds; what it is, no event tells."""
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def close_clients(self) -> None:
        for client in self._clients:
            await client.close()


@asynccontextmanager
async def running(app: Callable[[Exchange], None], limits: HttpLimits | None = None) -> AsyncIterator[Running]:
    """Serves in this event loop; at the end cuts whatever is left and checks that no connection leaked."""
    server = HttpServer(app, limits or HttpLimits())
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener)
    run = Running(server, listener.getsockname()[1])
    try:
        yield run
    finally:
        await run.close_clients()
        if not server.draining:
            await server.drain(0.5)
        await run.until(lambda: not server.connections)
