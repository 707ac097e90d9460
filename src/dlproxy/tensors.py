"""Wire bytes to numpy arrays and back, without copying where the element type allows it.

BF16 has no numpy type: it travels as uint16 bit patterns. BYTES arrays hold Python str (see Signature.utf8).
"""

from collections.abc import Iterator, Sequence
from struct import Struct as Layout

import numpy as np
from numpy.typing import NDArray

from dlproxy.message import DType

Array = NDArray[np.generic]

NUMPY: dict[DType, np.dtype[np.generic]] = {
    DType.BOOL: np.dtype(np.bool_),
    DType.UINT8: np.dtype("<u1"),
    DType.UINT16: np.dtype("<u2"),
    DType.UINT32: np.dtype("<u4"),
    DType.UINT64: np.dtype("<u8"),
    DType.INT8: np.dtype("<i1"),
    DType.INT16: np.dtype("<i2"),
    DType.INT32: np.dtype("<i4"),
    DType.INT64: np.dtype("<i8"),
    DType.FP16: np.dtype("<f2"),
    DType.BF16: np.dtype("<u2"),
    DType.FP32: np.dtype("<f4"),
    DType.FP64: np.dtype("<f8"),
    DType.BYTES: np.dtype(object),
}
_LENGTH = Layout("<I")


def to_array(dtype: DType, shape: Sequence[int], data: memoryview | bytes) -> Array:
    """An array over `data` (read-only, not copied); BYTES elements become str."""
    if dtype is DType.BYTES:
        return np.array([str(element, "utf-8") for element in elements_of(data)], dtype=object).reshape(shape)
    return np.frombuffer(data, NUMPY[dtype]).reshape(shape)


def to_bytes(dtype: DType, array: Array) -> memoryview:
    """The elements of `array` in C order; BYTES elements (str or bytes) with their length prefixes."""
    if dtype is DType.BYTES:
        return memoryview(join_elements(array.ravel().tolist()))
    array = np.ascontiguousarray(array, NUMPY[dtype])
    return array.data.cast("B") if array.size else memoryview(b"")


def bytes_per_row(dtype: DType, array: Array) -> tuple[memoryview | None, int]:
    """All of `array` as bytes and the bytes of one row of axis 0; (None, 0) where rows differ in length."""
    if dtype is DType.BYTES or not array.shape:
        return None, 0
    data = to_bytes(dtype, array)
    return data, len(data) // array.shape[0] if array.shape[0] else 0


def bf16_to_fp32(bits: Array) -> Array:
    """The values of BF16 bit patterns: BF16 is the upper half of an FP32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def fp32_to_bf16(values: Array) -> Array:
    """The nearest BF16 bit patterns, ties to even; a NaN stays one."""
    exact = np.asarray(values, np.float32, order="C")  # ascontiguousarray would give a scalar a dimension
    bits = exact.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(exact), 0x7FC0, rounded).astype(np.uint16)


def elements_of(data: memoryview | bytes) -> Iterator[memoryview]:
    """The elements of BYTES data. Raises ValueError where a length prefix does not fit.

    One by one: 64 MiB of empty elements, all held at once, would take 3 GiB of views.
    """
    view = memoryview(data)
    at, end = 0, len(view)
    while at < end:
        if end - at < 4:
            raise ValueError(f"{end - at} stray bytes at offset {at} where a 4-byte length prefix should stand")
        (length,) = _LENGTH.unpack_from(view, at)
        at += 4
        if length > end - at:
            raise ValueError(f"the length prefix at offset {at - 4} says {length} bytes, only {end - at} are left")
        yield view[at : at + length]
        at += length


def join_elements(elements: Sequence[str | bytes]) -> bytes:
    """BYTES data of these elements; str is encoded as UTF-8."""
    parts = []
    for element in elements:
        encoded = element.encode() if isinstance(element, str) else element
        if not isinstance(encoded, bytes):
            raise TypeError(f"{type(element).__name__} is no element of BYTES, which holds str or bytes")
        parts.append(_LENGTH.pack(len(encoded)))
        parts.append(encoded)
    return b"".join(parts)
