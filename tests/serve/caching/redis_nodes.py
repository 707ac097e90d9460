"""Nodes that share a real Redis: each a driver with fake instances, and the layer before it. And a relay that delays."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.message import Signature
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.caching.layer import CacheLayer
from dlproxy.serve.caching.shared import SharedAnswers
from tests.fleet.redis_server import RedisServer
from tests.serve.rig import SIGNATURE, Reply, Rig, double, pass_time

HANG_S = 20.0
PATH = "sleep:base=1ms"  # all that is said of the model


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path, "--appendonly", "no", "--enable-debug-command", "yes")
    yield server
    server.kill()


class Node:
    """`started` waits until answers can be shared."""

    def __init__(self, url: str, *, rig: Rig, signature: Signature, cache: dict[str, Any], model: dict[str, Any]) -> None:
        self.rig = rig
        self.caches = Caches(CacheConfig(redis=url, **{"redis_wait_s": 0.5, **cache}), rig.now)
        self._signature = signature
        self._config = ModelConfig(**{"path": PATH, "cache": "on", **model})
        self.layer: CacheLayer

    async def start(self, *, connected: bool = True) -> "Node":
        await self.caches.read("m", self._config)
        layer = self.caches.before(self.rig.driver, "m", self._config, self._signature, self.rig.stats)
        assert layer is not None
        self.layer = layer
        if connected and layer.second is not None:
            await until(lambda: self.second.state()["connected"])
        return self

    @property
    def second(self) -> SharedAnswers:
        assert isinstance(self.layer.second, SharedAnswers)
        return self.layer.second

    def ask(self, value: float = 1.0, **more: Any) -> Reply:
        reply = Reply(self.rig.request(value, **more))
        self.layer.submit(reply.request, reply)
        return reply

    async def answered(self, value: float = 1.0, **more: Any) -> str:
        """How the cache took part in an answer, which is right."""
        reply = await asyncio.wait_for(self.ask(value, **more).wait(), HANG_S)
        assert reply.values[0] == 2 * value
        assert reply.response is not None
        return reply.response.cache

    @property
    def runs(self) -> int:
        return sum(len(fake.batches) for fake in self.rig.fakes)

    def forget(self) -> None:
        """What is remembered here, not what is shared."""
        self.layer.clear()


class Nodes:
    """Makes nodes of one Redis, and closes them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._made: list[Node] = []

    async def start(
        self,
        *,
        url: str = "",
        service_s: float | None = 0.010,
        function: Any = double,
        signature: Signature = SIGNATURE,
        connected: bool = True,
        model: dict[str, Any] | None = None,
        **cache: Any,
    ) -> Node:
        rig = Rig(service_s=service_s, function=function, signature=signature)
        node = Node(url or self.url, rig=rig, signature=signature, cache=cache, model=model or {})
        self._made.append(node)
        return await node.start(connected=connected)

    async def end(self) -> None:
        for node in self._made:
            await node.caches.close()


@pytest.fixture
async def nodes(redis: RedisServer) -> AsyncIterator[Nodes]:
    made = Nodes(redis.url)
    yield made
    await made.end()


async def until(holds: Callable[[], Any]) -> None:
    """Looks again after each turn in which something happens, and every 2 ms."""
    async with asyncio.timeout(HANG_S):
        while not holds():
            await pass_time(0.002)


async def all_of(replies: Sequence[Reply]) -> list[Reply]:
    async with asyncio.timeout(HANG_S):
        return [await reply.wait() for reply in replies]


class Relay:
    """A TCP relay whose answers come `delay_s` later, in their order."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.delay_s = 0.0
        self.port = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, to = await asyncio.open_connection("127.0.0.1", self._to)
            await asyncio.gather(
                self._copy(reader, to, late=False), self._copy(there, writer, late=True), return_exceptions=True
            )

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        loop, due_at = asyncio.get_running_loop(), 0.0
        try:
            while data := await reader.read(65536):
                due_at = max(due_at + 1e-9, loop.time() + self.delay_s * late)
                loop.call_at(due_at, _write, writer, data)
        finally:
            writer.close()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)


@asynccontextmanager
async def relay(port: int) -> AsyncIterator[Relay]:
    made = Relay(port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        made.url = f"redis://127.0.0.1:{made.port}/0"
        yield made
