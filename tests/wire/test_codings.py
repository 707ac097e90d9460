"""Bodies in codings: what comes in is bounded and whole, what goes out is what the client accepts, in order, if it shrinks."""

import asyncio
import gzip
import random
import threading
import zlib
from collections.abc import Callable, Sequence

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.message import DType, FailureKind, InferenceError
from dlproxy.wire.http import codings
from dlproxy.wire.http.codings import MOST_WAITING, ON_LOOP, Compression, Wish, decoded, wish_of
from dlproxy.wire.http.exchange import Exchange

from .fixtures import EchoService, Reply, Wire, app_of, echo_signature, post, request, running, served

zstd = codings.zstd

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "br": brotli.compress,
}
UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress, "zstd": zstd.decompress}
TEXT = b'{"data":[%b]}' % b",".join(b"%d.5" % (n % 1000) for n in range(4000))  # shrinks, and is longer than ON_LOOP
NOISE = random.Random(1).randbytes(100_000)
BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
INFER = "/v2/models/m/infer"


# Requests


@pytest.mark.parametrize("coding", PACK)
def test_a_request_may_come_in_each_coding(coding: str) -> None:
    service = EchoService(echo_signature(("x", DType.FP32, (-1, 2))))
    wire = Wire(app_of(served(service))).feed(post(INFER, PACK[coding](BODY), **{"Content-Encoding": coding.upper()}))
    service.answer_all()
    assert [reply.status for reply in wire.replies] == [200]


@pytest.mark.parametrize("coding", PACK)
@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_up_to_the_limit_it_is_as_it_was(coding: str, size: int) -> None:
    body = (b"abcdefghij" * 100)[:size]
    assert decoded(coding.encode(), PACK[coding](body), 1000) == body


@pytest.mark.parametrize("coding", PACK)
def test_one_byte_more_and_a_bomb_are_refused(coding: str) -> None:
    for size in (1001, 1 << 25):
        with pytest.raises(InferenceError, match="decompressed body is too large; at most 1000 bytes") as refused:
            decoded(coding.encode(), PACK[coding](bytes(size)), 1000)
        assert refused.value.failure.kind is FailureKind.INVALID_ARGUMENT


@pytest.mark.parametrize("coding", PACK)
def test_what_is_cut_anywhere_or_goes_on_is_refused(coding: str) -> None:
    packed = PACK[coding](b"some text, and some more of it")
    for end in range(len(packed)):
        with pytest.raises(InferenceError, match=r"truncated|not valid"):
            decoded(coding.encode(), packed[:end], 1000)
    for more in (b"x", packed):
        with pytest.raises(InferenceError, match=r"extra bytes after|not valid"):
            decoded(coding.encode(), packed + more, 1000)


@pytest.mark.parametrize("coding", PACK)
def test_mutated_bodies_are_decoded_or_refused(coding: str) -> None:
    draw = random.Random(coding)
    packed = PACK[coding](TEXT)
    refused = 0
    for _ in range(300):
        broken = bytearray(packed)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        try:
            assert len(decoded(coding.encode(), bytes(broken), 100_000)) <= 100_000
        except InferenceError as error:
            refused += error.failure.kind is FailureKind.INVALID_ARGUMENT
    assert refused > 100


@pytest.mark.parametrize("coding", ["zstd", "br"])
def test_without_its_library_a_coding_is_refused_and_the_extra_named(coding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(codings.DECODERS, coding.encode())
    with pytest.raises(
        InferenceError, match=r"Unsupported compression type .*; use one of .*gzip.*; the extra dlproxy\[compression\] adds it"
    ) as no:
        decoded(coding.encode(), PACK[coding](b"a"), 1000)
    assert no.value.failure.kind is FailureKind.UNSUPPORTED


def test_a_window_larger_than_http_allows_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.enable_long_distance_matching: 1}
    packed = zstd.compress(b"abc" * 20_000_000, options=options)
    with pytest.raises(InferenceError, match="not valid zstd"):
        decoded(b"zstd", packed, 1 << 30)


# What a client accepts


