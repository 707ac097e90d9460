"""Content codings of HTTP (RFC 9110, section 8.4): bodies of requests are decoded within bounds, answers encoded where it pays.

Called by oip/http.py and http/exchange.py. zstd and br come with the extra `compression`. Not aware of: routes, sockets.
"""

import asyncio
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, cast

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, invalid

try:
    from compression import zstd  # Python 3.14
except ImportError:
    try:
        from backports import zstd  # type: ignore[no-redef, unused-ignore]
    except ImportError:
        zstd = None
try:
    import brotli
except ImportError:
    brotli = None

LEVEL = 1  # of gzip, deflate and zstd: higher ones cost more time than any network that is worth a proxy takes
GZIP = zlib.MAX_WBITS | 16
ANY = zlib.MAX_WBITS | 32  # tells gzip and zlib apart by their headers
WINDOW_LOG = 23  # 8 MiB, the most that zstd over HTTP may want (RFC 9659)
PROBE = 4096  # bytes of an answer that are tried first
WORTH = 0.9  # of its size, which it has to get below
ON_LOOP = 16 * 1024  # bytes that are encoded at once, in 0.1 ms; larger answers on a thread, which costs 0.04 ms
MOST_WAITING = 4  # answers that the thread has to do; further ones go as they are, so what that costs is bounded
MOST_SEEN = 256  # different Accept-Encoding headers that are remembered

VARY = b"vary: accept-encoding\r\n"
Piece = bytes | memoryview


# Requests


