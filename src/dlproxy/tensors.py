"""Wire bytes to numpy arrays and back, without copying where the element type allows it.

BF16 has no numpy type: it travels as uint16 bit patterns. BYTES arrays hold Python objects, as numpy's own strings lose zeros.
"""

from collections.abc import Iterator, Mapping, Sequence
from reprlib import repr as brief
from struct import Struct as Layout
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.message import DType, Tensor, invalid

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
EMPTY: Mapping[str, NDArray[Any]] = MappingProxyType({})


def to_array(dtype: DType, shape: Sequence[int], data: memoryview | bytes, *, text: bool = False) -> Array:
    """An array over `data` (read-only, not copied); BYTES elements become bytes, or str where they are `text`."""
    if dtype is DType.BYTES:
        elements = [str(element, "utf-8") if text else bytes(element) for element in elements_of(data)]
        return np.array(elements, dtype=object).reshape(shape)
    return np.frombuffer(data, NUMPY[dtype]).reshape(shape)


def to_bytes(dtype: DType, array: Array) -> memoryview:
    """The elements of `array` in C order; BYTES elements (str or bytes) with their length prefixes."""
    if dtype is DType.BYTES:
        return memoryview(join_elements(array.ravel().tolist()))
    array = np.ascontiguousarray(array, NUMPY[dtype])
    return array.data.cast("B") if array.size else memoryview(b"")


def filler(dtype: DType, value: float) -> float:
    """What stands for the number in an array of this type."""
    return int(fp32_to_bf16(np.array(value, np.float32))) if dtype is DType.BF16 else value


def opaque(array: Array, *, text: bool = False) -> Array:
    """The elements of an object array as bytes, each whole: of str (in UTF-8), bytes, bytearray and memoryview. `text`: they
    must be UTF-8. Raises ValueError.

    numpy's strings of fixed width (kinds S and U) are refused, whatever they hold. numpy fills them up with zeros and takes
    zeros off again when it gives an element out, so nobody knows any more which were meant. To take those whose elements all
    fill the width would let chance decide: one digest in 256 ends in a zero, and labels of different lengths meet in a batch.
    """
    if array.dtype.kind in "SU":
        raise ValueError(
            f"a numpy array of type {array.dtype.str} loses the zeros at the end of its elements; make it with dtype=object"
        )
    elements = array.ravel().tolist()
    if not text and set(map(type, elements)) <= {bytes}:
        return array
    for number, element in enumerate(elements):
        elements[number] = encoded = _encoded(element)
        if text and not isinstance(element, str):
            try:
                str(encoded, "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"element {number} is not UTF-8, as TEXT must be: {error}") from None
    return np.array(elements, dtype=object).reshape(array.shape)


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


def join_elements(elements: Sequence[object]) -> bytes:
    """BYTES data of these elements; str is encoded as UTF-8. Raises ValueError for what is none."""
    parts = []
    for element in elements:
        encoded = element if type(element) is bytes else _encoded(element)
        parts.append(_LENGTH.pack(len(encoded)))
        parts.append(encoded)
    return b"".join(parts)


def _encoded(element: object) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes | bytearray | memoryview):  # of numpy's too, which keeps its zeros as an object of its own
        return bytes(element)
    raise ValueError(f"{brief(element)} cannot be an element of BYTES, which holds bytes or str")


def shape_of_flat(declared: Sequence[int], count: int) -> tuple[int, ...] | None:
    """The shape that so many elements take which came without one, as Triton's generate extension has it: fixed sizes are
    filled, the last open one takes what there is, others are 1. None if they do not fit.
    """
    for size in declared:
        if size >= 0:
            count, odd = divmod(count, size) if size else (0, count)
            if odd:
                return None
    shape = []
    for size in reversed(declared):
        shape.append(count if size < 0 else size)
        count = 1 if size < 0 else count
    return tuple(reversed(shape)) if count == 1 else None


# Values of Python callers


class Answer(dict[str, NDArray[Any]]):
    """Read-only arrays by the names of outputs. `cache`: what the server's result cache had to do with it, which is hit, miss,
    joined, partial or bypass; empty if nothing, or if the server does not say. `variant`: the name of the model that answered
    in place of the one asked for; empty if none did.
    """

    __slots__ = ("cache", "variant")

    def __init__(self, outputs: Mapping[str, NDArray[Any]] = EMPTY, cache: str = "", variant: str = "") -> None:
        super().__init__(outputs)
        self.cache = cache
        self.variant = variant


def to_values(tensor: Tensor, *, text: bool) -> NDArray[Any]:
    """For a Python caller: as `to_array` has it, but BF16 as float32."""
    array = to_array(tensor.dtype, tensor.shape, tensor.data, text=text)
    array.flags.writeable = False  # requests that ask the same may have one answer
    return bf16_to_fp32(array) if tensor.dtype is DType.BF16 else array


def from_values(name: str, dtype: DType, value: Any) -> Tensor:
    """What a Python caller gives as input `name`: an array, or whatever numpy makes one of. Numbers are converted within their
    kind, BF16 is given as float32, BYTES as bytes or str. Raises InferenceError.
    """
    if dtype is DType.BYTES:
        return _opaque(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise invalid(f"input '{name}' makes no array: {error}") from None
    if dtype is DType.BF16:
        array = fp32_to_bf16(_converted(name, array, np.dtype(np.float32), dtype))
    else:
        array = _converted(name, array, NUMPY[dtype], dtype)
    return Tensor(name, dtype, array.shape, to_bytes(dtype, array))


def _opaque(name: str, value: Any) -> Tensor:
    """BYTES as they are given: numpy's own strings, which it would make of lists too, lose zeros. Raises InferenceError."""
    try:
        fixed_width = _strings_in(value)
        array = opaque(np.asarray(value, object) if fixed_width is None else fixed_width)
    except ValueError as error:
        raise invalid(f"input '{name}': {error}") from None
    return Tensor(name, DType.BYTES, array.shape, to_bytes(DType.BYTES, array))


def _strings_in(value: Any) -> NDArray[Any] | None:
    """The first numpy array of strings of fixed width, itself or somewhere in nested lists."""
    if isinstance(value, list | tuple):
        return next((found for found in map(_strings_in, value) if found is not None), None)
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "SU" else None


def _converted(name: str, array: NDArray[Any], wanted: np.dtype[Any], dtype: DType) -> NDArray[Any]:
    """Of the wanted type: numbers to floats by rounding, integers to integers that hold them. Raises InferenceError."""
    if array.dtype == wanted:
        return array
    if array.dtype.kind not in {"b": "b", "i": "biu", "u": "biu", "f": "biuf"}[wanted.kind]:
        raise invalid(f"input '{name}' is {array.dtype}, which is not a kind of {dtype.value}; convert it first")
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    if wanted.kind != "f" and (converted != array).any():
        raise invalid(f"input '{name}' has numbers that do not fit {dtype.value}")
    if wanted.kind == "f" and not (np.isfinite(converted) == np.isfinite(array)).all():
        raise invalid(f"input '{name}' has numbers that are too large for {dtype.value}")
    return converted
