"""One HTTP request and the place for its reply: what applications see of a connection.

Made by http/connection.py. Not aware of: sockets, routes.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import msgspec

from dlproxy.message import Failure, FailureKind, Principal, Request, Ticket, encodable
from dlproxy.policy.why import Phase
from dlproxy.wire import trace
from dlproxy.wire.audit import REFUSALS
from dlproxy.wire.trace import REQUEST_ID, TRACE_PARENT

if TYPE_CHECKING:
    from dlproxy.wire.http.connection import HttpConnection

log = logging.getLogger(__name__)

ONE_PIECE = 64 * 1024  # replies up to this size are sent in one piece with their head
MAX_ERROR = 2000  # characters of an error message
CLOSE = b"connection: close\r\n"
ACCEPT_ENCODING = b"accept-encoding"
CHALLENGE = b"www-authenticate: Bearer\r\n"  # a 401 has to name a way (RFC 9110, section 11.6.1)

REASONS = {
    200: b"200 OK",
    400: b"400 Bad Request",
    401: b"401 Unauthorized",
    403: b"403 Forbidden",
    404: b"404 Not Found",
    405: b"405 Method Not Allowed",
    408: b"408 Request Timeout",
    413: b"413 Content Too Large",
    414: b"414 URI Too Long",
    415: b"415 Unsupported Media Type",
    417: b"417 Expectation Failed",
    429: b"429 Too Many Requests",
    431: b"431 Request Header Fields Too Large",
    500: b"500 Internal Server Error",
    501: b"501 Not Implemented",
    503: b"503 Service Unavailable",
    504: b"504 Gateway Timeout",
    505: b"505 HTTP Version Not Supported",
    508: b"508 Loop Detected",
}
STATUS = {
    FailureKind.INVALID_ARGUMENT: 400,
    FailureKind.UNAUTHENTICATED: 401,
    FailureKind.FORBIDDEN: 403,
    FailureKind.NOT_FOUND: 404,
    FailureKind.TOO_LARGE: 413,
    FailureKind.QUOTA: 429,
    FailureKind.MODEL_FAILED: 500,
    FailureKind.UNSUPPORTED: 501,
    FailureKind.QUEUE_FULL: 503,
    FailureKind.OVERLOADED: 503,
    FailureKind.DEADLINE: 503,
    FailureKind.UNAVAILABLE: 503,
    FailureKind.CANCELLED: 503,
    FailureKind.LATE: 504,
    FailureKind.LOOP: 508,
}


class Exchange:
    """One request and the place for its reply, which is given exactly once, now or later."""

    __slots__ = (
        *("body", "connection", "connection_line", "headers", "method"),
        *("on_abandoned", "principal", "reply_parts", "target", "ticket", "waited"),
    )

    def __init__(
        self,
        connection: "HttpConnection",
        method: bytes,
        target: bytes,
        headers: dict[bytes, bytes],
        body: bytes,
        connection_line: bytes,
        principal: Principal,
    ) -> None:
        self.connection = connection
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.connection_line = connection_line
        self.principal = principal
        self.reply_parts: tuple[bytes | memoryview, ...] | None = None
        self.on_abandoned: Callable[[], object] | None = None
        """Called if the client leaves before the reply."""
        self.ticket: Ticket | None = None
        """Of the request that it makes to a model, if it is one."""
        self.waited: dict[Phase, float] | None = None
        """What it has waited for until it made that, in seconds; None for most."""

    def asks(self, request: Request) -> None:
        """What it makes of a model. What it waited for before is noted."""
        self.ticket = request.ticket
        if self.waited is not None:
            self.connection.server.journal.note(request.ticket.id, self.waited)

    def reply(
        self,
        status: int,
        content_type: bytes,
        body: bytes,
        extra: bytes = b"",
        rest: Sequence[bytes | memoryview] = (),
        *,
        encoded: bool = False,
    ) -> None:
        """Send the reply or, behind slower requests of the connection, queue it. `extra`: whole header lines.

        `rest`: more of the body, too large to be copied. `encoded`: it is as the client shall get it.
        """
        connection, headers = self.connection, self.headers
        server = connection.server
        size = len(body) + sum(map(len, rest)) if rest else len(body)
        compression = server.compression
        if compression is not None and not encoded and (size > compression.above or ACCEPT_ENCODING in headers):
            wish = compression.wish(headers.get(ACCEPT_ENCODING, b""))
            if size > compression.above or (wish.must and size):
                self.on_abandoned = None  # from now on it is answered
                compression.encode(wish, (body, *rest), size, partial(self._reply_encoded, status, content_type, extra))
                return
        if server.cors is not None:
            extra += server.cors.lines(headers)
        if REQUEST_ID in headers or TRACE_PARENT in headers:
            extra += trace.echo(headers)
        if server.draining and connection.is_last(self):
            self.connection_line = CLOSE
        head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%b%b%bcontent-length: %d\r\n\r\n" % (
            REASONS[status],
            content_type,
            server.date_line,
            extra,
            self.connection_line,
            size,
        )
        if self.method == b"HEAD":
            self.reply_parts = (head,)
        elif rest:
            self.reply_parts = (head, body, *rest)
        elif len(body) <= ONE_PIECE:
            self.reply_parts = (head + body,)
        else:
            self.reply_parts = (head, body)
        try:
            connection.send_ready()
        except Exception:
            log.exception(
                "%s %s: the reply could not be sent, so the connection is closed",
                self.method,
                self.target,
                extra=trace.named(self.headers),
            )
            connection.abort()

    def _reply_encoded(
        self, status: int, content_type: bytes, extra: bytes, lines: bytes, pieces: Sequence[bytes | memoryview]
    ) -> None:
        body, *rest = pieces
        Exchange.reply(self, status, content_type, bytes(body), extra + lines, rest, encoded=True)

    def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> "ReplyStream":
        """Begin a reply whose end is not known yet: chunked, or for HTTP/1.0 as long as the connection lasts."""
        connection, server = self.connection, self.connection.server
        if server.cors is not None:
            extra += server.cors.lines(self.headers)
        if REQUEST_ID in self.headers or TRACE_PARENT in self.headers:
            extra += trace.echo(self.headers)
        chunked = connection.takes_chunks(self)
        if not chunked or (server.draining and connection.is_last(self)):
            self.connection_line = CLOSE
        head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%b%b%b%b\r\n" % (
            REASONS[status],
            content_type,
            server.date_line,
            extra,
            self.connection_line,
            b"transfer-encoding: chunked\r\n" if chunked else b"",
        )
        stream = ReplyStream(self, head, chunked=chunked)
        connection.begin(self, stream)
        return stream

    def fail(self, status: int, message: str, extra: bytes = b"") -> None:
        """Reply with the JSON error that every route uses."""
        if len(message) > MAX_ERROR:  # what a message quotes is the client's and may be megabytes long
            message = f"{message[:MAX_ERROR]}…"
        if log.isEnabledFor(logging.DEBUG):
            shown = self.target.decode("latin-1")
            log.debug("%s %s is answered %d: %s", self.method.decode(), shown, status, message, extra=trace.named(self.headers))
        self.reply(status, b"application/json", msgspec.json.encode({"error": encodable(message)}), extra)

    def refuse(self, failure: Failure) -> None:
        """Reply that the request failed, and why."""
        self.note(failure)
        try:
            self.fail(*in_http(failure))
        except Exception:
            self.give_up()

    def note(self, failure: Failure) -> None:
        """For the audit log, of a refusal that belongs there."""
        if failure.kind in REFUSALS:
            connection = self.connection
            connection.server.audit.refusal(failure, connection.address, what_of(self.method, self.target), self.principal)

    def give_up(self) -> None:
        """Answer, from within an exception's handler, that it was a defect of the server; close the connection if that fails.

        So a request ends whatever happens to it. One that was answered already is left alone.
        """
        log.exception("%s %s failed", self.method, self.target, extra=trace.named(self.headers))
        if self.connection.has_begun(self):
            self.connection.break_off(self)
        elif self.reply_parts is None:
            try:
                self.fail(500, "internal error; the server's log has the details")
            except Exception:
                what = "%s %s: the failure could not be reported, so the connection is closed"
                log.exception(what, self.method, self.target, extra=trace.named(self.headers))
                self.connection.abort()


class ReplyStream:
    """A reply that is written bit by bit, and what of it waits for its turn behind slower requests of the connection.

    `on_writable`: called when writing makes sense again after `writable` was false: the client has read, or its turn has come.
    Whoever goes on writing meanwhile fills memory. If the client leaves, the exchange's `on_abandoned` is called.
    """

    __slots__ = ("_chunked", "_exchange", "_held", "on_writable")

    def __init__(self, exchange: Exchange, head: bytes, *, chunked: bool) -> None:
        self._exchange = exchange
        self._chunked = chunked
        self._held: list[bytes | memoryview] = [head]
        self.on_writable: Callable[[], None] | None = None

    @property
    def writable(self) -> bool:
        return self._exchange.connection.may_write(self._exchange)

    def write(self, data: bytes | memoryview) -> None:
        """Once the client has gone, or after the end, it does nothing."""
        if len(data) and self._exchange.method != b"HEAD":  # an empty chunk would be the end
            self._held += (b"%x\r\n" % len(data), data, b"\r\n") if self._chunked else (data,)
        self._exchange.connection.send_begun(self._exchange)

    def end(self) -> None:
        """All has been written."""
        connection, exchange = self._exchange.connection, self._exchange
        if connection.has_begun(exchange):
            if self._chunked and exchange.method != b"HEAD":
                self._held.append(b"0\r\n\r\n")
            exchange.reply_parts = self.take()
            connection.end_begun(exchange)

    def break_off(self) -> None:
        """It cannot be completed: the connection is closed, in a way that the client does not take for the end."""
        self._exchange.connection.break_off(self._exchange)

    def take(self) -> tuple[bytes | memoryview, ...]:
        """What is held back, to be sent now."""
        held, self._held = self._held, []
        return tuple(held)


def what_of(method: bytes, target: bytes) -> str:
    """For the audit log; a query may hold anything."""
    return f"{method.decode('latin-1')} {target.partition(b'?')[0].decode('latin-1')}"


def in_http(failure: Failure) -> tuple[int, str, bytes]:
    """Status, message and further header lines: where trying again helps, a Retry-After in whole seconds (at least 1)."""
    extra = b"" if failure.retry_after_s is None else b"retry-after: %d\r\n" % max(1, ceil(failure.retry_after_s))
    if failure.kind is FailureKind.UNAUTHENTICATED:
        extra += CHALLENGE
    return STATUS[failure.kind], failure.message, extra
