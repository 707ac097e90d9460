"""HTTP/2 frames and header blocks as bytes (RFC 9113, RFC 7541), as far as a gRPC server writes them.

Called by connection.py. Not aware of: sockets, streams, what a call is.
"""

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER = 9  # bytes before a frame's payload
DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384
MOST_WINDOW = 2**31 - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_HEADER_LIST = range(1, 7)


class ErrorCode(IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return head(len(payload), kind, flags, stream) + payload


def head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """What stands before a payload of `size` bytes."""
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, stream)


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def settings(values: Mapping[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join([struct.pack(">HI", *setting) for setting in values.items()]))


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, number(size))


def header_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Fields as literals that enter no table: every answer is encoded by itself, so equal ones are made once."""
    return b"".join([b"\x00" + _text(name) + _text(value) for name, value in fields])


def _text(value: bytes) -> bytes:
    """Its length as an integer of a 7-bit prefix, without Huffman's bit."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    encoded, size = bytearray((127,)), size - 127
    while size > 127:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + value
