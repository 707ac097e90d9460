"""HTTP fed in other pieces means the same; HTTP broken at random is refused, never crashes, never leaks."""

import gc
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.wire.http.connection import HttpConnection
from dlproxy.wire.http.exchange import Exchange

from .fixtures import Answers, Wire, chunked, post, request

CHUNKED = {"Transfer-Encoding": "chunked"}
LIMITS = HttpLimits(max_headers=20, max_body_bytes=5000, max_pipelined=4)
CORPUS = {
    "get": request("/v2/health/live"),
    "query": request("/a/b?c=d&e=%20f"),
    "head": request("/", "HEAD"),
    "post": post("/v2/models/m/infer", b'{"inputs":[]}'),
    "crlf body": post("/", b"\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
    "pipelined": request("/1") + post("/2", b"two") + request("/3"),
    "repeated": post("/same", b"1234") * 3,
    "chunked": request("/", "POST", CHUNKED) + chunked(b"abc", b"d" * 300, b"e") + request("/next"),
    "chunked small": request("/", "POST", CHUNKED) + chunked(*[b"ab"] * 40),
    "extensions": request("/", "POST", CHUNKED) + b'3;a="b"\r\nabc\r\n0;c\r\nX-T: 1\r\nX-U: 2\r\n\r\n' + request("/next"),
    "expect": post("/", b"abc", Expect="100-continue") + request("/next"),
    "binary": post("/v2/models/m/infer", bytes(range(256)), **{"Inference-Header-Content-Length": "0"}),
    "old": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab",
    "close": request("/", headers={"Connection": "close"}),
    "newlines": b"\r\n\r\n" + post("/", b"\r\n") + b"\r\n\r\n" + request("/next"),
    "many fields": request("/", headers={f"X-{i}": f"value {i}" for i in range(15)}),
    "repeated fields": b"GET / HTTP/1.1\r\nHost: a\r\nAccept: b\r\naccept: c\r\nACCEPT: \r\n\r\n",
    "options": request("*", "OPTIONS"),
    "empty value": request("/", headers={"X": ""}),
    "upgrade": request("/", headers={"Connection": "Upgrade", "Upgrade": "h2c"}),
    "upgrade with a body": post("/", b"body", Connection="Upgrade", Upgrade="h2c") + request("/next"),
    "upgrade and close": post("/", b"body", Connection="close, Upgrade", Upgrade="h2c") + request("/next"),
    "connect": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "refused length": request("/", "POST", {"Content-Length": "5001"}),
    "refused coding": request("/", "POST", {"Transfer-Encoding": "gzip, chunked"}),
    "refused target": request("/" + "a" * 9000),
    "malformed": request("/") + b"BAD\x00\r\n\r\n",
}


def outcome(*pieces: bytes) -> tuple[list[object], list[int], bool]:
    """What the application saw, how each was answered, and whether the connection ended."""
    wire = Wire(Answers(), LIMITS).feed(*pieces)
    seen = [(e.method, e.target, e.headers, e.body, e.connection_line) for e in wire.exchanges]
    return [*seen], [reply.status for reply in wire.replies], wire.ended


@pytest.mark.parametrize("data", CORPUS.values(), ids=CORPUS.keys())
def test_byte_by_byte_means_the_same_as_at_once(data: bytes) -> None:
    assert outcome(*[data[i : i + 1] for i in range(len(data))]) == outcome(data)


@pytest.mark.parametrize("data", CORPUS.values(), ids=CORPUS.keys())
def test_every_split_into_two_means_the_same_as_at_once(data: bytes) -> None:
    expected = outcome(data)
    for at in range(1, len(data), 1 + len(data) // 200):
        assert outcome(data[:at], data[at:]) == expected


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_splits_of_random_sequences_mean_the_same(data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(st.sampled_from(list(CORPUS.values())), min_size=1, max_size=6)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=8)))
    assert outcome(*[stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]) == outcome(stream)


# Reads that each hold one whole request take a short cut past the parser: they must mean what they mean without it.

