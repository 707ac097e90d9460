"""The HTTP server's rules, byte by byte over a fake transport: order, framing, limits, timeouts, back-pressure.

test_http_sockets.py has what needs a real connection.
"""

import socket
import tracemalloc

import pytest

from dlproxy.config import HttpLimits
from dlproxy.wire.http.connection import LINGER_S, MAX_CHUNK_OVERHEAD, MAX_TARGET
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.listening import DRAIN_GRACE_S

from .fixtures import Answers, Wire, chunked, post, request

SMALL = HttpLimits(max_header_bytes=1024, max_headers=10, max_body_bytes=1000, max_pipelined=4)
CHUNKED = {"Transfer-Encoding": "chunked"}


# Order


def test_a_connection_is_kept_alive_and_takes_the_next_request() -> None:
    wire = Wire(Answers())
    for body in (b"one", b"three"):
        (reply,) = wire.feed(post("/a", body)).take()
        assert (reply.status, reply.body) == (200, b"POST /a %d" % len(body))
        assert "connection" not in reply.headers
    assert not wire.ended


def test_pipelined_requests_are_answered_in_order_whoever_finishes_first() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers).feed(request("/1") + request("/2") + post("/3", b"x"))
    for index in (2, 1):
        answers.answer(answers.seen[index])
        assert not wire.replies
    answers.answer(answers.seen[0])
    assert [reply.body for reply in wire.replies] == [b"GET /1 0", b"GET /2 0", b"POST /3 1"]


def test_no_more_than_max_pipelined_requests_are_worked_on() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers, SMALL).feed(b"".join(request(f"/{i}") for i in range(20)), request("/late"))
    done = 0
    while done < 21:
        assert len(answers.seen) - done <= 4
        answers.answer(answers.seen[done])
        done += 1
        wire.deliver()
    assert [reply.body for reply in wire.replies] == [b"GET /%d 0" % i for i in range(20)] + [b"GET /late 0"]
    assert not wire.transport.reading_paused


def test_a_repeated_request_is_read_afresh_each_time() -> None:
    wire = Wire(Answers())
    for body in (b"aaaa", b"bbbb", b"cccc", b"longer"):
        wire.feed(post("/same", body))
    wire.feed(post("/same", b"dd")[:-1], b"d")
    wire.feed(post("/same", b"eeee") + post("/same", b"ffff"))
    assert [exchange.body for exchange in wire.exchanges] == [b"aaaa", b"bbbb", b"cccc", b"longer", b"dd", b"eeee", b"ffff"]


def test_stray_newlines_after_a_body_do_not_shift_the_next_one() -> None:
    wire = Wire(Answers())
    wire.feed(post("/", b"\r\n") + b"\r\n")
    wire.feed(post("/", b"\r\n") + b"GE", b"T /next HTTP/1.1\r\nHost: x\r\n\r\n")
    assert [(exchange.target, exchange.body) for exchange in wire.exchanges] == [(b"/", b"\r\n")] * 2 + [(b"/next", b"")]


# Framing


@pytest.mark.parametrize("pieces", [(b"abc",), (b"a", b"bcd"), (b"x" * 3000, b"y" * 10, b"z" * 3000), (b"1",) * 500])
def test_a_chunked_body_arrives_whole(pieces: tuple[bytes, ...]) -> None:
    wire = Wire(Answers()).feed(request("/", "POST", CHUNKED) + chunked(*pieces))
    assert wire.exchanges[0].body == b"".join(pieces)
    assert type(wire.exchanges[0].body) is bytes
    assert wire.replies[0].status == 200


