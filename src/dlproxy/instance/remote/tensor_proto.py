"""`tensorflow.TensorProto`, written and read. Called by tfs_grpc.py, as a client, and by wire/grpc/tfs.py, as a server.

Not aware of: which message a tensor is part of.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlproxy import tensors
from dlproxy.instance.batch import Array
from dlproxy.instance.remote.codec import objects
from dlproxy.instance.remote.rpc import Part
from dlproxy.instance.remote.tfs_model import DTYPES
from dlproxy.message import DType, element_count
from dlproxy.protos.raw import before, read_varint
from dlproxy.protos.tfs import CONTENT, DATA_TYPES, tfs

NAMES = {number: name for name, number in DATA_TYPES.items()}
NUMBERS = {DTYPES[name]: number for name, number in DATA_TYPES.items()}
TYPED = {  # the field of TensorProto for each type; int_val for the rest
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
AS_IT_IS = (DType.FP32, DType.FP64, DType.BOOL)  # whose typed values, packed, are the bytes of the elements
MOST_DIMS = 254  # as in TensorFlow
MOST_LEFT_OUT = 1 << 22  # elements that a message means without holding them: each costs memory that nobody has sent
MOST_TYPED = 1 << 22  # values of one tensor that a client may send: reading them blocks all
_FIELDS = {field.name: field.number for field in tfs.TensorProto.DESCRIPTOR.fields}
_ONE_BYTE = 128  # numbers below are one byte as a varint


def contents(dtype: DType, shape: Sequence[int], data: Sequence[Part]) -> list[Part]:
    """A tensor as parts, with `data` one after the other as tensor_content: no copy, but for BYTES."""
    if dtype is DType.BYTES:
        elements = [bytes(element) for each in data for element in tensors.elements_of(memoryview(each))]
        return [_head(dtype, shape, string_val=elements)]
    return [_head(dtype, shape), before(CONTENT, _length(data)), *data]


def typed(dtype: DType, shape: Sequence[int], data: Part) -> list[Part]:
    """A tensor as parts, with typed values, which is how TensorFlow Serving answers: many clients read nothing else."""
    field = TYPED.get(dtype, "int_val")
    if dtype is DType.BYTES:
        return [_head(dtype, shape, string_val=[bytes(element) for element in tensors.elements_of(memoryview(data))])]
    if dtype not in AS_IT_IS:
        array: Array = np.frombuffer(data, np.dtype("<u2") if field == "half_val" else tensors.NUMPY[dtype])
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < _ONE_BYTE:
            return [_head(dtype, shape, **{field: array.tolist()})]
        data = array.astype(np.uint8).tobytes()
    return [_head(dtype, shape), before(_FIELDS[field], len(data)), data] if len(data) else [_head(dtype, shape)]


def entry(number: int, name: str, tensor: Sequence[Part]) -> list[Part]:
    """One entry of a map of tensors by name, which is field `number` of its message."""
    key = name.encode()
    parts = [before(1, len(key)), key, before(2, _length(tensor)), *tensor]
    return [before(number, _length(parts)), *parts]


def array_of(tensor: Any, dtype: DType, shape: Sequence[int]) -> Array:
    """The typed values, flat, as many as the shape has elements: the last one stands for those that are left out, zero for all
    if there is none. 16-bit floats are bit patterns, BYTES objects. Raises ValueError.
    """
    count = _count(shape)
    values = getattr(tensor, TYPED.get(dtype, "int_val"))
    left_out = count - len(values)
    if left_out < 0:
        raise ValueError(f"{len(values)} values do not make the shape {list(shape)}")
    if left_out > MOST_LEFT_OUT:
        raise ValueError(f"it leaves out {left_out} of its elements; at most {MOST_LEFT_OUT} may be left out")
    if dtype is DType.BYTES:
        return objects([*values, *(list(values[-1:]) or [b""]) * left_out])
    bits = dtype in (DType.FP16, DType.BF16)
    try:
        array: Array = np.fromiter(values, np.dtype("<u2") if bits else tensors.NUMPY[dtype], len(values))
    except OverflowError:
        raise ValueError(f"its values do not fit {dtype.value}") from None
    if not left_out:
        return array
    rest = np.full(left_out, array[-1], array.dtype) if array.size else np.zeros(left_out, array.dtype)
    return np.concatenate([array, rest])


def data_of(tensor: Any, dtype: DType, shape: Sequence[int], content: Part) -> Part:
    """The elements as a Tensor has them; `content`: its tensor_content, which needs no copy. Raises ValueError."""
    if dtype is DType.BYTES:
        texts = _texts(content, _count(shape)) if content else array_of(tensor, dtype, shape).tolist()
        return tensors.join_elements(texts)
    if content:
        return content
    given = len(getattr(tensor, TYPED.get(dtype, "int_val")))
    if given > MOST_TYPED:
        raise ValueError(f"{given} values; at most {MOST_TYPED} are taken one by one: send them as tensor_content")
    array = array_of(tensor, dtype, shape)
    return array.data.cast("B") if array.size else b""


def _texts(content: Part, count: int) -> list[bytes]:
    """How TensorFlow packs texts into tensor_content: all lengths, then all bytes."""
    if count > len(content):
        raise ValueError(f"{len(content)} bytes do not hold {count} texts")
    at, ends = 0, []
    for _ in range(count):
        size, at = read_varint(content, at)
        ends.append(size)
    texts = []
    for size in ends:
        texts.append(bytes(content[at : at + size]))
        at += size
    if at != len(content):
        raise ValueError(f"its texts are said to end at offset {at} of {len(content)} bytes")
    return texts


def _count(shape: Sequence[int]) -> int:
    if len(shape) > MOST_DIMS:  # before the product: that of a million sizes takes hours
        raise ValueError(f"its shape has {len(shape)} dimensions; at most {MOST_DIMS} are supported")
    if any(size < 0 for size in shape):
        raise ValueError(f"its shape is {list(shape)}")
    return element_count(shape)


def _head(dtype: DType, shape: Sequence[int], **values: Any) -> bytes:
    message = tfs.TensorProto(dtype=NUMBERS[dtype], **values)
    message.tensor_shape.SetInParent()  # a scalar's has no dimension
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    encoded: bytes = message.SerializeToString()
    return encoded


def _length(parts: Sequence[Part]) -> int:
    return sum(map(len, parts))
