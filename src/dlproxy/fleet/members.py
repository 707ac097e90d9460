"""Which servers an upstream's path means just now, where it names them by something that changes: a host name, or a group.

Called by upstreams.py. Not aware of: who is healthy, what becomes of those that come and go (policy/membership.py).
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from dlproxy.config import ModelConfig
from dlproxy.config.node import NodeConfig
from dlproxy.config.redis_address import parse_redis
from dlproxy.fleet.registry import TTL_S, Registry
from dlproxy.fleet.srv import find_services
from dlproxy.instance.remote import Address, parse_address, parse_addresses
from dlproxy.instance.runtime import ModelError

PATIENCE_S = 5.0  # with a resolver; by default it tries for 10 to 30 s

Look = Callable[[], Awaitable[Sequence[Address]]]


class Finder:
    """`look`: the servers there are now; raises OSError. `words`: who says so. `close`: when nobody looks any more.
    `grace_s`: as Membership has it.
    """

    def __init__(
        self, look: Look, words: str, close: Callable[[], Awaitable[None]] | None = None, *, grace_s: float = 0.0
    ) -> None:
        self._look = look
        self.words = words
        self.grace_s = grace_s
        self._close = close

    async def look(self) -> dict[str, Address]:
        """By host and port. Raises OSError."""
        async with asyncio.timeout(PATIENCE_S):
            return {address.place: address for address in await self._look()}

    async def close(self) -> None:
        if self._close is not None:
            await self._close()


def finder_of(config: ModelConfig, node: NodeConfig) -> Finder | None:
    """None where the path says it all. Raises ModelError."""
    if config.members == "static":
        return None
    named = parse_addresses(config.path)
    hosts = ", ".join(address.host for address in named)
    if config.members == "redis":
        if not node.registry:
            raise ModelError("members = 'redis' needs to know where nodes announce themselves: set registry in [node]")
        registry = Registry(parse_redis(node.registry, "registry"))
        words = f"the nodes of group {hosts} at {registry.shown}"
        return Finder(lambda: _announced(registry, named[0]), words, registry.close, grace_s=TTL_S)
    resolver = Resolver()
    if config.members == "srv":
        return Finder(lambda: _each(named, resolver.services), f"the services of {hosts}")
    return Finder(lambda: _each(named, resolver.addresses), f"the addresses of {hosts}")


async def _each(named: Sequence[Address], look: Callable[[Address], Awaitable[list[Address]]]) -> list[Address]:
    return [address for found in await asyncio.gather(*map(look, named)) for address in found]


class Resolver:
    """Asks the system on a thread, which may take half a minute to fail: one question of a kind at a time."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    async def addresses(self, named: Address) -> list[Address]:
        """A and AAAA."""
        place = named.host, named.port
        if place not in self._asked:
            answer = self._asked[place] = asyncio.ensure_future(_system_says(*place))
            answer.add_done_callback(lambda done: (self._asked.pop(place), done.cancelled() or done.exception()))
        return [msgspec.structs.replace(named, at=at) for at in await asyncio.shield(self._asked[place])]

    async def services(self, named: Address) -> list[Address]:
        """Each with the addresses of its own host, whose certificate it has."""
        found = await find_services(named.host)
        return await _each([msgspec.structs.replace(named, host=host, port=port) for host, port in found], self.addresses)


async def _system_says(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(place[4][0]) for place in found]


async def _announced(registry: Registry, named: Address) -> list[Address]:
    """The model of this path on each node of the group that stands where a host does. What is no address is left out."""
    found = []
    for node in await registry.nodes(named.host):
        base = node.grpc if named.transport == "grpc" else node.http
        try:
            own = parse_address(base + named.path)
        except ModelError:
            continue
        if own.transport == named.transport:
            found.append(msgspec.structs.replace(named, host=own.host, port=own.port, tls=own.tls, zone=node.zone))
    return found
