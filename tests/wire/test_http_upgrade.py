"""An offer to change the protocol changes nothing: not the body, not the requests behind it, not what is refused.

Java's client makes one with its first request, curl with --http2. What may not be ignored (CONNECT, HTTP/2 at once) is refused.
"""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.wire.http.exchange import Exchange

from .fixtures import Answers, Wire, chunked, post, request

CHUNKED = {"Transfer-Encoding": "chunked"}
OFFERS = {
    "java and curl": {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAoAAAAAIAAAAA"},
    "alone": {"Connection": "Upgrade", "Upgrade": "h2c"},
    "in small letters": {"connection": "upgrade", "upgrade": "h2c"},
    "kept alive": {"Connection": "keep-alive, Upgrade", "Upgrade": "h2c"},
    "websocket": {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="},
    "several": {"Connection": "Upgrade", "Upgrade": "HTTP/2.0, SHTTP/1.3, IRC/6.9"},
    "of TLS": {"Upgrade": "TLS/1.0", "Connection": "Upgrade"},
    "empty": {"Upgrade": "", "Connection": "Upgrade"},
}
BODIES = {
    "none": ("GET", {}, b"", b""),
    "a length": ("POST", {"Content-Length": "4"}, b"body", b"body"),
    "an empty one": ("POST", {"Content-Length": "0"}, b"", b""),
    "chunks": ("POST", CHUNKED, chunked(b"bo", b"dy"), b"body"),
    "an empty chunk": ("POST", CHUNKED, chunked(), b""),
    "what looks like a request": ("POST", {"Content-Length": str(len(request("/in")))}, request("/in"), request("/in")),
}


def offered(offer: str, body: str, target: str = "/a?b=c") -> tuple[bytes, bytes]:
    """A request that makes the offer, and the body that it has."""
    method, framing, sent, meant = BODIES[body]
    return request(target, method, {**framing, **OFFERS[offer]}) + sent, meant


def seen(wire: Wire) -> list[tuple[bytes, bytes, bytes, bytes]]:
    return [(exchange.method, exchange.target, exchange.body, exchange.connection_line) for exchange in wire.exchanges]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("offer", OFFERS)
def test_the_body_and_the_requests_behind_it_are_read(offer: str, body: str, size: int) -> None:
    data, meant = offered(offer, body)
    stream = post("/before", b"1") + data + post("/between", b"22") + data + data + post("/after", b"333")
    wire = Wire(Answers()).feed(*[stream[i : i + size] for i in range(0, len(stream), size)])
    method = data.split(b" ")[0]
    offers = (method, b"/a?b=c", meant, b"")
    plain = [(b"POST", b"/" + name, text, b"") for name, text in ((b"before", b"1"), (b"between", b"22"), (b"after", b"333"))]
    assert seen(wire) == [plain[0], offers, plain[1], offers, offers, plain[2]]
    assert [reply.status for reply in wire.replies] == [200] * 6
    assert not wire.ended
    assert wire.feed(post("/again", b"x")).replies[-1].body == b"POST /again 1"


def test_head_and_body_in_reads_of_their_own_and_then_the_same_once_more() -> None:
    data, _ = offered("java and curl", "a length")
    wire = Wire(Answers()).feed(*[data[:-4], data[-4:]] * 2, data, data)
    assert [exchange.body for exchange in wire.exchanges] == [b"body"] * 4


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        ("HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade", True),
        ("HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nConnection: close", True),
        ("HTTP/1.0\r\nConnection: Upgrade", True),
        ("HTTP/1.0\r\nConnection: keep-alive, Upgrade", False),
    ],
)
def test_the_connection_ends_only_if_the_client_says_so(head: str, closes: bool) -> None:
    data = f"POST / {head}\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc".encode()
    wire = Wire(Answers()).feed(data + request("/next"))
    assert wire.exchanges[0].body == b"abc"
    assert (wire.replies[0].status, wire.replies[0].closes, wire.ended) == (200, closes, closes)
    assert len(wire.exchanges) == (1 if closes else 2)