class _Decompressor(Protocol):
    """Of one body, as zlib has it."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Brotli:
    """brotli's, in the manner of zlib's."""

    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()
        self.eof = False
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out: bytes = self._decompressor.process(data, output_buffer_limit=max_length)
        self.eof = self._decompressor.is_finished()
        return out


def _zstd() -> _Decompressor:
    return cast(_Decompressor, zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG}))


def _inflater() -> _Decompressor:
    return zlib.decompressobj(wbits=ANY)


DECODERS: dict[bytes, Callable[[], _Decompressor]] = {b"gzip": _inflater, b"x-gzip": _inflater, b"deflate": _inflater}
BROKEN: tuple[type[Exception], ...] = (zlib.error,)
if zstd is not None:
    DECODERS[b"zstd"] = _zstd
    BROKEN += (zstd.ZstdError,)
if brotli is not None:
    DECODERS[b"br"] = _Brotli
    BROKEN += (brotli.error,)


def decoded(encoding: bytes, body: bytes, most: int) -> bytes:
    """The body of a request. Raises InferenceError if it is broken, has more than `most` bytes, or its coding is not known."""
    encoding = encoding.strip().lower()
    if encoding == b"identity":
        return body
    decoder, name = DECODERS.get(encoding), encoding.decode("latin-1")
    if decoder is None:
        known = ", ".join(sorted(key.decode() for key in DECODERS if not key.startswith(b"x-")))
        hint = "; the extra dlproxy[compression] adds it" if encoding in (b"zstd", b"br") else ""
        message = f"Unsupported compression type {name!r}; use one of {known}{hint}"
        raise InferenceError(Failure(FailureKind.UNSUPPORTED, message))
    decompressor = decoder()
    try:
        found = decompressor.decompress(body, most + 1)
    except BROKEN as error:
        raise invalid(f"the body is not valid {name}: {error}") from None
    if len(found) > most:
        raise invalid(f"the decompressed body is too large; at most {most} bytes are accepted")
    if not decompressor.eof:
        raise invalid(f"the {name} body is truncated")
    if decompressor.unused_data:
        raise invalid(f"the body has {len(decompressor.unused_data)} extra bytes after its {name} data")
    return found


# Answers


class Wish(Struct, frozen=True):
    """What an Accept-Encoding header comes to. `coding`: empty for none. `must`: the answer may not come as it is."""

    coding: bytes = b""
    must: bool = False


ENCODERS: dict[bytes, Callable[[], Any]] = {  # the quickest first: it is taken where a client likes several as well
    **({b"zstd": lambda: zstd.ZstdCompressor(LEVEL)} if zstd is not None else {}),
    b"gzip": lambda: zlib.compressobj(LEVEL, wbits=GZIP),
    b"deflate": lambda: zlib.compressobj(LEVEL),
}


def wish_of(header: bytes) -> Wish:
    """Of an Accept-Encoding header (RFC 9110, section 12.5.3)."""
    weights: dict[bytes, float] = {}
    for element in header.lower().split(b","):
        coding, *parameters = [part.strip() for part in element.split(b";")]
        weights[coding.removeprefix(b"x-")] = _weight(parameters)
    others = weights.get(b"*", 0.0)
    as_it_is = weights.get(b"identity", 0.0 if weights.get(b"*") == 0.0 else 1e-4)  # below all that is named
    best, most = b"", as_it_is
    for coding in ENCODERS:
        weight = weights.get(coding, others)
        if weight > 0.0 and (weight > most or (weight == most and not best)):
            best, most = coding, weight
    return Wish(best, must=bool(best) and as_it_is == 0.0)


def _weight(parameters: Sequence[bytes]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


Then = Callable[[bytes, Sequence[Piece]], None]
"""Takes further header lines and the pieces of the body to send."""


class Compression:
    """What one HTTP server needs to encode its answers. `above`: bytes that an answer must exceed."""

    def __init__(self, above: int) -> None:
        self.above = above
        self._wishes: dict[bytes, Wish] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._waiting = 0

    def wish(self, header: bytes) -> Wish:
        wish = self._wishes.get(header)
        if wish is None:
            if len(self._wishes) >= MOST_SEEN:
                self._wishes.clear()
            wish = self._wishes[header] = wish_of(header)
        return wish

    def encode(self, wish: Wish, pieces: Sequence[Piece], size: int, then: Then) -> None:
        """Calls `then` once, on the event loop, now or later: with the pieces as they are where encoding does not pay."""
        if not wish.must and (not wish.coding or self._waiting >= MOST_WAITING):
            then(VARY, pieces)
        elif size <= ON_LOOP:
            self._finish(wish, pieces, then, encoded(wish, pieces, size))
        elif not wish.must and not _pays(wish, pieces):
            then(VARY, pieces)
        else:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="compression")
            self._waiting += 1
            future = asyncio.get_running_loop().run_in_executor(self._thread, encoded, wish, pieces, size)
            future.add_done_callback(partial(self._done, wish, pieces, then))

    def _done(self, wish: Wish, pieces: Sequence[Piece], then: Then, future: "asyncio.Future[bytes | None]") -> None:
        self._waiting -= 1
        failed = future.cancelled() or future.exception() is not None  # such as no memory; the answer is there all the same
        self._finish(wish, pieces, then, None if failed else future.result())

    def _finish(self, wish: Wish, pieces: Sequence[Piece], then: Then, body: bytes | None) -> None:
        if body is None:
            then(VARY, pieces)
        else:
            then(b"%bcontent-encoding: %b\r\n" % (VARY, wish.coding), (body,))


def encoded(wish: Wish, pieces: Sequence[Piece], size: int) -> bytes | None:
    """None if that is not worth it."""
    compressor = ENCODERS[wish.coding]()
    body = b"".join([*[compressor.compress(piece) for piece in pieces], compressor.flush()])
    return body if wish.must or len(body) < WORTH * size else None


def _pays(wish: Wish, pieces: Sequence[Piece]) -> bool:
    """Whether a bit of it shrinks, from the middle of the largest piece: a binary answer's head is unlike the rest."""
    largest = memoryview(max(pieces, key=len))
    start = max(0, (len(largest) - PROBE) // 2)
    probe = largest[start : start + PROBE]
    return encoded(wish, (probe,), len(probe)) is not None
