"""Remote instances: what they learn at the start, whose fault a failed batch is, how they go and come back."""

import asyncio
import gc
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from dlproxy.instance.batch import Array, BatchResult
from dlproxy.instance.remote import RemoteInstance, RemoteSettings, UpstreamError, parse_address, start_upstreams
from dlproxy.instance.remote.calibration import calibrate_upstream
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, Request, Signature, TensorSpec
from dlproxy.testing import FakeRuntime
from tests.certificates import make_certificate, server_context
from tests.instance.remote_cases import request, tensor
from tests.instance.running import run
from tests.instance.upstreams import QUICK, Asked, DlproxyUpstream, ScriptedUpstream, until

PAIR = Signature(
    (TensorSpec("x", DType.FP32, (-1, 2)),), (TensorSpec("y", DType.FP32, (-1, 2)),), batched=True, platform="fake"
)
METADATA = {"name": "m", "platform": "p", "inputs": [tensor("x", "FP32", [-1, 2])], "outputs": [tensor("y", "FP32", [-1, 2])]}
OIP = {
    "/v2": {"extensions": ["binary_tensor_data"]},
    "/v2/models/m": METADATA,
    "/v2/models/m/ready": {"ready": True},
    "/v2/models/m/config": {"max_batch_size": 16},
}
_FLOAT = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "2"}], "unknown_rank": False}}
TFS = {
    "/v1/models/m": {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]},
    "/v1/models/m/metadata": {
        "metadata": {
            "signature_def": {"signature_def": {"serving_default": {"inputs": {"x": _FLOAT}, "outputs": {"y": _FLOAT}}}}
        }
    },
}


def double(inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray(inputs[0], np.float32) * np.float32(2)]


async def echo(asked: Asked) -> None:
    """The input as the output, in the form in which it came."""
    (given,) = asked.json()["inputs"]
    size = int(asked.header("inference-header-content-length") or 0)
    if not size:
        asked.reply({"outputs": [given | {"name": "y"}]})
        return
    head = msgspec.json.encode({"model_name": "m", "outputs": [given | {"name": "y"}]})
    asked.reply(head + asked.body[size:], extra=f"Inference-Header-Content-Length: {len(head)}\r\n")


async def half_plus_two(asked: Asked) -> None:
    rows = asked.json()["inputs"]["x"]
    asked.reply({"outputs": [[value / 2 + 2 for value in row] for row in rows]})


def rows_of(*values: float) -> Request:
    return request(("x", DType.FP32, np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)))


class Rig:
    """A scripted upstream, and an instance that keeps what it tells."""

    def __init__(self) -> None:
        self.upstream = ScriptedUpstream(OIP, echo)
        self.told: list[str] = []

    def make(self, settings: RemoteSettings = QUICK, path: str = "/v2/models/m") -> RemoteInstance:
        instance = RemoteInstance("u-0", parse_address(f"http://127.0.0.1:{self.upstream.port}{path}"), settings)
        instance.on_lost = lambda reason: self.told.append(f"lost: {reason}")
        instance.on_up = lambda: self.told.append("up")
        return instance


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    await made.upstream.start()
    yield made
    await made.upstream.stop()


@pytest.fixture
async def instance(rig: Rig) -> AsyncIterator[RemoteInstance]:
    made = rig.make()
    await made.start()
    yield made
    await made.stop()


# Start


async def test_start_learns_the_signature(rig: Rig) -> None:
    instance = rig.make()
    signature = await instance.start()
    assert signature == msgspec.structs.replace(PAIR, platform="p")
    assert (instance.model.max_batch, instance.model.binary, instance.capacity, instance.up) == (16, True, 2, True)
    await instance.stop()
    assert (instance.connections, instance.up) == (0, False)


@pytest.mark.parametrize(
    ("change", "clue"),
    [
        ({"/v2/models/m/ready": (503, {"error": "loading"})}, "not ready: the upstream answered 503: loading"),
        ({"/v2/models/m/ready": {"ready": False}}, "says that it is not"),
        ({"/v2/models/m": (404, {"error": "unknown model"})}, "404: unknown model"),
        ({"/v2/models/m": b"{"}, "not understood"),
    ],
)
async def test_start_says_why_it_cannot(rig: Rig, change: dict[str, Any], clue: str) -> None:
    rig.upstream.answers |= change
    instance = rig.make()
    with pytest.raises(UpstreamError, match=clue):
        await instance.start()
    await instance.stop()
    assert instance.connections == 0


