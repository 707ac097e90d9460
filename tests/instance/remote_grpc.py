"""Upstreams that speak gRPC, for tests: a real server around a runtime, both protocols on one port; a way to it that breaks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing, suppress
from typing import Any, cast

import grpc
from grpc import aio

from dlproxy.instance.batch import Array
from dlproxy.instance.runtime import Runtime
from dlproxy.message import DType, TensorSpec, text_of
from dlproxy.protos.oip import oip
from dlproxy.protos.tfs import AVAILABLE, DATA_TYPES, SIGNATURES, tfs
from dlproxy.tensors import join_elements, to_array, to_bytes

Behave = Callable[[bytes, Any], Awaitable[bytes]]
TFS_NAMES = {DType.FP16: "DT_HALF", DType.BF16: "DT_BFLOAT16", DType.FP32: "DT_FLOAT", DType.FP64: "DT_DOUBLE"} | {
    DType.BYTES: "DT_STRING"
}


class GrpcUpstream:
    """May be stopped and started again, on the same port. `ready`: of its model. `typed`: answers hold no raw bytes.

    `behave` takes the place of the model: it is given the message and the context, and gives the reply's message.
    """

    def __init__(self, runtime: Runtime, *, max_batch: int = 256, credentials: Any = None, **options: int) -> None:
        self.runtime, self.max_batch = runtime, max_batch
        self.ready, self.typed = True, False
        self.behave: Behave | None = None
        self.between: Callable[[], Awaitable[object]] | None = None  # what a stream waits for after each part
        self.port = 0
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        """Method, message, metadata."""
        self._server: Any = None
        self._credentials = credentials
        self._options = [(f"grpc.{name}", value) for name, value in options.items()]

    @property
    def url(self) -> str:
        return self.address()

    def address(self, *, protocol: str = "v2", model: str = "m", tls: bool = False, port: int = 0) -> str:
        return f"grpc{'s' * tls}://127.0.0.1:{port or self.port}/{protocol}/models/{model}"

    def last_headers(self, *names: str) -> list[str]:
        """Of the answer in parts that was asked for last."""
        return [next(said for name, _, said in reversed(self.asked) if name == "ModelStreamInfer")[name] for name in names]

    @property
    def streams(self) -> int:
        """Answers in parts that were asked for so far."""
        return self.count("ModelStreamInfer")

    def count(self, method: str) -> int:
        """Calls of it so far."""
        return len([asked for asked in self.asked if asked[0] == method])

    async def start(self) -> None:
        self._server = aio.server(options=[("grpc.so_reuseport", 0), *self._options])
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        place = f"127.0.0.1:{self.port}"
        if self._credentials is None:
            self.port = self._server.add_insecure_port(place)
        else:
            self.port = self._server.add_secure_port(place, self._credentials)
        await self._server.start()

    async def stop(self) -> None:
        """At once; calls under way are cut off."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None  # it ends itself once more when it is collected, which needs its loop
            await asyncio.sleep(0)

    async def answer(self, method: str, message: bytes, context: Any) -> bytes:
        name = method.rpartition("/")[2]
        self.asked.append((name, message, dict(context.invocation_metadata())))
        if self.behave is not None and name in ("ModelInfer", "Predict"):
            return await self.behave(message, context)
        handler = getattr(self, f"_{name}", None)
        if handler is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no method {name}")
        reply: bytes = (await handler(message, context)).SerializeToString()
        return reply

    # Open Inference Protocol

    async def _ModelReady(self, message: bytes, context: Any) -> Any:  # noqa: N802
        return oip.ModelReadyResponse(ready=self.ready and oip.ModelReadyRequest.FromString(message).name == "m")

    async def _ModelMetadata(self, message: bytes, context: Any) -> Any:  # noqa: N802
        await _known(oip.ModelMetadataRequest.FromString(message).name, context)
        signature = self.runtime.signature
        said = oip.ModelMetadataResponse(name="m", platform="p")
        for specs, described in ((signature.inputs, said.inputs), (signature.outputs, said.outputs)):
            for spec in specs:
                described.add(name=spec.name, datatype=spec.dtype.value, shape=spec.shape)
        return said

    async def _ModelConfig(self, message: bytes, context: Any) -> Any:  # noqa: N802
        signature = self.runtime.signature
        policy = oip.ModelTransactionPolicy(decoupled=signature.streams)
        size = self.max_batch if signature.batched else 0
        return oip.ModelConfigResponse(config=oip.ModelConfig(name="m", max_batch_size=size, model_transaction_policy=policy))

    async def _ModelInfer(self, message: bytes, context: Any) -> Any:  # noqa: N802
        return self._inferred(await self._run(_given(message), context))

    async def stream(self, messages: Any, context: Any) -> AsyncIterator[bytes]:
        """ModelStreamInfer: the parts of the one request that a client sends, then an empty one, as Triton ends an answer."""
        async for message in messages:
            self.asked.append(("ModelStreamInfer", message, dict(context.invocation_metadata())))
            given = _given(message)
            inputs = [given[spec.name] for spec in self.runtime.signature.inputs]
            with closing(cast(Any, self.runtime).steps(inputs)) as parts:
                try:
                    for part in parts:
                        yield oip.ModelStreamInferResponse(infer_response=self._inferred(part)).SerializeToString()
                        if self.between is not None:
                            await self.between()
                except ValueError as error:
                    yield oip.ModelStreamInferResponse(error_message=text_of(error)).SerializeToString()
            yield oip.ModelStreamInferResponse().SerializeToString()

    def _inferred(self, outputs: Sequence[Array]) -> Any:
        reply = oip.ModelInferResponse(model_name="m", model_version="1")
        for spec, array in zip(self.runtime.signature.outputs, outputs, strict=False):
            output = reply.outputs.add(name=spec.name, datatype=spec.dtype.value, shape=array.shape)
            if self.typed:
                output.contents.fp32_contents.extend(array.ravel().tolist())
            else:
                reply.raw_output_contents.append(bytes(to_bytes(spec.dtype, array)))
        return reply

    # TensorFlow Serving

    async def _GetModelStatus(self, message: bytes, context: Any) -> Any:  # noqa: N802
        await _known(tfs.GetModelStatusRequest.FromString(message).model_spec.name, context)
        versions = [tfs.ModelVersionStatus(version=1, state=AVAILABLE if self.ready else 20)]
        return tfs.GetModelStatusResponse(model_version_status=versions)

    async def _GetModelMetadata(self, message: bytes, context: Any) -> Any:  # noqa: N802
        assert list(tfs.GetModelMetadataRequest.FromString(message).metadata_field) == [SIGNATURES]
        definition = tfs.SignatureDef(method_name="tensorflow/serving/predict")
        signature = self.runtime.signature
        for specs, described in ((signature.inputs, definition.inputs), (signature.outputs, definition.outputs)):
            for spec in specs:
                described[spec.name].dtype = _number(spec)
                described[spec.name].tensor_shape.dim.extend(tfs.TensorShapeProto.Dim(size=size) for size in spec.shape)
        packed = tfs.SignatureDefMap(signature_def={"serving_default": definition}).SerializeToString()
        return tfs.GetModelMetadataResponse(metadata={SIGNATURES: tfs.Any(value=packed)})

    async def _Predict(self, message: bytes, context: Any) -> Any:  # noqa: N802
        asked = tfs.PredictRequest.FromString(message)
        assert asked.model_spec.signature_name == "serving_default"
        given = {}
        for spec in self.runtime.signature.inputs:
            tensor = asked.inputs[spec.name]
            assert tensor.dtype == _number(spec)
            data = tensor.tensor_content
            if spec.dtype is DType.BYTES:
                data = join_elements(tensor.string_val)
            given[spec.name] = to_array(spec.dtype, tuple(dim.size for dim in tensor.tensor_shape.dim), data)
        reply = tfs.PredictResponse()
        for spec, array in zip(self.runtime.signature.outputs, await self._run(given, context), strict=False):
            tensor = reply.outputs[spec.name]
            tensor.dtype = _number(spec)
            tensor.tensor_shape.dim.extend(tfs.TensorShapeProto.Dim(size=size) for size in array.shape)
            if spec.dtype is DType.BYTES:
                values = [value.encode() if isinstance(value, str) else value for value in array.ravel().tolist()]
                tensor.string_val.extend(values)
            elif self.typed:
                tensor.float_val.extend(array.ravel().tolist())
            else:
                tensor.tensor_content = bytes(to_bytes(spec.dtype, array))
        return reply

    async def _run(self, given: dict[str, Array], context: Any) -> Sequence[Array]:
        try:
            return self.runtime.run([given[spec.name] for spec in self.runtime.signature.inputs])
        except Exception as error:
            await context.abort(grpc.StatusCode.INTERNAL, text_of(error))
            raise


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, upstream: GrpcUpstream) -> None:
        self._upstream = upstream

    def service(self, details: Any) -> Any:
        async def handler(message: bytes, context: Any) -> bytes:
            return await self._upstream.answer(details.method, message, context)

        if details.method.endswith("/ModelStreamInfer"):
            return grpc.stream_stream_rpc_method_handler(self._upstream.stream)
        return grpc.unary_unary_rpc_method_handler(handler)


