"""The Open Inference Protocol over gRPC, as a client: Triton, KServe, OpenVINO Model Server, MLServer. Sans-I/O.

Tensors go as they came, as raw contents; answers may hold raw or typed contents. Called by remote.py, and for its parts by the
Python client.
Not aware of: connections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dlproxy.instance.batch import Array
from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.codec import (
    UpstreamModel,
    check_type,
    from_bytes,
    from_values,
    gathered_shape,
    output_of,
    reported,
)
from dlproxy.instance.remote.failures import UpstreamError, shortened
from dlproxy.instance.remote.oip_model import Config, Described, Metadata, Transactions, model_of
from dlproxy.instance.remote.rpc import OK, Part, Rpc, RpcReply, parsed
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.message import DType, Request, TensorSpec
from dlproxy.protos.oip import IN_STREAM, RAW_INPUTS, RAW_OUTPUTS, SERVICE, TYPED, oip
from dlproxy.protos.raw import before, take_out


class OipGrpcCodec:
    """For one model at one address."""

    def __init__(self, address: Address, settings: RemoteSettings) -> None:
        named = {"name": address.model, "version": address.version}
        self._settings = settings
        self._target = {"model_name": address.model, "model_version": address.version}
        self.readiness = _rpc("ModelReady", oip.ModelReadyRequest(**named))
        self.questions: Mapping[str, Rpc] = {
            "model": _rpc("ModelMetadata", oip.ModelMetadataRequest(**named)),
            "config": _rpc("ModelConfig", oip.ModelConfigRequest(**named)),
        }

    def is_ready(self, reply: RpcReply) -> bool:
        return reply.status == OK and bool(parsed(oip.ModelReadyResponse, reply.message).ready)

    def described(self, replies: Mapping[str, RpcReply]) -> UpstreamModel:
        reply, config = replies["model"], Config()
        if (refused := reply.refusal()) is not None:
            raise refused
        metadata = metadata_of(reply.message)
        if replies["config"].status == OK:  # not every server has it
            told = parsed(oip.ModelConfigResponse, replies["config"].message).config
            stateful = True if told.HasField("sequence_batching") else None
            config = Config(told.max_batch_size, Transactions(told.model_transaction_policy.decoupled), stateful)
        return model_of(metadata, config, self._settings, binary=True)

    def encode(self, model: UpstreamModel, requests: Sequence[Request]) -> Rpc:
        """Gathered by writing the clients' bytes one after the other: no copy."""
        message = oip.ModelInferRequest(**self._target)
        data: list[Part] = []
        for index, spec in enumerate(model.signature.inputs):
            message.inputs.add(name=spec.name, datatype=spec.dtype.value, shape=gathered_shape(requests, index))
            parts = [request.inputs[index].data for request in requests]
            data += [before(RAW_INPUTS, sum(map(len, parts))), *parts]
        method = "ModelStreamInfer" if model.signature.streams else "ModelInfer"
        return Rpc(f"{SERVICE}/{method}", [message.SerializeToString(), *data])

    def decode(self, model: UpstreamModel, reply: RpcReply, rows: int) -> list[Array]:
        return self._decoded(model, reply.message, rows)

    def decode_part(self, model: UpstreamModel, reply: RpcReply) -> list[Array] | None:
        """The same of an answer that is one part; None if it only says that there are no more. Raises UpstreamError."""
        part = part_of(reply.message)
        return None if part is None else self._decoded(model, part, 1)

    def _decoded(self, model: UpstreamModel, message: bytes, rows: int) -> list[Array]:
        _, given = outputs_of(message)
        expected = rows if model.signature.batched else None
        specs = model.signature.outputs
        return [reported(spec, spec.dtype, array_of(spec, *output_of(given, spec)), expected) for spec in specs]


def metadata_of(message: bytes) -> Metadata:
    """Raises UpstreamError."""
    said = parsed(oip.ModelMetadataResponse, message)
    try:
        inputs, outputs = (
            [Described(tensor.name, DType(tensor.datatype), tuple(tensor.shape)) for tensor in tensors]
            for tensors in (said.inputs, said.outputs)
        )
    except ValueError as error:
        raise UpstreamError(f"the upstream's description of the model is not understood: {error}") from None
    return Metadata(inputs, outputs, said.platform, said.name, list(said.versions))


def outputs_of(message: bytes) -> tuple[Any, dict[str, tuple[Any, memoryview | None]]]:
    """A ModelInferResponse, and by name its outputs with their raw contents, if it has these. Raises UpstreamError."""
    head, raw = _taken_out(message, RAW_OUTPUTS, "ModelInferResponse")
    answer = parsed(oip.ModelInferResponse, head)
    if raw and len(raw) != len(answer.outputs):
        raise UpstreamError(f"the upstream gave {len(raw)} raw contents for {len(answer.outputs)} outputs")
    return answer, {output.name: (output, raw[index] if raw else None) for index, output in enumerate(answer.outputs)}


def part_of(message: bytes) -> bytes | None:
    """The ModelInferResponse in an answer of a stream; None if it only says that there are no more. Raises UpstreamError."""
    head, parts = _taken_out(message, IN_STREAM, "ModelStreamInferResponse")
    said = parsed(oip.ModelStreamInferResponse, head).error_message
    if said:
        raise UpstreamError(shortened(said))
    return bytes(parts[-1]) if parts else None


def array_of(spec: TensorSpec, output: Any, data: memoryview | None) -> Array:
    """Its elements, as the spec says that they are; shapes are not compared. Raises UpstreamError."""
    check_type(spec, output.datatype)
    try:
        if data is not None:
            return from_bytes(spec, output.shape, data)
        if not output.HasField("contents") or spec.dtype not in TYPED:
            raise ValueError("it has no contents")
        return from_values(spec, output.shape, getattr(output.contents, TYPED[spec.dtype]))
    except ValueError as error:
        raise UpstreamError(f"the upstream's output '{spec.name}' cannot be read: {error}") from None


def _taken_out(message: bytes, number: int, kind: str) -> tuple[bytes, list[memoryview]]:
    """As take_out. Raises UpstreamError."""
    try:
        return take_out(message, number)
    except ValueError as error:
        raise UpstreamError(f"the upstream's answer cannot be read as inference.{kind}: {error}") from None


def _rpc(method: str, message: Any) -> Rpc:
    return Rpc(f"{SERVICE}/{method}", [message.SerializeToString()])
