"""NVIDIA's tritonclient, unchanged, against a dlproxy server: every call that it makes for inference works."""

from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from ml_dtypes import bfloat16
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.clients.server import ServerProcess

# gevent's hub, which the client starts, is not closed by it
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=4) as made:
        yield made


@pytest.fixture
async def aio(server: ServerProcess) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(server.address) as made:
        yield made


def _input(name: str, array: np.ndarray, datatype: str = "", *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


A = np.arange(8, dtype=np.int32).reshape(2, 4)
B = np.full((2, 4), 100, np.int32)


# Health and description


def test_server_and_models_are_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("simple", "3")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("digits", "9")


def test_server_metadata_names_the_extensions(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "dlproxy"
    assert metadata["version"]
    assert {"binary_tensor_data", "model_configuration", "statistics"} <= set(metadata["extensions"])


def test_model_metadata_shows_the_batch_dimension_as_minus_one(client: triton.InferenceServerClient) -> None:
    assert client.get_model_metadata("simple") == {
        "name": "simple",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": name, "datatype": "INT32", "shape": [-1, 4]} for name in ("a", "b")],
        "outputs": [{"name": name, "datatype": "INT32", "shape": [-1, 4]} for name in ("sum", "diff")],
    }


def test_model_config_leaves_the_batch_dimension_out_of_dims(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("simple", "3")
    assert config["max_batch_size"] == 8
    assert config["input"][0] == {"name": "a", "data_type": "TYPE_INT32", "dims": [4]}
    assert "dynamic_batching" in config
    assert client.get_model_config("text")["input"][0]["data_type"] == "TYPE_STRING"


def test_statistics_count_inferences(client: triton.InferenceServerClient) -> None:
    def counts() -> tuple[int, int, int]:
        (stats,) = client.get_inference_statistics("simple")["model_stats"]
        return stats["inference_count"], stats["execution_count"], stats["inference_stats"]["success"]["count"]

    before = counts()
    client.infer("simple", [_input("a", A), _input("b", B)])
    assert [after - was for after, was in zip(counts(), before, strict=True)] == [2, 1, 1]


def test_statistics_of_every_model(client: triton.InferenceServerClient) -> None:
    names = {stats["name"] for stats in client.get_inference_statistics()["model_stats"]}
    assert {"digits", "simple", "text"} <= names


def test_repository_index_lists_the_models(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert {"name": "simple", "version": "3", "state": "READY"} in index


# Inference


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_several_inputs_and_outputs_as_binary_and_json(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool
) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("diff", "sum")]
    inputs = [_input("a", A, binary=binary_in), _input("b", B, binary=binary_in)]
    result = client.infer("simple", inputs, outputs=wanted, request_id="r-1")
    assert np.array_equal(result.as_numpy("sum"), A + B)
    assert np.array_equal(result.as_numpy("diff"), A - B)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("simple", "3", "r-1")
    assert [output["name"] for output in response["outputs"]] == ["diff", "sum"]


def test_without_outputs_all_are_given(client: triton.InferenceServerClient) -> None:
    result = client.infer("simple", [_input("b", B), _input("a", A)])
    assert np.array_equal(result.as_numpy("diff"), A - B)
    assert np.array_equal(result.as_numpy("sum"), A + B)


def test_one_output_of_two(client: triton.InferenceServerClient) -> None:
    result = client.infer("simple", [_input("a", A), _input("b", B)], outputs=[triton.InferRequestedOutput("sum")])
    assert result.as_numpy("diff") is None


@pytest.mark.parametrize("binary", [True, False])
def test_text_comes_back_as_it_went(client: triton.InferenceServerClient, binary: bool) -> None:
    texts = np.array([["", "zwölf \N{GRINNING FACE}"], ["a" * 5000, "\n\t\\"]], dtype=object)
    output = triton.InferRequestedOutput("y", binary_data=binary)
    result = client.infer("text", [_input("x", texts, "BYTES", binary=binary)], outputs=[output])
    got = [text.decode() if isinstance(text, bytes) else text for text in result.as_numpy("y").ravel()]
    assert got == texts.ravel().tolist()


def test_half_precision(client: triton.InferenceServerClient) -> None:
    values = np.array([[0.5, -2, 65504]], np.float16)
    assert np.array_equal(client.infer("half", [_input("x", values)]).as_numpy("y"), values)


def test_bfloat16(client: triton.InferenceServerClient) -> None:
    values = np.array([[0.5, -2, 3e38], [1, 2, 3]], bfloat16)
    result = client.infer("brain", [_input("x", values, "BF16")])
    assert np.array_equal(np.asarray(result.as_numpy("y"), np.float32), values.astype(np.float32))


def test_extreme_integers_survive_json(client: triton.InferenceServerClient) -> None:
    values = np.array([[-(2**63), 2**63 - 1, 0]], np.int64)
    result = client.infer(
        "wide", [_input("x", values, binary=False)], outputs=[triton.InferRequestedOutput("y", binary_data=False)]
    )
    assert np.array_equal(result.as_numpy("y"), values)


def test_version_in_the_path(client: triton.InferenceServerClient) -> None:
    result = client.infer("simple", [_input("a", A), _input("b", B)], model_version="3")
    assert np.array_equal(result.as_numpy("sum"), A + B)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, algorithm: str) -> None:
    values = np.zeros((3, 2000), np.int64)
    result = client.infer("wide", [_input("x", values)], request_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), values)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_asking_for_a_compressed_reply_is_no_error(client: triton.InferenceServerClient, algorithm: str) -> None:
    result = client.infer("simple", [_input("a", A), _input("b", B)], response_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("sum"), A + B)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_long_replies_come_compressed(client: triton.InferenceServerClient, algorithm: str, binary: bool) -> None:
    values = np.arange(20_000, dtype=np.int64).reshape(2, -1)
    wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
    result = client.infer("wide", [_input("x", values)], outputs=wanted, response_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), values)


