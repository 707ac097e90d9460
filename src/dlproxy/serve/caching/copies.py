"""Tensors whose bytes nobody else holds or changes. Called by layer.py and watch.py. Not aware of: why they are needed."""

from collections.abc import Sequence

from dlproxy.message import DType, Tensor


def copies_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """An answer's own are views of its whole batch."""
    return [Tensor(tensor.name, tensor.dtype, tensor.shape, bytes(tensor.data)) for tensor in tensors]


def owned(inputs: list[Tensor]) -> list[Tensor]:
    """The same, where nobody can write to them; a caller within this process could write to its own arrays once it has left."""
    if all(type(tensor.data) is bytes or memoryview(tensor.data).readonly for tensor in inputs):
        return inputs
    return copies_of(inputs)


def beginning_of(tensor: Tensor, most: int) -> Tensor:
    """A copy; of a tensor of more than so many bytes, a multiple of 8, the first elements alone, in one row."""
    if len(tensor.data) <= most:
        return Tensor(tensor.name, tensor.dtype, tensor.shape, bytes(tensor.data))
    dtype = DType.UINT8 if tensor.dtype is DType.BYTES else tensor.dtype  # elements of BYTES are equal if their bytes are
    return Tensor(tensor.name, dtype, (most // dtype.itemsize,), bytes(memoryview(tensor.data)[:most]))
