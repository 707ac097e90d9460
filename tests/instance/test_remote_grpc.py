"""Upstreams over gRPC: a real server, what it says, how it fails, how it goes and comes back."""

import asyncio
import gc
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import uvloop

from dlproxy.instance.remote import (
    RemoteInstance,
    RemoteSettings,
    UpstreamError,
    calibrate_upstream,
    parse_address,
    start_upstreams,
)
from dlproxy.instance.remote.grpc_channel import GrpcChannel
from dlproxy.instance.remote.rpc import Rpc
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, Signature, TensorSpec
from dlproxy.protos.oip import oip
from dlproxy.testing import FakeRuntime
from tests.certificates import make_certificate
from tests.instance.remote_cases import request
from tests.instance.remote_grpc import GrpcUpstream, Way
from tests.instance.running import run
from tests.instance.test_remote import PAIR, double, rows_of
from tests.instance.upstreams import QUICK, DlproxyUpstream, until

PROTOCOLS = pytest.mark.parametrize("protocol", ["v2", "v1"])


class Rig:
    """A server, and instances that keep what they tell."""

    def __init__(self) -> None:
        self.upstream = GrpcUpstream(FakeRuntime(PAIR, double), max_batch=16)
        self.told: list[str] = []
        self.instances: list[RemoteInstance] = []

    def make(self, settings: RemoteSettings = QUICK, **address: Any) -> RemoteInstance:
        instance = RemoteInstance("u-0", parse_address(self.upstream.address(**address)), settings)
        instance.on_lost = lambda reason: self.told.append(f"lost: {reason}")
        instance.on_up = lambda: self.told.append("up")
        self.instances.append(instance)
        return instance

    async def made(self, settings: RemoteSettings = QUICK, **address: Any) -> RemoteInstance:
        instance = self.make(settings, **address)
        await instance.start()
        return instance


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    await made.upstream.start()
    yield made
    for instance in made.instances:
        await instance.stop()
        assert instance.connections == 0
    await made.upstream.stop()


def _settings(**changes: Any) -> RemoteSettings:
    return msgspec.structs.replace(QUICK, **changes)


# Start


async def test_start_learns_the_signature(rig: Rig) -> None:
    oip_instance, tfs_instance = await rig.made(), await rig.made(protocol="v1")
    assert oip_instance.model.signature == msgspec.structs.replace(PAIR, platform="p")
    assert (oip_instance.model.max_batch, oip_instance.capacity, oip_instance.connections) == (16, 2, 1)
    assert tfs_instance.model.signature == msgspec.structs.replace(PAIR, platform="tensorflow_savedmodel")
    assert tfs_instance.model.max_batch is None


@PROTOCOLS
async def test_a_model_that_is_not_ready_is_not_used(rig: Rig, protocol: str) -> None:
    rig.upstream.ready = False
    with pytest.raises(UpstreamError, match="the model is not ready: the upstream says that it is not"):
        await rig.made(protocol=protocol)


@pytest.mark.parametrize(
    ("protocol", "clue"), [("v2", "says that it is not"), ("v1", "answered NOT_FOUND: unknown model: 'other'")]
)
async def test_an_unknown_model_is_not_ready(rig: Rig, protocol: str, clue: str) -> None:
    with pytest.raises(UpstreamError, match=f"not ready: .*{clue}"):
        await rig.made(protocol=protocol, model="other")


async def test_headers_go_as_metadata(rig: Rig) -> None:
    instance = await rig.made(_settings(headers={"Authorization": "Bearer t"}))
    await run(instance, rows_of(1))
    assert {asked[2]["authorization"] for asked in rig.upstream.asked} == {"Bearer t"}
    assert rig.upstream.asked[0][2]["user-agent"].startswith("dlproxy ")


@pytest.mark.parametrize("header", ["a b", "x-bin", "grpc-timeout", "ä", "a:"])
def test_headers_that_are_no_metadata_are_refused(header: str) -> None:
    with pytest.raises(ModelError, match="cannot be sent"):
        RemoteInstance("u", parse_address("grpc://h:1/v2/models/m"), RemoteSettings(headers={header: "x"}))


