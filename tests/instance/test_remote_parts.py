"""Models on other servers that answer in parts, over gRPC: each part when it is asked for, ends, errors, who leaves."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing

import msgspec
import numpy as np
import pytest

from dlproxy import InferenceError, Model, Proxy
from dlproxy.instance.batch import Array, BatchResult
from dlproxy.instance.remote import RemoteInstance, RemoteSettings, calibrate_upstream, parse_address
from dlproxy.instance.warmup import Calibration
from dlproxy.message import DType, FailureKind, Request, Signature, TensorSpec
from dlproxy.testing import FakeRuntime
from tests.instance.remote_cases import request
from tests.instance.remote_grpc import GrpcUpstream, Way
from tests.instance.running import run
from tests.instance.upstreams import QUICK, until

HANG_S = 30.0
COUNTS = Signature(
    (TensorSpec("x", DType.FP32, (1,)),), (TensorSpec("y", DType.FP32, (1,)),), batched=False, platform="p", streams=True
)


class Counter:
    """Counts from 0 up to the input; a number below 0 counts down from there, and then fails."""

    def __init__(self) -> None:
        self.closed = 0

    def __call__(self, inputs: Sequence[Array]) -> Iterator[list[Array]]:
        x = int(np.asarray(inputs[0], np.float32)[0])
        try:
            for step in range(abs(x)):
                yield [np.array([step], np.float32)]
        except GeneratorExit:
            self.closed += 1
            raise
        if x < 0:
            raise ValueError("out of numbers")


class Rig:
    def __init__(self) -> None:
        self.counter = Counter()
        self.upstream = GrpcUpstream(FakeRuntime(COUNTS, self.counter))
        self.instances: list[RemoteInstance] = []

    async def made(self, settings: RemoteSettings = QUICK, port: int = 0) -> RemoteInstance:
        instance = RemoteInstance("u-0", parse_address(self.upstream.address(port=port)), settings)
        self.instances.append(instance)
        await instance.start()
        return instance


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    await made.upstream.start()
    yield made
    for instance in made.instances:
        await asyncio.wait_for(instance.stop(), HANG_S)
        assert instance.connections == 0
    await made.upstream.stop()


def asked(number: float) -> Request:
    return request(("x", DType.FP32, np.array([number], np.float32)))


async def next_of(result: BatchResult) -> BatchResult:
    assert result.rest is not None, result
    future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    result.rest.ask(future.set_result)
    return await asyncio.wait_for(future, HANG_S)


async def all_of(instance: RemoteInstance, number: float) -> tuple[list[float], BatchResult]:
    """The parts, and what came at their end."""
    found, result = [], await run(instance, asked(number))
    while result.outputs:
        found.append(float(np.asarray(result.outputs[0], np.float32)[0]))
        result = await next_of(result)
    return found, result


async def test_parts_come_one_by_one_and_the_end_is_told(rig: Rig) -> None:
    instance = await rig.made()
    assert (instance.model.signature, instance.capacity) == (COUNTS, 256)
    assert await calibrate_upstream(instance) == Calibration((), False)
    assert rig.upstream.count("ModelStreamInfer") == 0, "warm-up must not wait for the end of a stream"
    found, end = await all_of(instance, 4)
    assert (found, end.error, end.rest) == ([0.0, 1.0, 2.0, 3.0], None, None)
    assert rig.upstream.count("ModelStreamInfer") == 1
    assert rig.counter.closed == 0


async def test_streams_run_side_by_side(rig: Rig) -> None:
    instance = await rig.made()
    results = [await run(instance, asked(3)) for _ in range(20)]
    for _ in range(2):
        results = [await next_of(result) for result in reversed(results)]
    assert [float(np.asarray(result.outputs[0], np.float32)[0]) for result in results] == [2.0] * 20
    assert instance.connections == 1
    for result in results:
        assert not (await next_of(result)).outputs


async def test_a_failure_in_mid_stream_keeps_the_upstreams_words(rig: Rig) -> None:
    instance = await rig.made()
    found, end = await all_of(instance, -2)
    assert (found, end.error) == ([0.0, 1.0], "out of numbers")
    assert end.failure is not None
    assert end.failure.kind is FailureKind.MODEL_FAILED
    assert (await all_of(instance, 2))[0] == [0.0, 1.0]


async def test_an_answer_without_a_part_is_a_failure(rig: Rig) -> None:
    instance = await rig.made()
    found, end = await all_of(instance, 0)
    assert (found, end.error) == ([], "the upstream ended its answer before the first part")


@pytest.mark.parametrize("waits", [False, True])
async def test_who_leaves_cancels_the_call(rig: Rig, waits: bool) -> None:
    hold, held = asyncio.Event(), asyncio.Event()

    async def between() -> None:
        held.set()
        await hold.wait()

    rig.upstream.between = between
    instance = await rig.made()
    result = await run(instance, asked(10))
    assert result.rest is not None
    await held.wait()
    told: list[BatchResult] = []
    if waits:
        result.rest.ask(told.append)
    result.rest.stop()
    result.rest.stop()
    await until(lambda: rig.counter.closed == 1)
    await until(lambda: len(told) == waits)
    assert [(one.outputs, one.error, one.rest) for one in told] == [([], None, None)] * waits
    rig.upstream.between = None
    assert (await all_of(instance, 2))[0] == [0.0, 1.0]


async def test_a_part_that_does_not_come_in_time_ends_the_stream(rig: Rig) -> None:
    rig.upstream.between = asyncio.Event().wait  # type: ignore[assignment]
    instance = await rig.made(msgspec.structs.replace(QUICK, response_timeout_s=0.1))
    found, end = await all_of(instance, 3)
    assert (found, end.error) == ([0.0], "no answer from the upstream within 0.1 s")
    assert end.failure is not None
    assert end.failure.kind is FailureKind.UNAVAILABLE
    await until(lambda: rig.counter.closed == 1)


async def test_a_connection_that_breaks_ends_the_stream(rig: Rig) -> None:
    way = Way(rig.upstream.port)
    await way.start()
    rig.upstream.between = asyncio.Event().wait  # type: ignore[assignment]
    instance = await rig.made(port=way.port)
    result = await run(instance, asked(3))
    way.reset()
    end = await next_of(result)
    assert end.failure is not None
    assert end.failure.kind is FailureKind.UNAVAILABLE
    rig.upstream.between = None
    await until(lambda: instance.up)
    assert (await all_of(instance, 2))[0] == [0.0, 1.0]
    await instance.stop()
    await way.stop()


async def test_stopping_the_instance_waits_for_its_streams(rig: Rig) -> None:
    instance = await rig.made()
    result = await run(instance, asked(3))
    stopping = asyncio.ensure_future(instance.stop())
    result = await next_of(result)
    assert not stopping.done()
    assert result.rest is not None
    result.rest.stop()
    await asyncio.wait_for(stopping, HANG_S)


async def test_a_proxy_passes_the_parts_on(rig: Rig) -> None:
    async with Proxy([Model(rig.upstream.url, name="counter")]) as proxy:
        one = np.array([3.0], np.float32)
        assert [float(part["y"][0]) async for part in proxy.stream("counter", {"x": one})] == [0.0, 1.0, 2.0]
        async with aclosing(proxy.stream("counter", {"x": one * 1000})) as parts:
            assert float((await anext(parts))["y"][0]) == 0.0
        await until(lambda: rig.counter.closed == 1)
        with pytest.raises(InferenceError, match="out of numbers"):
            _ = [part async for part in proxy.stream("counter", {"x": -one})]
        with pytest.raises(InferenceError, match="answers in parts"):
            await proxy.infer("counter", {"x": one})
