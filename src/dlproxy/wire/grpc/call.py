"""One gRPC call and the place for its answers: what services see of a connection.

Made by connection.py. Not aware of: frames, windows, which services there are.
"""

import logging
import zlib
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from dlproxy.message import Failure, FailureKind, InferenceError, Principal, encodable
from dlproxy.wire.grpc.frames import header_block

if TYPE_CHECKING:
    from dlproxy.wire.grpc.connection import GrpcConnection

log = logging.getLogger(__name__)

MAX_ERROR = 1000  # characters of an error message: it travels in a header
PREFIX = 5  # bytes before each message: whether it is compressed, and its size

Piece = bytes | bytearray | memoryview


class Status(IntEnum):
    """Codes of gRPC, those that this server answers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


STATUS = {
    FailureKind.INVALID_ARGUMENT: Status.INVALID_ARGUMENT,
    FailureKind.UNAUTHENTICATED: Status.UNAUTHENTICATED,
    FailureKind.FORBIDDEN: Status.PERMISSION_DENIED,
    FailureKind.NOT_FOUND: Status.NOT_FOUND,
    FailureKind.TOO_LARGE: Status.RESOURCE_EXHAUSTED,
    FailureKind.QUOTA: Status.RESOURCE_EXHAUSTED,
    FailureKind.MODEL_FAILED: Status.INTERNAL,
    FailureKind.UNSUPPORTED: Status.UNIMPLEMENTED,
    FailureKind.QUEUE_FULL: Status.UNAVAILABLE,
    FailureKind.OVERLOADED: Status.UNAVAILABLE,
    FailureKind.DEADLINE: Status.UNAVAILABLE,
    FailureKind.UNAVAILABLE: Status.UNAVAILABLE,
    FailureKind.CANCELLED: Status.CANCELLED,
    FailureKind.LATE: Status.DEADLINE_EXCEEDED,
}

BEGIN = header_block([(b":status", b"200"), (b"content-type", b"application/grpc")])
END_OK = header_block([(b"grpc-status", b"0")])


class Call:
    """One call, which is ended exactly once, now or later. Of a unary one, the service sees it when its message is there.

    A service that takes streams sets the callbacks when it gets the call. `on_message`: for each message. `on_half_closed`: the
    client sends no more. `on_abandoned`: the client has left, or its deadline has passed. `on_writable`: sending makes sense
    again after `writable` was false; whoever goes on meanwhile fills memory.

    A service that answers later than it takes messages bounds those under way by `pause` and `resume`.
    """

    __slots__ = (
        *("connection", "headers", "id", "on_abandoned", "on_half_closed", "on_message", "on_writable", "path", "principal"),
        *("begun", "ended", "half_closed", "held", "method", "pieces", "received", "taken", "trailers"),
        *("delivering", "paused", "undelivered", "waited_s", "whole", "window"),
    )

    def __init__(
        self,
        connection: "GrpcConnection",
        stream: int,
        path: bytes,
        headers: dict[bytes, bytes],
        principal: Principal,
        window: int,
    ) -> None:
        self.connection = connection
        self.id = stream
        self.path = path
        self.headers = headers
        self.principal = principal
        self.on_message: Callable[[bytes], None] | None = None
        self.on_half_closed: Callable[[], None] | None = None
        self.on_abandoned: Callable[[], object] | None = None
        self.on_writable: Callable[[], None] | None = None
        # The rest is the connection's
        self.method: Callable[[Call, bytes], None] | None = None  # of a unary call
        self.pieces: list[bytes | bytearray] = []  # of a message that is not complete
        self.received = 0  # bytes of these
        self.whole: bytes | None = None  # the message of a unary call
        self.taken = 0  # bytes of data for which the client has got no new window
        self.window = window  # bytes that the client takes now
        self.held: list[memoryview] = []  # of answers, for which there is no window yet
        self.trailers: bytes | None = None  # to be sent after them
        self.begun = False  # the headers of the answer are sent
        self.half_closed = False  # by the client
        self.ended = False
        self.waited_s = 0.0  # since the last step forward of what comes in or goes out
        self.paused = False  # by the service
        self.delivering = False
        self.undelivered: list[bytes] = []  # messages of a streaming call

    def pause(self) -> None:
        """Of a streaming call: no message nor half-close comes until `resume`, also not of those that have arrived."""
        self.paused = True

    def resume(self) -> None:
        """May be called from `on_message` and when nothing is paused."""
        self.paused = False
        self.connection.go_on(self)

    def reply(self, *message: Piece) -> None:
        """The one answer of a unary call, in pieces; then its end."""
        self.connection.send(self, message, END_OK)

    def send(self, *message: Piece) -> None:
        """One of the messages that a stream answers. Once the client has gone, it does nothing."""
        self.connection.send(self, message, None)

    def end(self, status: Status = Status.OK, message: str = "", extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """`extra`: further trailers."""
        if status is Status.OK and not extra:
            self.connection.end(self, END_OK)
            return
        if len(message) > MAX_ERROR:  # what it quotes is the client's and may be megabytes long
            message = f"{message[:MAX_ERROR]}…"
        log.debug("%s ends with %s: %s", self.path.decode("latin-1"), status.name, message)
        fields = [(b"grpc-status", b"%d" % status), *([(b"grpc-message", percent_encoded(message))] if message else []), *extra]
        self.connection.end(self, header_block(fields))

    def refuse(self, failure: Failure) -> None:
        """End: it failed, and why; where trying again helps, when."""
        try:
            self.end(*in_grpc(failure))
        except Exception:
            self.give_up()

    def give_up(self) -> None:
        """End, from within an exception's handler: it was a defect of the server. One that has ended is left alone."""
        log.exception("%s failed", self.path.decode("latin-1"))
        if not self.ended:
            try:
                self.end(Status.INTERNAL, "internal error; the server's log has the details")
            except Exception:
                log.exception("the failure could not be reported, so the connection is closed")
                self.connection.abort()

    @property
    def writable(self) -> bool:
        """All that was sent has left, and the client takes more."""
        return not self.held and self.window > 0 and self.connection.writable


