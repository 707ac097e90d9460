"""One gRPC client without sockets: it is fed bytes, and what is written to it is parsed strictly, by hyperframe and hpack."""

import hpack
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame, WindowUpdateFrame

from dlproxy.config import HttpLimits
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.connection import GrpcConnection
from dlproxy.wire.grpc.frames import DATA, END_HEADERS, END_STREAM, HEADERS, frame, header_block, number
from dlproxy.wire.grpc.server import GrpcServer, Methods
from tests.wire.fixtures import FakeTransport

from .fixtures import ECHO

FIELDS = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": ECHO,
    b":authority": b"test",
    b"content-type": b"application/grpc",
    b"te": b"trailers",
}
GREETING = frames.PREFACE + frames.settings({})
OPEN = END_HEADERS


def message(data: bytes = b"", *, compressed: int = 0) -> bytes:
    """With its prefix."""
    return bytes((compressed,)) + number(len(data)) + data


def block(path: bytes = ECHO, *more: tuple[bytes, bytes], without: bytes = b"", **other: bytes) -> bytes:
    """A request's header block. `other`: values in place of the usual ones, "method" for ":method"."""
    fields = FIELDS | {b":path": path} | {b":" + name.encode(): value for name, value in other.items()}
    return header_block([*((name, value) for name, value in fields.items() if name != without), *more])


def headers(stream: int, path: bytes = ECHO, *more: tuple[bytes, bytes], flags: int = OPEN, **other: bytes) -> bytes:
    return frame(HEADERS, flags, stream, block(path, *more, **other))


def data(stream: int, payload: bytes, *, ends: bool = False) -> bytes:
    return frame(DATA, END_STREAM if ends else 0, stream, payload)


def unary(stream: int, payload: bytes = b"hello", path: bytes = ECHO) -> bytes:
    """A whole call."""
    return headers(stream, path) + data(stream, message(payload), ends=True)


class Answer:
    """What came of one stream: fields of its header blocks, data, and how it ended."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.data = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.fields["grpc-status"])

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], self.data
        while rest:
            size = 5 + int.from_bytes(rest[1:5], "big")
            assert len(rest) >= size, "the last message is incomplete"
            found.append(rest[5:size])
            rest = rest[size:]
        return found


class GrpcWire:
    """One client of a GrpcConnection without sockets. Unless told otherwise it has greeted the server already."""

    def __init__(
        self,
        methods: Methods,
        limits: HttpLimits | None = None,
        *,
        greeting: bytes = GREETING,
        server: GrpcServer | None = None,
    ) -> None:
        self.server = server or GrpcServer(methods, limits or HttpLimits())
        self.connection = GrpcConnection(self.server)
        self.transport = FakeTransport()
        self.transport.protocol = self.connection  # type: ignore[assignment]
        self._decoder = hpack.Decoder()
        self.frames: list[Frame] = []
        self.answers: dict[int, Answer] = {}
        self._undelivered: list[bytes] = []
        self.lost = False
        self.connection.connection_made(self.transport)
        self.feed(greeting)

    def feed(self, *pieces: bytes) -> "GrpcWire":
        """Deliver these reads, later ones only once the server reads again."""
        self._undelivered.extend(pieces)
        self.deliver()
        return self

    def deliver(self) -> None:
        while self._undelivered and not self.transport.reading_paused and not self.transport.closing:
            self.connection.data_received(self._undelivered.pop(0))
        self._parse()

    def age(self, seconds: float) -> "GrpcWire":
        """Let time pass."""
        self.connection.age(seconds)
        self.deliver()
        return self

    def lose(self) -> None:
        """The connection is gone."""
        if not self.lost:
            self.lost = True
            self.transport.closing = True
            self.connection.connection_lost(None)

    def _parse(self) -> None:
        written = memoryview(bytes(self.transport.written))
        while len(written) >= 9:
            found, length = Frame.parse_frame_header(written[:9], strict=True)
            assert len(written) >= 9 + length, "the server stopped within a frame"
            found.parse_body(written[9 : 9 + length])
            written = written[9 + length :]
            self.frames.append(found)
            self._note(found)
        assert not written
        self.transport.written.clear()

    def _note(self, found: Frame) -> None:
        if not found.stream_id or isinstance(found, WindowUpdateFrame):
            return
        answer = self.answers.setdefault(found.stream_id, Answer())
        if isinstance(found, RstStreamFrame):
            answer.reset = found.error_code
            return
        assert not answer.ended, f"{found} after the end of the stream"
        assert answer.reset is None, f"{found} after the reset of the stream"
        if isinstance(found, HeadersFrame):
            answer.fields |= dict(self._decoder.decode(found.data))
        elif isinstance(found, DataFrame):
            answer.data += found.data
        answer.ended = "END_STREAM" in found.flags

    @property
    def goaway(self) -> GoAwayFrame | None:
        """The last one."""
        return next((found for found in reversed(self.frames) if isinstance(found, GoAwayFrame)), None)

    @property
    def outcome(self) -> str:
        """How the connection ended, else how its streams were reset, for tables of cases."""
        if self.goaway is not None:
            return f"GOAWAY {frames.ErrorCode(self.goaway.error_code).name}"
        resets = [f"{stream} {frames.ErrorCode(a.reset).name}" for stream, a in self.answers.items() if a.reset is not None]
        return f"RST {', '.join(resets)}" if resets else "open"

    def windows(self, stream: int) -> int:
        """What the server has given back of this stream, or of the connection."""
        given = [found.window_increment for found in self.frames if isinstance(found, WindowUpdateFrame)]
        ids = [found.stream_id for found in self.frames if isinstance(found, WindowUpdateFrame)]
        return sum(size for size, its in zip(given, ids, strict=True) if its == stream)
