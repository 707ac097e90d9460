"""TensorFlow Serving's gRPC API, as a client: Predict, and the signature from GetModelMetadata. Sans-I/O.

Tensors go as they came, as tensor_content; answers may hold that or typed values. Called by remote.py.
Not aware of: connections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dlproxy import tensors
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
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.rpc import OK, Part, Rpc, RpcReply, parsed
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tfs_model import DTYPES, Definition, Dim, Info, Shape, model_of
from dlproxy.message import DType, Request, TensorSpec, element_count
from dlproxy.protos.raw import before
from dlproxy.protos.tfs import AVAILABLE, CONTENT, DATA_TYPES, INPUTS, MODELS, PREDICTION, SIGNATURES, tfs

_NAMES = {number: name for name, number in DATA_TYPES.items()}
_NUMBERS = {DTYPES[name]: number for name, number in DATA_TYPES.items()}
_TYPED = {  # the field of TensorProto for each type; int_val for the rest
    DType.BOOL: "bool_val",
    DType.UINT32: "uint32_val",
    DType.UINT64: "uint64_val",
    DType.INT64: "int64_val",
    DType.FP16: "half_val",
    DType.BF16: "half_val",
    DType.FP32: "float_val",
    DType.FP64: "double_val",
    DType.BYTES: "string_val",
}


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
            name, tensor = spec.name.encode(), _tensor(spec, index, requests)
            entry = [before(1, len(name)), name, before(2, _length(tensor)), *tensor]
            parts += [before(INPUTS, _length(entry)), *entry]
        return Rpc(f"{PREDICTION}/Predict", parts)

    def decode(self, model: UpstreamModel, reply: RpcReply, rows: int) -> list[Array]:
        given = parsed(tfs.PredictResponse, reply.message).outputs
        expected = rows if model.signature.batched else None
        return [reported(spec, spec.dtype, _array(spec, output_of(given, spec)), expected) for spec in model.signature.outputs]


def _tensor(spec: TensorSpec, index: int, requests: Sequence[Request]) -> list[Part]:
    """A TensorProto, as parts."""
    message = tfs.TensorProto(dtype=_NUMBERS[spec.dtype])
    message.tensor_shape.SetInParent()  # a scalar's has no dimension
    for size in gathered_shape(requests, index):
        message.tensor_shape.dim.add(size=size)
    data = [request.inputs[index].data for request in requests]
    if spec.dtype is DType.BYTES:
        message.string_val.extend(bytes(element) for each in data for element in tensors.elements_of(each))
        return [message.SerializeToString()]
    return [message.SerializeToString(), before(CONTENT, _length(data)), *data]


def _length(parts: Sequence[Part]) -> int:
    return sum(map(len, parts))


def _array(spec: TensorSpec, tensor: Any) -> Array:
    name = _NAMES.get(tensor.dtype)
    check_type(spec, DTYPES[name].value if name else f"type {tensor.dtype}")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    try:
        if tensor.tensor_content and spec.dtype is not DType.BYTES:
            return from_bytes(spec, shape, memoryview(tensor.tensor_content))
        values = getattr(tensor, _TYPED.get(spec.dtype, "int_val"))
        return from_values(spec, shape, values if len(values) != 1 else list(values) * element_count(shape))
    except ValueError as error:
        raise UpstreamError(f"the upstream's output '{spec.name}' cannot be read: {error}") from None


def _described(tensors_by_name: Mapping[str, Any]) -> dict[str, Info]:
    return {
        name: Info(
            _NAMES.get(tensor.dtype, f"type {tensor.dtype}"),
            Shape([Dim(dim.size) for dim in tensor.tensor_shape.dim], tensor.tensor_shape.unknown_rank),
            tensor.HasField("coo_sparse") or None,
            tensor.HasField("composite_tensor") or None,
        )
        for name, tensor in tensors_by_name.items()
    }


def _rpc(method: str, message: Any) -> Rpc:
    return Rpc(method, [message.SerializeToString()])
