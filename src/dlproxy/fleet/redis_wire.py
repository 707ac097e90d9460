"""Redis's protocol, as much of it as is asked here: commands to bytes, bytes to replies, and a connection that carries both.

Used by registry.py and serve/caching, for what cannot wait for a client with tasks and futures, or has to do without an extra.
Not aware of: what is kept there, when a connection comes back.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from dlproxy.config.redis_address import RedisAddress

MOST_REPLY = 16 << 20

log = logging.getLogger(__name__)


class Refusal(Struct, frozen=True):
    """An error that Redis gave in place of an answer; empty if the connection was lost before it came."""

    text: str = ""


Reply = bytes | int | Refusal | None | list["Reply"]
Then = Callable[[Reply], None]
LOST = Refusal()


def command(*parts: bytes) -> bytes:
    """As it crosses the wire."""
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class Parser:
    """RESP2: bytes in any pieces to replies. What is none raises ValueError."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = 0  # bytes without which no more can be told

    def feed(self, data: bytes) -> list[Reply]:
        self._buffer += data
        if len(self._buffer) < self._need:
            return []
        data, at, replies = bytes(self._buffer), 0, []
        while at < len(data):
            found = self._one(data, at, 0)
            if found is None:
                break
            reply, at = found
            replies.append(reply)
        else:
            self._need = 0
        self._need -= at
        del self._buffer[:at]
        return replies

    def _one(self, data: bytes, at: int, depth: int) -> tuple[Reply, int] | None:
        end = data.find(b"\r\n", at)
        if end < 0:
            if len(data) - at > 4096:
                raise ValueError("a line without an end")
            self._need = len(data) + 1
            return None
        kind, rest, begin = data[at], data[at + 1 : end], end + 2
        if kind == 36:  # $
            size = int(rest)
            if size < 0:
                return None, begin
            if size > MOST_REPLY:
                raise ValueError(f"an answer of {size} bytes")
            if len(data) < begin + size + 2:
                self._need = begin + size + 2
                return None
            return data[begin : begin + size], begin + size + 2
        if kind == 43:  # +
            return rest, begin
        if kind == 58:  # :
            return int(rest), begin
        if kind == 45:  # -
            return Refusal(rest.decode("utf-8", "replace")), begin
        if kind == 42 and depth < 4:  # *
            return self._several(data, begin, int(rest), depth)
        raise ValueError(f"an answer that begins with {bytes((kind,))!r}")

    def _several(self, data: bytes, at: int, count: int, depth: int) -> tuple[Reply, int] | None:
        replies: list[Reply] = []
        for _ in range(count):
            found = self._one(data, at, depth + 1) if at < len(data) else None
            if found is None:
                self._need = max(self._need, len(data) + 1)
                return None
            reply, at = found
            replies.append(reply)
        return (replies if count >= 0 else None), at


class Wire(asyncio.Protocol):
    """A connection: commands in, replies to whoever asked, in their order."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()
        self.sockname: tuple[Any, ...] = ()
        self.waiting: deque[tuple[Then, int]] = deque()
        self.bytes = 0  # of commands without an answer
        self._parser = Parser()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclass
        self.sockname = transport.get_extra_info("sockname")

    def ask(self, data: bytes, *thens: Then) -> None:
        """`data`: a command for each of `thens`."""
        if self.lost.done():
            for then in thens:
                tell(then, LOST)
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(data)
        size = len(data)
        self.bytes += size
        for then in thens:
            self.waiting.append((then, size))
            size = 0

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        try:
            replies = self._parser.feed(data)
        except ValueError as error:
            self.close(f"it is no Redis, or out of step: {error}")
            return
        for reply in replies:
            if not self.waiting:
                self.close("it answers what was not asked")
                return
            then, size = self.waiting.popleft()
            self.bytes -= size
            tell(then, reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection was lost{'' if exc is None else f': {exc}'}")

    def close(self, why: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end(why)

    def _end(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)
        waiting, self.waiting = self.waiting, deque()
        self.bytes = 0
        for then, _ in waiting:
            tell(then, LOST)


async def connected(address: RedisAddress) -> Wire:
    """Let in, and at the right database. Raises OSError, and ValueError if we are not let in."""
    context = ssl.create_default_context() if address.tls else None
    _, wire = await asyncio.get_running_loop().create_connection(Wire, address.host, address.port, ssl=context)
    try:
        if address.password:
            user = [address.user.encode()] if address.user else []
            await asked(wire, b"AUTH", *user, address.password.encode())
        if address.db:
            await asked(wire, b"SELECT", b"%d" % address.db)
    except BaseException:
        wire.close("not let in")
        raise
    return wire


async def asked(wire: Wire, *parts: bytes) -> Reply:
    """Raises ValueError for a refusal."""
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def then(reply: Reply) -> None:
        if not answer.done():
            answer.set_result(reply)

    wire.ask(command(*parts), then)
    reply = await answer
    if isinstance(reply, Refusal):
        raise ValueError(reply.text or "the connection was lost")
    return reply


def tell(then: Then, reply: Reply) -> None:
    try:
        then(reply)
    except Exception:  # of one asker: the others must hear
        log.exception("an answer of Redis could not be handed over")
