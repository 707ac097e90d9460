"""A remembered answer as bytes that others may have written: a header with a checksum, and msgpack, compressed where that pays.

Called by shared.py. What is not whole, of another format or no answer of this model is no answer: nothing raises, and nothing
of what was read is run. Not aware of: where the bytes are.
"""

import zlib
from collections.abc import Mapping
from struct import Struct as Layout
from time import time_ns

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_intdigest

from dlproxy.message import DType, Tensor, TensorSpec, element_count
from dlproxy.serve.caching.keys import Key
from dlproxy.serve.caching.layer import Kept
from dlproxy.tensors import elements_of

FORMAT = 1
MOST_BYTES = 4 << 20  # of an answer: more takes 3 ms at 10 Gbit/s, which is longer than anybody waits by default
HEAD = Layout("<4sBBIQ")  # magic, format, whether it is compressed, bytes of the body before that, checksum
MAGIC = b"dlpA"
PLAIN, ZLIB = range(2)
WORTH_TRYING = 1024  # bytes: less saves Redis nothing to speak of
SAMPLE = 4096  # bytes whose compression tells what that of all would do: some 60 us
PAYS = 0.8  # of the size; float32 of a softmax comes to 0.9, classes and texts to less than 0.5
SKEWED_MS = 3_600_000  # an answer from further ahead was not dated by a clock


class _Output(Struct, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Body(Struct, array_like=True):
    """`at_ms`: since 1970, as the clocks of nodes have nothing else in common."""

    at_ms: int
    cost_s: float
    outputs: list[_Output]


def body_of(kept: Kept, now: float) -> bytes:
    """What is to be sealed. `now`: by the clock of `kept.at`."""
    at_ms = time_ns() // 1_000_000 - int((now - kept.at) * 1e3)
    outputs = [_Output(one.name, one.dtype.value, tuple(one.shape), bytes(one.data)) for one in kept.outputs]
    return msgspec.msgpack.encode(_Body(at_ms, kept.cost_s, outputs))


def shrinks(body: bytes) -> bool:
    """Whether compression pays, as far as a part of it tells."""
    sample = body[:SAMPLE]
    return len(body) >= WORTH_TRYING and len(zlib.compress(sample, 1)) < PAYS * len(sample)


def sealed(key: Key, body: bytes, *, compress: bool) -> bytes:
    """The whole frame, for this key alone."""
    packed = zlib.compress(body, 1) if compress else body
    codec = ZLIB if compress else PLAIN
    return HEAD.pack(MAGIC, FORMAT, codec, len(body), _checksum(key, codec, len(body), packed)) + packed


def opened(key: Key, frame: bytes) -> bytes | None:
    """The body; None if this is no frame of this key and format, or has changed since it was sealed."""
    if len(frame) < HEAD.size:
        return None
    magic, version, codec, size, checksum = HEAD.unpack_from(frame)
    packed = frame[HEAD.size :]
    if (magic, version) != (MAGIC, FORMAT) or size > MOST_BYTES or checksum != _checksum(key, codec, size, packed):
        return None
    if codec == PLAIN:
        return packed if len(packed) == size else None
    if codec != ZLIB:
        return None
    try:
        decoder = zlib.decompressobj()
        body = decoder.decompress(packed, size + 1)
    except zlib.error:
        return None
    return body if len(body) == size and decoder.eof else None


def size_of(frame: bytes) -> int:
    """Bytes that the body takes, if this is a compressed frame; else 0."""
    if len(frame) < HEAD.size:
        return 0
    _, _, codec, size, _ = HEAD.unpack_from(frame)
    return size if codec == ZLIB else 0


def answer_in(body: bytes, specs: Mapping[str, TensorSpec], model: str, version: str, now: float) -> Kept | None:
    """The answer; None if it is none that this model gives. `specs`: its outputs, by name."""
    try:
        found = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    outputs: list[Tensor] = []
    for one in found.outputs:
        spec = specs.get(one.name)
        if spec is None or not _fits(one, spec):
            return None
        outputs.append(Tensor(one.name, spec.dtype, one.shape, one.data))
    age_ms = time_ns() // 1_000_000 - found.at_ms
    if len({one.name for one in outputs}) != len(outputs) or not outputs or age_ms < -SKEWED_MS or not 0 <= found.cost_s < 1e6:
        return None
    return Kept(model, version, outputs, now - max(age_ms, 0) / 1e3, found.cost_s)


_DECODER = msgspec.msgpack.Decoder(_Body)


def _fits(output: _Output, spec: TensorSpec) -> bool:
    shape = output.shape
    if output.dtype != spec.dtype.value or len(shape) != len(spec.shape) or min(shape, default=0) < 0:
        return False
    if any(size not in (-1, found) for size, found in zip(spec.shape, shape, strict=True)):
        return False
    count = element_count(shape)
    if spec.dtype is not DType.BYTES:
        return len(output.data) == count * spec.dtype.itemsize
    try:
        return sum(1 for _ in elements_of(output.data)) == count
    except ValueError:
        return False


def _checksum(key: Key, codec: int, size: int, packed: bytes) -> int:
    """Binds an answer to its key: what stands under another one is none."""
    return xxh3_64_intdigest(packed, xxh3_64_intdigest(key + bytes((FORMAT, codec)) + size.to_bytes(8, "little")))