@pytest.mark.parametrize(
    ("header", "coding", "must"),
    [
        ("", "", False),
        ("identity", "", False),
        ("gzip", "gzip", False),
        ("x-gzip", "gzip", False),
        ("GZIP ; Q=0.5", "gzip", False),
        ("deflate", "deflate", False),
        ("gzip, deflate", "gzip", False),
        ("gzip, deflate, br, zstd", "zstd", False),
        ("deflate, gzip;q=0.9", "deflate", False),
        ("br", "", False),
        ("br, *;q=0.1", "zstd", False),
        ("*", "zstd", False),
        ("*, zstd;q=0", "gzip", False),
        ("gzip;q=0", "", False),
        ("gzip;q=0.000", "", False),
        ("gzip;q=0.2, identity", "", False),
        ("gzip;q=0.5, identity;q=0.5", "gzip", False),
        ("gzip, identity;q=0", "gzip", True),
        ("gzip, *;q=0", "gzip", True),
        ("gzip, *;q=0, identity;q=0.1", "gzip", False),
        ("*;q=0", "", False),
        ("identity;q=0", "", False),
        ("br, identity;q=0", "", False),
        ("gzip;q=nonsense", "", False),
        ("gzip;q=7", "gzip", False),
        ("gzip;q=nan", "", False),
        (",, ;q=1,gzip", "gzip", False),
        ("gzip;level=3;q=0", "", False),
    ],
)
def test_the_best_coding_by_the_clients_weights(header: str, coding: str, must: bool) -> None:
    assert wish_of(header.encode()) == Wish(coding.encode(), must)


@given(st.binary(max_size=60) | st.from_regex(rb"[a-z*;=,. 0-9q-]{0,60}", fullmatch=True))
def test_whatever_it_is_it_comes_to_a_wish(header: bytes) -> None:
    wish = wish_of(header)
    assert wish.coding in (b"", *codings.ENCODERS)
    assert wish.coding or not wish.must


# Answers


class Fixed:
    """An application whose answers have this body, and a rest."""

    def __init__(self, body: bytes, *rest: bytes) -> None:
        self.body, self.rest = body, rest

    def __call__(self, exchange: Exchange) -> None:
        exchange.reply(200, b"text/plain", self.body, b"inference-header-content-length: 7\r\n", self.rest)


def asked(body: bytes, accept: str | None, above: int = 100, method: str = "GET", *rest: bytes) -> Reply:
    headers = {} if accept is None else {"Accept-Encoding": accept}
    wire = Wire(Fixed(body, *rest), HttpLimits(compress_above_bytes=above)).feed(request("/", method, headers))
    (reply,) = wire.replies
    return reply


@pytest.mark.parametrize("coding", UNPACK)
def test_a_long_answer_comes_in_the_coding_that_was_asked_for(coding: str) -> None:
    body = TEXT[:ON_LOOP]
    for rest in ((), (body[5000:9000], memoryview(body)[9000:])):
        first = body if not rest else body[:5000]
        reply = asked(first, coding, 100, "GET", *rest)
        assert UNPACK[coding](reply.body) == body
        assert reply.headers["content-encoding"] == coding
        assert reply.headers["vary"] == "accept-encoding"
        assert reply.headers["inference-header-content-length"] == "7", "of the JSON before it is compressed, as in Triton"
        assert len(reply.body) < 0.7 * len(body)


@pytest.mark.parametrize(
    ("body", "accept", "above", "vary"),
    [
        (TEXT[:101], None, 100, True),
        (TEXT[:101], "br", 100, True),
        (TEXT[:101], "gzip;q=0", 100, True),
        (NOISE[:9000], "gzip", 100, True),
        (TEXT[:100], "gzip", 100, False),
        (TEXT[:9000], "gzip", 0, False),
        (b"", "gzip, identity;q=0", 100, False),
    ],
)
def test_else_it_comes_as_it_is_and_caches_know_whether_it_might_not(
    body: bytes, accept: str | None, above: int, vary: bool
) -> None:
    reply = asked(body, accept, above)
    assert reply.body == body
    assert "content-encoding" not in reply.headers
    assert ("vary" in reply.headers) is vary