def test_a_body_of_tiny_chunks_takes_little_more_memory_than_its_bytes() -> None:
    answers = Answers()
    wire = Wire(answers).feed(request("/", "POST", CHUNKED))
    data = chunked(b"ab", b"cd") * 2000
    data = data.replace(b"0\r\n\r\n", b"")
    wire.feed(data)
    tracemalloc.start()
    try:
        for _ in range(10):
            wire.feed(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    wire.feed(b"0\r\n\r\n")
    assert answers.seen[0].body == b"abcd" * 22_000
    assert peak < 400_000


def test_chunk_extensions_and_trailers_are_ignored() -> None:
    body = b'3;name="v";x\r\nabc\r\n0;last\r\nX-Trailer: 1\r\n\r\n'
    wire = Wire(Answers()).feed(request("/", "POST", CHUNKED) + body + request("/next"))
    assert [exchange.body for exchange in wire.exchanges] == [b"abc", b""]
    assert b"x-trailer" not in wire.exchanges[0].headers


def test_a_length_in_a_trailer_is_refused() -> None:
    wire = Wire(Answers()).feed(request("/", "POST", CHUNKED) + b"0\r\nContent-Length: 9\r\n\r\n" + request("/"))
    assert [reply.status for reply in wire.replies] == [400]


def test_expect_100_continue_is_answered_before_the_body() -> None:
    wire = Wire(Answers()).feed(post("/", b"", Expect="100-continue").replace(b"Length: 0", b"Length: 3"))
    assert [reply.status for reply in wire.take()] == [100]
    assert [reply.status for reply in wire.feed(b"abc").take()] == [200]


def test_expect_behind_a_slower_request_is_answered_after_its_reply() -> None:
    answers = Answers(at_once=False)
    expecting = post("/2", b"", Expect="100-continue").replace(b"Length: 0", b"Length: 3")
    wire = Wire(answers).feed(request("/1") + expecting)
    assert not wire.replies
    answers.answer(answers.seen[0])
    assert [reply.status for reply in wire.replies] == [200, 100]
    wire.feed(b"abc")
    answers.answer(answers.seen[1])
    assert [reply.status for reply in wire.replies] == [200, 100, 200]


def test_expect_of_an_http_1_0_request_is_ignored() -> None:
    wire = Wire(Answers()).feed(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert not wire.transport.written
    assert [reply.status for reply in wire.feed(b"a").replies] == [200]


def test_another_expectation_is_refused_with_417() -> None:
    wire = Wire(Answers()).feed(post("/", b"abc", Expect="200-maybe"))
    assert [reply.status for reply in wire.replies] == [417]
    assert wire.ended


def test_head_gets_the_header_of_get_without_a_body() -> None:
    wire = Wire(Answers()).feed(request("/", "HEAD") + request("/"))
    head, get = wire.replies
    assert (head.body, head.headers["content-length"]) == (b"", "8")
    assert get.body == b"GET / 0"


def test_http_1_0_closes_unless_keep_alive_is_asked_for() -> None:
    closing = Wire(Answers()).feed(b"GET / HTTP/1.0\r\n\r\n")
    assert closing.replies[0].closes
    assert closing.lost
    keeping = Wire(Answers()).feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
    assert [reply.headers["connection"] for reply in keeping.replies] == ["keep-alive"] * 2
    assert not keeping.ended


@pytest.mark.parametrize("split", [1000, 30])
@pytest.mark.parametrize(
    "last",
    [
        post("/", b"body", Connection="close"),
        b"POST / HTTP/1.0\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody",
        request("/", headers={"Connection": "close, Upgrade", "Upgrade": "websocket"}),
    ],
)
def test_nothing_after_the_last_request_is_taken_for_a_request(last: bytes, split: int) -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers).feed(post("/", b"body"), last[:split], last[split:], post("/", b"body"), last)
    assert len(answers.seen) == 2
    for exchange in answers.seen:
        answers.answer(exchange)
    assert [reply.closes for reply in wire.replies] == [False, True]
    assert wire.ended


def test_a_repeated_request_after_one_that_closes_is_not_taken_by_the_short_cut() -> None:
    answers, last = Answers(at_once=False), b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nbody"
    Wire(answers).feed(last, last)
    assert len(answers.seen) == 1


def test_an_upgrade_that_the_connection_header_does_not_name_changes_nothing() -> None:
    wire = Wire(Answers()).feed(request("/", headers={"Upgrade": "h2c"}) + request("/2"))
    assert [reply.closes for reply in wire.replies] == [False, False]


# Smuggling

FOLLOWING = request("/smuggled")
CL3 = "Content-Length: 3\r\n"
SMUGGLING = {
    "both lengths": f"{CL3}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, chunked first": f"Transfer-Encoding: chunked\r\n{CL3}\r\n0\r\n\r\n",
    "length twice": f"{CL3}Content-Length: 4\r\n\r\nabc",
    "same length twice": f"{CL3}{CL3}\r\nabc",
    "plus sign": "Content-Length: +3\r\n\r\nabc",
    "minus sign": "Content-Length: -3\r\n\r\nabc",
    "list of lengths": "Content-Length: 3,3\r\n\r\nabc",
    "hexadecimal": "Content-Length: 0x3\r\n\r\nabc",
    "two numbers": "Content-Length: 3 3\r\n\r\nabc",
    "empty length": "Content-Length:\r\n\r\nabc",
    "length overflow": f"Content-Length: {2**64 + 3}\r\n\r\nabc",
    "underscore": "Content-Length: 1_0\r\n\r\nabcdefghij",
    "space before colon": "Content-Length : 3\r\n\r\nabc",
    "tab before colon": "Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "folded line": "X: a\r\n b\r\n\r\n",
    "folded encoding": "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "leading space in the first field": " X: a\r\n\r\n",
    "bare LF": "X: a\nContent-Length: 3\r\n\r\nabc",
    "bare LF at the end": "X: a\r\n\n",
    "bare CR": "X: a\rContent-Length: 3\r\n\r\nabc",
    "NUL": "X: a\0b\r\n\r\n",
    "NUL in a name": "X\0: a\r\n\r\n",
    "no name": ": a\r\n\r\n",
    "no colon": "X\r\n\r\n",
    "gzip, chunked": "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, gzip": "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "identity": "Transfer-Encoding: identity\r\n\r\n",
    "xchunked": "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, chunked": "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "vertical tab": "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "empty encoding": "Transfer-Encoding:\r\n\r\n0\r\n\r\n",
    "chunk size overflow": "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\nabc\r\n0\r\n\r\n",
    "signed chunk size": "Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
    "hexadecimal chunk size": "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "space before chunk size": "Transfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n",
    "LF after chunk size": "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
    "LF after chunk": "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
    "chunk longer than said": "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
    "LF in a chunk extension": "Transfer-Encoding: chunked\r\n\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_ambiguous_framing_is_refused_and_what_follows_is_no_request(rest: str, split: bool) -> None:
    wire = Wire(Answers())
    data = f"POST /first HTTP/1.1\r\nHost: test\r\n{rest}".encode("latin-1") + FOLLOWING
    wire.feed(*([data[i : i + 1] for i in range(len(data))] if split else [data]))
    assert [reply.status for reply in wire.replies][-1] in (400, 501)
    assert len(wire.replies) == 1
    assert wire.replies[0].closes
    assert wire.ended
    assert b"/smuggled" not in [exchange.target for exchange in wire.exchanges]
    wire.feed(FOLLOWING)
    assert b"/smuggled" not in [exchange.target for exchange in wire.exchanges]


@pytest.mark.parametrize(
    "line", ["GET / HTTP/1.2", "GET / HTTP/11", "GET / http/1.1", "GET", "G\0T / HTTP/1.1", "GET /\x80 HTTP/1.1"]
)
def test_a_malformed_request_line_is_refused(line: str) -> None:
    wire = Wire(Answers()).feed(f"{line}\r\nHost: test\r\n\r\n".encode("latin-1"))
    assert [reply.status for reply in wire.replies] == [400]
    assert not wire.exchanges


def test_a_request_without_host_is_refused() -> None:
    wire = Wire(Answers()).feed(b"GET / HTTP/1.1\r\n\r\n" + FOLLOWING)
    assert [(reply.status, reply.error) for reply in wire.replies] == [(400, "an HTTP/1.1 request needs a Host header")]
    assert not wire.exchanges


def test_requests_before_a_malformed_one_are_answered_first() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers).feed(request("/1") + request("/2") + b"!!!\r\n\r\n")
    assert not wire.replies
    for exchange in reversed(answers.seen):
        answers.answer(exchange)
    assert [reply.status for reply in wire.replies] == [200, 200, 400]
    assert wire.transport.eof


# Limits


@pytest.mark.parametrize("fields", [{"X": "a" * 2000}, {f"X{i}": "a" * 200 for i in range(6)}])
@pytest.mark.parametrize("size", [None, 700])
def test_a_header_over_the_limit_is_refused_with_431(fields: dict[str, str], size: int | None) -> None:
    data = request("/", headers=fields)
    wire = Wire(Answers(), SMALL).feed(*([data[i : i + size] for i in range(0, len(data), size)] if size else [data]))
    assert [reply.status for reply in wire.replies] == [431]
    assert not wire.exchanges
    assert wire.ended


@pytest.mark.parametrize("name", ["X", "X{}"])
def test_too_many_header_fields_are_refused_with_431_also_if_they_repeat(name: str) -> None:
    lines = "".join(f"{name.format(i)}: ab\r\n" for i in range(11))
    wire = Wire(Answers(), SMALL).feed(f"GET / HTTP/1.1\r\n{lines}\r\n".encode())
    assert [reply.status for reply in wire.replies] == [431]


def test_as_many_header_fields_as_allowed_are_taken() -> None:
    wire = Wire(Answers(), SMALL).feed(request("/", headers={f"X{i}": "ab" for i in range(9)}))
    assert [reply.status for reply in wire.replies] == [200]


def test_a_field_repeated_a_hundred_thousand_times_costs_no_quadratic_joining() -> None:
    wire = Wire(Answers()).feed(b"GET / HTTP/1.1\r\n" + b"a:bc\r\n" * 100_000)
    assert [reply.status for reply in wire.replies] == [431]


def test_repeated_fields_are_joined() -> None:
    wire = Wire(Answers()).feed(b"GET / HTTP/1.1\r\nHost: test\r\nX-A: one\r\nx-a: two\r\n\r\n")
    assert wire.exchanges[0].headers[b"x-a"] == b"one, two"


@pytest.mark.parametrize("size", [None, 5000])
def test_a_long_target_is_refused_with_414(size: int | None) -> None:
    data = request("/" + "a" * MAX_TARGET)
    wire = Wire(Answers()).feed(*([data[i : i + size] for i in range(0, len(data), size)] if size else [data]))
    assert [reply.status for reply in wire.replies] == [414]


def test_a_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    wire = Wire(Answers(), SMALL).feed(request("/", "POST", {"Content-Length": "1001", "Expect": "100-continue"}))
    assert [reply.status for reply in wire.replies] == [413]
    assert "1001" in wire.replies[0].error
    assert "1000" in wire.replies[0].error
    assert wire.ended


def test_a_chunked_body_over_the_limit_is_refused() -> None:
    wire = Wire(Answers(), SMALL).feed(request("/", "POST", CHUNKED) + chunked(b"a" * 600, b"b" * 401) + FOLLOWING)
    assert [reply.status for reply in wire.replies] == [413]
    assert not wire.exchanges


@pytest.mark.parametrize("data", [post("/", b"a" * 1000), request("/", "POST", CHUNKED) + chunked(b"a" * 600, b"b" * 400)])
def test_a_body_of_just_the_limit_is_taken(data: bytes) -> None:
    assert [reply.status for reply in Wire(Answers(), SMALL).feed(data).replies] == [200]


@pytest.mark.parametrize(
    ("start", "piece", "status"),
    [
        (b"GET / HTTP/1.1\r\n", b"X: " + b"a" * 600 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: ", b"a" * 600, 431),
        (b"GET / HTTP/1.1\r\n", b"a" * 600, 431),
        (b"GET /", b"a" * 600, 431),
        (request("/", "POST", CHUNKED) + b"0\r\n", b"X: " + b"a" * 60_000 + b"\r\n", 400),
        (request("/", "POST", CHUNKED) + b"0\r\nX: ", b"a" * 60_000, 400),
        (request("/", "POST", CHUNKED) + b"1;", b"a" * 60_000, 400),
        (request("/", "POST", CHUNKED) + b"0;a=", b"a" * 60_000, 400),
    ],
)
def test_what_never_ends_is_cut_off(start: bytes, piece: bytes, status: int) -> None:
    wire = Wire(Answers(), SMALL).feed(start)
    sent = 0
    while not wire.ended:
        wire.feed(piece)
        sent += len(piece)
        assert sent <= MAX_CHUNK_OVERHEAD + 2 * len(piece)
    assert [reply.status for reply in wire.replies] == [status]
    assert not wire.exchanges


def test_a_connection_too_many_is_answered_503() -> None:
    answers = Answers()
    server = HttpServer(answers, HttpLimits(max_connections=2))
    first, second, third = (Wire(answers, server=server) for _ in range(3))
    (reply,) = third.take()
    assert (reply.status, reply.closes, reply.headers["retry-after"]) == (503, True, "1")
    assert [wire.feed(request("/")).take()[0].status for wire in (first, second)] == [200, 200]
    third.lose()
    first.lose()
    assert [reply.status for reply in Wire(answers, server=server).feed(request("/")).take()] == [200]


# Timeouts

SLOW = HttpLimits(header_timeout_s=10, body_timeout_s=30, min_body_bytes_per_s=1000, idle_timeout_s=75, write_timeout_s=20)


@pytest.mark.parametrize("start", [b"G", b"GET / HT", request("/")[:-2]])
def test_a_slow_header_is_answered_408(start: bytes) -> None:
    wire = Wire(Answers(), SLOW).feed(start).age(9).feed(b"").age(0.9)
    assert not wire.replies
    wire.age(0.2)
    assert [(reply.status, reply.closes) for reply in wire.replies] == [(408, True)]
    assert not wire.feed(b"ET / HTTP/1.1\r\n\r\n").exchanges


def test_a_slow_body_is_answered_408_but_one_that_keeps_the_pace_is_awaited() -> None:
    wire = Wire(Answers(), SLOW).feed(request("/", "POST", {"Content-Length": "50000"}))
    for _ in range(20):
        wire.feed(b"a" * 2000).age(2)
    assert not wire.replies
    wire.age(31)
    assert [reply.status for reply in wire.replies] == [408]
    assert "40000 bytes" in wire.replies[0].error


def test_the_header_timeout_does_not_run_while_the_server_itself_does_not_read() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers, SMALL).feed(b"".join(request(f"/{i}") for i in range(6)) + b"GET /6 HT")
    assert wire.transport.reading_paused
    for _ in range(40):
        wire.age(1)
    while len(answers.seen) < 6 or answers.seen[-1].reply_parts is None:
        answers.answer(next(exchange for exchange in answers.seen if exchange.reply_parts is None))
    assert [reply.status for reply in wire.replies] == [200] * 6
    wire.feed(b"TP/1.1\r\nHost: x\r\n\r\n")
    assert answers.seen[-1].target == b"/6"


def test_an_idle_connection_is_closed() -> None:
    wire = Wire(Answers(), SLOW).feed(request("/")).age(74)
    assert not wire.ended
    wire.feed(request("/")).age(74)
    assert not wire.ended
    assert wire.age(2).lost


def test_a_connection_that_waits_for_a_slow_model_is_not_idle() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers, SLOW).feed(request("/")).age(1000)
    answers.answer(answers.seen[0])
    assert [reply.status for reply in wire.replies] == [200]
    assert not wire.age(74).ended


