"""tritonclient over gRPC, unchanged: loading, cancelling, streams, asyncio. What HTTP has, too: test_tritonclient.py."""

import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from dlproxy import FailureKind
from tests import models
from tests.clients.server import ServerProcess, write_config

HANG_S = 30.0
TOO_LATE = ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE")  # the latter at once, where it is known to take longer
PARTS = '''
import time


class Counter:
    """So many parts, each x + step."""

    inputs, outputs = {"x": "FP32[1]"}, {"y": "FP32[1]"}
    streams = True

    def predict(self, batch):
        y = batch["x"].copy()
        for step in range(int(batch["x"].max())):
            if step == 100:
                raise ValueError("a hundred are enough")
            y[:] = batch["x"] + step
            yield {"y": y}


class Slow:
    """Takes x seconds."""

    inputs, outputs = {"x": "FP32[1]"}, {"y": "FP32[1]"}

    def predict(self, batch):
        time.sleep(float(batch["x"].max()))
        return {"y": batch["x"]}
'''


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves counter, which answers in parts, slow, simple and wide. simple and later lie in a repository of its own."""
    folder: Path = tmp_path_factory.mktemp("parts")
    (folder / "parts.py").write_text(PARTS)
    wide = models.identity(models.DType.INT64, ("N", "M"))
    settings = models.settings_of(folder, simple=models.two_in_two_out(), wide=wide)
    settings["simple"]["max_request_rows"] = 8
    settings["counter"] = {"path": f"{folder / 'parts.py'}:Counter", "run": "thread"}
    settings["slow"] = {"path": f"{folder / 'parts.py'}:Slow", "run": "thread", "instances": 1}
    (folder / "repository" / "later" / "1").mkdir(parents=True)
    models.save(models.two_in_two_out(), folder / "repository" / "later" / "1" / "model.onnx")
    config = write_config(folder / "dlproxy.toml", settings, repository=folder / "repository", repository_mode="explicit")
    with ServerProcess("--config", config) as process:
        yield process


@pytest.fixture
def streaming(parts: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(parts.grpc_address) as made:
        yield made


@pytest.fixture
async def aio(parts: ServerProcess) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(parts.grpc_address) as made:
        yield made


def _input(name: str, array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def _x(value: float) -> list[triton.InferInput]:
    return [_input("x", np.array([value], np.float32))]


A = np.arange(8, dtype=np.int32).reshape(2, 4)
B = np.full((2, 4), 100, np.int32)
PAIR = [_input("a", A), _input("b", B)]


def test_the_repository_is_listed_loaded_and_unloaded(streaming: triton.InferenceServerClient) -> None:
    def states() -> dict[str, str]:
        return {entry.name: entry.state for entry in streaming.get_model_repository_index().models}

    assert states()["simple"] == "READY"
    streaming.load_model("later", config='{"max_batch_size": 2}')
    assert states()["later"] == "READY"
    assert streaming.get_model_config("later").config.max_batch_size == 2
    assert np.array_equal(streaming.infer("later", PAIR).as_numpy("sum"), A + B)
    streaming.unload_model("later")
    assert not streaming.is_model_ready("later")
    with pytest.raises(InferenceServerException, match="files in a load request are not supported"):
        streaming.load_model("later", config="{}", files={"file:1/model.onnx": b"x"})


def test_many_at_a_time(streaming: triton.InferenceServerClient) -> None:
    results: queue.Queue[Any] = queue.Queue()
    for number in range(50):
        streaming.async_infer("simple", [_input("a", A + number), PAIR[1]], lambda result, error: results.put((result, error)))
    found = [results.get(timeout=HANG_S) for _ in range(50)]
    assert not [error for _, error in found if error is not None]
    assert sorted(int(result.as_numpy("sum")[0, 0]) for result, _ in found) == list(range(100, 150))


def test_a_client_timeout_ends_the_call_and_cancels_the_request(
    streaming: triton.InferenceServerClient, parts: ServerProcess
) -> None:
    before = sum(_failures(parts, "slow").values())
    with pytest.raises(InferenceServerException) as caught:
        streaming.infer("slow", _x(0.5), client_timeout=0.1)
    assert caught.value.status() in TOO_LATE
    streaming.infer("slow", _x(0.01))
    assert sum(_failures(parts, "slow").values()) == before + 1


def test_a_cancelled_call_cancels_its_request(streaming: triton.InferenceServerClient, parts: ServerProcess) -> None:
    before = _failures(parts, "slow").get(FailureKind.CANCELLED.value, 0)
    results: queue.Queue[Any] = queue.Queue()
    streaming.async_infer("slow", _x(0.3), lambda result, error: results.put(error))
    context = streaming.async_infer("slow", _x(0.3), lambda result, error: results.put(error))
    tries = int(HANG_S / 0.01)
    assert any(parts.metric("nv_inference_pending_request_count", model="slow") or Event().wait(0.01) for _ in range(tries))
    context.cancel()  # of one that waits at the server, not of one that was never sent
    errors = [results.get(timeout=HANG_S) for _ in range(2)]
    assert [error.status() for error in errors if error is not None] == ["StatusCode.CANCELLED"]
    streaming.infer("slow", _x(0.01))
    assert _failures(parts, "slow")[FailureKind.CANCELLED.value] == before + 1


def _failures(process: ServerProcess, model: str) -> dict[str, int]:
    found: dict[str, int] = process.stats(model)["failures"]
    return found


# Streams


class Stream:
    """The one stream of a client, read in order."""

    def __init__(self, client: triton.InferenceServerClient, **options: Any) -> None:
        self.client = client
        self._answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: self._answers.put((result, error)), **options)

    def ask(self, model: str, inputs: list[triton.InferInput], **options: Any) -> None:
        self.client.async_stream_infer(model, inputs, **options)

    def take(self) -> Any:
        """The message of the next answer. Raises its error."""
        result, error = self._answers.get(timeout=HANG_S)
        if error is not None:
            raise error
        return result.get_response()


@pytest.fixture
def stream(streaming: triton.InferenceServerClient) -> Iterator[Stream]:
    yield Stream(streaming)
    streaming.stop_stream()


def _values(answer: Any) -> list[float]:
    return [float(np.frombuffer(content, np.float32)[0]) for content in answer.raw_output_contents]


def _final(answer: Any) -> bool:
    final: bool = answer.parameters["triton_final_response"].bool_param
    return final


def test_a_model_that_streams_answers_in_parts(stream: Stream) -> None:
    stream.ask("counter", _x(3.0), request_id="a", enable_empty_final_response=True)
    answers = [stream.take() for _ in range(4)]
    assert [_values(answer) for answer in answers] == [[3.0], [4.0], [5.0], []]
    assert [_final(answer) for answer in answers] == [False, False, False, True]
    assert {answer.id for answer in answers} == {"a"}


def test_whole_answers_of_a_stream_keep_their_order(stream: Stream) -> None:
    for number in range(500):
        stream.ask("simple", [_input("a", A + number), PAIR[1]], request_id=str(number))
    answers = [stream.take() for _ in range(500)]
    assert [answer.id for answer in answers] == [str(number) for number in range(500)]
    assert all(map(_final, answers))


def test_an_error_leaves_the_stream_open(stream: Stream) -> None:
    stream.ask("simple", PAIR[:1], request_id="a")
    with pytest.raises(InferenceServerException, match="expected 2 inputs but got 1 inputs"):
        stream.take()
    stream.ask("counter", _x(101.0), request_id="b")
    for _ in range(100):
        stream.take()
    with pytest.raises(InferenceServerException, match="a hundred are enough"):
        stream.take()
    stream.ask("counter", _x(1.0), request_id="c")
    assert _values(stream.take()) == [1.0]


def test_a_stream_that_is_left_stops_its_models(streaming: triton.InferenceServerClient, parts: ServerProcess) -> None:
    stream = Stream(streaming)
    stream.ask("counter", _x(90.0))
    stream.take()
    streaming.stop_stream(cancel_requests=True)
    other = Stream(streaming)
    other.ask("counter", _x(2.0))
    assert [_values(other.take()) for _ in range(2)] == [[2.0], [3.0]]
    streaming.stop_stream()


def test_large_messages_in_a_stream_and_compression(streaming: triton.InferenceServerClient) -> None:
    stream = Stream(streaming, compression_algorithm="gzip")
    values = np.arange(400_000, dtype=np.int64).reshape(4, 100_000)
    for number in range(8):
        stream.ask("wide", [_input("x", values + number)])
    for number in range(8):
        (content,) = stream.take().raw_output_contents
        assert np.array_equal(np.frombuffer(content, np.int64).reshape(4, -1), values + number)
    streaming.stop_stream()


def test_inference_of_a_model_that_streams_needs_a_stream(streaming: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        streaming.infer("counter", _x(3.0))
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    assert caught.value.message() == "ModelInfer RPC doesn't support models with decoupled transaction policy"
    assert streaming.get_model_config("counter").config.model_transaction_policy.decoupled


# asyncio


async def test_aio_describes_and_infers(aio: triton_aio.InferenceServerClient) -> None:
    assert await aio.is_server_live()
    assert await aio.is_server_ready()
    assert await aio.is_model_ready("simple")
    assert not await aio.is_model_ready("nobody")
    assert (await aio.get_server_metadata()).name == "dlproxy"
    assert (await aio.get_model_config("simple")).config.max_batch_size == 8
    assert (await aio.get_inference_statistics("simple")).model_stats[0].name == "simple"
    assert "simple" in [entry.name for entry in (await aio.get_model_repository_index()).models]
    for algorithm in (None, "gzip", "deflate"):
        result = await aio.infer("simple", PAIR, request_id="r", compression_algorithm=algorithm)
        assert np.array_equal(result.as_numpy("sum"), A + B)
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found"):
        await aio.infer("nobody", PAIR)
    with pytest.raises(InferenceServerException) as caught:
        await aio.infer("slow", _x(0.5), client_timeout=0.1)
    assert caught.value.status() in TOO_LATE


async def test_aio_streams(aio: triton_aio.InferenceServerClient) -> None:
    async def questions() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "counter", "inputs": _x(3.0), "request_id": "a"}
        yield {"model_name": "simple", "inputs": PAIR, "request_id": "b"}
        yield {"model_name": "simple", "inputs": PAIR[:1], "request_id": "c"}

    answers: dict[str, list[Any]] = {"a": [], "b": []}
    errors = []
    async for result, error in aio.stream_infer(questions()):
        if error is not None:
            errors.append(error)
        else:
            response = result.get_response()
            answers[response.id].append(response)
    assert [_values(answer) for answer in answers["a"]] == [[3.0], [4.0], [5.0]]
    assert len(answers["b"]) == 1
    assert ["expected 2 inputs" in str(error) for error in errors] == [True]
