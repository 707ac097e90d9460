"""gRPC's framing of messages and their compression (Length-Prefixed-Message of its HTTP/2 protocol).

Called by receiving.py and call.py. Not aware of: frames, calls.
"""

import zlib
from collections.abc import Sequence

from dlproxy.message import Failure, FailureKind, InferenceError, invalid

PREFIX = 5  # bytes before each message: whether it is compressed, and its size
WORTH_BYTES = 256  # shorter answers do not shrink by enough
MOST_PACKED = 1 << 20  # bytes of an answer that is compressed: it takes 10 to 20 ms, in which nothing else is done
LEVEL = 1

Piece = bytes | bytearray | memoryview

CODINGS = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}
"""As zlib wants them: deflate is zlib's own format, in gRPC as in HTTP."""


def message_size(prefix: Piece, most: int) -> int:
    """Of the message after this prefix. Raises InferenceError TOO_LARGE, or INVALID_ARGUMENT for no prefix."""
    if prefix[0] > 1:
        raise invalid(f"a message begins with the byte {prefix[0]}; 0 is plain, 1 compressed")
    size = int.from_bytes(prefix[1:PREFIX], "big")
    if size > most:
        failure = Failure(FailureKind.TOO_LARGE, f"the message is {size} bytes; at most {most} are accepted")
        raise InferenceError(failure)
    return size


def unpacked(message: Piece, coding: bytes, most: int) -> bytes:
    """A message that was compressed in one of CODINGS. Raises InferenceError: TOO_LARGE, INVALID_ARGUMENT."""
    inflater = zlib.decompressobj(wbits=CODINGS[coding])
    try:
        plain = inflater.decompress(message, most + 1)
    except zlib.error as error:
        raise invalid(f"the message is not valid {coding.decode()}: {error}") from None
    if len(plain) > most:
        failure = Failure(FailureKind.TOO_LARGE, f"the decompressed message is too large; at most {most} bytes are accepted")
        raise InferenceError(failure)
    if not inflater.eof:
        raise invalid(f"the {coding.decode()} message is truncated")
    if inflater.unused_data:
        raise invalid(f"bytes follow the {coding.decode()} message")
    return plain


def packed(message: Sequence[Piece], coding: bytes) -> bytes | None:
    """None if that is not worth it."""
    size = sum(map(len, message))
    if not WORTH_BYTES <= size <= MOST_PACKED:
        return None
    deflater = zlib.compressobj(LEVEL, wbits=CODINGS[coding])
    small = b"".join([*map(deflater.compress, message), deflater.flush()])
    return small if len(small) < size else None


def accepted_coding(accept: bytes) -> bytes | None:
    """The first of ours in grpc-accept-encoding that the client names."""
    named = [name.strip() for name in accept.split(b",")]
    return next((coding for coding in CODINGS if coding in named), None)