def test_an_idle_connection_goes_soon_while_draining() -> None:
    wire = Wire(Answers(), SLOW).feed(request("/"))
    wire.server.draining = True
    assert not wire.age(DRAIN_GRACE_S * 0.9).ended
    assert wire.age(DRAIN_GRACE_S * 0.2).lost


def test_an_idle_connection_stays_while_a_request_is_there_that_was_not_read_yet() -> None:
    wire = Wire(Answers(), SLOW).feed(request("/"))
    ours, client = socket.socketpair()
    with ours, client:
        wire.transport.sock = ours
        wire.server.draining = True
        client.send(request("/late"))
        assert not wire.age(DRAIN_GRACE_S * 2).ended
        wire.feed(ours.recv(1 << 16))
        assert [reply.closes for reply in wire.replies] == [False, True]


def test_a_refused_client_that_does_not_go_is_cut() -> None:
    wire = Wire(Answers(), SLOW).feed(b"!!\r\n\r\n")
    assert wire.transport.eof
    wire.feed(b"more").age(LINGER_S * 0.9)
    assert not wire.lost
    assert wire.age(LINGER_S * 0.2).transport.aborted


# Back-pressure


def test_a_client_that_does_not_read_is_not_read_from_and_its_memory_is_bounded() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers, HttpLimits(max_pipelined=4))
    wire.transport.stuck = True
    wire.feed(*[request(f"/{i}") for i in range(1000)])
    answered = 0
    while answered < len(answers.seen):
        answers.answer(answers.seen[answered], b"r" * 40_000)
        answered += 1
        wire.deliver()
    assert answered <= 6
    assert wire.transport.reading_paused
    assert len(wire.transport.unsent) < 300_000
    wire.transport.unstick()
    wire.deliver()
    while answered < len(answers.seen):
        answers.answer(answers.seen[answered], b"r")
        answered += 1
        wire.deliver()
    assert len(wire.replies) == 1000


