"""Tiers of dlproxy nodes in one process, over real sockets; back ends that count what they are asked; ways that can be cut."""

import asyncio
import json
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any

import numpy as np

from dlproxy.config import Config, ModelConfig, ServerConfig
from dlproxy.config.node import NodeConfig
from dlproxy.serve.server import Server
from tests.clients.raw import RawConnection, RawReply, connect, post
from tests.instance.test_remote import OIP
from tests.instance.upstreams import Asked, ScriptedUpstream

HANG_S = 30.0
BEAT_S = 0.02
ROUNDS = int(os.environ.get("DLPROXY_PARTITIONS", "1"))  # above one: `make prove-partitions`, which has time for every case


def when_proving(*cases: Any) -> list[Any]:
    return list(cases) if ROUNDS > 1 else []


class Leaf(ScriptedUpstream):
    """Answers x with x + 1, or with `status`; keeps the rows that it was asked for. `extra`: header lines of its answers."""

    def __init__(self, *, extra: str = "", host: str = "127.0.0.1") -> None:
        super().__init__(OIP, self._behave)
        self.host = host
        self.status = 200
        self.extra = extra
        self.seen: Counter[float] = Counter()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v2/models/m"

    async def _behave(self, asked: Asked) -> None:
        rows = np.frombuffer(asked.body[int(asked.header("inference-header-content-length")) :], np.float32).reshape(-1, 2)
        self.seen.update(rows[:, 0].tolist())
        if self.status != 200:
            asked.reply({"error": "as it was told"}, status=self.status)
            return
        data = (rows + 1).tobytes()
        output = {"name": "y", "datatype": "FP32", "shape": rows.shape, "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"outputs": [output]}).encode()
        asked.reply(head + data, extra=f"inference-header-content-length: {len(head)}\r\n{self.extra}")


def upstream(*servers: Server | Leaf | str, transport: str = "http") -> str:
    return ",".join(
        [one if isinstance(one, str) else one.url if isinstance(one, Leaf) else url_of(one, transport) for one in servers]
    )


def url_of(server: Server, transport: str = "http") -> str:
    port = server.http_port if transport == "http" else server.ports["grpc_port"]
    return f"{transport}://127.0.0.1:{port}/v2/models/m"


class Site:
    """Starts what is to be stopped when all is over, the first one last."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def leaf(self, *, listener: socket.socket | None = None, **options: Any) -> Leaf:
        leaf = Leaf(**options)
        await leaf.start(listener=listener)
        self._stack.push_async_callback(leaf.stop)
        return leaf

    def at_end(self, stop: Callable[[], Awaitable[None]]) -> None:
        self._stack.push_async_callback(stop)

    async def node(
        self, path: str, *, http_port: int = 0, grpc_port: int = 0, node: Mapping[str, Any] | None = None, **knobs: Any
    ) -> Server:
        """A server of a model m, of which each batch has one row unless it is said otherwise."""
        server = ServerConfig(http_port=http_port, grpc_port=grpc_port, control_port=0, calibration_folder="", drain_s=2.0)
        model = ModelConfig(path=path, **{"max_batch": 1, **knobs})
        running = Server(Config(server=server, node=NodeConfig(**(node or {})), models={"m": [model]}))
        await running.start()
        self._stack.push_async_callback(running.stop)
        return running


def free_port() -> int:
    """One that a server may listen on again soon after another has ended there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        yield Site(stack)


def question(value: float, *headers: str) -> bytes:
    """For x + 1."""
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}]}).encode()
    return post("/v2/models/m/infer", body, *headers)


async def ask(server: Server, value: float, *headers: str) -> RawReply:
    connection = await connect(server.http_port)
    async with asyncio.timeout(HANG_S):
        reply = await connection.ask(question(value, *headers))
    await leave(connection)
    return reply


async def leave(connection: RawConnection) -> None:
    assert connection.replies.empty(), "a second answer"
    connection.close()
    await connection.ended


def answer(reply: RawReply) -> float | None:
    """None where there is none."""
    return float(reply.json()["outputs"][0]["data"][0]) if reply.status == 200 else None


class Load:
    """Clients that ask for one number each, all different, as soon as they were answered. What is wrong is kept.

    `slowest_s`: of all replies, less what the event loop, which servers and clients share, was held up meanwhile.
    """

    def __init__(self, *servers: Server, clients: int = 4, headers: tuple[str, ...] = ()) -> None:
        self._servers = servers
        self._headers = headers
        self._number = 0
        self._stopping = False
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0
        self._replied = asyncio.Event()
        self._held_up_s, self._beat_at = 0.0, monotonic()
        self._beating = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
        self.wrong: list[tuple[float, RawReply]] = []
        self._clients = [asyncio.create_task(self._go_on(place)) for place in range(clients)]

    async def _go_on(self, place: int) -> None:
        connection = await connect(self._servers[place % len(self._servers)].http_port)
        while not self._stopping:
            self._number += 1
            value, began_at, held_up_s = float(self._number), monotonic(), self._held_up_s
            async with asyncio.timeout(HANG_S):
                reply = await connection.ask(question(value, *self._headers))
            self._look()
            self.slowest_s = max(self.slowest_s, monotonic() - began_at - (self._held_up_s - held_up_s))
            self.statuses[reply.status] += 1
            self._replied.set()
            if reply.status == 200 and answer(reply) != value + 1:
                self.wrong.append((value, reply))
        await leave(connection)

    def _beat(self) -> None:
        self._look()
        self._beat_at = monotonic()
        self._beating = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    def _look(self) -> None:
        late_s = monotonic() - self._beat_at - BEAT_S
        if late_s > 0.0:
            self._held_up_s += late_s
            self._beat_at += late_s

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looks after each reply."""
        async with asyncio.timeout(HANG_S):
            while not condition():
                self._replied.clear()
                await self._replied.wait()

    async def after(self, answers: int) -> None:
        """So many more."""
        until = self.statuses[200] + answers
        await self.until(lambda: self.statuses[200] >= until)

    async def stop(self) -> None:
        self._stopping = True
        await asyncio.gather(*self._clients)
        self._beating.cancel()
        assert not self.wrong, self.wrong[:3]


def instances(server: Server) -> dict[str, Mapping[str, Any]]:
    """How each is."""
    (model,) = server.models
    return {place["name"]: place for place in model.roster.places()}
