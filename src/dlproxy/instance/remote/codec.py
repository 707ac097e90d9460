"""What a protocol must do for an instance, and how an upstream describes its model. Sans-I/O.

Implemented by oip.py, tfs.py, oip_grpc.py and tfs_grpc.py. Called by remote.py. Not aware of: connections, health.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from msgspec import Struct

from dlproxy import tensors
from dlproxy.instance.batch import Array
from dlproxy.instance.remote.channel import Answer
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Request, Signature, TensorSpec, element_count

Ask_co = TypeVar("Ask_co", covariant=True)
Answer_contra = TypeVar("Answer_contra", bound=Answer, contravariant=True)
Given = TypeVar("Given")


class UpstreamModel(Struct, frozen=True):
    """What the upstream says: `max_batch` rows at most in a request, None if it does not say; `binary`: takes raw tensors."""

    signature: Signature
    max_batch: int | None
    binary: bool

    def same_as(self, other: "UpstreamModel") -> bool:
        """Whether requests made for the one suit the other."""
        a, b = self.signature, other.signature
        mine, theirs = ((s.inputs, s.outputs, s.batched, s.streams) for s in (a, b))
        return (mine, self.binary) == (theirs, other.binary)


class Codec(Protocol[Ask_co, Answer_contra]):
    """Asks and answers are those of a channel."""

    @property
    def questions(self) -> Mapping[str, Ask_co]:
        """What to ask for a description of the model, by name."""
        ...

    @property
    def readiness(self) -> Ask_co:
        """What to ask to know whether the model can be used now."""
        ...

    def is_ready(self, reply: Answer_contra) -> bool: ...

    def described(self, replies: Mapping[str, Answer_contra]) -> UpstreamModel:
        """Raises UpstreamError for what the upstream should mend, ModelError for a model that cannot be served."""
        ...

    def encode(self, model: UpstreamModel, requests: Sequence[Request]) -> Ask_co:
        """One request with the rows of all. Raises UpstreamError."""
        ...

    def decode(self, model: UpstreamModel, reply: Answer_contra, rows: int) -> list[Array]:
        """The outputs of an answer that is no refusal, in signature order, checked so far that they can be cut.

        Raises UpstreamError.
        """
        ...


class PartsCodec(Protocol):
    """Of a protocol that has answers in parts."""

    def decode_part(self, model: UpstreamModel, reply: Any) -> list[Array] | None:
        """The outputs of one; None if it only says that there are no more. Raises UpstreamError."""
        ...


def gathered_shape(requests: Sequence[Request], index: int) -> Sequence[int]:
    """Of input `index` of all requests, one below the other."""
    shape = requests[0].inputs[index].shape
    if len(requests) == 1:
        return shape
    return (sum([request.inputs[index].shape[0] for request in requests]), *shape[1:])


def output_of(given: Mapping[str, Given], spec: TensorSpec) -> Given:
    """By its name. Raises UpstreamError."""
    if spec.name not in given:
        raise UpstreamError(f"the upstream gave no output '{spec.name}'; it gave {', '.join(given) or 'none'}")
    return given[spec.name]


def check_type(spec: TensorSpec, given: str) -> None:
    """Raises UpstreamError for an output of another type than is declared."""
    if given != spec.dtype.value:
        raise UpstreamError(f"the upstream gave output '{spec.name}' as {given}, it declares {spec.dtype.value}")


def reported(spec: TensorSpec, dtype: DType, array: Array, rows: int | None) -> Array:
    """An output as it came, if it is what the model declares. `rows`: of the batch, None where there is no batch axis."""
    check_type(spec, dtype.value)
    shape = array.shape
    fits = len(shape) == len(spec.shape) and all(want in (-1, got) for got, want in zip(shape, spec.shape, strict=True))
    if not fits or (rows is not None and shape[0] != rows):
        batch = "" if rows is None else f" for a batch of {rows} rows"
        raise UpstreamError(
            f"the upstream gave output '{spec.name}' the shape {list(shape)}{batch}; declared is {list(spec.shape)}"
        )
    return array


def from_bytes(spec: TensorSpec, shape: Sequence[int], data: memoryview) -> Array:
    """A view of a reply's bytes; BYTES become Python bytes. Raises ValueError."""
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {list(shape)}")
    if spec.dtype is DType.BYTES:
        return objects([bytes(element) for element in tensors.elements_of(data)]).reshape(shape)
    if element_count(shape) * spec.dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not make the shape {list(shape)}")
    return tensors.to_array(spec.dtype, shape, data)


def from_values(spec: TensorSpec, shape: Sequence[int], values: Iterable[object]) -> Array:
    """The array of numbers, or bytes, that stand one after the other; 16-bit floats as bit patterns. Raises ValueError."""
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {list(shape)}")
    given = list(values)
    if spec.dtype is DType.BYTES:
        return objects(given).reshape(shape)
    wanted = tensors.NUMPY[spec.dtype]
    try:
        if spec.dtype in (DType.FP16, DType.BF16):
            return np.array(given, np.uint16).view(wanted).reshape(shape)
        return np.array(given, wanted).reshape(shape)
    except OverflowError:
        raise ValueError(f"its values do not fit {spec.dtype.value}") from None


def objects(values: Sequence[object]) -> Array:
    """A flat array of Python objects, whatever they are."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def batched_by(specs: Sequence[TensorSpec]) -> bool:
    """Axis 0 of every tensor is free."""
    return all(spec.shape[:1] == (-1,) for spec in specs)


def require(signature: Signature) -> Signature:
    """Raises ModelError for a model that takes or gives nothing."""
    if not signature.inputs or not signature.outputs:
        raise ModelError("the upstream declares no inputs or no outputs for this model, so nothing can be checked or gathered")
    return signature
