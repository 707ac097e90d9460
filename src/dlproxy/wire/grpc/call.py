"""One gRPC call and the place for its answers: what services see of a connection.

Made by connection.py. Not aware of: frames, windows, which services there are.
"""

import logging
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, get_args
from urllib.parse import quote

from dlproxy.message import Cached, Failure, FailureKind, Principal, Request, Response, Ticket, encodable
from dlproxy.policy.hops import LOAD
from dlproxy.policy.why import Phase
from dlproxy.wire.audit import REFUSALS
from dlproxy.wire.grpc.frames import header_block
from dlproxy.wire.grpc.messages import CODINGS, Piece
from dlproxy.wire.trace import named

if TYPE_CHECKING:
    from dlproxy.wire.grpc.connection import GrpcConnection

log = logging.getLogger(__name__)

MAX_ERROR = 1000  # characters of an error message: it travels in a header
MAX_ENCODED_ERROR = 4000  # bytes of it there: clients take 8 KiB of header fields in all


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
    ABORTED = 10
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
    FailureKind.LOOP: Status.ABORTED,
}

_BEGIN = ((b":status", b"200"), (b"content-type", b"application/grpc"))
BEGIN = header_block(_BEGIN)
BEGIN_IN = {coding: header_block([*_BEGIN, (b"grpc-encoding", coding)]) for coding in CODINGS}
NOTHING: deque[memoryview] = deque(maxlen=0)  # stands for each call's own while it has none: a deque takes 700 bytes
_OK = (b"grpc-status", b"0")
_LOAD = LOAD.encode()
END_OK = header_block([_OK])
END_CACHED = {cache: header_block([_OK, (b"x-dlproxy-cache", cache.encode())]) for cache in get_args(Cached)}


class Call:
    """One call, which is ended exactly once, now or later. Of a unary one, the service sees it when its message is there.

    A service that takes streams sets the callbacks when it gets the call. `on_message`: for each message. `on_half_closed`: the
    client sends no more. `on_abandoned`: the client has left, its deadline has passed, or what it sent was refused.
    `on_writable`: sending makes sense again after `writable` was false; whoever goes on meanwhile fills memory.

    While answers are held back because the client does not read them, it gets no message, nor may the client send more than a
    window's worth. A service that answers later than it takes messages bounds those under way by `pause` and `resume`.
    """

    __slots__ = (
        *("connection", "headers", "id", "on_abandoned", "on_half_closed", "on_message", "on_writable", "path", "principal"),
        *("since", "ticket", "waited"),
        *("at", "begun", "coding", "delivering", "ended", "half_closed", "held", "held_bytes", "left", "method", "paused"),
        *("pieces", "received", "resting", "taken", "timer", "trailers", "waited_s", "window"),
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
        self.ticket: Ticket | None = None  # of the request that it makes to a model
        self.waited: dict[Phase, float] | None = None  # what it has waited for until it made that
        # The rest is the connection's
        self.since = -1.0  # the message comes in several frames, or its answer has to be held back
        self.method: Callable[[Call, bytes], None] | None = None  # of a unary call
        self.pieces: list[bytes | bytearray] = []  # received and not delivered yet
        self.at = 0  # where in the first of them what is not delivered begins
        self.received = 0  # bytes of these
        self.left = -1  # bytes of content that the header announces and that are still to come; -1: it announces none
        self.taken = 0  # bytes of data for which the client has got no new window
        self.paused = False  # by the service
        self.delivering = False
        self.resting = False  # much has been delivered at once; more comes in the event loop's next turn
        self.window = window  # bytes that the client takes now
        self.held = NOTHING  # of answers, for which there is no window yet
        self.held_bytes = 0
        self.trailers: bytes | None = None  # to be sent after them
        self.coding: bytes | None = None  # in which the client compresses, and takes answers
        self.begun = False  # the headers of the answer are sent
        self.half_closed = False  # by the client
        self.ended = False
        self.waited_s = 0.0  # since the message that comes in began, or since what goes out went on
        self.timer: TimerHandle | None = None  # for the deadline of a streaming call

    def asks(self, request: Request) -> None:
        """What a unary call makes of a model. What it waited for before is noted."""
        self.ticket = request.ticket
        if self.waited is not None:
            self.connection.journal.note(request.ticket.id, self.waited)

    def asks_again(self) -> Principal:
        """Who asks, of a further message: rights may have changed since the call began. Raises InferenceError."""
        self.principal = self.connection.principal_of(self)
        return self.principal

    def pause(self) -> None:
        """Of a streaming call: no message nor half-close comes until `resume`, also not of those that have arrived."""
        self.paused = True

    def resume(self) -> None:
        """May be called from `on_message` and when nothing is paused."""
        self.paused = False
        self.connection.go_on(self)

    def reply(self, *message: Piece, of: Response | None = None) -> None:
        """The one answer of a unary call, in pieces; then its end, which says how the response `of` a model came about."""
        end = END_OK
        if of is not None:
            if of.cache:
                end = END_CACHED[of.cache]
            if of.variant:
                end += _variant_field(of.variant)
            if of.load:
                end += header_block([(_LOAD, of.load.encode())])
        self.connection.send(self, message, end)

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
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s ends with %s: %s", self.path.decode("latin-1"), status.name, message, extra=named(self.headers))
        fields = [(b"grpc-status", b"%d" % status), *([(b"grpc-message", percent_encoded(message))] if message else []), *extra]
        self.connection.end(self, header_block(fields))

    def refuse(self, failure: Failure) -> None:
        """End: it failed, and why; where trying again helps, when."""
        self.note(failure)
        try:
            self.end(*in_grpc(failure))
        except Exception:
            self.give_up()

    def note(self, failure: Failure) -> None:
        """For the audit log, of a refusal that belongs there."""
        if failure.kind in REFUSALS:
            self.connection.refused(self, failure)

    def give_up(self) -> None:
        """End, from within an exception's handler: it was a defect of the server. One that has ended is left alone."""
        log.exception("%s failed", self.path.decode("latin-1"), extra=named(self.headers))
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


@lru_cache
def _variant_field(name: str) -> bytes:
    return header_block([(b"x-dlproxy-variant", quote(name, safe="").encode())])


def percent_encoded(message: str) -> bytes:
    """As gRPC wants status messages: printable ASCII, the rest of its UTF-8 as %XX."""
    data = encodable(message).encode()
    if message.isascii() and message.isprintable() and b"%" not in data:
        return data
    encoded = [b"%c" % byte if 0x20 <= byte < 0x7F and byte != 0x25 else b"%%%02X" % byte for byte in data]
    return b"".join(encoded[: MAX_ENCODED_ERROR // 3])
