"""One answer over HTTP/1.1 that comes in parts, as server-sent events: a connection of its own, read as fast as it is asked.

Made by http_channel.py. Not aware of: models, what the events hold.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httptools

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.http_client import Part, Reply, Server, unconnected
from dlproxy.message import FailureKind

READ_BYTES = 64 * 1024
_BREAK = re.compile(rb"\r?\n\r?\n")
_DATA = re.compile(rb"^data: ?(.*?)\r?$", re.MULTILINE)


class HttpMessages:
    """The events of one answer, each as a Reply; what is no stream of events is one. A Messages.

    `begin`: makes a task of what waits for one. `on_end`: called once, when the connection is not needed any more.
    """

    def __init__(
        self,
        server: Server,
        parts: Sequence[Part],
        *,
        connect_timeout_s: float,
        timeout_s: float,
        max_reply_bytes: int,
        begin: Callable[[Coroutine[Any, Any, None]], object],
        on_end: Callable[["HttpMessages"], None],
    ) -> None:
        self._server = server
        self._parts = parts
        self._connect_timeout_s = connect_timeout_s
        self._timeout_s = timeout_s
        self._max_reply_bytes = max_reply_bytes
        self._begin = begin
        self._on_end = on_end
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._body = bytearray()  # what no event has been made of
        self._began = self._complete = self._stopped = False

    def ask(self, done: Callable[[Reply | UpstreamError | None], None]) -> None:
        self._begin(self._next(done))

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._parser = None  # they hold each other
            if self._writer is not None:
                self._writer.transport.abort()
            self._on_end(self)

    async def _next(self, done: Callable[[Reply | UpstreamError | None], None]) -> None:
        outcome: Reply | UpstreamError | None
        try:
            async with asyncio.timeout(self._timeout_s):
                outcome = None if self._stopped else await self._read()
        except TimeoutError:
            outcome = _unavailable(f"no answer from the upstream within {self._timeout_s:g} s")
        except OSError as error:
            outcome = _unavailable(f"the connection to the upstream broke: {error}")
        except httptools.HttpParserError as error:
            outcome = _unavailable(f"the upstream's answer is not HTTP: {error}")
        if self._stopped:
            outcome = None
        elif not isinstance(outcome, Reply):
            self.stop()
        done(outcome)

    async def _read(self) -> Reply | UpstreamError | None:
        if self._reader is None:
            try:
                await self._connect()
            except OSError as problem:
                return unconnected(problem, self._connect_timeout_s)
        while not self._stopped:
            event = self._event()
            if event is not None:
                return Reply(self._status, self._headers, event)
            if self._complete:
                return None
            if len(self._body) > self._max_reply_bytes:
                return _unavailable(f"the upstream's answer cannot be used: it has more than {self._max_reply_bytes} bytes")
            assert self._reader is not None
            data = await self._reader.read(READ_BYTES)
            if not data:
                where = "in the middle of its answer" if self._began else "instead of an answer"
                return _unavailable(f"the upstream closed the connection {where}")
            self._began = True
            if not self._stopped:
                self._parser.feed_data(data)
        return None

    async def _connect(self) -> None:
        async with asyncio.timeout(self._connect_timeout_s):
            server = self._server
            self._reader, self._writer = await asyncio.open_connection(
                server.host, server.port, limit=READ_BYTES, **server.secured
            )
        if self._stopped:
            self._writer.transport.abort()
        else:
            self._writer.writelines(self._parts)

    def _event(self) -> bytes | None:
        """The data of the next one that is whole; None if there is none yet."""
        if not self._headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            whole, self._body = (bytes(self._body), bytearray()) if self._complete else (b"", self._body)
            return whole or None
        while (end := _BREAK.search(self._body)) is not None:
            lines = _DATA.findall(self._body[: end.start()])
            del self._body[: end.end()]
            if lines:
                return b"\n".join(lines)
        return None

    # What llhttp finds

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._complete = self._status >= 200


def _unavailable(message: str) -> UpstreamError:
    return UpstreamError(message, FailureKind.UNAVAILABLE)