def test_a_client_that_does_not_read_is_cut_after_the_write_timeout() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers, SLOW)
    wire.transport.stuck = True
    wire.feed(request("/") + request("/2"))
    answers.answer(answers.seen[0], b"r" * 100_000)
    wire.age(19)
    assert not wire.transport.aborted
    assert wire.age(2).transport.aborted
    wire.lose()
    answers.answer(answers.seen[1])


def test_the_rest_of_a_last_reply_is_not_cut_short_at_the_linger_time() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers, SLOW).feed(request("/", headers={"Connection": "close"}))
    wire.transport.stuck = True
    wire.age(60)
    answers.answer(answers.seen[0], b"r" * 1000)
    wire.age(19)
    assert not wire.transport.aborted
    assert wire.age(2).transport.aborted


def test_a_reply_left_unread_on_an_idle_connection_does_not_hold_it_for_ever() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers, SLOW).feed(request("/"))
    wire.transport.stuck = True
    answers.answer(answers.seen[0], b"r" * 1000)
    wire.age(76).age(21)
    assert wire.transport.aborted


def test_requests_held_back_while_the_client_does_not_read_are_not_run_after_the_last_reply() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers).feed(request("/1") + request("/2"))
    wire.server.draining = True
    answers.answer(answers.seen[1])  # known to be the last: says close, but waits for /1
    wire.feed(request("/3"))
    answers.answer(answers.seen[0])
    assert [reply.closes for reply in wire.replies] == [False, True]
    assert wire.ended
    answers.answer(answers.seen[2])
    assert len(wire.replies) == 2