def test_who_takes_no_plain_answer_gets_none() -> None:
    for body in (b"x", NOISE[:500]):
        reply = asked(body, "gzip, identity;q=0")
        assert reply.headers["content-encoding"] == "gzip"
        assert gzip.decompress(reply.body) == body


def test_a_head_is_that_of_the_same_answer() -> None:
    whole, head = asked(TEXT[:9000], "gzip"), asked(TEXT[:9000], "gzip", method="HEAD")
    assert (head.body, head.headers) == (b"", whole.headers)


def test_by_default_short_answers_are_left_alone() -> None:
    limit = HttpLimits().compress_above_bytes
    for size, vary in ((limit, False), (limit + 1, True)):
        wire = Wire(Fixed(NOISE[:size])).feed(request("/", headers={"Accept-Encoding": "gzip"}))
        assert ("vary" in wire.replies[0].headers) is vary


async def test_long_answers_are_encoded_beside_the_loop_and_leave_in_order_sockets() -> None:
    bodies = {"/long": TEXT * 20, "/short": b"short", "/noise": NOISE, "/longer": TEXT * 30}

    def answer(exchange: Exchange) -> None:
        exchange.reply(200, b"text/plain", bodies[exchange.target.decode()])

    async with running(answer) as run:
        client = await run.connect(limit=1 << 24)
        client.send(b"".join(request(target, headers={"Accept-Encoding": "gzip"}) for target in bodies))
        for body in bodies.values():
            reply = await client.reply()
            packed = reply.headers.get("content-encoding") == "gzip"
            assert packed is body.startswith(b"{")
            assert (gzip.decompress(reply.body) if packed else reply.body) == body


async def test_a_client_that_leaves_meanwhile_is_no_trouble_sockets() -> None:
    answered = 0

    def answer(exchange: Exchange) -> None:
        nonlocal answered
        exchange.on_abandoned = lambda: pytest.fail("it was answered")
        exchange.reply(200, b"text/plain", TEXT * 50)
        answered += 1

    async with running(answer) as run:
        client = await run.connect()
        client.send(request(headers={"Accept-Encoding": "gzip"}))
        await run.until(lambda: answered == 1)
        await client.close()
        other = await run.connect(limit=1 << 24)
        other.send(request(headers={"Accept-Encoding": "gzip"}))
        assert gzip.decompress((await other.reply()).body) == TEXT * 50


async def test_a_thread_that_is_behind_gets_no_more_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slow(wish: Wish, pieces: Sequence[bytes], size: int) -> bytes:
        go_on.wait(10)
        return b"packed"

    monkeypatch.setattr(codings, "encoded", slow)
    monkeypatch.setattr(codings, "_pays", lambda *_: True)
    compression, gzip_wish = Compression(100), Wish(b"gzip")
    outcomes: list[bytes] = []
    done = asyncio.Event()

    def then(lines: bytes, pieces: Sequence[bytes | memoryview]) -> None:
        outcomes.append(lines)
        if len(outcomes) == MOST_WAITING + 1:
            done.set()

    for _ in range(MOST_WAITING + 1):
        compression.encode(gzip_wish, (TEXT,), len(TEXT), then)
    assert outcomes == [codings.VARY], "the last one has not waited"
    go_on.set()
    await asyncio.wait_for(done.wait(), 10)
    assert outcomes[1:] == [b"vary: accept-encoding\r\ncontent-encoding: gzip\r\n"] * MOST_WAITING


async def test_where_encoding_fails_the_answer_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codings.ENCODERS, b"gzip", lambda: None)
    monkeypatch.setattr(codings, "_pays", lambda *_: True)
    told: asyncio.Future[tuple[bytes, Sequence[bytes | memoryview]]] = asyncio.get_running_loop().create_future()
    Compression(100).encode(Wish(b"gzip"), (TEXT,), len(TEXT), lambda *said: told.set_result(said))
    assert await asyncio.wait_for(told, 10) == (codings.VARY, (TEXT,))