def _given(message: bytes) -> dict[str, Array]:
    asked = oip.ModelInferRequest.FromString(message)
    return {
        tensor.name: to_array(DType(tensor.datatype), tuple(tensor.shape), data)
        for tensor, data in zip(asked.inputs, asked.raw_input_contents, strict=True)
    }


async def _known(model: str, context: Any) -> None:
    if model != "m":
        await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{model}'")


def _number(spec: TensorSpec) -> int:
    return DATA_TYPES[TFS_NAMES.get(spec.dtype, f"DT_{spec.dtype.value}")]


class Way:
    """TCP connections passed on, to a server that knows nothing of it, until they are `cut` or `reset`."""

    def __init__(self, port: int) -> None:
        self.to, self.port = port, 0
        self.accepted = 0
        self.dead = self.refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        while self._tasks:
            self.reset()
            await asyncio.wait(self._tasks)

    def cut(self) -> None:
        """Nothing passes any more on the connections that there are, and nobody is told; with `dead` on no later ones."""
        self._silent |= self._writers

    def reset(self) -> None:
        """Every connection ends with a reset, as by the death of the process."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self.refuses:
            writer.transport.abort()
            return
        self._tasks.add(task)
        self.accepted += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.to)
        both = {writer, back}
        self._writers |= both
        if self.dead:
            self._silent |= both
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        self._writers -= both
        self._silent -= both
        self._tasks.discard(task)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(2**16):
                if target not in self._silent:
                    target.write(data)
        if target not in self._silent:
            target.transport.abort()
