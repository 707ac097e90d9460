"""Models are loaded, replaced and unloaded again and again under load: no request fails, and nothing is left behind.

`make prove-models CYCLES=500` for more cycles, with the slope of memory; a few seconds here.
"""

import asyncio
import ctypes
import gc
import json
import os
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import onnx
import pytest
from msgspec import Struct
from onnx import helper

from dlproxy import InferenceError, Model, Proxy
from dlproxy.config import Config, ModelConfig, ServerConfig
from dlproxy.fleet.local import LocalFleet
from dlproxy.message import DType
from dlproxy.serve.assemble import LoadedModel
from dlproxy.serve.models import Models
from dlproxy.serve.server import Server
from tests import models
from tests.clients.raw import RawConnection

CYCLES = int(os.environ.get("DLPROXY_CYCLES", "15"))
CLIENTS = 32
MAX_BATCH = 8  # larger ones make sessions keep more or less memory as chance has it
UNDER_WAY = 8  # requests of the model that goes, when it goes
WIDTH = 1024
WEIGHTS_KB = 2048  # of each model that comes and goes
BLOCKS = 10
LONG = 200  # cycles that tell it exactly
T_95 = 2.262  # Student's t for their nine differences, two-sided


def weighty() -> onnx.ModelProto:
    """y = x w, with weights that are noticed when they stay."""
    weights = np.full((WIDTH, WEIGHTS_KB * 256 // WIDTH), 1 / WIDTH, np.float32)
    return models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [models.value("x", DType.FP32, ("N", WIDTH))],
        [models.value("y", DType.FP32, ("N", weights.shape[1]))],
        [models.constant("w", weights)],
    )


class Slope(Struct):
    """Growth per cycle in KB, with the bounds of its 95 % interval."""

    low: float
    mean: float
    high: float


def slope(resident_kb: list[float]) -> Slope:
    """Of the means of blocks of cycles, without the first third: their differences, which a walk keeps independent."""
    settled = resident_kb[len(resident_kb) // 3 :]
    size = len(settled) // BLOCKS
    means = [fmean(settled[-size * (block + 1) : len(settled) - size * block]) for block in reversed(range(BLOCKS))]
    steps = [(after - before) / size for before, after in pairwise(means)]
    half = T_95 * stdev(steps) / sqrt(len(steps))
    return Slope(fmean(steps) - half, fmean(steps), fmean(steps) + half)


def resident_kb() -> float:
    """What is really in use: free memory that the allocator keeps comes and goes by megabytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


Ask = Callable[[str], Awaitable[None]]


class Traffic:
    """32 clients, each asking the next question when the last is answered; `ask` raises for whatever is no answer."""

    def __init__(self, asks: list[Ask], names: list[str]) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._stop = False
        self._tasks = [asyncio.ensure_future(self._client(ask, names)) for ask in asks]

    async def _client(self, ask: Ask, names: list[str]) -> None:
        while not self._stop:
            for name in names:
                try:
                    await ask(name)
                    self.answered += 1
                except Exception as error:
                    self.failed.append(f"{name}: {error}")

    async def end(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)


async def cycle(some: Models, number: int, path: str, ask: Ask) -> "weakref.ref[object]":
    """A model comes and goes with requests under way; another is replaced, by the same version or the next."""
    runs = ("inline", "thread")[number % 2]
    passing = await some.load("passing", ModelConfig(path=path, run=runs, threads=1, max_batch=MAX_BATCH))  # type: ignore[arg-type]
    weights = runtime_of(passing)
    under_way = [asyncio.ensure_future(ask("passing")) for _ in range(UNDER_WAY)]
    version = str(number // 2 + 1)
    await some.replace("replaced", "", ModelConfig(path=path, version=version, run=runs, threads=1, max_batch=MAX_BATCH))  # type: ignore[arg-type]
    under_way += [asyncio.ensure_future(ask("passing")) for _ in range(UNDER_WAY)]
    await asyncio.sleep(0)
    await some.unload("passing")
    answers = await asyncio.gather(*under_way, return_exceptions=True)
    assert answers[:UNDER_WAY] == [None] * UNDER_WAY
    for answer in answers[UNDER_WAY:]:  # that came before it went, or too late
        assert answer is None or any(refusal in str(answer) for refusal in ("is being unloaded", "is not found")), answer
    return weights


def runtime_of(model: LoadedModel) -> "weakref.ref[object]":
    assert isinstance(model.fleet, LocalFleet)
    return weakref.ref(model.fleet._warm[0].runtime)


async def prove(some: Models, path: str, asks: list[Ask], ask: Ask, when_gone: Callable[[], Awaitable[None]]) -> Slope:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))  # each thread's own heap keeps free memory back
    traffic = Traffic(asks, ["steady", "replaced"])
    memory: list[float] = []
    try:
        for number in range(CYCLES):
            before = traffic.answered
            weights = await cycle(some, number, path, ask)
            assert weights() is None, f"cycle {number}: the weights of an unloaded model are still there"
            await when_gone()
            assert traffic.answered > before, "the others were served meanwhile"
            assert not traffic.failed, f"cycle {number}: {len(traffic.failed)} requests failed: {traffic.failed[:3]}"
            memory.append(resident_kb())
    finally:
        await traffic.end()
    found = slope(memory)
    sys.stderr.write(
        f"\n{CYCLES} cycles, {traffic.answered} answers, memory grows by {found.mean:.1f} KB a cycle "
        f"(95 %: {found.low:.1f} to {found.high:.1f})\n"
    )
    return found


def check(found: Slope) -> None:
    """Two models go in each cycle. Were the weights of one to stay, the slope would be theirs; a short run tells it roughly."""
    assert found.low < WEIGHTS_KB / 4, f"memory grows: {found}"
    assert CYCLES < LONG or found.high < WEIGHTS_KB / 8, f"memory may grow: {found}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.save(weighty(), tmp_path_factory.mktemp("models") / "weighty.onnx"))


linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")


@linux
async def test_in_the_library(path: str) -> None:
    x = np.ones((1, WIDTH), np.float32)
    steady = Model(path, name="steady", threads=1, run="inline", max_batch=MAX_BATCH)
    async with Proxy([steady, Model(path, name="replaced", threads=1, max_batch=MAX_BATCH)]) as proxy:

        async def ask(name: str) -> None:
            answer = await proxy.infer(name, {"x": x})
            assert np.allclose(answer["y"], 1.0)

        async def gone() -> None:
            with pytest.raises(InferenceError, match="'passing' is not found"):
                await ask("passing")

        check(await prove(proxy._models, path, [ask] * CLIENTS, ask, gone))


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[RawConnection]:
    transport, connection = await asyncio.get_running_loop().create_connection(RawConnection, "127.0.0.1", port)
    try:
        yield connection
    finally:
        transport.close()
        await connection.ended


def request(name: str, action: str = "POST", path: str = "/predict/", body: bytes = b"") -> bytes:
    return b"%s %s%s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (
        action.encode(),
        path.encode(),
        name.encode(),
        len(body),
        body,
    )


@linux
async def test_on_a_server(path: str) -> None:
    config = {name: [ModelConfig(path=path, threads=1, run="inline", max_batch=MAX_BATCH)] for name in ("steady", "replaced")}
    server = Server(Config(server=ServerConfig(http_port=0, control_port=0, calibration_folder=""), models=config))
    body = json.dumps({"inputs": [[1.0] * WIDTH]}).encode()
    before = gc.get_threshold()
    await server.start()

    async def ask_on(connection: RawConnection, name: str) -> None:
        reply = await connection.ask(request(name, body=body))
        assert reply.status == 200, f"{reply.status} {reply.body[:200]!r}"

    async def ask(name: str) -> None:
        async with connected(server.http_port) as connection:
            await ask_on(connection, name)

    async def gone() -> None:
        async with connected(server.http_port) as connection:
            assert (await connection.ask(request("passing", body=body))).status == 404
            assert (await connection.ask(request("passing", "GET", "/v2/models/"))).status == 404
        async with connected(server.control_port) as connection:
            page = (await connection.ask(request("metrics", "GET", "/"))).body.decode()
            assert 'model="steady"' in page
            assert 'model="passing"' not in page

    try:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connected(server.http_port)) for _ in range(CLIENTS)]
            check(await prove(server.models, path, [partial(ask_on, client) for client in clients], ask, gone))
    finally:
        await server.stop()
        gc.unfreeze()
        gc.set_threshold(*before)
