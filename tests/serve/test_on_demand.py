"""Models that are loaded when they are asked for: by HTTP on a real server, and by the library."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from msgspec import json

from dlproxy import FailureKind, InferenceError, Model, Proxy
from dlproxy.config import Config, ModelConfig, ServerConfig
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion
from dlproxy.serve.server import Server
from dlproxy.wire.waiting import Waiting
from tests.fleet.test_memory import weighing
from tests.wire.fixtures import Client, post

SLEEP = "sleep:base=1ms"
BODY = b'{"inputs":[[1]]}'
X = {"x": np.ones((1, 1), np.float32)}


@asynccontextmanager
async def serving(*, memory_budget_mb: int = 0, **models: str) -> AsyncIterator[Server]:
    ports = {"http_port": 0, "control_port": 0}
    config = ServerConfig(**ports, calibration_folder="", drain_s=5.0, memory_budget_mb=memory_budget_mb)
    server = Server(Config(server=config))
    await server.start()

    def edit(wanted: Wanted) -> Wanted:
        for name, path in models.items():
            version = WantedVersion(ModelConfig(path=path, run="thread", threads=1))
            wanted = wanted.having(name, WantedModel({"1": version}, on_demand=True))
        return wanted

    await server.control.change(edit)
    try:
        yield server
    finally:
        await server.stop()


async def connect(server: Server) -> Client:
    return Client(*await asyncio.open_connection("127.0.0.1", server.http_port))


async def test_a_request_loads_its_model_and_is_answered() -> None:
    async with serving(m=SLEEP, bad="nowhere.onnx") as server:
        client = await connect(server)
        assert list(server.models) == []
        client.send(post("/predict/m", BODY) + post("/predict/bad", BODY) + post("/predict/none", BODY))
        good, bad, none = [await client.reply() for _ in range(3)]
        assert good.status == 200, good.body
        assert (bad.status, none.status) == (503, 404)
        assert bad.error.startswith("model 'bad' could not be loaded: model file nowhere.onnx does not exist")
        assert [model.served.name for model in server.models] == ["m"]
        await client.close()


async def test_models_take_turns_in_memory_that_holds_one_of_them(tmp_path: Path) -> None:
    paths = {name: weighing(1024, tmp_path / f"{name}.onnx") for name in "ab"}  # of 4 MiB each
    async with serving(memory_budget_mb=7, **paths) as server:
        client = await connect(server)
        asked = {name: post(f"/predict/{name}", b'{"inputs":%b}' % json.encode([[1.0] * 1024])) for name in "ab"}
        for name in "aba":
            client.send(asked[name])
            reply = await client.reply()
            assert reply.status == 200, reply.body
            assert [model.served.name for model in server.models] == [name]
        both = [await connect(server) for _ in "ab"]
        for asker, name in zip(both, "ab", strict=True):
            asker.send(asked[name])
        assert [(await asker.reply()).status for asker in both] == [200, 200]
        for each in (client, *both):
            await each.close()


async def test_a_server_that_stops_answers_those_who_wait() -> None:
    async with serving(m="sleep:base=5s") as server:  # which warms up for longer than that
        client = await connect(server)
        client.send(post("/predict/m", BODY))
        waiting = server.models.catalog.waiting
        assert waiting is not None
        while not waiting.requests:  # noqa: ASYNC110  what it is, no event tells
            await asyncio.sleep(0)
        stopping = asyncio.create_task(server.stop())
        reply = await client.reply()
        assert (reply.status, reply.error) == (503, "the server is shutting down")
        await client.close()
        await stopping


class Loader:
    """Loads through the proxy itself."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    def may_come(self, name: str, version: str = "") -> bool:
        return name == "m"

    async def demand(self, name: str, version: str = "") -> None:
        self.asked.set()
        await self.go_on.wait()
        await self.proxy.load(Model(SLEEP, name=name, run="thread", threads=1))


@pytest.fixture
async def loader() -> AsyncIterator[Loader]:
    async with Proxy() as proxy:
        loader = Loader(proxy)
        proxy._models.catalog.waiting = Waiting(loader)
        yield loader


async def test_the_library_waits_too(loader: Loader) -> None:
    proxy = loader.proxy
    asking = asyncio.create_task(proxy.infer("m", X, timeout_s=60.0))
    streaming = asyncio.create_task(anext(aiter(proxy.stream("m", X))))
    await loader.asked.wait()
    loader.go_on.set()
    assert (await asking).keys() == (await streaming).keys()
    with pytest.raises(InferenceError, match="'nobody' is not found"):
        await proxy.infer("nobody", X)


async def test_the_library_waits_until_the_deadline_or_the_end(loader: Loader) -> None:
    proxy = loader.proxy
    with pytest.raises(InferenceError) as late:
        await proxy.infer("m", X, timeout_s=0.01)
    assert late.value.failure.kind is FailureKind.LATE
    asking = asyncio.create_task(proxy.infer("m", X))
    await loader.asked.wait()
    proxy._models.catalog.drain()
    with pytest.raises(InferenceError) as stopped:
        await asking
    assert stopped.value.failure.kind is FailureKind.UNAVAILABLE
