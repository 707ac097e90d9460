"""Two real servers that share answers in Redis, under load while that is killed, stands still and comes back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tests.clients.raw import RawConnection, RawReply, binary_infer, binary_output, connect
from tests.clients.server import HANG_S, ServerProcess, write_config
from tests.fleet.redis_server import RedisServer
from tests.serve.rig import pass_time

WAIT_S = 0.05
CLIENTS = 4  # of each server
ROUNDS = 3  # whatever else runs on this machine disturbs some
MODEL = {"path": "sleep:base=4ms", "run": "thread", "cache": "on"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "no", "--requirepass", "s3cret")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[list[ServerProcess]]:
    tmp_path = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        yield [stack.enter_context(_server(tmp_path, name, redis)) for name in "ab"]


def _server(folder: Path, name: str, redis: RedisServer) -> ServerProcess:
    config = write_config(folder / f"{name}.toml", {"m": MODEL}, drain_s=5.0, calibration_folder="")
    url = redis.url.replace("//", "//:s3cret@")
    with config.open("a") as file:
        file.write(f'[cache]\nredis = "{url}"\nredis_wait_s = {WAIT_S}\n')
    return ServerProcess("--config", config)


def _infer(value: int) -> bytes:
    return binary_infer("m", "x", "FP32", np.full((1, 1), value, np.float32))


class Client:
    """Asks for one number after the other, each of which some other client asks for, too."""

    def __init__(self, numbers: Iterator[int]) -> None:
        self._numbers = numbers
        self._asked = 0
        self._sent_at = 0.0
        self.stopping = False
        self.latencies: list[float] = []
        self.wrong: list[str] = []

    async def start(self, port: int) -> None:
        self.connection = await connect(port, self._on_reply)
        self._ask()

    def _ask(self) -> None:
        self._asked = next(self._numbers)
        self._sent_at = asyncio.get_running_loop().time()
        self.connection.send(_infer(self._asked))

    def _on_reply(self, connection: RawConnection, reply: RawReply) -> None:
        self.latencies.append(asyncio.get_running_loop().time() - self._sent_at)
        if reply.status != 200 or binary_output(reply, np.float32)[0, 0] != self._asked:
            self.wrong.append(f"{reply.status} {reply.body!r}")
        if not self.stopping:
            self._ask()


class Load:
    def __init__(self) -> None:
        self.clients: list[Client] = []

    async def p99(self, seconds: float) -> float:
        """Of the latencies of the next so many seconds."""
        for client in self.clients:
            client.latencies.clear()
        await pass_time(seconds)
        return float(np.percentile([one for client in self.clients for one in client.latencies], 99))


@asynccontextmanager
async def _load(servers: list[ServerProcess], first: int) -> AsyncIterator[Load]:
    load = Load()
    load.clients = [Client(count(first + 10_000 * number)) for number in range(CLIENTS) for _ in servers]
    for number, client in enumerate(load.clients):
        await client.start(servers[number % len(servers)].http_port)
    try:
        yield load
    finally:
        for client in load.clients:
            client.stopping = True
            client.connection.close()
            await client.connection.ended
    assert [wrong for client in load.clients for wrong in client.wrong] == []
    assert not any(client.connection.was_reset for client in load.clients)


async def _is_shared(servers: list[ServerProcess], numbers: Iterator[int]) -> None:
    """Returns once the second server has an answer that the first one has computed."""
    async with asyncio.timeout(HANG_S):
        shared = False
        while not shared:
            number = next(numbers)
            for server in servers:
                connection = await connect(server.http_port)
                reply = await connection.ask(_infer(number))
                connection.close()
                assert reply.status == 200
            shared = reply.headers["x-dlproxy-cache"] == "hit"


@pytest.mark.parametrize("way", ["paused", "killed"])
async def test_whatever_becomes_of_redis_no_request_fails_or_waits_for_long(
    servers: list[ServerProcess], redis: RedisServer, way: str
) -> None:
    numbers = count(1_000_000 if way == "paused" else 1_500_000)
    await _is_shared(servers, numbers)
    async with _load(servers, next(numbers)) as load:
        for _ in range(ROUNDS):
            before_s = await load.p99(0.7)
            redis.pause() if way == "paused" else redis.kill()
            during_s = await load.p99(1.0)
            redis.go_on() if way == "paused" else redis.start()
            await _is_shared(servers, numbers)
            if during_s < before_s + WAIT_S:
                break
        else:
            pytest.fail(f"the 99th percentile rose from {before_s:.3f} to {during_s:.3f} s, in each of {ROUNDS} rounds")
    for server in servers:
        assert "s3cret" not in server.report + server.errors()
        assert "Traceback" not in server.errors()


async def test_a_hundred_identical_requests_over_two_servers_are_one_run(servers: list[ServerProcess]) -> None:
    await _is_shared(servers, count(2_000_000))
    before = sum(server.stats("m")["execution_count"] for server in servers)
    connections = [await connect(servers[number % 2].http_port) for number in range(100)]
    for connection in connections:
        connection.send(_infer(5))
    replies = [await asyncio.wait_for(connection.replies.get(), HANG_S) for connection in connections]
    assert {reply.status for reply in replies} == {200}
    assert sum(server.stats("m")["execution_count"] for server in servers) == before + 1
    for connection in connections:
        connection.close()
