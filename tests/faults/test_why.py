"""What makes a request slow is planted in a running server, each in turn, and /why names it first; the phases of requests add
up to what their clients have measured."""

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from math import inf
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from dlproxy.config import Config, ModelConfig, ServerConfig, TenantConfig
from dlproxy.config.pipelines import StepConfig
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion
from dlproxy.serve.server import Server
from tests.clients import raw
from tests.faults.slow_models import FAIL_ONCE, STALL_ONCE, STALL_S, Sleeper, value

pytestmark = pytest.mark.alone
SLEEPER = "tests.faults.slow_models:Sleeper"
QUICK = 0.005
USUAL = 12  # requests that are as most are


@pytest.fixture(autouse=True)
def sleeper() -> Iterator[None]:
    yield
    Sleeper.reset()


class Site:
    """A server, and a connection to its inference port."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def ask(self, model: str, *values: float, name: str = "usual", tenant: str = "") -> float:
        """Seconds that it took, whatever came of it."""
        body = json.dumps({"inputs": [[each] for each in values or (value(QUICK),)]}).encode()
        headers = [f"x-request-id: {name}", *([f"x-tenant-id: {tenant}"] if tenant else [])]
        connection = await raw.connect(self.server.http_port)
        try:
            began_at = perf_counter()
            connection.send(raw.post(f"/predict/{model}", body, *headers))
            await connection.replies.get()
            return perf_counter() - began_at
        finally:
            connection.close()
            await connection.ended

    async def usual(self, model: str, seconds: float = QUICK, times: int = USUAL) -> None:
        for _ in range(times):
            await self.ask(model, value(seconds))

    async def why(self, name: str) -> dict[str, Any]:
        """As the control port tells it."""
        connection = await raw.connect(self.server.control_port)
        connection.send(f"GET /why/{name} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
        reply = await connection.replies.get()
        connection.close()
        assert reply.status == 200, reply.body
        told: dict[str, Any] = reply.json()
        return told

    async def first_cause(self, name: str) -> tuple[str, str]:
        told = await self.why(name)
        assert told["causes"], told
        assert sum(told["phases"].values()) == pytest.approx(told["seconds"], abs=1e-4)
        return told["causes"][0]["kind"], told["causes"][0]["words"]


def model(path: str = SLEEPER, **settings: Any) -> ModelConfig:
    return ModelConfig(path=path, **{"run": "thread", "threads": 1, "instances": 1, "max_batch": 1, **settings})


@asynccontextmanager
async def serving(
    models: dict[str, ModelConfig], tenants: dict[str, TenantConfig] | None = None, **server: Any
) -> AsyncIterator[Site]:
    config = ServerConfig(http_port=0, control_port=0, calibration_folder="", drain_s=5.0, grpc="off", **server)
    running = Server(Config(server=config, models={n: [m] for n, m in models.items()}, tenants=tenants or {}))
    await running.start()
    try:
        yield Site(running)
    finally:
        await running.stop()


async def test_a_cold_start() -> None:
    async with serving({}) as site:

        def edit(wanted: Wanted) -> Wanted:
            return wanted.having("m", WantedModel({"1": WantedVersion(model("sleep:base=20ms"))}, on_demand=True))

        await site.server.control.change(edit)
        await site.ask("m", name="cold")
        kind, words = await site.first_cause("cold")
        assert kind == "cold_start", words
        assert "had it loaded" in words


async def test_a_heavy_neighbour() -> None:
    async with serving({"m": model(), "big": model()}, arbiter="on", cores=1) as site:
        await site.usual("m")
        neighbour = asyncio.create_task(site.ask("big", value(0.6)))
        while not next(one for one in site.server.models if one.served.name == "big").driver.unanswered:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await site.ask("m", name="crowded")
        await neighbour
        kind, words = await site.first_cause("crowded")
        assert kind == "heavy_neighbour", words
        assert "model big" in words


async def test_a_garbage_collection() -> None:
    async with serving({"m": model()}) as site:
        await site.usual("m")
        kept = [[number] for number in range(1_000_000)]  # which a collection has to look at
        asked = asyncio.create_task(site.ask("m", value(0.02), name="stopped"))
        while not site.server.models.unanswered:  # noqa: ASYNC110
            await asyncio.sleep(0)
        gc.collect()
        await asked
        assert kept
        kind, words = await site.first_cause("stopped")
        assert kind == "gc", words
        del kept


async def test_a_slow_instance() -> None:
    async with serving({"m": model(instances=2)}) as site:
        Sleeper.slower_s = 0.15
        for number in range(8):
            await asyncio.gather(*[site.ask("m", name=f"{number}-{one}") for one in range(3)])
        slow = [one for one in site.server.models.exemplars if 0.15 < one.case.phases.get("compute", 0.0) > one.seconds / 2]
        kind, words = await site.first_cause(max(slow, key=lambda one: one.id).request_id)
        assert kind == "slow_instance", words


async def test_a_large_batch_ahead() -> None:
    async with serving({"m": model("sleep:base=1ms,row=12ms", max_batch=64)}) as site:
        await site.usual("m")
        large = asyncio.create_task(site.ask("m", *[0.0] * 40))
        while not site.server.models.unanswered:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await site.ask("m", name="behind")
        await large
        kind, words = await site.first_cause("behind")
        assert kind == "large_batch_ahead", words
        assert "of 40 rows" in words


async def test_a_retry() -> None:
    async with serving({"m": model(instances=2)}) as site:
        await site.usual("m")
        await site.ask("m", value(0.6, FAIL_ONCE), name="again")
        kind, words = await site.first_cause("again")
        assert kind == "retry", words
        assert "the disk is full" in words


async def test_a_hedge() -> None:
    async with serving({"m": model(instances=2, hedge=True)}) as site:
        await site.usual("m", 0.04)
        await site.ask("m", value(0.04, STALL_ONCE), name="late")
        told = await site.why("late")
        assert told["seconds"] < STALL_S
        kind, words = await site.first_cause("late")
        assert kind == "hedge", (words, told)


async def test_a_slow_stage() -> None:
    step = StepConfig(model="m", inputs={"x": "x"})
    pipeline = ModelConfig(path="pipeline", inputs={"x": "FP32[-1,1]"}, outputs={"y": "net.y"}, steps={"net": step})
    async with serving({"m": model(), "p": pipeline}) as site:
        await site.usual("p")
        await site.ask("p", value(QUICK, STALL_ONCE), name="staged")
        told = await site.why("staged")
        assert told["model"] == "p", "which its stage's request is a part of"
        assert (told["causes"][0]["kind"], "step 'net'" in told["causes"][0]["words"]) == ("stage", True)


async def test_a_quota() -> None:
    async with serving({"m": model()}, {"small": TenantConfig(requests_per_s=0.01, burst_s=100.0)}) as site:
        for name in ("within", "beyond"):
            await site.ask("m", name=name, tenant="small")
        told = await site.why("beyond")
        assert (told["outcome"], told["failure"]["kind"]) == ("failed", "quota")
        assert told["causes"][0]["kind"] == "quota"
        assert "small" in told["causes"][0]["words"]


async def test_an_upstream_stall() -> None:
    async with serving({"far": model()}) as upstream:
        path = f"http://127.0.0.1:{upstream.server.http_port}/v2/models/far"
        async with serving({"m": ModelConfig(path=path)}) as site:
            await site.usual("m")
            await site.ask("m", value(QUICK, STALL_ONCE), name="stalled")
            kind, words = await site.first_cause("stalled")
            assert kind == "upstream_stall", words


async def test_a_swap_of_version() -> None:
    async with serving({"m": model()}) as site:
        await site.usual("m", 0.03)
        Sleeper.hog = threading.Event()
        swap = asyncio.create_task(site.server.models.replace("m", "1", model(version="2")))
        await site.ask("m", value(0.03), name="swapped")
        Sleeper.hog = None
        await swap
        kind, words = await site.first_cause("swapped")
        assert kind == "version_swap", (words, await site.why("swapped"))


async def test_phases_add_up_to_what_clients_have_measured() -> None:
    """Within a hundredth: of batches, a retry, an answer that another's run gave, a body that came slowly."""
    off: dict[str, float] = {}
    for _ in range(4):  # the machine may be busy between a client and the server, of which neither knows: once it fits
        async with serving({"m": model(instances=2, max_batch=4), "known": model(cache="on")}) as site:
            measured = await measure(site)
            told = {name: await site.why(name) for name in measured}
        for name, seconds in measured.items():
            off[name] = min(off.get(name, inf), abs(sum(told[name]["phases"].values()) / seconds - 1.0))
        if max(off.values()) < 0.01:
            break
    assert max(off.values()) < 0.01, off
    assert told["slow"]["phases"]["receive"] == pytest.approx(0.1, rel=0.2)
    assert "slow_client" in [cause["kind"] for cause in told["slow"]["causes"]]
    assert told["retry"]["phases"]["earlier_run"] > 0.3
    shared = [cause["kind"] for number in range(3) for cause in told[f"known-{number}"]["causes"]]
    assert shared.count("shared_run") == 2


