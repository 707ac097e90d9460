"""The awaited client over gRPC, against a real gRPC server around a runtime, and one whose streams a script makes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio

from dlproxy import AsyncClient, FailureKind, InferenceError
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.message import DType
from dlproxy.protos.oip import oip
from tests import models
from tests.instance.remote_grpc import GrpcUpstream

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[GrpcUpstream]:
    made = GrpcUpstream(OnnxRuntime(models.save(models.identity(DType.FP32), tmp_path / "m.onnx"), threads=1))
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(upstream: GrpcUpstream) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"grpc://127.0.0.1:{upstream.port}") as made:
        yield made


async def test_arrays_go_and_come(client: AsyncClient, upstream: GrpcUpstream) -> None:
    answer = await client.infer("m", X, priority=3, tenant="shop", timeout_s=10.0)
    assert [array.tolist() for array in answer.values()] == [X.tolist()]
    (_, _, metadata) = upstream.asked[-1]
    assert (metadata["x-request-priority"], metadata["x-tenant-id"]) == ("3", "shop")
    assert 0 < float(metadata["x-request-deadline-ms"]) <= 10_000
    assert await client.ready("m")
    upstream.typed = True
    assert [array.tolist() for array in (await client.infer("m", X)).values()] == [X.tolist()]
    assert upstream.count("ModelMetadata") == 1


async def test_the_deadline_is_enforced_here_and_told_there(client: AsyncClient, upstream: GrpcUpstream) -> None:
    left: list[float] = []

    async def behave(message: bytes, context: Any) -> bytes:
        left.append(context.time_remaining())
        await asyncio.Event().wait()
        return b""

    await client.metadata("m")
    upstream.behave = behave
    with pytest.raises(InferenceError, match=r"no answer within 0\.2 s") as caught:
        await client.infer("m", X, timeout_s=0.2)
    assert caught.value.failure.kind is FailureKind.LATE
    assert 0 < left[0] <= 0.3
    upstream.behave = None
    assert await client.infer("m", X)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", FailureKind.INVALID_ARGUMENT),
        ("NOT_FOUND", FailureKind.NOT_FOUND),
        ("PERMISSION_DENIED", FailureKind.FORBIDDEN),
        ("UNAUTHENTICATED", FailureKind.UNAUTHENTICATED),
        ("RESOURCE_EXHAUSTED", FailureKind.OVERLOADED),
        ("INTERNAL", FailureKind.MODEL_FAILED),
        ("UNIMPLEMENTED", FailureKind.UNSUPPORTED),
        ("DEADLINE_EXCEEDED", FailureKind.LATE),
    ],
)
async def test_statuses_are_kinds_of_failure(
    client: AsyncClient, upstream: GrpcUpstream, status: str, kind: FailureKind
) -> None:
    async def behave(message: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode[status], "because")
        return b""

    upstream.behave = behave
    with pytest.raises(InferenceError, match="because") as caught:
        await client.infer("m", X)
    assert caught.value.failure.kind is kind
    assert upstream.count("ModelInfer") == 1


async def test_unavailable_is_tried_again(client: AsyncClient, upstream: GrpcUpstream) -> None:
    async def behave(message: bytes, context: Any) -> bytes:
        upstream.behave = None
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return b""

    upstream.behave = behave
    assert await client.infer("m", X)
    assert upstream.count("ModelInfer") == 2


async def test_a_server_that_is_down(client: AsyncClient, upstream: GrpcUpstream) -> None:
    await upstream.stop()
    with pytest.raises(InferenceError) as caught:
        await client.infer("m", X, timeout_s=0.5)
    assert caught.value.failure.kind in (FailureKind.UNAVAILABLE, FailureKind.LATE)
    assert not await client.ready(timeout_s=1.0)
    await upstream.start()
    assert await client.infer("m", X)


# Streams


Behave = Callable[[Any, Any], AsyncIterator[bytes]]


class _Streams(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.left = asyncio.Event()

    def service(self, details: Any) -> Any:
        method = details.method.rpartition("/")[2]
        if method == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(getattr(self, f"_{method}"))

    async def _stream(self, asked: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            async for message in asked:
                async for answer in self.behave(oip.ModelInferRequest.FromString(message), context):
                    yield answer
        finally:
            self.left.set()

    async def _ModelMetadata(self, message: bytes, context: Any) -> bytes:  # noqa: N802
        told = oip.ModelMetadataResponse(name="m")
        for tensors, name in ((told.inputs, "x"), (told.outputs, "y")):
            tensors.add(name=name, datatype="FP32", shape=[-1, 3])
        answer: bytes = told.SerializeToString()
        return answer

    async def _RepositoryIndex(self, message: bytes, context: Any) -> bytes:  # noqa: N802
        told = oip.RepositoryIndexResponse()
        told.models.add(name="m", version="1", state="READY")
        answer: bytes = told.SerializeToString()
        return answer


def _part(array: Any, *, final: bool | None = None) -> bytes:
    told = oip.ModelStreamInferResponse()
    response = told.infer_response
    if array is not None:
        response.outputs.add(name="y", datatype="FP32", shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    if final is not None:
        response.parameters["triton_final_response"].bool_param = final
    answer: bytes = told.SerializeToString()
    return answer


class _Served:
    """A client of a server whose streams behave like this."""

    def __init__(self, behave: Behave) -> None:
        self.handlers = _Streams(behave)

    async def __aenter__(self) -> AsyncClient:
        self._server = aio.server()
        self._server.add_generic_rpc_handlers((self.handlers,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._client = AsyncClient(f"grpc://127.0.0.1:{port}")
        return self._client

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()
        await self._server.stop(0)


async def test_parts_of_an_answer() -> None:
    async def behave(request: Any, context: Any) -> AsyncIterator[bytes]:
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        for step in range(3):
            yield _part(x + step, final=False)
        yield _part(None, final=True)

    async with _Served(behave) as client:
        parts = [part["y"] async for part in client.stream("m", X)]
        assert np.array_equal(parts, [X, X + 1, X + 2])
        assert [(model.name, model.state) for model in await client.models()] == [("m", "READY")]


async def test_an_error_in_the_stream_and_one_of_the_call() -> None:
    async def behave(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield _part(X)
        if request.model_version:
            await context.abort(grpc.StatusCode.INTERNAL, "the call broke")
        message: bytes = oip.ModelStreamInferResponse(error_message="the model broke").SerializeToString()
        yield message

    async with _Served(behave) as client:
        for version, clue in (("", "the model broke"), ("1", "the call broke")):
            async with aclosing(client.stream("m", X, version=version)) as parts:
                await anext(parts)
                with pytest.raises(InferenceError, match=clue) as caught:
                    await anext(parts)
                assert caught.value.failure.kind is FailureKind.MODEL_FAILED


async def test_whoever_leaves_ends_the_call() -> None:
    async def behave(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield _part(X)
        await asyncio.Event().wait()

    served = _Served(behave)
    async with served as client:
        async with aclosing(client.stream("m", X)) as parts:
            await anext(parts)
        await asyncio.wait_for(served.handlers.left.wait(), 10.0)
