"""TensorFlow Serving's REST API, as a client: predict in the columnar form, and the signature from the metadata. Sans-I/O.

Called by remote.py. Not aware of: connections.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.instance.batch import Array
from dlproxy.instance.remote import json_values
from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.codec import Heads, Lines, UpstreamModel, batched_by, reported, require
from dlproxy.instance.remote.failures import UpstreamError, refusal
from dlproxy.instance.remote.http_client import Reply
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Request, Signature, TensorSpec

_DTYPES = {
    "DT_BOOL": DType.BOOL,
    "DT_UINT8": DType.UINT8,
    "DT_UINT16": DType.UINT16,
    "DT_UINT32": DType.UINT32,
    "DT_UINT64": DType.UINT64,
    "DT_INT8": DType.INT8,
    "DT_INT16": DType.INT16,
    "DT_INT32": DType.INT32,
    "DT_INT64": DType.INT64,
    "DT_HALF": DType.FP16,
    "DT_BFLOAT16": DType.BF16,
    "DT_FLOAT": DType.FP32,
    "DT_DOUBLE": DType.FP64,
    "DT_STRING": DType.BYTES,
}


class _Dim(Struct):
    size: int | str = 0


class _Shape(Struct, frozen=True):
    dim: list[_Dim] = []
    unknown_rank: bool = False


class _Tensor(Struct, frozen=True):
    dtype: str
    tensor_shape: _Shape = _Shape()


class _Definition(Struct):
    inputs: dict[str, _Tensor] = {}
    outputs: dict[str, _Tensor] = {}


class _Definitions(Struct):
    signature_def: dict[str, _Definition]


class _Details(Struct):
    signature_def: _Definitions


class _Metadata(Struct):
    metadata: _Details


class TfsCodec:
    """For one signature of one model at one address."""

    def __init__(self, address: Address, settings: RemoteSettings) -> None:
        heads = Heads(address, settings.headers)
        self._settings = settings
        self._signature_name = address.signature
        self.questions: Mapping[str, Lines] = {"model": heads.get(f"{address.path}/metadata")}
        self.readiness: Lines = heads.get(address.path)
        self._post = heads.post(f"{address.path}:predict") + b"content-type: application/json\r\ncontent-length: "

    def is_ready(self, reply: Reply) -> bool:
        """A version is available. KServe, which shares the path, says `ready`."""
        if reply.status != 200:
            return False
        try:
            said = msgspec.json.decode(reply.body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if not isinstance(said, dict):
            return False
        versions = said.get("model_version_status")
        if isinstance(versions, list):
            return any(isinstance(version, dict) and version.get("state") == "AVAILABLE" for version in versions)
        return said.get("ready") in (True, "True", "true")

    def described(self, replies: Mapping[str, Reply]) -> UpstreamModel:
        reply = replies["model"]
        if reply.status != 200:
            raise refusal(reply.status, reply.body, None)
        try:
            known = msgspec.json.decode(reply.body, type=_Metadata).metadata.signature_def.signature_def
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamError(f"the upstream's description of the model is not understood: {error}") from None
        definition = known.get(self._signature_name)
        if definition is None:
            raise ModelError(
                f"the upstream's model has no signature '{self._signature_name}'; it has {', '.join(known) or 'none'}"
            )
        # maps come in any order, so replicas of one model would differ
        inputs = tuple(_spec(name, definition.inputs[name]) for name in sorted(definition.inputs))
        outputs = tuple(_spec(name, definition.outputs[name]) for name in sorted(definition.outputs))
        free = batched_by((*inputs, *outputs))
        batched = free if self._settings.batched is None else self._settings.batched
        if batched and not free:
            raise ModelError("the upstream is to take batches, but it declares a tensor whose first dimension is fixed")
        return UpstreamModel(require(Signature(inputs, outputs, batched, "tensorflow_savedmodel")), None, binary=False)

    def encode(self, model: UpstreamModel, requests: Sequence[Request]) -> Lines:
        inputs: dict[str, Any] = {}
        finite = True
        for index, spec in enumerate(model.signature.inputs):
            array = json_values.gathered(spec, index, requests)
            finite = finite and json_values.is_finite(array)
            if spec.dtype is DType.BYTES:
                array = json_values.texts_or_base64(array)
            inputs[spec.name] = array.tolist()
        body = json_values.encode({"signature_name": self._signature_name, "inputs": inputs}, finite=finite)
        return [b"%b%d\r\n\r\n" % (self._post, len(body)), body]

    def decode(self, model: UpstreamModel, reply: Reply, rows: int) -> list[Array]:
        try:
            said = json_values.decode(reply.body)
        except (ValueError, RecursionError) as error:
            raise UpstreamError(f"the upstream's answer is no JSON: {error}") from None
        given = said.get("outputs") if isinstance(said, dict) else None
        specs = model.signature.outputs
        if given is None:
            raise UpstreamError("the upstream's answer has no 'outputs'")
        if len(specs) == 1:  # its name is left out
            given = {specs[0].name: given}
        if not isinstance(given, dict) or any(spec.name not in given for spec in specs):
            names = ", ".join(given) if isinstance(given, dict) else type(given).__name__
            raise UpstreamError(
                f"the upstream's answer lacks an output: declared are {', '.join(s.name for s in specs)}, got {names}"
            )
        expected = rows if model.signature.batched else None
        return [reported(spec, spec.dtype, _array(spec, given[spec.name]), expected) for spec in specs]


def _array(spec: TensorSpec, data: Any) -> Array:
    try:
        return json_values.to_array(spec, data, None)
    except (ValueError, TypeError, OverflowError) as error:
        raise UpstreamError(f"the upstream's output '{spec.name}' cannot be read: {error}") from None


def _spec(name: str, tensor: _Tensor) -> TensorSpec:
    if tensor.dtype not in _DTYPES:
        raise ModelError(f"'{name}' is {tensor.dtype}; dlproxy serves dense tensors of the standard types")
    if tensor.tensor_shape.unknown_rank:
        raise ModelError(
            f"'{name}' may have any number of dimensions; dlproxy serves tensors whose number of dimensions is known"
        )
    sizes = [int(dim.size) if str(dim.size).lstrip("-").isdigit() else -1 for dim in tensor.tensor_shape.dim]
    return TensorSpec(name, _DTYPES[tensor.dtype], tuple(max(size, -1) for size in sizes))
