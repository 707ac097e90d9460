"""One client's connection: an asyncio.Protocol over llhttp (httptools), no task per request.

Requests are answered in order (pipelining), whoever finishes first. llhttp refuses what smuggling needs (both lengths,
duplicate or malformed lengths, bare CR or LF); what it leaves unbounded is bounded here.
Made by http/server.py; hands each complete request to its `app`. Not aware of: models, routes.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools
from msgspec import Struct

from dlproxy.message import ANONYMOUS, InferenceError, Principal, Ticket
from dlproxy.wire.http.exchange import CLOSE, Exchange, ReplyStream, in_http, what_of
from dlproxy.wire.listening import DRAIN_GRACE_S, address_of, has_unread, peer_of

if TYPE_CHECKING:
    from dlproxy.wire.http.server import HttpServer

LINGER_S = 2.0  # after a refusal, how long to swallow what the client still sends, so that a reset cannot eat the reply
MAX_CHUNK_OVERHEAD = 512 * 1024  # bytes of chunk framing or trailers without any body in between
MAX_TARGET = 8 * 1024
AT_ONCE_S = 0.1  # after which a transport says no more that what was written then is too much
SMALL_PIECE = 1024  # bytes; smaller pieces of a body are gathered: as objects of their own they could take 20 times that

IDLE, HEADERS, BODY, REFUSED = range(4)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NO_TUNNEL = b"allow: GET, HEAD, POST\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"  # HTTP/1.0 wants it said; HTTP/1.1 takes it for granted


class Seen(Struct):
    """The last request of a connection that came whole in one read. A client that sends tensors of one shape sends the
    same header every time; llhttp, at the start of a message, would find the same in the same bytes, so it is not asked.
    """

    head: bytes
    length: int
    method: bytes
    target: bytes
    headers: dict[bytes, bytes]

    @staticmethod
    def of(exchange: Exchange, data: bytes) -> "Seen | None":
        """None unless `data` is this one request with a plain Content-Length, after which the connection goes on."""
        body, headers = exchange.body, exchange.headers
        head = data[: len(data) - len(body)]
        plain = b"content-length" in headers and not {b"connection", b"upgrade", b"expect"} & headers.keys()
        if not plain or exchange.connection_line or not body or head.find(b"\r\n\r\n") != len(head) - 4:
            return None
        return Seen(head, len(data), exchange.method, exchange.target, headers)


class _RefusedError(Exception):
    """Raised inside a parser callback: the request breaks a limit and the connection ends after this reply."""

    def __init__(self, status: int, message: str, extra: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.extra = extra


class HttpConnection(asyncio.Protocol):
    """One client. `age` is called by the server's sweep; `waited_s` counts the time since the last step forward."""

    __slots__ = (  # noqa: RUF023  in the order of use: with hundreds of clients each cache line counts
        "server",
        "_seen",
        "_phase",
        "_waited_s",
        "_pipeline",
        "_write_paused",
        "_unseen",
        "_limits",
        "_transport",
        "_app",
        "_identify",
        "_peer",
        "_headers",
        "_parser",
        "_received",
        "_whole",
        "_starting",
        "_small_header",
        "_target",
        "_repeats",
        "_offered",
        "_principal",
        "_body",
        "_body_bytes",
        "_silent_bytes",
        "_began_now",
        "_began_at",
        "_large",
        "_begun",
        "__weakref__",
    )

    def __init__(self, server: "HttpServer") -> None:
        self.server = server
        self._limits = server.limits
        self._small_header = min(MAX_TARGET, server.limits.max_header_bytes)  # a read this short breaks no limit
        self._app = server.app
        self._identify = server.identify
        self._parser = httptools.HttpRequestParser(self)
        self._pipeline: deque[Exchange] = deque()  # in order of arrival; replies leave from the left
        self._unseen = 0  # so many at the pipeline's end the app has not seen yet
        self._began_at = 0.0  # the message that comes in, if that takes more than one read
        self._large: tuple[int, float] | None = None  # the request whose large reply was written last, and when
        self._begun: dict[Exchange, ReplyStream] = {}  # replies that are written bit by bit
        self._write_paused = False
        self._starting = False
        self._phase = IDLE
        self._waited_s = 0.0
        self._received = 0  # bytes in the read that is being parsed
        self._seen: Seen | None = None
        self._whole: Exchange | None = None  # the request that the read which is being parsed completed last
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._repeats = 0  # header fields whose name came before
        self._offered = False  # to change the protocol: llhttp takes the header for all of the message
        self._principal = ANONYMOUS
        self._body: list[Any] = []  # bytes, and bytearrays of what came in small pieces
        self._body_bytes = 0
        self._silent_bytes = 0  # since the header or the last piece of body began, not counting the read it began in
        self._began_now = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self.server.connection_made(self, transport):
            self._transport.abort()
            return
        if self._identify is not None:
            self._peer = peer_of(transport)
        if len(self.server.connections) > self._limits.max_connections:
            self._refuse(503, f"connection limit ({self._limits.max_connections}) reached", b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = REFUSED
        self._sent()
        self.server.connection_closed(self)
        self._abandon()
        del self._parser  # refers back to this, as does what is left of a request: all would stay for the garbage collector
        self._whole = None
        self._body = []

    def _abandon(self) -> None:
        """Whatever is still under way gets no reply."""
        abandoned = [exchange for exchange in self._pipeline if exchange.reply_parts is None]
        self._begun = {}
        self._pipeline.clear()  # before anybody is told: a reply given from now on goes nowhere
        self._unseen = 0
        for exchange in abandoned:
            if exchange.on_abandoned is not None:
                exchange.on_abandoned()

    def data_received(self, data: bytes) -> None:
        seen = self._seen
        if seen is not None and self._phase == IDLE and len(data) == seen.length and data.startswith(seen.head):
            try:
                principal = ANONYMOUS if self._identify is None else self._principal_of(seen.method, seen.target, seen.headers)
            except _RefusedError as error:
                self._headers = seen.headers
                self._refuse(error.status, error.message, error.extra)
            else:
                self._take(Exchange(self, seen.method, seen.target, seen.headers, data[len(seen.head) :], b"", principal))
            return
        if self._phase == REFUSED:
            return
        self._received = len(data)
        fresh = self._phase == IDLE
        stopped_at = None
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                stopped_at = offer.args[0]
            if stopped_at is not None:  # not in the handler: what the parser raises next would have that as its context
                self._decline(memoryview(data)[stopped_at:])
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, _RefusedError):
                raise
            self._refuse(error.__context__.status, error.__context__.message, error.__context__.extra)
        except httptools.HttpParserError as error:
            if self._parser.get_method() == b"PRI":  # the preface of a client that takes HTTP/2 for granted
                self._refuse(505, "HTTP/2 is not supported; use HTTP/1.1 (curl: without --http2-prior-knowledge)")
            else:
                self._refuse(400, f"malformed HTTP: {error}")
        else:
            if self._phase != IDLE:
                self._bound_incomplete()
            elif fresh and self._whole is not None:
                self._seen = self.server.remember(Seen.of(self._whole, data))
            self._whole = None  # an idle connection keeps no body

    def _decline(self, rest: memoryview) -> None:
        """Go on in HTTP/1.1 after an offer to change the protocol, at which llhttp has stopped.

        A server may ignore the offer (RFC 9110 section 7.8), but not the body: a fresh parser reads the header without it, and
        then the `rest` of what has come, in which there may be further offers.
        """
        offered = True
        while offered:
            fields = b"".join([b"%b: %b\r\n" % field for field in self._headers.items() if field[0] != b"upgrade"])
            version = self._parser.get_http_version().encode()
            head = b"%b %b HTTP/%b\r\n%b\r\n" % (self._parser.get_method(), self._target, version, fields)
            self._reset()
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(head)
            try:
                self._parser.feed_data(rest)
                offered = False
            except httptools.HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]

    def pause_writing(self) -> None:
        self._write_paused = True
        self._waited_s = 0.0
        if self._large is not None:
            if self.server.journal.clock() - self._large[1] < AT_ONCE_S:
                self.server.journal.sending(self._large[0])
            else:  # it is smaller ones, later, that are not read
                self._large = None
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._sent()
        self._write_paused = False
        self._waited_s = 0.0
        self._start_unseen()
        self._may_go_on()

    def _sent(self) -> None:
        """What was held back of the last large reply has left, or nobody reads it any more."""
        large, self._large = self._large, None
        if large is not None and self._write_paused:
            journal = self.server.journal
            journal.sent(large[0], journal.clock() - large[1])

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._phase = HEADERS
        self._waited_s = 0.0
        self._began_now = True

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase == BODY:  # a trailer: nothing here needs one
            return
        headers = self._headers
        name = name.lower()
        if name not in headers:
            headers[name] = value
        else:
            headers[name] += b", " + value
            self._repeats += 1
            if self._repeats > self._limits.max_headers:  # joining is quadratic, so this cannot wait for the end
                raise _RefusedError(431, f"too many header fields; at most {self._limits.max_headers} are accepted")

    def on_headers_complete(self) -> None:
        headers, limits = self._headers, self._limits
        if len(headers) + self._repeats > limits.max_headers:
            fields = len(headers) + self._repeats
            raise _RefusedError(431, f"{fields} header fields; at most {limits.max_headers} are accepted")
        if self._received > self._small_header or not self._began_now:
            self._bound_header()
        if self._parser.should_upgrade():
            if self._parser.get_method() == b"CONNECT":
                raise _RefusedError(405, "CONNECT is not supported: this server does not forward to other hosts", NO_TUNNEL)
            self._offered = True
            return
        self._phase = BODY
        self._waited_s = 0.0
        length = headers.get(b"content-length")
        if length is not None:
            if int(length) > limits.max_body_bytes:
                raise _RefusedError(413, f"the body is {int(length)} bytes; at most {limits.max_body_bytes} are accepted")
        elif headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            raise _RefusedError(501, "the only supported transfer encoding is chunked")
        if b"host" not in headers and self._parser.get_http_version() == "1.1":
            raise _RefusedError(400, "an HTTP/1.1 request needs a Host header")
        if self._identify is not None:
            self._principal = self._principal_of(self._parser.get_method(), self._target, headers)
        if b"expect" in headers and self._parser.get_http_version() != "1.0":
            if headers[b"expect"].lower() != b"100-continue":
                raise _RefusedError(417, "the only supported expectation is 100-continue")
            if not self._pipeline:  # else send_ready says it, after the replies that are due before
                self._transport.write(CONTINUE)

    def _principal_of(self, method: bytes, target: bytes, headers: dict[bytes, bytes]) -> Principal:
        """Asked for every request, also where its header is remembered: a credential may have expired."""
        assert self._identify is not None
        try:
            return self._identify(self._peer, method, target, headers)
        except InferenceError as error:
            self.server.audit.refusal(error.failure, self.address, what_of(method, target))
            raise _RefusedError(*in_http(error.failure)) from None

    @property
    def address(self) -> str:
        """The client's; empty on a Unix socket."""
        return address_of(self._transport)

    def on_body(self, body: bytes) -> None:
        pieces = self._body
        if not pieces or len(body) >= SMALL_PIECE:
            pieces.append(body)
        elif type(pieces[-1]) is bytearray:
            pieces[-1] += body
        else:
            pieces.append(bytearray(body))
        self._body_bytes += len(body)
        self._silent_bytes = 0
        if self._body_bytes > self._limits.max_body_bytes:
            raise _RefusedError(413, f"the body is longer than {self._limits.max_body_bytes} bytes")

    def on_message_complete(self) -> None:
        if self._offered:  # only its header is
            return
        parser, headers = self._parser, self._headers
        connection_line = b""
        if not parser.should_keep_alive():
            connection_line = CLOSE
            self._seen = None  # llhttp must see, and refuse, whatever follows
        elif b"connection" in headers and parser.get_http_version() == "1.0":
            connection_line = KEEP_ALIVE
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        exchange = Exchange(self, parser.get_method(), self._target, headers, body, connection_line, self._principal)
        if not self._began_now:
            exchange.waited = {"receive": self.server.journal.clock() - self._began_at}
        self._whole = exchange
        self._reset()
        self._take(exchange)

    def _take(self, exchange: Exchange) -> None:
        """A request is complete: hand it to the app, or keep it if the connection has enough under way."""
        self._phase = IDLE
        self._waited_s = 0.0
        self._pipeline.append(exchange)
        if self._write_paused or self._unseen or len(self._pipeline) > self._limits.max_pipelined:
            self._unseen += 1
            self._transport.pause_reading()
            return
        try:
            self._app(exchange)
        except Exception:
            exchange.give_up()

    # Replies

    def is_last(self, exchange: Exchange) -> bool:
        """No other request of this connection stands behind it."""
        return not self._pipeline or self._pipeline[-1] is exchange

    def send_ready(self) -> None:
        """Write the replies that are due, in the order of their requests."""
        pipeline, transport = self._pipeline, self._transport
        while pipeline:
            parts = pipeline[0].reply_parts
            if parts is None:
                if not self._begun:
                    break
                its_turn = self.send_begun(pipeline[0])
                if self._unseen and not self._starting:
                    self._start_unseen()
                if its_turn:
                    self._may_go_on()
                return
            exchange = pipeline.popleft()
            for part in parts:
                transport.write(part)
            if len(parts) > 1 and exchange.ticket is not None:
                self._wrote_much(exchange.ticket)
            if exchange.connection_line is CLOSE:
                self._abandon()  # while draining, a request may have come after the one that turned out to be the last
                self._close()
                return
        if self._phase == IDLE:
            self._waited_s = 0.0
        elif self._phase == BODY and not pipeline and b"expect" in self._headers:
            transport.write(CONTINUE)
        if self._unseen and not self._starting:
            self._start_unseen()

    def _wrote_much(self, ticket: Ticket) -> None:
        """The transport says then, or later in this turn of the loop, whether the client takes it as quickly."""
        journal = self.server.journal
        self._large = ticket.id, journal.clock()
        if self._write_paused:
            journal.sending(ticket.id)

    # Replies that are written bit by bit

    def takes_chunks(self, exchange: Exchange) -> bool:
        """Whether its client knows chunked replies: all but HTTP/1.0."""
        if exchange not in self._pipeline:  # its client has gone, and perhaps the parser
            return True
        return exchange.connection_line is not KEEP_ALIVE and self._parser.get_http_version() != "1.0"

    def begin(self, exchange: Exchange, stream: ReplyStream) -> None:
        if exchange in self._pipeline:
            self._begun[exchange] = stream
            self.send_begun(exchange)

    def has_begun(self, exchange: Exchange) -> bool:
        return exchange in self._begun

    def may_write(self, exchange: Exchange) -> bool:
        """It is this one's turn, and the client reads."""
        return not self._write_paused and exchange in self._begun and self._pipeline[0] is exchange

    def send_begun(self, exchange: Exchange) -> bool:
        """Send what is held back of it, if it is its turn; whether there was anything."""
        stream = self._begun.get(exchange)
        if stream is None or self._pipeline[0] is not exchange:
            return False
        parts = stream.take()
        for part in parts:
            self._transport.write(part)
        return bool(parts)

    def end_begun(self, exchange: Exchange) -> None:
        """It is complete, and from now on a reply like others."""
        del self._begun[exchange]
        self.send_ready()

    def break_off(self, exchange: Exchange) -> None:
        """Nothing more comes of a reply that has begun. Where the connection's end is the reply's, only a reset is none."""
        if exchange in self._begun:
            if exchange.connection_line is CLOSE:
                self.abort()
            else:
                self._abandon()
                self._close()

    def _may_go_on(self) -> None:
        """The reply that is due may be written to again, or for the first time."""
        stream = self._begun.get(self._pipeline[0]) if self._begun else None
        if stream is not None and stream.on_writable is not None and stream.writable:
            stream.on_writable()

    def _start_unseen(self) -> None:
        """Hand the app what had to wait, as far as there is room now; read on once nothing waits."""
        self._starting = True
        while self._unseen and not self._write_paused and self._started < self._limits.max_pipelined:
            exchange = self._pipeline[-self._unseen]
            self._unseen -= 1
            try:
                self._app(exchange)
            except Exception:
                exchange.give_up()
        self._starting = False
        if not self._unseen and not self._write_paused and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def _started(self) -> int:
        return len(self._pipeline) - self._unseen

    def _close(self) -> None:
        self._waited_s = 0.0
        if self._phase != IDLE and self._transport.can_write_eof():
            self._phase = REFUSED
            self._transport.write_eof()  # the client may still be sending: linger until it has read the reply
        else:
            self._phase = REFUSED
            self._transport.close()

    # Limits

    def _refuse(self, status: int, message: str, extra: bytes = b"") -> None:
        """Answer, after everything that came before, that nothing more is taken on this connection."""
        self._phase = REFUSED
        self._waited_s = 0.0
        if self._transport.is_closing() or (self._pipeline and self._pipeline[-1].connection_line is CLOSE):
            return
        exchange = Exchange(self, b"", b"", self._headers, b"", CLOSE, ANONYMOUS)
        self._pipeline.append(exchange)
        exchange.fail(status, message, extra)

    def _bound_header(self) -> None:
        if len(self._target) > MAX_TARGET:
            raise _RefusedError(414, f"the request target is {len(self._target)} bytes; at most {MAX_TARGET} are accepted")
        total = sum(len(name) + len(value) for name, value in self._headers.items())
        if total > self._limits.max_header_bytes:
            raise _RefusedError(431, f"the header is {total} bytes; at most {self._limits.max_header_bytes} are accepted")

    def _bound_incomplete(self) -> None:
        """llhttp buffers header fields and trailers without limit: count what came without finishing anything."""
        if self._began_now:
            self._began_now = False
            self._began_at = self.server.journal.clock()
            return
        self._silent_bytes += self._received
        if self._phase == HEADERS and self._silent_bytes > self._limits.max_header_bytes:
            self._refuse(431, f"the header is longer than {self._limits.max_header_bytes} bytes")
        elif self._silent_bytes > MAX_CHUNK_OVERHEAD:
            self._refuse(400, "too much chunk framing without content")

    def begin_grace(self) -> None:
        """The server drains: what an idle connection's client has sent may still be on its way."""
        if self._phase == IDLE and not self._pipeline:
            self._waited_s = 0.0

    def age(self, seconds: float) -> None:
        """Called by the sweep: act on what has waited too long."""
        self._waited_s += seconds
        waited_s, limits = self._waited_s, self._limits
        if self._write_paused:
            if waited_s > limits.write_timeout_s:
                self._transport.abort()
        elif self._phase == REFUSED:
            unread = self._transport.get_write_buffer_size()
            if waited_s > (limits.write_timeout_s if unread else LINGER_S) and not self._pipeline:
                self._transport.abort()
        elif self._unseen:
            self._waited_s = 0.0  # it is not the client who waits: reading is paused
        elif self._phase == HEADERS:
            if waited_s > limits.header_timeout_s:
                self._refuse(408, f"the header did not arrive within {limits.header_timeout_s:g} s")
        elif self._phase == BODY:
            if waited_s > limits.body_timeout_s + self._body_bytes / limits.min_body_bytes_per_s:
                self._refuse(408, f"only {self._body_bytes} bytes of the body arrived within {waited_s:.1f} s")
        elif not self._pipeline and waited_s > (DRAIN_GRACE_S if self.server.draining else limits.idle_timeout_s):
            self._close_idle()

    def _close_idle(self) -> None:
        """Unless a request has come since the loop last looked, as it may where a turn of the loop takes long."""
        if not has_unread(self._transport):
            self._close()

    def abort(self) -> None:
        """End the connection now, whatever is under way."""
        self._transport.abort()
