"""NVIDIA's tritonclient, unchanged, over HTTP and gRPC, against a dlproxy server: every call that it makes for inference works.

Streams, cancelling and loading over gRPC: test_tritonclient_grpc.py.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
import tritonclient.http.aio as triton_aio
from ml_dtypes import bfloat16
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.clients.server import ServerProcess

# gevent's hub, which the client starts, is not closed by it
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

A = np.arange(8, dtype=np.int32).reshape(2, 4)
B = np.full((2, 4), 100, np.int32)


class Door:
    """A client, and how one asks with it."""

    def __init__(self, triton: Any, client: Any) -> None:
        self.triton, self.client, self.is_http = triton, client, triton is over_http
        self.infer = client.infer

    def input(self, name: str, array: np.ndarray, datatype: str = "", **more: Any) -> Any:
        made = self.triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
        made.set_data_from_numpy(array, **more)
        return made

    def pair(self, **more: Any) -> list[Any]:
        return [self.input("a", A, **more), self.input("b", B, **more)]

    def outputs(self, *names: str, **more: Any) -> list[Any]:
        return [self.triton.InferRequestedOutput(name, **more) for name in names]

    def told(self, call: str, *arguments: str) -> Any:
        """What this call gives, as JSON has it."""
        return getattr(self.client, call)(*arguments, **({} if self.is_http else {"as_json": True}))

    def sizes(self, *numbers: int) -> list[int | str]:
        """JSON of protobuf has 64 bits as text."""
        return [*numbers] if self.is_http else [*map(str, numbers)]


@pytest.fixture(scope="module")
def http(server: ServerProcess) -> Iterator[Door]:
    with over_http.InferenceServerClient(server.address, concurrency=4) as made:
        yield Door(over_http, made)


@pytest.fixture(scope="module", params=["http", "grpc"])
def door(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Door]:
    if request.param == "http":
        yield request.getfixturevalue("http")
    else:
        with over_grpc.InferenceServerClient(server.grpc_address) as made:
            yield Door(over_grpc, made)


@pytest.fixture
async def aio(server: ServerProcess) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(server.address) as made:
        yield made


# Health and description


def test_server_and_models_are_live_and_ready(door: Door) -> None:
    assert door.client.is_server_live()
    assert door.client.is_server_ready()
    assert door.client.is_model_ready("digits")
    assert door.client.is_model_ready("simple", "3")
    assert not door.client.is_model_ready("nobody")
    assert not door.client.is_model_ready("digits", "9")


def test_server_metadata_names_the_extensions(door: Door) -> None:
    metadata = door.told("get_server_metadata")
    assert metadata["name"] == "dlproxy"
    assert metadata["version"]
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(metadata["extensions"])


def test_model_metadata_shows_the_batch_dimension_as_minus_one(door: Door) -> None:
    shape = door.sizes(-1, 4)
    assert door.told("get_model_metadata", "simple") == {
        "name": "simple",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": name, "datatype": "INT32", "shape": shape} for name in ("a", "b")],
        "outputs": [{"name": name, "datatype": "INT32", "shape": shape} for name in ("sum", "diff")],
    }


def test_model_config_leaves_the_batch_dimension_out_of_dims(door: Door) -> None:
    def config(*model: str) -> Any:
        told = door.told("get_model_config", *model)
        return told if door.is_http else told["config"]

    simple = config("simple", "3")
    assert (simple["max_batch_size"], simple["backend"]) == (8, "onnxruntime")
    assert simple["input"][0] == {"name": "a", "data_type": "TYPE_INT32", "dims": door.sizes(4)}
    assert "dynamic_batching" in simple
    assert config("text")["input"][0]["data_type"] == "TYPE_STRING"


def test_statistics_count_inferences(door: Door) -> None:
    def counts() -> list[int]:
        (stats,) = door.told("get_inference_statistics", "simple")["model_stats"]
        found = stats["inference_count"], stats["execution_count"], stats["inference_stats"]["success"]["count"]
        return [int(count) for count in found]

    before = counts()
    door.infer("simple", door.pair())
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [2, 1, 1]
    assert {"digits", "simple", "text"} <= {stats["name"] for stats in door.told("get_inference_statistics")["model_stats"]}


def test_repository_index_lists_the_models(door: Door) -> None:
    index = door.told("get_model_repository_index")
    assert {"name": "simple", "version": "3", "state": "READY"} in (index if door.is_http else index["models"])


# Inference


def _right(result: Any) -> None:
    assert np.array_equal(result.as_numpy("sum"), A + B)
    assert np.array_equal(result.as_numpy("diff"), A - B)


def test_several_inputs_and_outputs(door: Door) -> None:
    for request_id in ("r-1", "r-2", "", "r-3"):
        result = door.infer("simple", door.pair(), outputs=door.outputs("diff", "sum"), request_id=request_id)
        _right(result)
        response = result.get_response() if door.is_http else result.get_response(as_json=True)
        assert (response["model_name"], response["model_version"], response.get("id", "")) == ("simple", "3", request_id)
        assert [output["name"] for output in response["outputs"]] == ["diff", "sum"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_binary_and_json(http: Door, binary_in: bool, binary_out: bool) -> None:
    outputs = http.outputs("diff", "sum", binary_data=binary_out)
    _right(http.infer("simple", http.pair(binary_data=binary_in), outputs=outputs))


def test_without_outputs_all_are_given(door: Door) -> None:
    _right(door.infer("simple", door.pair()[::-1]))


def test_one_output_of_two_and_a_version(door: Door) -> None:
    result = door.infer("simple", door.pair(), model_version="3", outputs=door.outputs("sum"))
    assert result.as_numpy("diff") is None
    assert np.array_equal(result.as_numpy("sum"), A + B)


@pytest.mark.parametrize("binary", [True, False])
def test_text_comes_back_as_it_went(door: Door, binary: bool) -> None:
    texts = np.array([["", "zwölf \N{GRINNING FACE}"], ["a" * 5000, "\n\t\\"]], dtype=object)
    form = {"binary_data": binary} if door.is_http else {}
    result = door.infer("text", [door.input("x", texts, "BYTES", **form)], outputs=door.outputs("y", **form))
    got = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("y").ravel()]
    assert got == texts.ravel().tolist()


def test_16_bit_floats(door: Door) -> None:
    values = np.array([[0.5, -2, 65504]], np.float16)
    assert np.array_equal(door.infer("half", [door.input("x", values)]).as_numpy("y"), values)
    brain = np.array([[0.5, -2, 3e38], [1, 2, 3]], bfloat16)
    result = door.infer("brain", [door.input("x", brain, "BF16")]).as_numpy("y")
    assert np.array_equal(np.asarray(result, np.float32), brain.astype(np.float32))


def test_large_tensors(door: Door) -> None:
    values = np.arange(3_000_000, dtype=np.int64).reshape(3, 1_000_000)
    assert np.array_equal(door.infer("wide", [door.input("x", values)]).as_numpy("y"), values)


def test_extreme_integers_survive_json(http: Door) -> None:
    values = np.array([[-(2**63), 2**63 - 1, 0]], np.int64)
    result = http.infer("wide", [http.input("x", values, binary_data=False)], outputs=http.outputs("y", binary_data=False))
    assert np.array_equal(result.as_numpy("y"), values)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(door: Door, algorithm: str) -> None:
    values = np.zeros((3, 2000), np.int64)
    option = "request_compression_algorithm" if door.is_http else "compression_algorithm"
    assert np.array_equal(door.infer("wide", [door.input("x", values)], **{option: algorithm}).as_numpy("y"), values)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_long_replies_come_compressed_and_short_ones_as_they_are(http: Door, algorithm: str, binary: bool) -> None:
    values = np.arange(20_000, dtype=np.int64).reshape(2, -1)
    outputs = http.outputs("y", binary_data=binary)
    result = http.infer("wide", [http.input("x", values)], outputs=outputs, response_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), values)
    _right(http.infer("simple", http.pair(), response_compression_algorithm=algorithm))


def test_async_infer_of_the_synchronous_client(http: Door) -> None:
    pending = [http.client.async_infer("simple", [http.input("a", A + n), http.input("b", B)]) for n in range(8)]
    for n, request in enumerate(pending):
        assert np.array_equal(request.get_result().as_numpy("sum"), A + n + B)


def test_parameters_and_headers_are_taken(door: Door) -> None:
    more = {"parameters": {"mine": 1}, "headers": {"x-tenant-id": "shop"}}
    _right(door.infer("simple", door.pair(), timeout=10_000_000, priority=1, **more))


# Errors

NINE = np.zeros((9, 4), np.int32)
ERRORS: dict[str, tuple[Callable[[Door], object], str, str]] = {
    "unknown model": (
        lambda door: door.infer("nobody", door.pair()[:1]),
        "NOT_FOUND",
        "Request for unknown model: 'nobody' is not found",
    ),
    "unknown version": (
        lambda door: door.infer("simple", door.pair(), model_version="9"),
        "NOT_FOUND",
        "Request for unknown model: 'simple' version 9 is not found",
    ),
    "too few inputs": (
        lambda door: door.infer("simple", door.pair()[:1]),
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'simple'",
    ),
    "too few inputs of a request with an id": (
        lambda door: door.infer("simple", door.pair()[:1], request_id="r7"),
        "INVALID_ARGUMENT",
        "[request id: r7] expected 2 inputs but got 1 inputs",
    ),
    "wrong shape": (
        lambda door: door.infer("simple", [door.input("a", A[:, :3].copy()), door.input("b", B)]),
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] unexpected shape for input 'a' for model 'simple'. Expected [-1,4], got [2,3].",
    ),
    "wrong type": (
        lambda door: door.infer("simple", [door.input("a", A.astype(np.int64)), door.input("b", B)]),
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] inference input 'a' data-type is 'INT64', but model 'simple' expects 'INT32'",
    ),
    "input given twice": (
        lambda door: door.infer("simple", [door.input("a", NINE) for _ in "ab"]),
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] input 'a' already exists in request",
    ),
    "batch too large": (
        lambda door: door.infer("simple", [door.input(name, NINE) for name in "ab"]),
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'simple'",
    ),
    "unknown output": (
        lambda door: door.infer("simple", door.pair(), outputs=door.outputs("z")),
        "INVALID_ARGUMENT",
        "unexpected inference output 'z' for model 'simple'",
    ),
    "unknown input": (
        lambda door: door.infer("simple", [door.input("a", A), door.input("c", B)]),
        "INVALID_ARGUMENT",
        "unexpected inference input 'c' for model 'simple'",
    ),
    "a sequence": (
        lambda door: door.infer("simple", door.pair(), sequence_id=7, sequence_start=True),
        "UNIMPLEMENTED",
        "parameter 'sequence_id' is 7, but sequences are not supported",
    ),
    "metadata of an unknown model": (
        lambda door: door.told("get_model_metadata", "nobody"),
        "NOT_FOUND",
        "Request for unknown model: 'nobody' is not found",
    ),
    "statistics of an unknown model": (
        lambda door: door.told("get_inference_statistics", "nobody"),
        "NOT_FOUND",
        "Request for unknown model: 'nobody' is not found",
    ),
}
OF_HTTP = {"NOT_FOUND": "404", "INVALID_ARGUMENT": "400", "UNIMPLEMENTED": "501"}


@pytest.mark.parametrize("error", ERRORS)
def test_errors_read_as_triton_s_do(door: Door, error: str) -> None:
    ask, status, text = ERRORS[error]
    with pytest.raises(InferenceServerException) as caught:
        ask(door)
    assert caught.value.message().startswith(text)
    assert caught.value.status() == (OF_HTTP[status] if door.is_http else f"StatusCode.{status}")


def test_an_error_leaves_the_connection_usable(server: ServerProcess) -> None:
    with over_http.InferenceServerClient(server.address, concurrency=1) as client:
        door = Door(over_http, client)
        for _ in range(3):
            with pytest.raises(InferenceServerException):
                door.infer("simple", door.pair()[:1])
            _right(door.infer("simple", door.pair()))


# The asyncio client of HTTP


async def test_aio_describes(aio: triton_aio.InferenceServerClient) -> None:
    assert await aio.is_server_live()
    assert await aio.is_server_ready()
    assert await aio.is_model_ready("simple")
    assert not await aio.is_model_ready("nobody")
    assert (await aio.get_server_metadata())["name"] == "dlproxy"
    assert (await aio.get_model_metadata("simple"))["versions"] == ["3"]
    assert (await aio.get_model_config("simple"))["max_batch_size"] == 8
    assert (await aio.get_inference_statistics("simple"))["model_stats"][0]["name"] == "simple"
    assert {"digits", "simple"} <= {entry["name"] for entry in await aio.get_model_repository_index()}


@pytest.mark.parametrize("binary", [True, False])
async def test_aio_infers(http: Door, aio: triton_aio.InferenceServerClient, binary: bool) -> None:
    outputs = http.outputs("sum", "diff", binary_data=binary)
    result = await aio.infer("simple", http.pair(binary_data=binary), outputs=outputs, request_id="r-2")
    _right(result)
    assert result.get_response()["id"] == "r-2"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_aio_compresses_requests(http: Door, aio: triton_aio.InferenceServerClient, algorithm: str) -> None:
    values = np.arange(3000, dtype=np.int64).reshape(3, 1000)
    result = await aio.infer("wide", [http.input("x", values)], request_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), values)


async def test_aio_reports_errors(http: Door, aio: triton_aio.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
        await aio.infer("nobody", http.pair()[:1])
