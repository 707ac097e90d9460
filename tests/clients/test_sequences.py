"""Sequences of a whole server through every door, with our clients and Triton's, while a version takes another's place."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import Queue
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from dlproxy import Client, FailureKind, InferenceError
from tests import models
from tests.clients.server import HANG_S, ServerProcess, asked

SETTINGS = {"sequences": "oldest", "state": {"sum": "sumN"}, "sequence_idle_s": 30.0, "max_sequences": 50}
CONFIG = dedent("""
    [server]
    calibration_folder = ""

    [models.m]
    path = "sum.onnx"
    run = "thread"
    sequences = "oldest"
    state = { sum = "sumN" }
    sequence_idle_s = 30.0
    max_sequences = 50
""")
X = np.array([[1.0, 10.0]], np.float32)
SUMS = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]
Ask = Callable[..., list[float]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("sequences")
    models.running_sum(folder / "sum.onnx")
    config = folder / "dlproxy.toml"
    config.write_text(CONFIG, "utf-8")
    with ServerProcess("--config", config) as process:
        yield process


def plain(server: ServerProcess) -> Iterator[Ask]:
    def ask(**sequence: Any) -> list[float]:
        told = asked(f"http://127.0.0.1:{server.http_port}/predict/m", {"inputs": X.tolist(), "parameters": sequence})
        assert told.status == 200, told.body
        found: list[float] = told.json["outputs"]["y"][0]
        return found

    yield ask


def by_client(scheme: str) -> Callable[[ServerProcess], Iterator[Ask]]:
    def connected(server: ServerProcess) -> Iterator[Ask]:
        port = server.http_port if scheme == "http" else server.grpc_port
        with Client(f"{scheme}://127.0.0.1:{port}") as client:
            yield lambda **sequence: client.infer("m", X, **sequence)["y"][0].tolist()

    return connected


def in_parts(scheme: str) -> Callable[[ServerProcess], Iterator[Ask]]:
    def connected(server: ServerProcess) -> Iterator[Ask]:
        port = server.http_port if scheme == "http" else server.grpc_port
        with Client(f"{scheme}://127.0.0.1:{port}") as client:
            yield lambda **sequence: next(client.stream("m", X, **sequence))["y"][0].tolist()

    return connected


def triton(module: Any, port: str) -> Callable[[ServerProcess], Iterator[Ask]]:
    def connected(server: ServerProcess) -> Iterator[Ask]:
        given = module.InferInput("x", X.shape, "FP32")
        given.set_data_from_numpy(X)
        with closing(module.InferenceServerClient(f"127.0.0.1:{getattr(server, port)}")) as client:
            yield lambda **sequence: client.infer("m", [given], **sequence).as_numpy("y")[0].tolist()

    return connected


def triton_stream(server: ServerProcess) -> Iterator[Ask]:
    given = tritonclient.grpc.InferInput("x", X.shape, "FP32")
    given.set_data_from_numpy(X)
    answers: Queue[Any] = Queue()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put(error or result))

        def ask(**sequence: Any) -> list[float]:
            client.async_stream_infer("m", [given], **sequence)
            found: list[float] = answers.get(timeout=HANG_S).as_numpy("y")[0].tolist()
            return found

        yield ask


DOORS = {
    "plain JSON": plain,
    "our client, HTTP": by_client("http"),
    "our client, gRPC": by_client("grpc"),
    "our client, in parts over HTTP": in_parts("http"),
    "our client, in parts over gRPC": in_parts("grpc"),
    "Triton's client, HTTP": triton(tritonclient.http, "http_port"),
    "Triton's client, gRPC": triton(tritonclient.grpc, "grpc_port"),
    "Triton's client, a stream": triton_stream,
}


@pytest.mark.parametrize("sequence_id", [7, 2**40, "session"])
@pytest.mark.parametrize("door", DOORS)
def test_a_sequence_goes_on_through_every_door(server: ServerProcess, door: str, sequence_id: int | str) -> None:
    doors = DOORS[door](server)
    ask = next(doors)
    assert [ask(sequence_id=sequence_id, sequence_start=not step, sequence_end=step == 2) for step in range(3)] == SUMS
    doors.close()  # type: ignore[attr-defined]


def test_a_client_of_either_protocol_hears_what_is_wrong(server: ServerProcess) -> None:
    for scheme, port in (("http", server.http_port), ("grpc", server.grpc_port)):
        with Client(f"{scheme}://127.0.0.1:{port}") as client:
            with pytest.raises(InferenceError, match="must specify the START flag") as caught:
                client.infer("m", X, sequence_id=99)
            assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
            with pytest.raises(InferenceError, match="must specify a non-zero or non-empty correlation ID"):
                client.infer("m", X)
            for key in range(50):
                client.infer("m", X, sequence_id=1000 + key, sequence_start=True)
            with pytest.raises(InferenceError, match="keeps 50 at most"):
                client.infer("m", X, sequence_id=2000, sequence_start=True)
            for key in range(50):
                client.infer("m", X, sequence_id=1000 + key, sequence_end=True)


def test_clients_neither_see_nor_send_the_state(server: ServerProcess) -> None:
    with Client(f"http://127.0.0.1:{server.http_port}") as client:
        told = client.metadata("m")
        assert [each.name for each in (*told.inputs, *told.outputs)] == ["x", "y"]
        with pytest.raises(InferenceError, match="has no input 'sum'"):
            client.infer("m", {"x": X, "sum": X}, sequence_id=1, sequence_start=True)
    config = asked(f"http://127.0.0.1:{server.http_port}/v2/models/m/config").json
    assert config["sequence_batching"] == {"max_sequence_idle_microseconds": 30_000_000, "oldest": {}}
    assert "sequence" in asked(f"http://127.0.0.1:{server.http_port}/v2").json["extensions"]
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as triton_client:
        assert triton_client.get_model_config("m").config.sequence_batching.HasField("oldest")
    explained = asked(f"http://127.0.0.1:{server.http_port}/v1/models/m:explain", {"instances": X.tolist()})
    assert (explained.status, "has sequences" in explained.body.decode()) == (501, True)


def test_the_control_port_counts_them(server: ServerProcess) -> None:
    with Client(f"http://127.0.0.1:{server.http_port}") as client:
        client.infer("m", X, sequence_id="counted", sequence_start=True)
    metrics = asked(f"http://127.0.0.1:{server.control_port}/metrics").body.decode()
    (active,) = re.findall(r'dlproxy_sequences_active\{model="m",version="1"\} (\S+)', metrics)
    (started,) = re.findall(r'dlproxy_sequences_started_total\{model="m",version="1"\} (\S+)', metrics)
    assert 1 <= float(active) <= float(started)


def test_another_version_goes_on_with_them_when_the_first_has_gone(server: ServerProcess, tmp_path: Path) -> None:
    control = f"http://127.0.0.1:{server.control_port}"
    with Client(f"http://127.0.0.1:{server.http_port}") as client:
        client.infer("m", X, sequence_id=3, sequence_start=True)
        path = models.running_sum(tmp_path / "sum.onnx")
        wanted = {"path": str(path), "version": "2", "config": {"run": "thread", **SETTINGS}}
        loaded = asked(f"{control}/models/m/load", wanted)
        assert loaded.status == 200, loaded.body
        assert client.infer("m", X, sequence_id=3)["y"][0].tolist() == SUMS[1]
        unloaded = asked(f"{control}/models/m/unload", {"version": "1"})
        assert unloaded.status == 200, json.dumps(unloaded.json)
        assert client.infer("m", X, sequence_id=3)["y"][0].tolist() == SUMS[2]
