"""An HTTP/1.1 client for few, large exchanges with one server: a bounded pool of kept connections, no task per request.

Called by http_channel.py for batches and checks, and by the Python client. Not aware of: models, what the bodies hold.
"""

import asyncio
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import unquote

import httptools
from msgspec import Struct

from dlproxy.instance.remote.channel import VARIANT
from dlproxy.instance.remote.failures import UpstreamError, refusal
from dlproxy.message import FailureKind
from dlproxy.policy.hops import LOAD

MAX_OVERHEAD = 64 * 1024  # bytes of a reply's head, chunk framing and trailers
TOO_LONG = "the upstream's answer is longer than it says"
MOST_UNREAD = 256 * 1024  # bytes of a body that is read as it comes; with more the server is held back
_VARIANT, _LOAD = VARIANT.encode(), LOAD.encode()
_SILENCE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 15_000}
CHUNK_OVERHEAD = 16  # and so many more for each byte of body: one-byte chunks need five

Part = bytes | bytearray | memoryview


class Incoming:
    """A body that is read as it comes. Who leaves before its end closes it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport: asyncio.Transport | None = transport  # None: the body has ended, the connection is another's
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._error: UpstreamError | None = None
        self._reader: asyncio.Future[None] | None = None

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._unread += len(piece)
        if self._unread > MOST_UNREAD and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def end(self, error: UpstreamError | None) -> None:
        """Nothing more comes."""
        self._transport, self._error = None, error
        self._wake()

    async def piece(self, *, timeout_s: float) -> bytes | None:
        """What comes next; None at the end. Raises UpstreamError."""
        if not self._pieces and self._transport is not None:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._reader
            except TimeoutError:
                self.close()
                raise _silent(timeout_s) from None
        if self._pieces:
            piece = self._pieces.popleft()
            self._unread -= len(piece)
            if self._transport is not None and self._unread <= MOST_UNREAD:
                self._transport.resume_reading()
            return piece
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """The rest is not wanted: the connection is closed, if it still brings this."""
        if self._transport is not None:
            self._transport.abort()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class Reply(Struct):
    """An answer. Header names are in lower case; of a repeated one the last counts. `rest`: a body that is read as it comes."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes | bytearray
    rest: Incoming | None = None

    def refusal(self) -> UpstreamError | None:
        """What another status than 200 says."""
        return None if self.status == 200 else refusal(self.status, self.body, self.headers.get(b"retry-after"))

    @property
    def variant(self) -> str:
        """The model that answered in place of the one asked for; empty if none did."""
        return unquote(self.headers.get(_VARIANT, b"").decode("latin-1"))

    @property
    def load(self) -> str:
        """What a node says of itself."""
        return self.headers.get(_LOAD, b"").decode("latin-1")


Outcome = Reply | UpstreamError


