"""The fields of protobuf messages in a file, by number and place, so that what is not asked for is stepped over unread.

Called by onnx_graph.py and content.py, which read a few fields of models that hold gigabytes of weights.
Not aware of: which message it is.
"""

from collections.abc import Iterator
from mmap import mmap
from struct import unpack_from

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types

Span = tuple[int, int]
"""Where something stands in the file: first byte, and the one after the last."""


def fields(data: mmap | bytes, span: Span) -> Iterator[tuple[int, int | Span]]:
    """The fields of a message: (number, value); the value of what has a length is where it stands.

    Raises ValueError, or IndexError at the end of the file, for what is no protobuf.
    """
    at, end = span
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
            if size > end - at:
                raise ValueError(f"a field at byte {at} is longer than the message around it")
            yield key >> 3, (at, at + size)
            at += size
        elif kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
            if size > end - at:
                raise ValueError(f"a number at byte {at} is longer than the message around it")
            yield key >> 3, unpack_from("<I" if size == 4 else "<Q", data, at)[0]
            at += size
        else:
            raise ValueError(f"a field at byte {at} has the unknown wire type {kind}")


def varints(data: mmap | bytes, span: Span) -> Iterator[int]:
    at, end = span
    while at < end:
        value, at = _varint(data, at)
        yield value


def _varint(data: mmap | bytes, at: int) -> tuple[int, int]:
    """Value and next position. Raises IndexError at the end of the file, ValueError for more than 64 bits."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"the number at byte {at} has more than 64 bits")
