"""TensorFlow Serving's gRPC API, as a client: Predict, and the signature from GetModelMetadata. Sans-I/O.

Tensors go as they came, as tensor_content; answers may hold that or typed values. Called by remote.py.
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
    gathered_shape,
    output_of,
    reported,
)
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.rpc import OK, Part, Rpc, RpcReply, parsed
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tensor_proto import NAMES, array_of, contents, entry
from dlproxy.instance.remote.tfs_model import DTYPES, Definition, Dim, Info, Shape, model_of
from dlproxy.message import DType, Request, TensorSpec
from dlproxy.protos.tfs import AVAILABLE, INPUTS, MODELS, PREDICTION, SIGNATURES, tfs
from dlproxy.tensors import NUMPY


class TfsGrpcCodec:
    """For one signature of one model at one address."""

    def __init__(self, address: Address, settings: RemoteSettings) -> None:
        self._settings = settings
        self._signature_name = address.signature
        model = tfs.ModelSpec(name=address.model, version_label=address.label)
        if address.version:
            model.version.value = int(address.version)
        self.readiness = _rpc(f"{MODELS}/GetModelStatus", tfs.GetModelStatusRequest(model_spec=model))
        metadata = tfs.GetModelMetadataRequest(model_spec=model, metadata_field=[SIGNATURES])
        self.questions: Mapping[str, Rpc] = {"model": _rpc(f"{PREDICTION}/GetModelMetadata", metadata)}
        model.signature_name = address.signature
        self._head = tfs.PredictRequest(model_spec=model).SerializeToString()

    def is_ready(self, reply: RpcReply) -> bool:
        """A version is available."""
        if reply.status != OK:
            return False
        versions = parsed(tfs.GetModelStatusResponse, reply.message).model_version_status
        return any(version.state == AVAILABLE for version in versions)

    def described(self, replies: Mapping[str, RpcReply]) -> UpstreamModel:
        reply = replies["model"]
        if (refused := reply.refusal()) is not None:
            raise refused
        packed = parsed(tfs.GetModelMetadataResponse, reply.message).metadata[SIGNATURES].value
        known = {
            name: Definition(_described(definition.inputs), _described(definition.outputs))
            for name, definition in parsed(tfs.SignatureDefMap, packed).signature_def.items()
        }
        return model_of(known, self._signature_name, self._settings, binary=True)

    def encode(self, model: UpstreamModel, requests: Sequence[Request]) -> Rpc:
        """Gathered by writing the clients' bytes one after the other: no copy, but for BYTES."""
        parts: list[Part] = [self._head]
        for index, spec in enumerate(model.signature.inputs):
            data = [request.inputs[index].data for request in requests]
            parts += entry(INPUTS, spec.name, contents(spec.dtype, gathered_shape(requests, index), data))
        return Rpc(f"{PREDICTION}/Predict", parts)

    def decode(self, model: UpstreamModel, reply: RpcReply, rows: int) -> list[Array]:
        given = parsed(tfs.PredictResponse, reply.message).outputs
        expected = rows if model.signature.batched else None
        return [reported(spec, spec.dtype, _array(spec, output_of(given, spec)), expected) for spec in model.signature.outputs]


def _array(spec: TensorSpec, tensor: Any) -> Array:
    name = NAMES.get(tensor.dtype)
    check_type(spec, DTYPES[name].value if name else f"type {tensor.dtype}")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    try:
        if tensor.tensor_content and spec.dtype is not DType.BYTES:
            return from_bytes(spec, shape, memoryview(tensor.tensor_content))
        values = array_of(tensor, spec.dtype, shape)
        return (values if spec.dtype is DType.BYTES else values.view(NUMPY[spec.dtype])).reshape(shape)
    except ValueError as error:
        raise UpstreamError(f"the upstream's output '{spec.name}' cannot be read: {error}") from None


def _described(tensors_by_name: Mapping[str, Any]) -> dict[str, Info]:
    return {
        name: Info(
            NAMES.get(tensor.dtype, f"type {tensor.dtype}"),
            Shape([Dim(dim.size) for dim in tensor.tensor_shape.dim], tensor.tensor_shape.unknown_rank),
            tensor.HasField("coo_sparse") or None,
            tensor.HasField("composite_tensor") or None,
        )
        for name, tensor in tensors_by_name.items()
    }


def _rpc(method: str, message: Any) -> Rpc:
    return Rpc(method, [message.SerializeToString()])
