"""Requests of more rows than a batch, over HTTP and through the library: the answers, and what is told about them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from dlproxy import InferenceError, Model, Proxy
from dlproxy.message import DType
from tests import models
from tests.clients.server import ServerProcess, write_config

ROWS = 1000
RANDOM = np.random.default_rng(1)
A, B = (RANDOM.integers(-1000, 1000, (ROWS, 4), np.int32) for _ in "ab")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("models")
    made = {
        "simple": models.two_in_two_out(),
        "text": models.identity(DType.BYTES, ("N", 2)),
        "half": models.identity(DType.FP16),
        "flags": models.identity(DType.BOOL),
        "bounded": models.two_in_two_out(),
        "mixing": models.softmax_over_rows(),
    }
    settings = {
        name: {"path": models.save(made[name], folder / f"{name}.onnx"), "threads": 1, "max_batch": 64} for name in made
    }
    settings["simple"] |= {"max_queue_rows": 2000, "run": "thread", "instances": 2, "part_rows": 25}
    settings["bounded"]["max_request_rows"] = 100
    with ServerProcess("--config", write_config(folder / "dlproxy.toml", settings), "--access-log") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=1) as client:
        yield client


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> triton.InferInput:  # type: ignore[type-arg]
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


@pytest.mark.parametrize("binary", [True, False])
def test_a_thousand_rows_come_back_in_order(client: triton.InferenceServerClient, binary: bool) -> None:
    inputs = [tensor("a", A, "INT32", binary=binary), tensor("b", B, "INT32", binary=binary)]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("diff", "sum")]
    for _ in range(3):  # the head is remembered
        answer = client.infer("simple", inputs, request_id="large", outputs=outputs)
        assert answer.get_response()["id"] == "large"
        assert np.array_equal(answer.as_numpy("sum"), A + B)
        assert np.array_equal(answer.as_numpy("diff"), A - B)


@pytest.mark.parametrize(
    ("model", "datatype", "array"),
    [
        ("text", "BYTES", np.array([[b"x" * (row % 7), b"\0"] for row in range(ROWS)], object)),
        ("half", "FP16", RANDOM.random((ROWS, 3)).astype(np.float16)),
        ("flags", "BOOL", RANDOM.integers(0, 2, (ROWS, 3)).astype(bool)),
    ],
)
def test_every_type_is_cut_at_rows(client: triton.InferenceServerClient, model: str, datatype: str, array: object) -> None:
    assert isinstance(array, np.ndarray)
    assert np.array_equal(client.infer(model, [tensor("x", array, datatype)]).as_numpy("y"), array)


def test_a_request_counts_once_with_all_its_rows(server: ServerProcess, client: triton.InferenceServerClient) -> None:
    before = server.stats("simple")
    written = server.errors().count("/v2/models/simple/infer")
    client.infer("simple", [tensor("a", A, "INT32"), tensor("b", B, "INT32")])
    after = server.stats("simple")
    assert after["inference_count"] - before["inference_count"] == ROWS
    assert after["execution_count"] - before["execution_count"] >= ROWS / 64
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][stage]["count"] - before["inference_stats"][stage]["count"] == 1, stage
    assert server.errors().count("/v2/models/simple/infer") == written + 1


def test_the_configuration_says_from_which_size_on_requests_are_refused(client: triton.InferenceServerClient) -> None:
    told = {name: client.get_model_config(name)["max_batch_size"] for name in ("simple", "text", "bounded", "mixing")}
    assert told == {"simple": 2000, "text": 8192, "bounded": 100, "mixing": 0}
    for name, most in (("simple", 2000), ("bounded", 100)):
        a = np.zeros((most + 1, 4), np.int32)
        with pytest.raises(InferenceServerException, match=f"batch-size must be <= {most} for '{name}', got {most + 1}"):
            client.infer(name, [tensor("a", a, "INT32"), tensor("b", a, "INT32")])
        assert client.infer(name, [tensor("a", a[1:], "INT32"), tensor("b", a[1:], "INT32")]).as_numpy("sum").shape == (most, 4)


def test_a_model_whose_rows_are_not_independent_gets_all_of_them(client: triton.InferenceServerClient) -> None:
    x = RANDOM.random((300, 3)).astype(np.float32)
    exact = np.exp(x) / np.exp(x).sum(axis=0)
    assert np.allclose(client.infer("mixing", [tensor("x", x, "FP32")]).as_numpy("y"), exact, rtol=1e-4)


async def test_the_library_splits_too(tmp_path: Path) -> None:
    path = models.save(models.two_in_two_out(), tmp_path / "simple.onnx")
    async with Proxy([Model(path, max_batch=64, threads=1, max_request_rows=ROWS)]) as proxy:
        answer = await proxy.infer("simple", {"a": A, "b": B})
        assert np.array_equal(answer["sum"], A + B)
        (model,) = proxy.models
        model.served.stats.settle()
        assert (model.served.stats.rows, model.served.stats.request.count) == (ROWS, 1)
        assert set(model.served.stats.batch_sizes) <= set(range(65))
        with pytest.raises(InferenceError, match="must be <= 1000"):
            await proxy.infer("simple", {"a": np.zeros((1001, 4), np.int32), "b": np.zeros((1001, 4), np.int32)})
        assert model.control.partition is not None
        model.control.change({"part_rows": 10})
        assert model.control.partition.part_rows == 10
        model.control.stop_batching("a row's answer was another in a batch")
        with pytest.raises(InferenceError, match="must be <= 64 for 'simple', got 65"):
            await proxy.infer("simple", {"a": A[:65], "b": B[:65]})
        assert np.array_equal((await proxy.infer("simple", {"a": A[:64], "b": B[:64]}))["sum"], (A + B)[:64])
