"""Models on other servers that answer in parts, over gRPC and HTTP: parts as they are asked for, ends, errors, who leaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, closing

import msgspec
import numpy as np
import pytest

from dlproxy import InferenceError, Model, Proxy, tensors
from dlproxy.instance.batch import Array, BatchResult
from dlproxy.instance.remote import (
    RemoteInstance,
    RemoteSettings,
    UpstreamError,
    calibrate_upstream,
    oip_generate,
    parse_address,
)
from dlproxy.instance.warmup import Calibration
from dlproxy.message import DType, FailureKind, Request, Signature, TensorSpec, Trace
from dlproxy.testing import FakeRuntime
from tests.instance.remote_cases import request
from tests.instance.remote_grpc import GrpcUpstream, Way
from tests.instance.running import run
from tests.instance.upstreams import QUICK, Asked, ScriptedUpstream, until

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


class HttpUpstream(ScriptedUpstream):
    """As GrpcUpstream, by Triton's generate extension."""

    def __init__(self, runtime: FakeRuntime) -> None:
        x, y = ([{"name": name, "datatype": "FP32", "shape": [1]}] for name in "xy")
        answers = {
            "/v2": {"extensions": ["binary_tensor_data"]},
            "/v2/models/m": {"inputs": x, "outputs": y, "platform": "p"},
            "/v2/models/m/ready": {},
            "/v2/models/m/config": {"max_batch_size": 0, "model_transaction_policy": {"decoupled": True}},
        }
        super().__init__(answers, self._stream)
        self.between: Callable[[], Awaitable[object]] | None = None
        self._runtime = runtime

    def address(self, *, port: int = 0) -> str:
        return f"http://127.0.0.1:{port or self.port}/v2/models/m"

    @property
    def url(self) -> str:
        return self.address()

    @property
    def streams(self) -> int:
        return len(self.posts)

    def last_headers(self, *names: str) -> list[str]:
        """Of the answer in parts that was asked for last."""
        return [self.posts[-1].header(name) for name in names]

    async def _stream(self, asked: Asked) -> None:
        assert asked.path == "/v2/models/m/generate_stream"
        asked.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n")
        with closing(self._runtime.steps([np.array(asked.json()["x"], np.float32)])) as parts:
            try:
                for part in parts:
                    await self._event(asked, {"model_name": "m", "y": float(np.asarray(part[0], np.float32)[0])})
            except ValueError as error:
                await self._event(asked, {"error": str(error)})
        asked.send(b"0\r\n\r\n")

    async def _event(self, asked: Asked, said: object) -> None:
        event = f": a comment\n\ndata: {json.dumps(said)}\n\n".encode()
        for piece in (event[:20], event[20:]):
            asked.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asked.writer.drain()
        if self.between is not None:
            waiting = [asyncio.ensure_future(self.between()), asyncio.ensure_future(asked.reader.read())]
            done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for other in others:
                other.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            if waiting[1] in done:
                raise ConnectionError


class Rig:
    def __init__(self, kind: type[GrpcUpstream] | type[HttpUpstream]) -> None:
        self.counter = Counter()
        self.upstream = kind(FakeRuntime(COUNTS, self.counter))
        self.instances: list[RemoteInstance] = []

    async def made(self, settings: RemoteSettings = QUICK, port: int = 0) -> RemoteInstance:
        instance = RemoteInstance("u-0", parse_address(self.upstream.address(port=port)), settings)
        self.instances.append(instance)
        await instance.start()
        return instance


@pytest.fixture(params=[GrpcUpstream, HttpUpstream])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    made = Rig(request.param)
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
    assert rig.upstream.streams == 0, "warm-up must not wait for the end of a stream"
    found, end = await all_of(instance, 4)
    assert (found, end.error, end.rest) == ([0.0, 1.0, 2.0, 3.0], None, None)
    assert rig.upstream.streams == 1
    assert rig.counter.closed == 0


async def test_the_trace_goes_with_it(rig: Rig) -> None:
    one, parent = asked(1), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    one.trace = Trace("a-1", parent)
    result = await run(await rig.made(), one)
    assert result.rest is not None
    result.rest.stop()
    assert rig.upstream.last_headers("x-request-id", "traceparent") == ["a-1", parent]


async def test_streams_run_side_by_side(rig: Rig) -> None:
    instance = await rig.made()
    results = [await run(instance, asked(3)) for _ in range(20)]
    for _ in range(2):
        results = [await next_of(result) for result in reversed(results)]
    assert [float(np.asarray(result.outputs[0], np.float32)[0]) for result in results] == [2.0] * 20
    assert instance.connections in (1, 1 + 20), "gRPC needs one for all"
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
    rig.upstream.between = asyncio.Event().wait
    instance = await rig.made(msgspec.structs.replace(QUICK, response_timeout_s=0.1))
    found, end = await all_of(instance, 3)
    assert (found, end.error) == ([0.0], "no answer from the upstream within 0.1 s")
    assert end.failure is not None
    assert end.failure.kind is FailureKind.UNAVAILABLE
    await until(lambda: rig.counter.closed == 1)


async def test_a_connection_that_breaks_ends_the_stream(rig: Rig) -> None:
    way = Way(rig.upstream.port)
    await way.start()
    rig.upstream.between = asyncio.Event().wait
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
        async with aclosing(proxy.stream("counter", {"x": one * 10**6})) as parts:
            assert float((await anext(parts))["y"][0]) == 0.0
        await until(lambda: rig.counter.closed == 1)
        with pytest.raises(InferenceError, match="out of numbers"):
            _ = [part async for part in proxy.stream("counter", {"x": -one})]
        with pytest.raises(InferenceError, match="answers in parts"):
            await proxy.infer("counter", {"x": one})


