"""What TensorFlow Serving says of a model, by whichever transport, as a signature. Called by tfs.py and tfs_grpc.py.

Not aware of: JSON, protobuf.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from dlproxy.instance.remote.codec import UpstreamModel, batched_by, require
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Signature, TensorSpec

DTYPES = {
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


class Dim(Struct):
    """-1 stands for any size."""

    size: int | str = 0


class Shape(Struct, frozen=True):
    """Of a tensor."""

    dim: list[Dim] = []
    unknown_rank: bool = False


class Info(Struct, frozen=True):
    """One tensor, by whatever makes it up: a dense one has neither of the last two."""

    dtype: str
    tensor_shape: Shape = Shape()
    coo_sparse: Any = None
    composite_tensor: Any = None


class Definition(Struct):
    """One signature of a SavedModel."""

    inputs: dict[str, Info] = {}
    outputs: dict[str, Info] = {}


def model_of(known: Mapping[str, Definition], signature_name: str, settings: RemoteSettings, *, binary: bool) -> UpstreamModel:
    """Raises ModelError for a model that cannot be served."""
    definition = known.get(signature_name)
    if definition is None:
        raise ModelError(f"the upstream's model has no signature '{signature_name}'; it has {', '.join(known) or 'none'}")
    # maps come in any order, so replicas of one model would differ
    inputs = tuple(_spec(name, definition.inputs[name]) for name in sorted(definition.inputs))
    outputs = tuple(_spec(name, definition.outputs[name]) for name in sorted(definition.outputs))
    free = batched_by((*inputs, *outputs))
    batched = free if settings.batched is None else settings.batched
    if batched and not free:
        raise ModelError("the upstream is to take batches, but it declares a tensor whose first dimension is fixed")
    return UpstreamModel(require(Signature(inputs, outputs, batched, "tensorflow_savedmodel")), None, binary)


def _spec(name: str, tensor: Info) -> TensorSpec:
    if tensor.dtype not in DTYPES or tensor.coo_sparse is not None or tensor.composite_tensor is not None:
        what = tensor.dtype if tensor.dtype not in DTYPES else "sparse or ragged"
        raise ModelError(f"'{name}' is {what}; dlproxy serves dense tensors of the standard types")
    if tensor.tensor_shape.unknown_rank:
        raise ModelError(
            f"'{name}' may have any number of dimensions; dlproxy serves tensors whose number of dimensions is known"
        )
    sizes = [int(dim.size) if str(dim.size).lstrip("-").isdigit() else -1 for dim in tensor.tensor_shape.dim]
    return TensorSpec(name, DTYPES[tensor.dtype], tuple(max(size, -1) for size in sizes))