def test_100_continue_is_said_once() -> None:
    data = request("/", "POST", {**OFFERS["alone"], "Expect": "100-continue", "Content-Length": "3"})
    wire = Wire(Answers()).feed(data)
    assert [reply.status for reply in wire.take()] == [100]
    assert [reply.status for reply in wire.feed(b"abc").take()] == [200]


LIMITS = HttpLimits(max_header_bytes=1024, max_headers=12, max_body_bytes=100, max_pipelined=4)
OFFER = "Connection: Upgrade\r\nUpgrade: h2c\r\n"
REFUSED = {
    "both lengths": (400, "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "length twice": (400, "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
    "another coding": (501, "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "a coding that ends nowhere": (501, "Transfer-Encoding: gzip\r\n\r\nabc"),
    "a body too long": (413, "Content-Length: 101\r\n\r\n"),
    "chunks too long": (413, "Transfer-Encoding: chunked\r\n\r\n65\r\n" + "a" * 101 + "\r\n"),
    "chunks malformed": (400, "Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "a header too long": (431, f"X: {'a' * 1024}\r\n\r\n"),
    "too many fields": (431, "".join(f"X-{i}: 1\r\n" for i in range(12)) + "\r\n"),
    "too many repeats": (431, "X: 1\r\n" * 20 + "\r\n"),
    "another expectation": (417, "Expect: tea\r\n\r\n"),
    "binary after it": (400, "\r\n\x00\x01 no request"),
}


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("status_and_rest", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_without_the_offer_is_refused_with_it(status_and_rest: tuple[int, str], size: int) -> None:
    status, rest = status_and_rest
    outcomes = []
    for offer in ("", OFFER):
        data = f"POST / HTTP/1.1\r\nHost: x\r\n{offer}{rest}".encode() + request("/smuggled") * (status != 413)
        wire = Wire(Answers(), LIMITS).feed(*[data[i : i + size] for i in range(0, len(data), size)])
        assert wire.replies[-1].status == status
        assert wire.replies[-1].closes
        assert not [exchange for exchange in wire.exchanges if exchange.target == b"/smuggled"]
        outcomes.append(seen(wire))
    assert outcomes[0] == outcomes[1]


PIECES = st.sampled_from([(offer, body) for offer in OFFERS for body in BODIES])


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=7), st.lists(st.integers(1, 2000), max_size=8), st.booleans())
def test_in_whatever_pieces_it_comes_and_however_late_it_is_answered(
    offers: list[tuple[str, str]], cuts: list[int], at_once: bool
) -> None:
    sent = [offered(*offer, target=f"/{number}") for number, offer in enumerate(offers)]
    stream = b"".join(data for data, _ in sent)
    at = sorted({cut % len(stream) for cut in cuts} | {0, len(stream)})
    late: list[Exchange] = []
    wire = Wire(Answers() if at_once else late.append, HttpLimits(max_pipelined=2))
    wire.feed(*[stream[a:b] for a, b in pairwise(at)])
    while late:
        Answers.answer(late.pop())
        wire.deliver()
    assert [(exchange.target, exchange.body) for exchange in wire.exchanges] == [
        (b"/%d" % number, meant) for number, (_, meant) in enumerate(sent)
    ]
    assert [reply.status for reply in wire.replies] == [200] * len(sent)


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("body", [b"", b"Content-Length: 3\r\n"])
def test_connect_is_refused_and_nothing_behind_it_is_read(body: bytes, size: int) -> None:
    data = b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + body + b"\r\n" + request("/tunnelled")
    wire = Wire(Answers()).feed(*[data[i : i + size] for i in range(0, len(data), size)])
    (reply,) = wire.replies
    assert (reply.status, reply.closes, reply.headers["allow"]) == (405, True, "GET, HEAD, POST")
    assert "CONNECT" in reply.error
    assert not wire.exchanges


@pytest.mark.parametrize("size", [1, 100_000])
def test_http_2_without_an_offer_is_told_what_is_spoken_here(size: int) -> None:
    data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    wire = Wire(Answers()).feed(*[data[i : i + size] for i in range(0, len(data), size)])
    (reply,) = wire.replies
    assert (reply.status, reply.closes) == (505, True)
    assert "HTTP/1.1" in reply.error