async def measure(site: Site) -> dict[str, float]:
    """Seconds by the names of requests, as their clients see them."""
    Sleeper.done.clear()
    asked = {f"batch-{number}": ("m", value(0.3)) for number in range(6)}
    asked["retry"] = "m", value(0.3, FAIL_ONCE)
    asked |= {f"known-{number}": ("known", value(0.4)) for number in range(3)}
    asked["slow"] = "m", value(0.3)
    connections = {name: await raw.connect(site.server.http_port) for name in asked}
    for connection in connections.values():
        await connection.ask(request("m", value(QUICK), "first"))  # the server knows it then
    measured: dict[str, float] = {}

    async def ask(name: str) -> None:
        connection, whole, began_at = connections[name], request(*asked[name], name), perf_counter()
        if name.startswith("slow"):
            connection.send(whole[:-4])
            await passed(0.1)
            whole = whole[-4:]
        connection.send(whole)
        await connection.replies.get()
        measured[name] = perf_counter() - began_at

    for kind in ("batch", "retry", "known", "slow"):
        await asyncio.gather(*[ask(name) for name in asked if name.startswith(kind)])
    for connection in connections.values():
        connection.close()
    return measured


def request(model: str, each: float, name: str) -> bytes:
    return raw.post(f"/predict/{model}", json.dumps({"inputs": [[each]]}).encode(), f"x-request-id: {name}")


async def passed(seconds: float) -> None:
    """Returns then."""
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, later.set)
    await later.wait()


async def test_a_reader_that_takes_its_answer_slowly() -> None:
    async with serving({"wide": model("tests.faults.slow_models:Wide")}) as site:
        connection = await raw.connect(site.server.http_port)
        connection.transport.pause_reading()
        connection.send(raw.binary_infer("wide", "x", "FP32", np.zeros((1, 1), np.float32)))
        while not list(site.server.models.exemplars):  # noqa: ASYNC110
            await asyncio.sleep(0)
        await passed(0.5)
        connection.transport.resume_reading()
        await connection.replies.get()
        connection.close()
        (number,) = [one.id for one in site.server.models.exemplars]
        kind, words = await site.first_cause(str(number))
        assert kind == "slow_client", words
        assert (await site.why(str(number)))["kept_as"] == "noted"