async def test_an_upstream_without_batches_gets_single_requests_side_by_side(rig: Rig) -> None:
    rig.upstream.answers["/v2/models/m/config"] = {"max_batch_size": 0}
    instance = rig.make()
    signature = await instance.start()
    assert (signature.batched, instance.capacity) == (False, 8)
    results = await asyncio.gather(*(run(instance, rows_of(number)) for number in range(8)))
    assert [result.outputs[0][0, 0] for result in results] == list(range(8))
    assert rig.upstream.most_open <= 9
    refused = await run(instance, rows_of(1), rows_of(2))
    assert refused.error == "the upstream takes no batches"
    await instance.stop()


# Batches


async def test_one_request_carries_the_rows_of_many(rig: Rig, instance: RemoteInstance) -> None:
    result = await run(instance, rows_of(1), rows_of(2, 3), rows_of(4))
    assert result.error is None
    assert result.outputs[0][:, 0].tolist() == [1, 2, 3, 4]
    assert len(rig.upstream.posts) == 1


async def test_json_where_binary_is_not_offered(rig: Rig) -> None:
    rig.upstream.answers["/v2"] = {"extensions": []}
    instance = rig.make()
    await instance.start()
    result = await run(instance, rows_of(1), rows_of(2))
    assert result.outputs[0][:, 0].tolist() == [1, 2]
    assert rig.upstream.posts[0].header("content-type") == "application/json"
    await instance.stop()


async def test_tensorflow_serving(rig: Rig) -> None:
    rig.upstream.answers, rig.upstream.behave = dict(TFS), half_plus_two
    instance = rig.make(path="/v1/models/m")
    signature = await instance.start()
    assert signature.inputs == PAIR.inputs
    result = await run(instance, rows_of(1), rows_of(4, np.nan))
    assert np.array_equal(result.outputs[0][:, 0], np.array([2.5, 4, np.nan], np.float32), equal_nan=True)
    await instance.stop()


async def _cut(asked: Asked) -> None:
    asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
    asked.hang_up()


async def _gzip(asked: Asked) -> None:
    asked.reply(b"\x1f\x8b", extra="content-encoding: gzip\r\n")


async def _silence(asked: Asked) -> None: ...


def _status(status: int, words: str, extra: str = "") -> Callable[[Asked], Awaitable[None]]:
    async def behave(asked: Asked) -> None:
        asked.reply({"error": words}, status, extra)

    return behave


def _body(value: Any) -> Callable[[Asked], Awaitable[None]]:
    async def behave(asked: Asked) -> None:
        asked.reply(value)

    return behave


@pytest.mark.parametrize(
    ("behave", "kind", "clue"),
    [
        (_status(500, "CUDA error"), FailureKind.MODEL_FAILED, "CUDA error"),
        (_status(400, "bad shape"), FailureKind.INVALID_ARGUMENT, "answered 400: bad shape"),
        (_status(503, "queue full", "retry-after: 3\r\n"), FailureKind.UNAVAILABLE, "answered 503: queue full"),
        (_status(429, "slow down"), FailureKind.OVERLOADED, "answered 429: slow down"),
        (_status(302, ""), FailureKind.UNAVAILABLE, "answered 302"),
        (_cut, FailureKind.UNAVAILABLE, "in the middle of its answer"),
        (_gzip, FailureKind.UNAVAILABLE, "gzip"),
        (_silence, FailureKind.UNAVAILABLE, r"no answer from the upstream within 1 s"),
        (_body(b"<html>"), FailureKind.MODEL_FAILED, "not an inference response"),
        (_body({"outputs": []}), FailureKind.MODEL_FAILED, "gave no output 'y'"),
    ],
)
async def test_a_batch_that_fails_says_whose_fault_it_was(rig: Rig, behave: Any, kind: FailureKind, clue: str) -> None:
    instance = rig.make(msgspec.structs.replace(QUICK, response_timeout_s=1.0))
    await instance.start()
    rig.upstream.behave = behave
    result = await run(instance, rows_of(1), rows_of(2))
    assert result.failure is not None
    assert result.failure.kind is kind
    assert result.error == result.failure.message
    assert re.search(clue, result.error)
    assert not result.outputs
    rig.upstream.behave = echo
    assert (await run(instance, rows_of(7))).error is None, "one failure broke the instance"
    assert not rig.told, "an upstream that answers its checks is not lost"
    await instance.stop()


async def test_stop_waits_for_what_runs(rig: Rig) -> None:
    instance = rig.make()
    await instance.start()
    asked_for, gate = asyncio.Event(), asyncio.Event()

    async def slow(asked: Asked) -> None:
        asked_for.set()
        await gate.wait()
        await echo(asked)

    rig.upstream.behave = slow
    results: list[BatchResult] = []
    instance.run([rows_of(1)], results.append)
    await asked_for.wait()
    stopping = asyncio.create_task(instance.stop())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stopping.done()
    gate.set()
    await stopping
    assert [result.error for result in results] == [None]
    assert instance.connections == 0


