"""What the Open Inference Protocol says of a model, by whichever transport, as a signature. Called by oip.py and oip_grpc.py.

Not aware of: JSON, protobuf.
"""

from typing import Any

from msgspec import Struct

from dlproxy.instance.remote.codec import UpstreamModel, batched_by, require
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Signature, TensorSpec

_NO_JSON_FORM = (DType.FP16, DType.BF16)


class Described(Struct):
    """One tensor."""

    name: str
    datatype: DType
    shape: tuple[int, ...]


class Metadata(Struct):
    """Of a model."""

    inputs: list[Described]
    outputs: list[Described]
    platform: str = ""
    name: str = ""
    versions: list[str] = []


class Transactions(Struct, frozen=True):
    """`decoupled`: not one answer to each request."""

    decoupled: bool = False


class Config(Struct):
    """Triton's, which other servers need not have. None: it does not say."""

    max_batch_size: int | None = None
    model_transaction_policy: Transactions = Transactions()
    sequence_batching: Any = None


def model_of(metadata: Metadata, config: Config, settings: RemoteSettings, *, binary: bool) -> UpstreamModel:
    """Raises ModelError for a model that cannot be served."""
    if config.sequence_batching is not None:
        raise ModelError("the upstream's model keeps state (sequences); that is not served")
    streams = config.model_transaction_policy.decoupled
    inputs, outputs = (
        tuple(_spec(tensor, binary=binary) for tensor in tensors) for tensors in (metadata.inputs, metadata.outputs)
    )
    specs = (*inputs, *outputs)
    if not binary:
        for spec in specs:
            if spec.dtype in _NO_JSON_FORM:
                raise ModelError(
                    f"'{spec.name}' is {spec.dtype.value}, which JSON cannot carry, and the upstream takes JSON only"
                )
    batched = settings.batched
    if streams:  # how many parts there are, and of what shape, depends on the request
        batched = False
    elif batched is None:  # Triton: max_batch_size 0 says that axis 0 is no batch axis, even where it is free
        batched = config.max_batch_size != 0 and batched_by(specs)
    elif batched and not batched_by(specs):
        raise ModelError("the upstream is to take batches, but it declares a tensor whose first dimension is fixed")
    signature = require(Signature(inputs, outputs, batched, metadata.platform or "oip", streams=streams))
    return UpstreamModel(signature, config.max_batch_size or None, binary)


def _spec(tensor: Described, *, binary: bool) -> TensorSpec:
    """JSON can carry BYTES only where they are text."""
    shape = tuple(max(size, -1) for size in tensor.shape)
    return TensorSpec(tensor.name, tensor.datatype, shape, text=tensor.datatype is DType.BYTES and not binary)