# Clients that leave


def test_a_client_that_leaves_abandons_what_is_unanswered() -> None:
    answers, gone = Answers(at_once=False), []
    wire = Wire(answers).feed(request("/1") + request("/2") + request("/3"))
    for exchange in answers.seen:
        exchange.on_abandoned = lambda exchange=exchange: gone.append(exchange.target)
    answers.answer(answers.seen[1])
    wire.lose()
    assert gone == [b"/1", b"/3"]
    for exchange in answers.seen:
        answers.answer(exchange)
    assert not wire.transport.written
    assert not wire.server.connections


def test_a_reply_from_within_the_abandonment_is_harmless() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers).feed(request("/1") + request("/2"))
    for exchange in answers.seen:
        exchange.on_abandoned = lambda exchange=exchange: exchange.fail(503, "cancelled")
    wire.lose()
    assert not wire.transport.written


@pytest.mark.parametrize("size", range(1, len(post("/", b"abc")), 7))
def test_leaving_in_the_middle_of_a_request_is_harmless(size: int) -> None:
    wire = Wire(Answers()).feed(post("/", b"abc")[:size])
    wire.lose()
    assert not wire.exchanges
    assert not wire.server.connections


def test_an_error_message_is_cut_to_a_readable_length() -> None:
    wire = Wire(lambda exchange: exchange.fail(400, "é" * 100_000)).feed(request("/"))
    assert len(wire.replies[0].error) < 3000
