"""A connection to Redis, or a server of its protocol, that comes back by itself; what a turn of the loop asks leaves together.

Held by shared.py. Written for look-ups that have 2 ms: an answer is handed over where it arrives, without tasks and futures.
Not aware of: models, answers, how long anybody waits.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from random import Random
from secrets import token_bytes

from dlproxy.config.redis_address import RedisAddress
from dlproxy.fleet.redis_wire import Then, Wire, asked, connected

SEED_KEY = b"dlproxy:cache:1:seed"  # what the digests of all nodes are seeded with
SEED_BYTES = 8
PATIENCE_S = 2.0  # with a connection, and with an answer before the connection is taken to be dead
REFRESH_S = 5.0  # the seed is looked at, and put back where it was lost
AGAIN_S = (0.1, 5.0)  # after a lost connection, doubled up to the second
MOST_COMMANDS = 10_000  # under way
MOST_BYTES = 32 << 20  # of them
LOG_EVERY_S = 60.0  # a connection that comes and goes

log = logging.getLogger(__name__)


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
        self._wire: Wire | None = None  # None: nothing can be asked
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
            wire: Wire | None = None
            try:
                async with asyncio.timeout(PATIENCE_S):
                    wire = await connected(self._address)
                    await self._agree(wire)
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

    async def _watch(self, wire: Wire) -> None:
        """Returns never; raises ValueError when the connection is lost."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    raise ValueError(await asyncio.shield(wire.lost))
            async with asyncio.timeout(PATIENCE_S):
                await self._agree(wire)

    async def _agree(self, wire: Wire) -> None:
        """On the seed: the one that is there, or ours."""
        ours = self.seed.to_bytes(SEED_BYTES, "little")
        with suppress(ValueError):  # a replica takes none, but may have one
            await asked(wire, b"SET", SEED_KEY, ours, b"NX")
        try:
            found = await asked(wire, b"GETRANGE", SEED_KEY, b"0", b"%d" % SEED_BYTES)
        except ValueError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            found = b""
        if not isinstance(found, bytes) or len(found) != SEED_BYTES:  # somebody else's: nobody can use it
            await asked(wire, b"SET", SEED_KEY, ours)
            found = ours
        seed = int.from_bytes(found, "little")
        if seed != self.seed or not self.agreed:
            self.seed, self.agreed = seed, True
            self._on_seed(seed)

    def _came(self, wire: Wire) -> None:
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
