"""One keep-alive connection of the load generator: sends prebuilt requests, one under way at a time, and judges the answers.

Plain non-blocking sockets: as quick as uvloop here, and a request has really left when `send` returns. An answer whose head
looks like the last one's is recognised by its length; llhttp takes all others. Called by generator.py. Not aware of: load.
"""

import errno
import os
import socket
import ssl
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from time import monotonic
from typing import Any, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from msgspec import Struct

READ_BYTES = 1 << 16
MAX_TEXT_BYTES = 500  # of a body that is kept
CLOSED = "connection closed by the server"
CUT_SHORT = "connection closed by the server in the middle of an answer"
NOT_HTTP = "not HTTP"
_OK = b"HTTP/1.1 200 "
_VARIANT = b"x-dlproxy-variant: "
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_STARTING = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR)


class Owner(Protocol):
    """Who is told how requests end. Each is told once, by one of the first three."""

    def answered(self, connection: "Connection", now: float) -> None:
        """Status 200 and a whole body. The connection may be used again if it is `usable`. Its `variant` says which model
        answered in place of the one asked for, as in a path; empty if none did. `body`: the first bytes of the answer's.
        """

    def refused(self, connection: "Connection", kind: str, text: str, now: float) -> None:
        """A whole answer of another status, with the start of its body. As above."""

    def failed(self, connection: "Connection", kind: str, now: float) -> None:
        """No answer can come any more; the connection has gone."""

    def dropped(self, connection: "Connection") -> None:
        """The connection has gone while no request was under way."""


class Tls(Struct, frozen=True):
    """How to connect, and whose certificate the server must show."""

    context: ssl.SSLContext
    name: str


class LastHead:
    """What to look for in an answer's head: its Content-Length line was this, so its body has this many bytes."""

    __slots__ = ("body_bytes", "line")

    def __init__(self) -> None:
        self.line = b"\0"  # occurs in no head
        self.body_bytes = 0