async def test_a_port_that_speaks_something_else_is_named() -> None:
    greetings = {b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n": "http1", b"\0SSH-2.0-x\r\n" * 9: "HTTP/2"}
    for greeting, clue in greetings.items():

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, greeting: bytes = greeting) -> None:
            await reader.read(64)
            writer.write(greeting)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        instance = RemoteInstance("u", parse_address(f"grpc://127.0.0.1:{port}/v2/models/m"), QUICK)
        with pytest.raises(UpstreamError, match=f"no connection to the upstream: .*{clue}") as caught:
            await instance.start()
        assert caught.value.gone
        assert "127.0.0.1" not in str(caught.value), "the address is named by whoever reports this"
        await instance.stop()
        server.close()


async def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = _settings(connect_timeout_s=0.2)
        instance = RemoteInstance("u", parse_address(f"grpc://127.0.0.1:{port}/v2/models/m"), settings)
        with pytest.raises(UpstreamError, match=r"no connection to the upstream: .*timed out"):
            await instance.start()
        await instance.stop()


# Batches


@PROTOCOLS
@pytest.mark.parametrize("typed", [False, True])
async def test_one_call_carries_the_rows_of_many(rig: Rig, protocol: str, typed: bool) -> None:
    rig.upstream.typed = typed
    instance = await rig.made(protocol=protocol)
    result = await run(instance, rows_of(1), rows_of(2, 3), rows_of(4))
    assert result.error is None
    assert result.outputs[0].dtype == np.float32
    assert result.outputs[0][:, 1].tolist() == [2, 4, 6, 8]
    assert rig.upstream.count("ModelInfer" if protocol == "v2" else "Predict") == 1


TYPES = [
    (DType.BOOL, np.array([[True, False]])),
    (DType.UINT8, np.array([[0, 255]], np.uint8)),
    (DType.INT16, np.array([[-1, 2**15 - 1]], np.int16)),
    (DType.UINT64, np.array([[0, 2**64 - 1]], np.uint64)),
    (DType.FP16, np.array([[1.5, np.inf]], np.float16)),
    (DType.BF16, np.array([[0x3FC0, 0x7FC1]], np.uint16)),
    (DType.FP64, np.array([[np.nan, -0.0]])),
    (DType.BYTES, np.array([["zwölf", ""]], object)),
]


@PROTOCOLS
@pytest.mark.parametrize(("dtype", "values"), TYPES, ids=[dtype.value for dtype, _ in TYPES])
async def test_every_type_comes_back_as_it_went(protocol: str, dtype: DType, values: Any) -> None:
    signature = Signature((TensorSpec("x", dtype, (-1, 2)),), (TensorSpec("y", dtype, (-1, 2)),), True, "fake")
    upstream = GrpcUpstream(FakeRuntime(signature, list))
    await upstream.start()
    instance = RemoteInstance("u", parse_address(upstream.address(protocol=protocol)), QUICK)
    await instance.start()
    given = request(("x", dtype, values))
    result = await run(instance, given, given)
    assert result.error is None
    (got,) = result.outputs
    expected = [[text.encode() for text in values[0]]] if dtype is DType.BYTES else values.tolist()
    assert np.array_equal(got[1:], np.array(expected, got.dtype), equal_nan=dtype is DType.FP64)
    for ended in (instance, upstream):
        await ended.stop()