class Server(Struct, frozen=True):
    """Whom to connect to. `tls`: None for plain text. `path`: of a Unix socket, instead of host and port. `name`: whose the
    certificate must be, where that is not the host.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    path: str = ""
    name: str = ""

    @property
    def secured(self) -> dict[str, Any]:
        """As asyncio takes it."""
        return {"ssl": self.tls, "server_hostname": self.name or self.host} if self.tls is not None else {}


class _Call(Struct, eq=False):
    parts: Sequence[Part]
    done: Callable[[Outcome], None]
    timer: asyncio.TimerHandle
    in_parts: bool = False
    rest: Incoming | None = None
    connection: "_Connection | None" = None
    ended: bool = False
    tried_again: bool = False


class HttpClient:
    """At most `connections` at a time; a call beyond them waits. `on_dropped`: an idle connection was closed by the server."""

    def __init__(
        self,
        server: Server,
        *,
        connections: int,
        connect_timeout_s: float,
        max_reply_bytes: int,
        on_dropped: Callable[[], None] | None = None,
    ) -> None:
        self._server = server
        self.most = connections
        self._connect_timeout_s = connect_timeout_s
        self.max_reply_bytes = max_reply_bytes
        self._on_dropped = on_dropped
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._connecting: dict[asyncio.Task[None], _Call] = {}
        self._waiting: deque[_Call] = deque()
        self._closed = False

    @property
    def connections(self) -> int:
        """Open or being opened."""
        return len(self._open) + len(self._connecting)

    def call(
        self, parts: Sequence[Part], done: Callable[[Outcome], None], *, timeout_s: float, in_parts: bool = False
    ) -> _Call:
        """Send one request. `done` is called once, never before this returns, within `timeout_s` from now.

        `in_parts`: an answer with status 200 is given as soon as its head is there, with its body as `rest`.
        """
        loop = asyncio.get_running_loop()
        call: _Call
        timer = loop.call_later(timeout_s, lambda: self._timed_out(call, timeout_s))
        call = _Call(parts, done, timer, in_parts)
        if self._closed:
            loop.call_soon(_end, call, UpstreamError("the connection to the upstream is closed", FailureKind.UNAVAILABLE))
        else:
            self._place(call)
        return call

    async def fetch(self, parts: Sequence[Part], *, timeout_s: float, in_parts: bool = False) -> Reply:
        """The same, awaited; cancelling gives the call up. Raises UpstreamError."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        done: Callable[[Outcome], None] = lambda outcome: None if future.done() else future.set_result(outcome)  # noqa: E731
        call = self.call(parts, done, timeout_s=timeout_s, in_parts=in_parts)
        try:
            outcome = await future
        except asyncio.CancelledError:
            self._give_up(call)
            raise
        if isinstance(outcome, UpstreamError):
            raise outcome
        return outcome

    async def close(self) -> None:
        """End every connection; calls under way fail."""
        self._closed = True
        connecting = self._connecting.copy()
        for task in connecting:
            task.cancel()
        for connection in list(self._open):
            connection.abort("the connection to the upstream was closed here")
        await asyncio.gather(*connecting, return_exceptions=True)
        self._connecting.clear()  # a task that was cancelled before its first step has not even left the list
        for call in (*connecting.values(), *self._waiting):
            _end(call, UpstreamError("the connection to the upstream was closed here", FailureKind.UNAVAILABLE))
        self._waiting.clear()
        await asyncio.sleep(0)  # transports close on the loop's next turn

    # What connections say

    def opened(self, connection: "_Connection") -> None:
        """It is up."""
        self._open.add(connection)
        if self._closed:
            connection.abort("")

    def free(self, connection: "_Connection") -> None:
        """It can take a call."""
        while self._waiting:
            call = self._waiting.popleft()
            if not call.ended:
                connection.start(call)
                return
        self._idle.append(connection)

    def lost(self, connection: "_Connection", *, idle: bool) -> None:
        """It is gone. Called once for each that was opened."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._closed:
            return
        if self._waiting and self.connections < self.most:
            self._connect(self._waiting.popleft())
        if idle and self._on_dropped is not None:
            self._on_dropped()

    def again(self, call: _Call) -> None:
        """Its kept connection had been closed by the server before a byte of a reply: once more, on a fresh one."""
        call.tried_again = True
        call.connection = None
        if self.connections < self.most:
            self._connect(call)
        else:
            self._waiting.appendleft(call)

    # Inside

    def _place(self, call: _Call) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.start(call)
                return
        if self.connections < self.most:
            self._connect(call)
        else:
            self._waiting.append(call)

    def _connect(self, call: _Call) -> None:
        task = asyncio.get_running_loop().create_task(self._connected(call))
        self._connecting[task] = call

    async def _connected(self, call: _Call) -> None:
        loop, server = asyncio.get_running_loop(), self._server
        error: UpstreamError | None = None
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if server.path:
                    _, connection = await loop.create_unix_connection(lambda: _Connection(self), server.path)
                else:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self), server.host, server.port, **server.secured
                    )
        except OSError as problem:
            error = unconnected(problem, self._connect_timeout_s)
        finally:
            self._connecting.pop(cast("asyncio.Task[None]", asyncio.current_task()), None)
        if error is not None:
            _end(call, error)
            while self._waiting and not self.connections:  # nobody else will free a place for them
                _end(self._waiting.popleft(), error)
        elif connection is not None and connection.usable:
            if call.ended:
                self.free(connection)
            else:
                connection.start(call)
        elif not call.ended:
            _end(call, _gone("the upstream closed the connection at once"))

    def _timed_out(self, call: _Call, timeout_s: float) -> None:
        error = _silent(timeout_s)
        if call in self._waiting:
            error = UpstreamError(f"no connection of {self.most} came free within {timeout_s:g} s", FailureKind.UNAVAILABLE)
        _end(call, error)
        self._give_up(call)

    def _give_up(self, call: _Call) -> None:
        """Nobody waits for its answer any more."""
        call.ended = True
        call.timer.cancel()
        if call in self._waiting:
            self._waiting.remove(call)
        if call.connection is not None and call.connection.carries(call):
            call.connection.abort("")  # its answer may yet come, and must not be taken for the next call's


def _end(call: _Call, outcome: Outcome) -> None:
    if not call.ended:
        call.ended = True
        call.timer.cancel()
        if call.rest is None:
            call.done(outcome)
        else:
            call.rest.end(outcome if isinstance(outcome, UpstreamError) else None)


def unconnected(problem: OSError, timeout_s: float) -> UpstreamError:
    """Why there is no connection."""
    if isinstance(problem, TimeoutError):
        return _gone(f"no connection to the upstream within {timeout_s:g} s")
    if isinstance(problem, ssl.SSLError):
        return _gone(f"no TLS connection to the upstream: {getattr(problem, 'verify_message', '') or problem}")
    words = os.strerror(problem.errno) if problem.errno and problem.errno > 0 else str(problem)
    return _gone(f"no connection to the upstream: {words.lower()}")


def _gone(message: str) -> UpstreamError:
    return UpstreamError(message, FailureKind.UNAVAILABLE, gone=True)


def _silent(timeout_s: float) -> UpstreamError:
    return UpstreamError(f"no answer from the upstream within {timeout_s:g} s", FailureKind.UNAVAILABLE)


def notice_silence(connection: Any) -> None:
    """A peer that vanishes without a word is taken for dead after some 15 s, not after a quarter of an hour or never."""
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _SILENCE.items():
            if number := getattr(socket, option, None):  # not every system has all of them
                connection.setsockopt(socket.IPPROTO_TCP, number, value)


class _Connection(asyncio.Protocol):
    """One connection, one call at a time."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._call: _Call | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._used = False
        self.usable = False
        self._reset()

    def _reset(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._body: bytes | bytearray = b""
        self._received = self._body_bytes = 0
        self._complete = self._in_body = self._until_close = self._more = self._keep = False

    def start(self, call: _Call) -> None:
        """Send it."""
        self._call, call.connection = call, self
        self._transport.writelines(call.parts)

    def carries(self, call: _Call) -> bool:
        return self._call is call

    def abort(self, why: str) -> None:
        """Close at once; the call that is under way, if any, fails because of `why`."""
        self.usable = False
        call, self._call = self._call, None
        self._transport.abort()
        if call is not None and not call.ended:
            _end(call, UpstreamError(why, FailureKind.UNAVAILABLE))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        notice_silence(transport.get_extra_info("socket"))
        self.usable = True
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._call is None:  # such as a 408 before the server closes an idle connection
            self.usable = False
            self._transport.abort()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("the upstream wants to change the protocol")
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _UnwantedError):
                self._refuse(f"the upstream's answer cannot be used: {error.__context__}")
            else:
                self._refuse(TOO_LONG if self._complete else f"the upstream's answer is not HTTP: {error}")
        else:
            if self._more:
                self._refuse(TOO_LONG)
            elif self._complete:
                self._finish()
            elif self._received > MAX_OVERHEAD + (1 + CHUNK_OVERHEAD) * self._body_bytes:
                self._refuse(f"the upstream's answer has more than {MAX_OVERHEAD} bytes of header or framing")

    def connection_lost(self, exc: Exception | None) -> None:
        call, idle = self._call, self._call is None and self.usable
        self.usable = False
        self._parser = None  # they hold each other
        self._call = None
        again = call is not None and not call.ended and self._used and not self._received and not call.tried_again
        self._client.lost(self, idle=idle)
        if call is None or call.ended:
            return
        if self._until_close and exc is None:
            _end(call, Reply(self._status, self._headers, self._body))
        elif again:
            self._client.again(call)
        else:
            where = "in the middle of its answer" if self._received else "instead of an answer"
            _end(call, UpstreamError(f"the upstream closed the connection {where}", FailureKind.UNAVAILABLE))

    # What llhttp finds

    def on_message_begin(self) -> None:
        if self._complete:
            self._more = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # trailers say nothing that matters here
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        headers = self._headers
        if self._status < 200:  # 100 Continue and the like: the answer is yet to come
            return
        self._in_body = True
        length = headers.get(b"content-length")
        self._until_close = length is None and b"transfer-encoding" not in headers
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding.strip().lower() not in (b"identity", b""):
            raise _UnwantedError(f"it is encoded as {encoding.decode('latin-1')!r}, which was not asked for")
        call = self._call
        if call is not None and call.in_parts and self._status == 200:
            call.timer.cancel()
            call.rest = Incoming(self._transport)
            call.done(Reply(self._status, headers, b"", call.rest))
            return
        limit = self._client.max_reply_bytes
        if length is not None and int(length) > limit:
            raise _UnwantedError(f"it has {int(length)} bytes, at most {limit} are accepted")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._call is not None and self._call.rest is not None:
            self._call.rest.feed(body)
            return
        if not self._body:
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body
        if len(self._body) > self._client.max_reply_bytes:
            raise _UnwantedError(f"it has more than {self._client.max_reply_bytes} bytes")

    def on_message_complete(self) -> None:
        if self._status < 200:
            self._headers = {}
        else:
            self._complete = True
            self._keep = bool(self._parser.should_keep_alive()) and not self._until_close

    # Ends

    def _finish(self) -> None:
        call, self._call = cast(_Call, self._call), None
        reply = Reply(self._status, self._headers, self._body)
        if call.rest is not None:
            self._transport.resume_reading()  # for the next call
        keep = self._keep and not self._transport.get_write_buffer_size()  # else half of the call is still to be sent
        self._reset()
        self._used = True
        if keep:
            self._client.free(self)
        else:
            self.usable = False
            self._transport.abort()
        _end(call, reply)

    def _refuse(self, message: str) -> None:
        call, self._call = cast(_Call, self._call), None
        self.usable = False
        self._transport.abort()
        _end(call, UpstreamError(message, FailureKind.UNAVAILABLE))


class _UnwantedError(Exception):
    """Raised inside a parser callback: the answer breaks a limit."""
