"""A connection to Redis, or a server of its protocol, that comes back by itself; what a turn of the loop asks leaves together.

Held by shared.py. Written for look-ups that have 2 ms: an answer is handed over where it arrives, without tasks and futures.
Not aware of: models, answers, how long anybody waits.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from random import Random
from secrets import token_bytes

from msgspec import Struct

from dlproxy.config.redis_address import RedisAddress

SEED_KEY = b"dlproxy:cache:1:seed"  # what the digests of all nodes are seeded with
SEED_BYTES = 8
PATIENCE_S = 2.0  # with a connection, and with an answer before the connection is taken to be dead
REFRESH_S = 5.0  # the seed is looked at, and put back where it was lost
AGAIN_S = (0.1, 5.0)  # after a lost connection, doubled up to the second
MOST_COMMANDS = 10_000  # under way
MOST_BYTES = 32 << 20  # of them
MOST_REPLY = 16 << 20
LOG_EVERY_S = 60.0  # a connection that comes and goes

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


class _Wire(asyncio.Protocol):
    """A connection: commands in, replies to whoever asked, in their order."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()
        self.waiting: deque[tuple[Then, int]] = deque()
        self.bytes = 0  # of commands without an answer
        self._parser = Parser()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclass

    def ask(self, data: bytes, *thens: Then) -> None:
        """`data`: a command for each of `thens`."""
        if self.lost.done():
            for then in thens:
                _tell(then, LOST)
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
            _tell(then, reply)

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
            _tell(then, LOST)


class RedisLink:
    """`on_seed` is told the nodes' seed when it is known, and when it is another. Nothing here raises or blocks.

    `seed`: what this node would use if it were alone; the first one to come says it for all.
    """

    def __init__(self, address: RedisAddress, seed: int, on_seed: Callable[[int], None]) -> None:
        self.seed = seed
        self.agreed = False
        """Whether the seed has ever been agreed on."""
        self.dropped = 0  # commands that were not sent: too many were under way
        self.connected = 0  # times
        self.trouble = ""
        self._address = address
        self._on_seed = on_seed
        self._wire: _Wire | None = None  # None: nothing can be asked
        self._random = Random(token_bytes(8))
        self._told_at = float("-inf")
        self._task = asyncio.get_running_loop().create_task(self._stay(), name="dlproxy-cache-redis")

    @property
    def up(self) -> bool:
        """Connected, and the seed is known."""
        return self._wire is not None and not self._wire.lost.done()

    def ask(self, data: bytes, *thens: Then) -> bool:
        """Send a command for each of `thens`, which get their replies, or LOST; False if that is not possible now."""
        wire = self._wire
        if wire is None or wire.lost.done():
            return False
        if len(wire.waiting) >= MOST_COMMANDS or wire.bytes + len(data) > MOST_BYTES:
            self.dropped += 1
            return False
        wire.ask(data, *thens)
        return True

    def state(self) -> dict[str, str | bool | int]:
        """JSON."""
        return {"address": self._address.shown, "connected": self.up, "trouble": self.trouble, "dropped": self.dropped}

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    # The connection

    async def _stay(self) -> None:
        again_s, most_s = AGAIN_S
        while True:
            wire: _Wire | None = None
            try:
                async with asyncio.timeout(PATIENCE_S):
                    wire = await self._connected()
                    await self._hello(wire)
                again_s = AGAIN_S[0]
                self._came(wire)
                await self._watch(wire)
            except TimeoutError:
                self._left("it does not answer")
            except (OSError, ValueError) as error:
                self._left(str(error) or type(error).__name__)
            finally:
                self._wire = None
                if wire is not None:
                    wire.close("closed")
            await asyncio.sleep(again_s * self._random.uniform(0.5, 1.0))
            again_s = min(2 * again_s, most_s)

    async def _connected(self) -> _Wire:
        address = self._address
        context = ssl.create_default_context() if address.tls else None
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(_Wire, address.host, address.port, ssl=context)
        return wire

    async def _hello(self, wire: _Wire) -> None:
        """Raises ValueError if we are not let in."""
        address = self._address
        if address.password:
            user = [address.user.encode()] if address.user else []
            await _asked(wire, b"AUTH", *user, address.password.encode())
        if address.db:
            await _asked(wire, b"SELECT", b"%d" % address.db)
        await self._agree(wire)

    async def _watch(self, wire: _Wire) -> None:
        """Returns never; raises ValueError when the connection is lost."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    raise ValueError(await asyncio.shield(wire.lost))
            async with asyncio.timeout(PATIENCE_S):
                await self._agree(wire)

    async def _agree(self, wire: _Wire) -> None:
        """On the seed: the one that is there, or ours."""
        ours = self.seed.to_bytes(SEED_BYTES, "little")
        with suppress(ValueError):  # a replica takes none, but may have one
            await _asked(wire, b"SET", SEED_KEY, ours, b"NX")
        try:
            found = await _asked(wire, b"GETRANGE", SEED_KEY, b"0", b"%d" % SEED_BYTES)
        except ValueError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            found = b""
        if not isinstance(found, bytes) or len(found) != SEED_BYTES:  # somebody else's: nobody can use it
            await _asked(wire, b"SET", SEED_KEY, ours)
            found = ours
        seed = int.from_bytes(found, "little")
        if seed != self.seed or not self.agreed:
            self.seed, self.agreed = seed, True
            self._on_seed(seed)

    def _came(self, wire: _Wire) -> None:
        self.connected += 1
        self._wire = wire
        if self.trouble or self.connected == 1:
            log.info("remembered answers are shared at %s", self._address.shown)
        self.trouble = ""

    def _left(self, why: str) -> None:
        now = asyncio.get_running_loop().time()
        if why != self.trouble and now - self._told_at > LOG_EVERY_S:
            self._told_at = now
            log.warning("%s cannot be used: %s; each node remembers answers for itself meanwhile", self._address.shown, why)
        self.trouble = why


async def _asked(wire: _Wire, *parts: bytes) -> Reply:
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


def _tell(then: Then, reply: Reply) -> None:
    try:
        then(reply)
    except Exception:  # of one asker: the others must hear
        log.exception("an answer of Redis could not be handed over")