def test_async_infer_of_the_synchronous_client(client: triton.InferenceServerClient) -> None:
    pending = [client.async_infer("simple", [_input("a", A + n), _input("b", B)]) for n in range(8)]
    for n, request in enumerate(pending):
        assert np.array_equal(request.get_result().as_numpy("sum"), A + n + B)


def test_timeout_and_priority_parameters_are_taken(client: triton.InferenceServerClient) -> None:
    result = client.infer("simple", [_input("a", A), _input("b", B)], timeout=10_000_000, priority=1)
    assert np.array_equal(result.as_numpy("sum"), A + B)


# Errors

Call = Callable[[triton.InferenceServerClient], object]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        pytest.param(
            lambda client: client.infer("nobody", [_input("a", A)]),
            "Request for unknown model: 'nobody' is not found",
            id="unknown model",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input("a", A), _input("b", B)], model_version="9"),
            "Request for unknown model: 'simple' version 9 is not found",
            id="unknown version",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input("a", A)]),
            "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'simple'",
            id="too few inputs",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input("a", A)], request_id="r7"),
            "[request id: r7] expected 2 inputs but got 1 inputs",
            id="too few inputs of a request with an id",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input("a", A[:, :3].copy()), _input("b", B)]),
            "[request id: <id_unknown>] unexpected shape for input 'a' for model 'simple'. Expected [-1,4], got [2,3].",
            id="wrong shape",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input("a", A.astype(np.int64)), _input("b", B)]),
            "[request id: <id_unknown>] inference input 'a' data-type is 'INT64', but model 'simple' expects 'INT32'",
            id="wrong type",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input("a", np.zeros((9, 4), np.int32)) for _ in "ab"]),
            "[request id: <id_unknown>] input 'a' already exists in request",
            id="input given twice",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input(name, np.zeros((9, 4), np.int32)) for name in "ab"]),
            "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'simple'",
            id="batch too large",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input(n, A) for n in "ab"], outputs=[triton.InferRequestedOutput("z")]),
            "unexpected inference output 'z' for model 'simple'",
            id="unknown output",
        ),
        pytest.param(
            lambda client: client.infer("simple", [_input("a", A), _input("c", B)]),
            "unexpected inference input 'c' for model 'simple'",
            id="unknown input",
        ),
        pytest.param(
            lambda client: client.get_model_metadata("nobody"),
            "Request for unknown model: 'nobody' is not found",
            id="metadata of an unknown model",
        ),
        pytest.param(
            lambda client: client.get_inference_statistics("nobody"),
            "Request for unknown model: 'nobody' is not found",
            id="statistics of an unknown model",
        ),
    ],
)
def test_errors_read_as_triton_s_do(client: triton.InferenceServerClient, call: Call, text: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert caught.value.message().startswith(text)
    assert caught.value.status() in ("400", "404")


def test_an_error_leaves_the_connection_usable(server: ServerProcess) -> None:
    with triton.InferenceServerClient(server.address, concurrency=1) as client:
        for _ in range(3):
            with pytest.raises(InferenceServerException):
                client.infer("simple", [_input("a", A)])
            assert np.array_equal(client.infer("simple", [_input("a", A), _input("b", B)]).as_numpy("sum"), A + B)


# The asyncio client


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
async def test_aio_infers(aio: triton_aio.InferenceServerClient, binary: bool) -> None:
    outputs = [triton_aio.InferRequestedOutput(name, binary_data=binary) for name in ("sum", "diff")]
    inputs = [_input("a", A, binary=binary), _input("b", B, binary=binary)]
    result = await aio.infer("simple", inputs, outputs=outputs, request_id="r-2")
    assert np.array_equal(result.as_numpy("sum"), A + B)
    assert np.array_equal(result.as_numpy("diff"), A - B)
    assert result.get_response()["id"] == "r-2"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_aio_compresses_requests(aio: triton_aio.InferenceServerClient, algorithm: str) -> None:
    values = np.arange(3000, dtype=np.int64).reshape(3, 1000)
    result = await aio.infer("wide", [_input("x", values)], request_compression_algorithm=algorithm)
    assert np.array_equal(result.as_numpy("y"), values)


async def test_aio_reports_errors(aio: triton_aio.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
        await aio.infer("nobody", [_input("a", A)])