async def test_never_more_connections_than_batches(rig: Rig, instance: RemoteInstance) -> None:
    results = await asyncio.gather(*(run(instance, rows_of(number)) for number in range(30)))
    assert all(result.error is None for result in results)
    assert rig.upstream.most_open <= instance.capacity + 1


# Health


async def test_a_dead_upstream_is_lost_and_comes_back(rig: Rig, instance: RemoteInstance) -> None:
    await run(instance, rows_of(1))
    await rig.upstream.stop()
    order: list[str] = []
    rig.told = order
    result = await run(instance, rows_of(1))
    order.append("reported")
    assert result.failure is not None
    assert result.failure.kind is FailureKind.UNAVAILABLE
    assert order == ["lost: no connection to the upstream: connection refused", "reported"]
    assert not instance.up
    await rig.upstream.start()
    await until(lambda: order[-1] == "up")
    assert (await run(instance, rows_of(3))).outputs[0][0, 0] == 3


async def test_an_idle_upstream_that_dies_is_noticed(rig: Rig) -> None:
    instance = rig.make(msgspec.structs.replace(QUICK, check_interval_s=3600.0))
    await instance.start()
    await rig.upstream.stop()
    await until(lambda: len(rig.told) == 1)
    assert "connection refused" in rig.told[0]
    await instance.stop()


async def test_a_model_that_is_unloaded_is_lost(rig: Rig, instance: RemoteInstance) -> None:
    rig.upstream.answers["/v2/models/m/ready"] = (400, b"")
    await until(lambda: bool(rig.told))
    assert rig.told == ["lost: the model is not ready: the upstream answered 400: without a reason"]
    rig.upstream.answers["/v2/models/m/ready"] = {"ready": True}
    await until(lambda: rig.told[-1] == "up")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/v2/models/m", METADATA | {"inputs": [tensor("x", "FP64", [-1, 2])]}),
        ("/v2/models/m/config", {"max_batch_size": 8}),
        ("/v2/models/m/config", {"max_batch_size": 0}),
        ("/v2", {"extensions": []}),
    ],
)
async def test_another_model_in_its_place_is_not_used(rig: Rig, instance: RemoteInstance, path: str, value: Any) -> None:
    await rig.upstream.stop()
    await until(lambda: len(rig.told) == 1)
    before, rig.upstream.answers[path] = rig.upstream.answers[path], value
    looks = len(rig.upstream.asked)
    await rig.upstream.start()
    await until(lambda: len(rig.upstream.asked) >= looks + 8)  # two looks
    assert len(rig.told) == 1
    rig.upstream.answers[path] = before
    await until(lambda: rig.told[-1] == "up")


async def test_two_hundred_reconnects_leave_nothing_behind(rig: Rig) -> None:
    instance = rig.make()
    await instance.start()
    files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())

    async def odd(asked: Asked) -> None:
        await echo(asked)
        if len(rig.upstream.posts) % 3:
            asked.reset()
        else:
            asked.hang_up()

    rig.upstream.behave = odd
    for _ in range(200):
        await run(instance, rows_of(1))
    assert rig.upstream.accepted > 130
    await instance.stop()
    await until(lambda: rig.upstream.open == 0)
    assert len(os.listdir("/proc/self/fd")) <= files
    assert len(asyncio.all_tasks()) <= tasks
    gc.collect()
    assert len([found for found in gc.get_objects() if type(found).__name__ == "_Connection"]) <= 2


# Several of one lane


async def _upstreams(*functions: Callable[[Sequence[Array]], list[Array]]) -> list[DlproxyUpstream]:
    made = [DlproxyUpstream(FakeRuntime(PAIR, function)) for function in functions]
    for upstream in made:
        await upstream.start()
    return made


def _instances(upstreams: Sequence[DlproxyUpstream]) -> list[RemoteInstance]:
    return [RemoteInstance(f"m-{number}", parse_address(each.url), QUICK) for number, each in enumerate(upstreams)]


async def test_a_missing_upstream_joins_later() -> None:
    upstreams = await _upstreams(double, double)
    upstreams[1].max_batch = 4
    instances = _instances(upstreams)
    await upstreams[0].stop()
    joined = asyncio.Event()
    instances[0].on_up = joined.set
    model = await start_upstreams(instances)
    assert [instance.up for instance in instances] == [False, True]
    assert model.signature.inputs == PAIR.inputs
    await upstreams[0].start()
    await asyncio.wait_for(joined.wait(), 10.0)
    assert (await run(instances[0], rows_of(4))).outputs[0][0, 0] == 8
    for ended in (*instances, *upstreams):
        await ended.stop()


