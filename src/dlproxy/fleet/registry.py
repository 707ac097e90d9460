"""Where nodes announce themselves: groups of them in Redis, each node for as long as it says so again.

Written by serve/announcing.py, read by members.py. Times are those of Redis alone, so that no node's clock matters.
Not aware of: who is healthy.
"""

import asyncio
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.config.redis_address import RedisAddress
from dlproxy.fleet.redis_wire import Reply, Wire, asked, connected

TTL_S = 10.0  # without word from a node until it is taken to be gone; it announces itself three times as often
PATIENCE_S = 2.0
PREFIX = b"dlproxy:nodes:1:"  # of a sorted set for each group: nodes by when they are gone

# ARGV: what the node says of itself, seconds. A node that says something else of itself is another.
ANNOUNCE = b"""
local now = redis.call('TIME')
redis.call('ZADD', KEYS[1], now[1] + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now[1])
return redis.call('EXPIRE', KEYS[1], 10 * ARGV[2])
"""
LIST = b"return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. redis.call('TIME')[1], '+inf')"


class Node(Struct, frozen=True, omit_defaults=True):
    """By which addresses others reach it, such as http://10.0.0.5:8000; empty for none. Later versions may say more."""

    http: str = ""
    grpc: str = ""
    zone: str = ""


class Registry:
    """Keeps a connection while it is good. Everything raises OSError if Redis cannot be used."""

    def __init__(self, address: RedisAddress) -> None:
        self.shown = address.shown
        self._address = address
        self._wire: Wire | None = None
        self._one_at_a_time = asyncio.Lock()

    async def announce(self, group: str, node: Node) -> None:
        """For TTL_S seconds from now."""
        await self._ask(b"EVAL", ANNOUNCE, b"1", PREFIX + group.encode(), msgspec.json.encode(node), b"%d" % TTL_S)

    async def withdraw(self, group: str, node: Node) -> None:
        """At once."""
        await self._ask(b"ZREM", PREFIX + group.encode(), msgspec.json.encode(node))

    async def nodes(self, group: str) -> list[Node]:
        """In no particular order. What is no node's is left out."""
        said = await self._ask(b"EVAL", LIST, b"1", PREFIX + group.encode())
        return [node for one in said if (node := _node(one)) is not None] if isinstance(said, list) else []

    async def own_host(self) -> str:
        """The address of this machine by which it reaches Redis."""
        async with self._one_at_a_time:
            wire = await self._connection()
        return str(wire.sockname[0])

    async def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close("closed")
            await asyncio.sleep(0)  # transports close on the loop's next turn

    async def _ask(self, *parts: bytes) -> Reply:
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    return await asked(await self._connection(), *parts)
            except (OSError, ValueError) as error:  # TimeoutError is one
                await self.close()
                raise OSError(f"{self.shown} cannot be used: {reason(error)}") from None
            except asyncio.CancelledError:
                await self.close()
                raise

    async def _connection(self) -> Wire:
        if self._wire is None or self._wire.lost.done():
            self._wire = await connected(self._address)
        return self._wire


def reason(error: BaseException) -> str:
    """Without numbers."""
    return getattr(error, "strerror", None) or str(error) or "no answer"


def _node(said: Any) -> Node | None:
    try:
        return msgspec.json.decode(said, type=Node) if isinstance(said, bytes) else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
