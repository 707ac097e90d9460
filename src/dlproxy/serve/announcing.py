"""Tells a registry that this node serves, again and again, and when it stops. Made by server.py where [node] names a group.

Not aware of: who looks, which models are served.
"""

import asyncio
import ipaddress
import logging
from contextlib import suppress

from msgspec import Struct

from dlproxy.config import ServerConfig
from dlproxy.config.node import NodeConfig
from dlproxy.config.redis_address import parse_redis
from dlproxy.fleet.registry import TTL_S, Node, Registry
from dlproxy.fleet.tasks import end_all
from dlproxy.hosts import authority, plain_host

AGAIN_S = TTL_S / 4  # two words may be lost
SOON_S = 0.5  # after a failure

log = logging.getLogger(__name__)


class Reached(Struct, frozen=True):
    """By what: ports, 0 for none, and whether over TLS."""

    http_port: int
    grpc_port: int
    tls: bool


class Announcer:
    """A registry that is away harms nobody: those who know this node stay with it."""

    def __init__(self, node: NodeConfig, server: ServerConfig) -> None:
        """Raises ConfigError."""
        self._node = node
        self._host = node.address or plain_host(server.host)
        self._registry = Registry(parse_redis(node.registry, "registry"))
        self._said: Node | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, reached: Reached) -> None:
        if _is_loopback(self._host):
            log.warning("this node is announced as %s, which no other machine reaches: set host or [node] address", self._host)
        self._task = asyncio.create_task(self._go_on(reached), name="dlproxy-announcer")

    async def stop(self) -> None:
        """Say that it goes, if that can be said now; else its time there runs out."""
        if self._task is not None:
            await end_all([self._task])
            if self._said is not None:
                with suppress(OSError):
                    await self._registry.withdraw(self._node.group, self._said)
        await self._registry.close()

    async def _go_on(self, reached: Reached) -> None:
        trouble = ""
        while True:
            try:
                said = await self._own(reached)
                await self._registry.announce(self._node.group, said)
                if trouble or self._said is None:
                    log.info("announced at %s, group %s: %s", self._registry.shown, self._node.group, said.http or said.grpc)
                trouble, self._said = "", said
                pause_s = AGAIN_S
            except OSError as error:
                if not trouble:
                    log.warning("this node cannot be announced, which is tried again: %s", error)
                trouble, pause_s = str(error), SOON_S
            await asyncio.sleep(pause_s)

    async def _own(self, reached: Reached) -> Node:
        """Raises OSError."""
        host = self._host
        if host in ("0.0.0.0", "::", ""):
            host = await self._registry.own_host()
        secure = "s" * reached.tls
        return Node(
            f"http{secure}://{authority(host, reached.http_port)}" if reached.http_port else "",
            f"grpc{secure}://{authority(host, reached.grpc_port)}" if reached.grpc_port else "",
            self._node.zone,
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