class Connection:
    """Connecting when made; raises OSError if the system gives no socket. `due_at`: since when the request counts."""

    __slots__ = (
        *("body", "busy", "due_at", "up", "usable", "variant"),
        *("_error", "_last", "_owner", "_recv", "_reply", "_selector", "_send", "_sock", "_tls", "_unsent"),
    )

    def __init__(
        self, address: tuple[int, Any], selector: BaseSelector, owner: Owner, last: LastHead, tls: "Tls | None" = None
    ) -> None:
        self._tls = tls
        family, where = address
        self._sock = socket.socket(family, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._sock.connect_ex(where)
        self._error = 0 if code in _STARTING else code
        self._recv, self._send = self._sock.recv, self._sock.send
        self._selector, self._owner, self._last = selector, owner, last
        self._unsent: bytes | memoryview = b""
        self._reply: _Reply | None = None
        self.due_at = 0.0
        self.body = self.variant = b""
        self.busy = self.up = False
        self.usable = True
        selector.register(self._sock, EVENT_WRITE, self._connected)

    def send(self, request: bytes, due_at: float) -> None:
        """Send a request; one that finds the connection still connecting leaves when it is up."""
        self.due_at = due_at
        self.busy = True
        if not self.up:
            self._unsent = request
            return
        try:
            sent = self._send(request)
        except NOT_NOW:
            sent = 0
        except OSError as error:
            self._fail(_words(error), monotonic())
            return
        if sent < len(request):
            self._unsent = memoryview(request)[sent:]
            self._selector.modify(self._sock, EVENT_READ | EVENT_WRITE, self._writable)

    def close(self) -> None:
        """Close it without telling the owner."""
        self.usable = self.busy = False
        if self._reply is not None:
            self._reply.release()
            self._reply = None
        if self._sock.fileno() >= 0:
            self._selector.unregister(self._sock)
            self._sock.close()

    def _connected(self, mask: int) -> None:
        code = self._error or self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(_words(OSError(code, os.strerror(code))), monotonic())
            return
        if self._tls is None:
            self._begin()
            return
        self._selector.unregister(self._sock)
        self._sock = sock = self._tls.context.wrap_socket(
            self._sock, server_hostname=self._tls.name, do_handshake_on_connect=False
        )
        self._recv, self._send = sock.recv, sock.send
        self._selector.register(sock, EVENT_READ, self._shake_hands)
        self._shake_hands(0)

    def _shake_hands(self, mask: int) -> None:
        try:
            cast(ssl.SSLSocket, self._sock).do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(self._sock, EVENT_READ, self._shake_hands)
        except ssl.SSLWantWriteError:
            self._selector.modify(self._sock, EVENT_WRITE, self._shake_hands)
        except OSError as error:
            self._fail(_words(error), monotonic())
        else:
            self._begin()

    def _begin(self) -> None:
        self.up = True
        self._selector.modify(self._sock, EVENT_READ, self._readable)
        if self.busy:
            request, self._unsent = self._unsent, b""
            self.send(bytes(request), self.due_at)

    def _writable(self, mask: int) -> None:
        if mask & EVENT_WRITE and self._unsent:
            try:
                self._unsent = self._unsent[self._send(self._unsent) :]
            except NOT_NOW:
                pass
            except OSError as error:
                self._fail(_words(error), monotonic())
                return
        if not self._unsent:
            self._selector.modify(self._sock, EVENT_READ, self._readable)
        if mask & EVENT_READ:
            self._readable(mask)

    def _readable(self, mask: int) -> None:
        try:
            data = self._recv(READ_BYTES)
        except NOT_NOW:
            return
        except OSError as error:
            self._fail(_words(error), monotonic())
            return
        now = monotonic()
        last, body_at = self._last, data.find(b"\r\n\r\n") + 4
        if (
            len(data) == body_at + last.body_bytes
            and data.startswith(_OK)
            and data.find(last.line, 0, body_at) > 0
            and data.find(b": close\r\n", 0, body_at) < 0
            and self.busy
            and self._reply is None
            and not self._unsent
        ):
            self.busy = False
            at = data.find(_VARIANT, 0, body_at)
            self.variant = data[at + len(_VARIANT) : data.index(b"\r", at)] if at > 0 else b""
            self.body = data[body_at : body_at + MAX_TEXT_BYTES]
            self._owner.answered(self, now)
        elif not data:
            self._ended(now)
        else:
            self._feed(data, now)

    def _feed(self, data: bytes, now: float) -> None:
        """An answer that is in several pieces, or unlike the one before."""
        if not self.busy:  # such as a 408 before the server closes an idle connection
            self._fail(NOT_HTTP, now)
            return
        reply = self._reply
        if reply is None:
            reply = self._reply = _Reply()
        try:
            reply.parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._fail(NOT_HTTP, now)
            return
        if reply.messages > 1:
            self._fail(NOT_HTTP, now)
        elif reply.messages:
            self._finish(reply, now, keep=reply.keep)
            self._remember(reply, data)

    def _ended(self, now: float) -> None:
        """The server has closed its side: that ends a body of unknown length, and is an error in the middle of all else."""
        reply = self._reply
        if reply is not None and reply.until_close:
            self._finish(reply, now, keep=False)
        else:
            self._fail(CLOSED if reply is None else CUT_SHORT, now)

    def _finish(self, reply: "_Reply", now: float, *, keep: bool) -> None:
        status, text, self.variant = reply.status, reply.text, reply.variant
        self.body = text
        reply.release()
        self._reply = None
        self.busy = False
        if not keep or self._unsent:  # an answer to half a request: the other half must not be taken for the next
            self.close()
        if status == 200:
            self._owner.answered(self, now)
        else:
            self._owner.refused(self, f"{status} {reply.reason}".strip(), text.decode("utf-8", errors="replace"), now)

    def _remember(self, reply: "_Reply", data: bytes) -> None:
        """Look for the same Content-Length in the answers to come, if this one came as heads usually do."""
        line = b"\r\n%b\r\n" % reply.length_line
        if reply.status == 200 and reply.keep and reply.length_line and data.find(line) > 0:
            self._last.line, self._last.body_bytes = line, reply.body_bytes

    def _fail(self, kind: str, now: float) -> None:
        was_busy = self.busy
        self.close()
        if was_busy:
            self._owner.failed(self, kind, now)
        else:
            self._owner.dropped(self)


class _Reply:
    """What llhttp finds in one answer. Interim answers (100 Continue) are passed over."""

    def __init__(self) -> None:
        self.parser: Any = HttpResponseParser(self)
        self.messages = 0
        self.keep = self.until_close = False
        self.status = self.body_bytes = 0
        self.reason = ""
        self.text = self.length_line = self.variant = b""
        self._framed = False

    def release(self) -> None:
        """Break the cycle with the parser."""
        self.parser = None

    def on_message_begin(self) -> None:
        self.reason, self.text, self.length_line, self.body_bytes = "", b"", b"", 0
        self._framed = False

    def on_status(self, reason: bytes) -> None:
        self.reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-length":
            self._framed = True
            self.length_line = name + b": " + value
        elif lower == b"transfer-encoding":
            self._framed = True
        elif lower == b"x-dlproxy-variant":
            self.variant = value

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self.until_close = not self._framed and self.status >= 200

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        if len(self.text) < MAX_TEXT_BYTES:
            self.text += body[: MAX_TEXT_BYTES - len(self.text)]

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.messages += 1
            self.keep = self.parser.should_keep_alive()


def _words(error: OSError) -> str:
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return CLOSED
    return (error.strerror or str(error)).lower()