WHOLE = st.sampled_from(
    [*CORPUS.values(), post("/same", b"\r\n") + b"\r\n", post("/same", b"abcd"), post("/same", b"\r\n\r\n")]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(WHOLE, min_size=2, max_size=8), st.booleans())
def test_a_read_means_the_same_whatever_was_read_before(reads: list[bytes], at_once: bool) -> None:
    wires = []
    for pieces in (reads, [read[i : i + 7] for read in reads for i in range(0, len(read), 7)]):
        answers = Answers(at_once=at_once)
        wire = Wire(answers, HttpLimits(max_body_bytes=5000)).feed(*pieces)
        for exchange in answers.seen:
            if exchange.reply_parts is None:
                answers.answer(exchange)
        wires.append([(e.method, e.target, e.headers, e.body) for e in wire.exchanges])
    assert wires[0] == wires[1]


# Mutations

SNIPPETS = [
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b",",
        b";",
        b"chunked",
        b"Content-Length: 3\r\n",
        b"\xff",
        b"HTTP/1.1",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"0\r\n\r\n",
        b"Host: x\r\n",
        b"GET / ",
        b"HEAD / ",
        b"Upgrade: x\r\nConnection: upgrade\r\n",
    ),
    *(
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"HTTP/1.0",
        b"99999999999999999999",
        b"-1",
        b"ffffffffffffffff\r\n",
    ),
]


def mutate(rng: random.Random, data: bytes, corpus: list[bytes], snippets: list[bytes]) -> bytes:
    """One to four random changes: bits, bytes, deletions, duplications, insertions, splices, truncations."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = rng.randrange(len(out) + 1)
        span = rng.choice((1, 1, 2, 4, 16, 64))
        match rng.randrange(7):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.randrange(256)
            case 2:
                del out[at : at + span]
            case 3:
                out[at:at] = out[at : at + span]
            case 4:
                out[at:at] = rng.choice(snippets)
            case 5:
                other = rng.choice(corpus)
                out[at:] = other[rng.randrange(len(other) + 1) :]
            case _:
                del out[at:]
    return bytes(out)


def pieces_of(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 0, 1, 3))))
    return [piece for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if (piece := data[a:b])]


def check_wire(wire: Wire, allowed: Callable[[int], bool]) -> None:
    """Every reply is well-formed and of an allowed status; the connection is over or takes another request."""
    replies = wire.replies
    for reply in replies:
        assert allowed(reply.status), reply
    assert not any(reply.closes for reply in replies[:-1])
    if not wire.ended:
        before = len(wire.exchanges)
        idle = wire.connection._phase == 0
        wire.feed(request("/usable"))
        assert not idle or wire.ended or len(wire.exchanges) == before + 1
    wire.lose()
    assert not wire.server.connections


def test_twenty_thousand_mutated_requests_are_answered_or_refused_in_good_order() -> None:
    rng = random.Random(20240501)
    corpus = list(CORPUS.values())
    for _ in range(20_000):
        data = mutate(rng, rng.choice(corpus), corpus, SNIPPETS)
        late: list[Exchange] = []
        answer_late = rng.random() < 0.3
        wire = Wire(late.append if answer_late else Answers(), LIMITS).feed(*pieces_of(rng, data))
        while late:
            Answers.answer(late.pop(rng.randrange(len(late))))
            wire.deliver()
        check_wire(wire, lambda status: status in (100, 200, 400, 405, 408, 413, 414, 417, 431, 501, 505))


def test_connections_leave_nothing_behind() -> None:
    rng = random.Random(7)
    corpus = list(CORPUS.values())
    for _ in range(300):
        wire = Wire(Answers(at_once=rng.random() < 0.5), LIMITS).feed(mutate(rng, rng.choice(corpus), corpus, SNIPPETS))
        wire.lose()
    del wire
    gc.collect()
    left = [found for found in gc.get_objects() if type(found) in (HttpConnection, Exchange)]
    assert not left