def in_grpc(failure: Failure) -> tuple[Status, str, tuple[tuple[bytes, bytes], ...]]:
    """Status, message, further trailers: what gRPC calls pushback says when trying again may help."""
    after = failure.retry_after_s
    extra = () if after is None else ((b"grpc-retry-pushback-ms", b"%d" % max(1, round(after * 1e3))),)
    return STATUS[failure.kind], failure.message, extra


def percent_encoded(message: str) -> bytes:
    """As gRPC wants status messages: printable ASCII, the rest of its UTF-8 as %XX."""
    data = encodable(message).encode()
    if message.isascii() and message.isprintable() and b"%" not in data:
        return data
    return b"".join([b"%c" % byte if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in data])


def message_size(prefix: Piece, most: int) -> int:
    """Of the message after this prefix. Raises InferenceError TOO_LARGE."""
    size = int.from_bytes(prefix[1:PREFIX], "big")
    if size > most:
        failure = Failure(FailureKind.TOO_LARGE, f"the message is {size} bytes; at most {most} are accepted")
        raise InferenceError(failure)
    return size


def decompressed(message: Piece, encoding: bytes, most: int) -> bytes:
    """Raises InferenceError: UNSUPPORTED for an encoding that is not known, TOO_LARGE, INVALID_ARGUMENT."""
    if encoding not in (b"gzip", b"deflate"):
        text = f"grpc-encoding {encoding.decode('latin-1')!r} is not supported; use gzip, deflate or identity"
        raise InferenceError(Failure(FailureKind.UNSUPPORTED, text))
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: tell gzip and zlib apart by their headers
    try:
        plain = inflater.decompress(message, most + 1)
    except zlib.error as error:
        raise InferenceError(
            Failure(FailureKind.INVALID_ARGUMENT, f"the message is not valid {encoding.decode()}: {error}")
        ) from None
    if len(plain) > most:
        failure = Failure(FailureKind.TOO_LARGE, f"the decompressed message is too large; at most {most} bytes are accepted")
        raise InferenceError(failure)
    if not inflater.eof:
        raise InferenceError(Failure(FailureKind.INVALID_ARGUMENT, f"the {encoding.decode()} message is truncated"))
    return plain