def _says(status: grpc.StatusCode, words: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def behave(message: bytes, context: Any) -> bytes:
        await context.abort(status, words)
        raise AssertionError

    return behave


async def _raises(message: bytes, context: Any) -> bytes:
    raise ZeroDivisionError("oops")


async def _hangs(message: bytes, context: Any) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


async def _garbage(message: bytes, context: Any) -> bytes:
    return b"\xff\xff"


async def _nothing(message: bytes, context: Any) -> bytes:
    return b""


async def _too_much(message: bytes, context: Any) -> bytes:
    return bytes(5000)


BAD = [
    (_says(grpc.StatusCode.INTERNAL, "CUDA error"), FailureKind.MODEL_FAILED, "^CUDA error$"),
    (_raises, FailureKind.MODEL_FAILED, "oops"),
    (
        _says(grpc.StatusCode.INVALID_ARGUMENT, "bad shape"),
        FailureKind.INVALID_ARGUMENT,
        "answered INVALID_ARGUMENT: bad shape",
    ),
    (_says(grpc.StatusCode.UNAVAILABLE, "queue full"), FailureKind.UNAVAILABLE, "answered UNAVAILABLE: queue full"),
    (_says(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down"), FailureKind.OVERLOADED, "answered RESOURCE_EXHAUSTED: slow down"),
    (_says(grpc.StatusCode.NOT_FOUND, "gone"), FailureKind.UNAVAILABLE, "answered NOT_FOUND: gone"),
    (_says(grpc.StatusCode.UNIMPLEMENTED, ""), FailureKind.UNSUPPORTED, "answered UNIMPLEMENTED: without a reason"),
    (_says(grpc.StatusCode.CANCELLED, "no"), FailureKind.UNAVAILABLE, "answered CANCELLED: no"),
    (_hangs, FailureKind.UNAVAILABLE, r"no answer from the upstream within 0\.5 s"),
    (_garbage, FailureKind.MODEL_FAILED, "cannot be read as inference.ModelInferResponse"),
    (_nothing, FailureKind.MODEL_FAILED, "gave no output 'y'; it gave none"),
    (_too_much, FailureKind.UNAVAILABLE, "cannot be used: it has more than 4000 bytes"),
]


@pytest.mark.parametrize(("behave", "kind", "clue"), BAD)
async def test_a_batch_that_fails_says_whose_fault_it_was(rig: Rig, behave: Any, kind: FailureKind, clue: str) -> None:
    instance = await rig.made(_settings(response_timeout_s=0.5, max_reply_bytes=4000))
    rig.upstream.behave = behave
    result = await run(instance, rows_of(1), rows_of(2))
    assert result.failure is not None
    assert result.failure.kind is kind
    assert result.error == result.failure.message
    assert re.search(clue, result.error)
    rig.upstream.behave = None
    assert (await run(instance, rows_of(7))).error is None, "one failure broke the instance"
    assert not rig.told, "an upstream that answers its checks is not lost"


async def test_a_batch_that_the_server_finds_too_large_says_so() -> None:
    upstream = GrpcUpstream(FakeRuntime(PAIR, double), max_receive_message_length=1000)
    await upstream.start()
    instance = RemoteInstance("u", parse_address(upstream.url), QUICK)
    await instance.start()
    result = await run(instance, rows_of(*range(1000)))
    assert result.failure is not None
    assert result.failure.kind is FailureKind.TOO_LARGE
    assert (await run(instance, rows_of(1))).error is None
    for ended in (instance, upstream):
        await ended.stop()


async def test_stop_waits_for_what_runs(rig: Rig) -> None:
    instance = await rig.made()
    asked_for, gate = asyncio.Event(), asyncio.Event()

    async def slow(message: bytes, context: Any) -> bytes:
        asked_for.set()
        await gate.wait()
        return await _echo(message, context)

    rig.upstream.behave = slow
    running = asyncio.create_task(run(instance, rows_of(1)))
    await asked_for.wait()
    stopping = asyncio.create_task(instance.stop())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not stopping.done()
    gate.set()
    await stopping
    assert (await running).error is None
    refused = await run(instance, rows_of(1))
    assert refused.error == "the connection to the upstream is closed"


async def test_a_mistake_in_a_call_does_not_lose_the_batch(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    instance = await rig.made(_settings(check_interval_s=3600.0))
    results: list[Any] = []
    instance._channel.call(object(), results.append, timeout_s=1.0)
    await until(lambda: bool(results))
    assert (results[0].failure.kind, "AttributeError" in str(results[0])) == (FailureKind.UNAVAILABLE, True)
    assert "could not be called" in caplog.text
    assert (await run(instance, rows_of(1))).error is None


async def _echo(message: bytes, context: Any) -> bytes:
    asked = oip.ModelInferRequest.FromString(message)
    reply = oip.ModelInferResponse(raw_output_contents=asked.raw_input_contents)
    reply.outputs.add(name="y", datatype="FP32", shape=asked.inputs[0].shape)
    return bytes(reply.SerializeToString())


# Health


@PROTOCOLS
async def test_a_dead_upstream_is_lost_and_comes_back(rig: Rig, protocol: str) -> None:
    instance = await rig.made(protocol=protocol)
    await run(instance, rows_of(1))
    await rig.upstream.stop()
    await until(lambda: bool(rig.told))
    assert re.fullmatch("lost: no connection to the upstream: .*[Cc]onnection refused.*", rig.told[0])
    result = await run(instance, rows_of(1))
    assert result.failure is not None
    assert result.failure.kind is FailureKind.UNAVAILABLE
    await rig.upstream.start()
    await until(lambda: rig.told[-1] == "up")
    assert (await run(instance, rows_of(3))).outputs[0][0, 0] == 6


async def test_an_idle_upstream_that_dies_is_noticed(rig: Rig) -> None:
    await rig.made(_settings(check_interval_s=3600.0))
    await rig.upstream.stop()
    await until(lambda: bool(rig.told))
    assert "refused" in rig.told[0]


async def test_a_batch_on_a_connection_that_breaks_fails_at_once(rig: Rig) -> None:
    way = Way(rig.upstream.port)
    await way.start()
    instance = await rig.made(_settings(response_timeout_s=3600.0, check_interval_s=3600.0), port=way.port)
    asked_for = asyncio.Event()

    async def hang(message: bytes, context: Any) -> bytes:
        asked_for.set()
        return await _hangs(message, context)

    rig.upstream.behave = hang
    running = asyncio.create_task(run(instance, rows_of(1)))
    await asked_for.wait()
    await way.stop()
    result = await running
    assert result.failure is not None
    assert (result.failure.kind, result.error[:38]) == (FailureKind.UNAVAILABLE, "the connection to the upstream broke: ")  # type: ignore[index]
    await until(lambda: bool(rig.told))
    rig.upstream.behave = None
    await way.start()
    await until(lambda: rig.told[-1] == "up")
    assert (await run(instance, rows_of(3))).error is None
    await instance.stop()
    await way.stop()


async def test_a_break_is_never_taken_for_an_answer(rig: Rig) -> None:
    """grpc may end the call before the state of its channel says why; not in every break, hence thirty."""
    way, asked_for = Way(rig.upstream.port), asyncio.Event()

    async def hang(message: bytes, context: Any) -> bytes:
        asked_for.set()
        return await _hangs(message, context)

    rig.upstream.behave = hang
    for _ in range(30):
        await way.start()
        channel = GrpcChannel(parse_address(rig.upstream.address(port=way.port)), QUICK, lambda: None)
        asked_for.clear()
        fetched = asyncio.create_task(channel.fetch(Rpc("/inference.GRPCInferenceService/ModelInfer", [b""]), timeout_s=60.0))
        await asked_for.wait()
        await way.stop()
        with pytest.raises(UpstreamError, match="the connection to the upstream broke: "):
            await fetched
        await channel.close()


async def test_a_connection_that_falls_silent_is_replaced(rig: Rig) -> None:
    way = Way(rig.upstream.port)
    await way.start()
    instance = await rig.made(_settings(check_timeout_s=0.3, response_timeout_s=0.3), port=way.port)
    await run(instance, rows_of(1))
    way.cut()
    assert "no answer from the upstream" in ((await run(instance, rows_of(1))).error or "")
    assert (await run(instance, rows_of(3))).error is None, "still on the way that is cut"
    assert way.accepted == 2
    await until(lambda: instance.connections == 1)  # a check may still wait on the other
    await instance.stop()
    await way.stop()


async def test_a_model_that_is_unloaded_is_lost(rig: Rig) -> None:
    instance = await rig.made()
    rig.upstream.ready = False
    await until(lambda: bool(rig.told))
    assert rig.told == ["lost: the model is not ready: the upstream says that it is not"]
    rig.upstream.ready = True
    await until(lambda: rig.told[-1] == "up")
    assert instance.up


async def test_another_model_in_its_place_is_not_used(rig: Rig) -> None:
    await rig.made()
    await rig.upstream.stop()
    await until(lambda: bool(rig.told))
    rig.upstream.max_batch = 8
    looks = rig.upstream.count("ModelConfig")
    await rig.upstream.start()
    await until(lambda: rig.upstream.count("ModelConfig") >= looks + 2)
    assert len(rig.told) == 1
    rig.upstream.max_batch = 16
    await until(lambda: rig.told[-1] == "up")


async def test_a_hundred_breaks_leave_nothing_behind(rig: Rig) -> None:
    way = Way(rig.upstream.port)
    await way.start()
    instance = await rig.made(port=way.port)
    await run(instance, rows_of(1))
    files, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    for _ in range(100):
        way.reset()
        await run(instance, rows_of(1))
    await until(lambda: instance.up)
    assert (await run(instance, rows_of(1))).error is None
    assert way.accepted > 50
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files)
    await instance.stop()
    await way.stop()
    gc.collect()
    assert len([found for found in gc.get_objects() if type(found).__name__ == "_Connection"]) == 0


# Several of one lane


async def test_upstreams_of_both_transports_serve_one_lane(rig: Rig) -> None:
    rest, missing = (
        DlproxyUpstream(FakeRuntime(PAIR, double), max_batch=8),
        GrpcUpstream(FakeRuntime(PAIR, double), max_batch=8),
    )
    for upstream in (rest, missing):
        await upstream.start()
    await missing.stop()
    urls = [rest.url, rig.upstream.url, missing.url]
    instances = [RemoteInstance(f"m-{number}", parse_address(url), QUICK) for number, url in enumerate(urls)]
    joined = asyncio.Event()
    instances[2].on_up = joined.set
    model = await start_upstreams(instances)
    assert model.max_batch == 8
    assert [instance.up for instance in instances] == [True, True, False]
    await missing.start()
    await asyncio.wait_for(joined.wait(), 10.0)
    for instance in instances:
        assert (await run(instance, rows_of(4))).outputs[0][0, 0] == 8
    for ended in (*instances, rest, missing):
        await ended.stop()


async def test_no_upstream_at_all_says_why(rig: Rig) -> None:
    await rig.upstream.stop()
    instance = rig.make()
    with pytest.raises(ModelError, match=r"no upstream can be used: 127\.0\.0\.1:\d+: no connection.*refused"):
        await start_upstreams([instance])
    assert instance.connections == 0


async def test_calibration_measures_through_grpc(rig: Rig) -> None:
    calibration = await calibrate_upstream(await rig.made())
    assert calibration.independent_rows
    assert [rows for rows, _ in calibration.points] == [1, 4, 16]


# TLS


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def credentials(certificate: Path) -> Any:
    both = certificate.read_bytes()
    return grpc.ssl_server_credentials([(both, both)])


async def test_tls_verifies_certificates(certificate: Path, credentials: Any) -> None:
    upstream = GrpcUpstream(FakeRuntime(PAIR, double), credentials=credentials)
    await upstream.start()
    address = parse_address(upstream.address(tls=True))
    for wrong in (address, parse_address(upstream.address())):  # an unknown authority; no TLS
        stranger = RemoteInstance("u", wrong, QUICK)
        with pytest.raises(UpstreamError, match="no connection to the upstream: ") as caught:
            await stranger.start()
        assert caught.value.gone
        assert not wrong.tls or "CERTIFICATE_VERIFY_FAILED" in str(caught.value)
        await stranger.stop()
    instance = RemoteInstance("u", address, _settings(ca_file=str(certificate)))
    await instance.start()
    assert (await run(instance, rows_of(5))).outputs[0][0, 0] == 10
    for ended in (instance, upstream):
        await ended.stop()


@pytest.mark.parametrize(
    ("change", "clue"), [({"verify_tls": False}, "always verifies"), ({"ca_file": "none.pem"}, "none.pem")]
)
def test_tls_that_cannot_be_had_is_refused(change: dict[str, Any], clue: str) -> None:
    with pytest.raises(ModelError, match=clue):
        RemoteInstance("u", parse_address("grpcs://h:1/v2/models/m"), RemoteSettings(**change))


# The process around it


def test_it_runs_on_uvloop() -> None:
    async def main() -> float:
        upstream = GrpcUpstream(FakeRuntime(PAIR, double))
        await upstream.start()
        instance = RemoteInstance("u", parse_address(upstream.url), QUICK)
        await instance.start()
        results = await asyncio.gather(*(run(instance, rows_of(number)) for number in range(20)))
        await instance.stop()
        await upstream.stop()
        return float(sum(result.outputs[0][0, 0] for result in results))

    assert uvloop.run(main()) == 2 * sum(range(20))


def test_servers_without_grpc_addresses_do_not_load_it() -> None:
    code = (
        "import sys; from dlproxy.instance.remote import RemoteInstance, parse_address;"
        "RemoteInstance('u', parse_address('http://h/v2/models/m'));"
        "sys.exit(str([name for name in sys.modules if name.partition('.')[0] in ('grpc', 'google')] or ''))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr.strip()) == (1, ""), "sys.exit('') is 1"


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf.message"])
def test_a_missing_extra_is_named(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from dlproxy.instance.remote import RemoteInstance, parse_address;"
        "RemoteInstance('u', parse_address('grpc://h:1/v2/models/m'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ModelError: upstream h:1/v2/models/m is asked by gRPC" in ended.stderr
    assert "pip install 'dlproxy[grpc]'" in ended.stderr