async def test_the_smallest_batch_counts_for_all() -> None:
    upstreams = [DlproxyUpstream(FakeRuntime(PAIR, double), max_batch=size) for size in (32, 8)]
    for upstream in upstreams:
        await upstream.start()
    instances = _instances(upstreams)
    assert (await start_upstreams(instances)).max_batch == 8
    for ended in (*instances, *upstreams):
        await ended.stop()


async def test_no_upstream_at_all_says_why_for_each() -> None:
    upstreams = await _upstreams(double, double)
    for upstream in upstreams:
        await upstream.stop()
    instances = _instances(upstreams)
    with pytest.raises(ModelError, match=r"no upstream can be used: 127.*connection refused; 127.*connection refused"):
        await start_upstreams(instances)
    assert [instance.connections for instance in instances] == [0, 0]


async def test_upstreams_must_serve_one_model(rig: Rig) -> None:
    (other,) = await _upstreams(double)
    rig.upstream.answers["/v2/models/m"] = METADATA | {"outputs": [tensor("z", "FP32", [-1, 2])]}
    instances = [rig.make(), *_instances([other])]
    with pytest.raises(ModelError, match="do not serve the same model"):
        await start_upstreams(instances)
    assert [instance.connections for instance in instances] == [0, 0]
    await other.stop()


async def test_a_model_that_cannot_be_served_names_its_upstream(rig: Rig) -> None:
    rig.upstream.answers["/v2/models/m/config"] = {"sequence_batching": {}}
    with pytest.raises(ModelError, match=r"upstream 127\.0\.0\.1:\d+: .*keeps state"):
        await start_upstreams([rig.make()])


async def test_calibration_measures_through_the_network() -> None:
    (upstream,) = await _upstreams(double)
    (instance,) = _instances([upstream])
    await instance.start()
    calibration = await calibrate_upstream(instance)
    assert calibration.independent_rows
    assert [rows for rows, _ in calibration.points] == [1, 4, 16, 64]
    seconds = [point_s for _, point_s in calibration.points]
    assert seconds == sorted(seconds)
    await upstream.stop()
    calibration = await calibrate_upstream(instance)
    assert (calibration.points, calibration.independent_rows) == ((), True)
    assert "learned in service" in calibration.warning
    await instance.stop()


def _mean_over_rows(inputs: Sequence[Array]) -> list[Array]:
    return [np.broadcast_to(np.asarray(inputs[0], np.float32).mean(axis=0), inputs[0].shape)]


async def test_rows_that_depend_on_one_another_go_singly() -> None:
    (upstream,) = await _upstreams(_mean_over_rows)
    (instance,) = _instances([upstream])
    told: list[str] = []
    instance.on_lost, instance.on_up = told.append, lambda: told.append("up")
    await instance.start()
    calibration = await calibrate_upstream(instance)
    assert "batching is off" in calibration.warning
    assert (instance.model.signature.batched, instance.capacity) == (False, 8)
    assert (await run(instance, rows_of(1, 3))).outputs[0][:, 0].tolist() == [2, 2]
    await upstream.stop()
    await until(lambda: not instance.up)
    await upstream.start()
    await until(lambda: told[-1] == "up")
    for ended in (instance, upstream):
        await ended.stop()


async def test_calibration_keeps_to_the_upstreams_limits() -> None:
    upstream = DlproxyUpstream(FakeRuntime(PAIR, double), max_batch=16)
    await upstream.start()
    (instance,) = _instances([upstream])
    await instance.start()
    assert [rows for rows, _ in (await calibrate_upstream(instance)).points] == [1, 4, 16]
    for ended in (instance, upstream):
        await ended.stop()


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def test_tls_verifies_certificates(certificate: Path) -> None:
    context = server_context(certificate)
    upstream = ScriptedUpstream(OIP, echo)
    await upstream.start(ssl=context)
    address = parse_address(f"https://127.0.0.1:{upstream.port}/v2/models/m")
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: None)  # the server's own complaints

    stranger = RemoteInstance("u", address, QUICK)
    with pytest.raises(UpstreamError, match=r"no TLS connection to the upstream: .*certificate"):
        await stranger.start()
    await stranger.stop()
    for settings in (
        msgspec.structs.replace(QUICK, ca_file=str(certificate)),
        msgspec.structs.replace(QUICK, verify_tls=False),
    ):
        instance = RemoteInstance("u", address, settings)
        await instance.start()
        assert (await run(instance, rows_of(5))).outputs[0][0, 0] == 5
        await instance.stop()
    await upstream.stop()


def test_authorities_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        settings = RemoteSettings(ca_file=str(tmp_path / name))
        with pytest.raises(ModelError, match=name):
            RemoteInstance("u", parse_address("https://h/v2/models/m"), settings)