# HTTP alone: Triton's generate extension


EVENTS = b"HTTP/1.1 %b X\r\nContent-Type: text/event-stream\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"


@pytest.mark.parametrize(
    ("answer", "kind", "clue"),
    [
        (EVENTS % (b"400", 28, b'data: {"error":"bad step"}\n\n'), FailureKind.INVALID_ARGUMENT, "answered 400: bad step"),
        (EVENTS % (b"200", 28, b'data: {"error":"bad step"}\n\n'), FailureKind.MODEL_FAILED, "bad step"),
        (EVENTS % (b"200", 11, b"data: [1]\n\n"), FailureKind.MODEL_FAILED, "no JSON object"),
        (EVENTS % (b"200", 9, b"data: {\n\n"), FailureKind.MODEL_FAILED, "is not JSON"),
        (EVENTS % (b"200", 15, b'data: {"z":1}\n\n'), FailureKind.MODEL_FAILED, "gave no output 'y'"),
        (EVENTS % (b"200", 19, b'data: {"y":[1,2]}\n\n'), FailureKind.MODEL_FAILED, "2 values do not make"),
        (EVENTS % (b"200", 17, b'data: {"y":"a"}\n\n'), FailureKind.MODEL_FAILED, "output 'y' cannot be read"),
        (EVENTS % (b"200", 0, b""), FailureKind.MODEL_FAILED, "ended its answer before the first part"),
        (EVENTS % (b"200", 99, b"data: {"), FailureKind.UNAVAILABLE, "closed the connection in the middle"),
        (b'HTTP/1.1 503 X\r\nContent-Length: 17\r\n\r\n{"error":"later"}', FailureKind.UNAVAILABLE, "answered 503: later"),
        (b"hello\r\n", FailureKind.UNAVAILABLE, "is not HTTP"),
        (b"", FailureKind.UNAVAILABLE, "closed the connection instead of an answer"),
        (EVENTS % (b"200", 10**6, b"data: " + b"x" * 10**6), FailureKind.UNAVAILABLE, "more than 100000 bytes"),
    ],
)
async def test_what_is_no_part_fails_with_what_was_wrong(answer: bytes, kind: FailureKind, clue: str) -> None:
    async def behave(asked: Asked) -> None:
        asked.send(answer)
        asked.hang_up()

    upstream = HttpUpstream(FakeRuntime(COUNTS, Counter()))
    upstream.behave = behave
    await upstream.start()
    instance = RemoteInstance("u-0", parse_address(upstream.url), msgspec.structs.replace(QUICK, max_reply_bytes=100_000))
    await instance.start()
    result = await run(instance, asked(3))
    assert result.failure is not None
    assert (result.outputs, result.rest) == ([], None)
    assert result.failure.kind is kind
    assert clue in result.failure.message
    await asyncio.wait_for(instance.stop(), HANG_S)
    await upstream.stop()


async def test_an_upstream_that_listens_no_more_is_lost() -> None:
    upstream = HttpUpstream(FakeRuntime(COUNTS, Counter()))
    await upstream.start()
    instance = RemoteInstance("u-0", parse_address(upstream.url), msgspec.structs.replace(QUICK, check_interval_s=3600.0))
    lost = asyncio.Event()
    instance.on_lost = lambda reason: lost.set()
    await instance.start()
    await upstream.stop()
    result = await run(instance, asked(3))
    assert result.failure is not None
    assert result.failure.message == "no connection to the upstream: connection refused"
    assert lost.is_set()
    await asyncio.wait_for(instance.stop(), HANG_S)


SHAPED = Signature(
    (TensorSpec("x", DType.INT64, (-1, -1, 2)), TensorSpec("t", DType.BYTES, (-1,), text=True)),
    (TensorSpec("y", DType.BF16, (-1, 2)), TensorSpec("u", DType.BYTES, (-1, 1), text=True)),
    batched=False,
    platform="p",
    streams=True,
)


def test_tensors_go_and_come_as_flat_lists() -> None:
    texts = ("t", DType.BYTES, [b"\xc3\xa4", b""])
    body = oip_generate.body_of(SHAPED, request(("x", DType.INT64, [[[1, 2], [3, 4]]]), texts))
    assert json.loads(body) == {"x": [1, 2, 3, 4], "t": ["\u00e4", ""]}
    y, u = oip_generate.outputs_in(SHAPED, b'{"model_name":"m","y":[1,2.5,3,-4],"u":"\xc3\xa4"}')
    assert (y.shape, u.shape) == ((2, 2), (1, 1))
    assert tensors.bf16_to_fp32(y).tolist() == [[1.0, 2.5], [3.0, -4.0]]
    assert u.tolist() == [["\u00e4".encode()]]


@pytest.mark.parametrize(
    ("x", "t", "clue"),
    [
        ([[[1, 2]], [[3, 4]]], [b"a"], r"input 'x' of shape \[2, 1, 2\] cannot be sent"),
        ([[[1, 2]]], [b"\xff"], "'t' is not UTF-8 text"),
    ],
)
def test_what_lists_cannot_carry_is_refused(x: object, t: object, clue: str) -> None:
    with pytest.raises(UpstreamError, match=clue) as caught:
        oip_generate.body_of(SHAPED, request(("x", DType.INT64, x), ("t", DType.BYTES, t)))
    assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
    with pytest.raises(UpstreamError, match="NaN or infinity"):
        oip_generate.body_of(COUNTS, asked(float("nan")))
