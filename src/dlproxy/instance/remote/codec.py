"""What a protocol must do for an instance, and how an upstream describes its model. Implemented by oip.py and tfs.py. Sans-I/O.

Called by remote.py. Not aware of: connections, health.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct

from dlproxy import tensors
from dlproxy.instance.batch import Array
from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.http_client import Part, Reply
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Request, Signature, TensorSpec, element_count

Lines = Sequence[Part]


class UpstreamModel(Struct, frozen=True):
    """What the upstream says: `max_batch` rows at most in a request, None if it does not say; `binary`: takes raw tensors."""

    signature: Signature
    max_batch: int | None
    binary: bool

    def same_as(self, other: "UpstreamModel") -> bool:
        """Whether requests made for the one suit the other."""
        a, b = self.signature, other.signature
        return (a.inputs, a.outputs, a.batched, self.binary) == (b.inputs, b.outputs, b.batched, other.binary)


class Codec(Protocol):
    """Requests are given as parts to be written one after the other."""

    questions: Mapping[str, Lines]
    """The GET requests whose answers describe the model, by name."""

    readiness: Lines
    """The GET request that asks whether the model can be used now."""

    def is_ready(self, reply: Reply) -> bool: ...

    def described(self, replies: Mapping[str, Reply]) -> UpstreamModel:
        """Raises UpstreamError for what the upstream should mend, ModelError for a model that cannot be served."""
        ...

    def encode(self, model: UpstreamModel, requests: Sequence[Request]) -> Lines:
        """One request with the rows of all. Raises UpstreamError."""
        ...

    def decode(self, model: UpstreamModel, reply: Reply, rows: int) -> list[Array]:
        """The outputs in signature order, checked so far that they can be cut. Raises UpstreamError."""
        ...


class Heads:
    """Request heads for one server."""

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        """Raises ModelError for headers that are none."""
        for name, value in headers.items():
            if not name.isascii() or not value.isascii() or not name.isprintable() or not value.isprintable() or ":" in name:
                raise ModelError(f"header {name!r} cannot be sent: names and values are one line of ASCII")
        own = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._common = f"host: {address.authority}\r\nuser-agent: dlproxy\r\n{own}"

    def get(self, path: str) -> Lines:
        return (f"GET {path} HTTP/1.1\r\n{self._common}\r\n".encode(),)

    def post(self, path: str) -> bytes:
        """Without its end: content type, length and an empty line are to follow."""
        return f"POST {path} HTTP/1.1\r\n{self._common}".encode()


def reported(spec: TensorSpec, dtype: DType, array: Array, rows: int | None) -> Array:
    """An output as it came, if it is what the model declares. `rows`: of the batch, None where there is no batch axis."""
    if dtype is not spec.dtype:
        raise UpstreamError(f"the upstream gave output '{spec.name}' as {dtype.value}, it declares {spec.dtype.value}")
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
