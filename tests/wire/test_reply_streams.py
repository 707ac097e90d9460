"""A reply that is written bit by bit: its framing, its place among others, slow readers, readers that vanish, failures."""

import tracemalloc
from collections.abc import Callable

import pytest

from dlproxy.wire.http.exchange import Exchange, ReplyStream

from .fixtures import HIGH_WATER, Answers, Wire, post, request

OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


class Streams:
    """An application that begins a stream for each request; `left` counts clients that have gone."""

    def __init__(self) -> None:
        self.streams: list[ReplyStream] = []
        self.left = 0

    def __call__(self, exchange: Exchange) -> None:
        exchange.on_abandoned = self._leave
        self.streams.append(exchange.begin(200, b"text/plain", b"x-extra: 1\r\n"))

    def _leave(self) -> None:
        self.left += 1


def _taken(wire: Wire) -> bytes:
    written = bytes(wire.transport.written)
    wire.transport.written.clear()
    return written


def test_each_piece_leaves_when_it_is_written_and_the_connection_stays() -> None:
    streams = Streams()
    wire = Wire(streams).feed(request())
    head = _taken(wire)
    assert head.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n")
    assert head.endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert (b"x-extra: 1\r\n" in head, b"content-length" in head, b"connection:" in head) == (True, False, False)
    (stream,) = streams.streams
    assert stream.writable
    stream.write(b"0123456789abcdef")
    assert _taken(wire) == b"10\r\n0123456789abcdef\r\n"
    stream.write(b"")
    assert _taken(wire) == b"", "an empty chunk would be the end"
    stream.write(memoryview(b"xy"))
    stream.end()
    assert _taken(wire) == b"2\r\nxy\r\n0\r\n\r\n"
    stream.write(b"late")
    stream.end()
    stream.break_off()
    assert _taken(wire) == b""
    assert not wire.ended
    wire.feed(request())
    assert _taken(wire) == head


@pytest.mark.parametrize("asked", [OLD, OLD_KEPT])
def test_http_1_0_gets_pieces_until_the_connection_closes(asked: bytes) -> None:
    streams = Streams()
    wire = Wire(streams).feed(asked)
    (stream,) = streams.streams
    stream.write(b"one")
    stream.write(b"two")
    assert not wire.ended
    stream.end()
    head, _, body = _taken(wire).partition(b"\r\n\r\n")
    assert body == b"onetwo"
    assert b"connection: close" in head
    assert b"chunked" not in head
    assert wire.ended
    assert not wire.transport.aborted


def test_a_head_request_gets_no_body() -> None:
    streams = Streams()
    wire = Wire(streams).feed(request(method="HEAD"))
    (stream,) = streams.streams
    stream.write(b"unseen")
    stream.end()
    assert _taken(wire).partition(b"\r\n\r\n")[2] == b""
    assert not wire.ended


def test_streams_keep_their_place_among_pipelined_replies() -> None:
    kept: list[Exchange] = []
    wire = Wire(kept.append).feed(request() * 4)
    told: list[str] = []
    second = kept[1].begin(200, b"text/plain")
    second.on_writable = lambda: told.append("second")
    third = kept[2].begin(200, b"text/plain")
    third.on_writable = lambda: told.append("third")
    kept[3].reply(200, b"text/plain", b"fourth")
    second.write(b"early")
    assert not second.writable
    assert _taken(wire) == b""
    kept[0].reply(200, b"text/plain", b"first")
    assert (told, second.writable, third.writable) == (["second"], True, False)
    assert _taken(wire).endswith(b"5\r\nearly\r\n")
    third.end()
    assert _taken(wire) == b"", "its turn has not come"
    second.end()
    rest = _taken(wire)
    assert rest.startswith(b"0\r\n\r\nHTTP/1.1 200 OK")
    assert rest.count(b"0\r\n\r\n") == 2
    assert rest.endswith(b"fourth")
    assert told == ["second"]


def _pump(stream: ReplyStream, pieces: int, size: int) -> Callable[[], None]:
    """Writes so many pieces, each only when it may, then ends."""
    left = [pieces]

    def go_on() -> None:
        while left[0] and stream.writable:
            left[0] -= 1
            stream.write(bytes(size))
        if not left[0]:
            stream.on_writable = None
            stream.end()

    stream.on_writable = go_on
    return go_on


def test_a_reader_that_is_slow_costs_a_bounded_memory() -> None:
    streams = Streams()
    wire = Wire(streams).feed(request())
    wire.transport.stuck = True
    (stream,) = streams.streams
    tracemalloc.start()
    try:
        _pump(stream, 4000, 10_000)()
        assert HIGH_WATER < len(wire.transport.unsent) <= HIGH_WATER + 11_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        read = 0
        while not wire.transport.written.endswith(b"0\r\n\r\n"):
            read += len(_taken(wire))
            wire.transport.unstick()
            wire.transport.stuck = bool(read % 2)
        assert read + len(_taken(wire)) > 4000 * 10_000
    finally:
        tracemalloc.stop()
    wire.transport.stuck = False
    wire.feed(request())
    assert len(streams.streams) == 2, "the connection does not go on"


def test_a_reader_that_reads_nothing_is_given_up() -> None:
    streams = Streams()
    wire = Wire(streams).feed(request())
    wire.transport.stuck = True
    _pump(streams.streams[0], 100, 10_000)()
    wire.age(wire.server.limits.write_timeout_s + 1)
    assert wire.transport.aborted
    assert (wire.lost, streams.left) == (True, 1)


@pytest.mark.parametrize("asked", [request(), OLD])
def test_a_reader_that_vanishes_is_told_of_once(asked: bytes) -> None:
    streams = Streams()
    wire = Wire(streams).feed(asked)
    (stream,) = streams.streams
    stream.write(b"some")
    wire.lose()
    assert streams.left == 1
    stream.write(b"more")
    assert not stream.writable
    stream.end()
    stream.break_off()
    assert streams.left == 1
    assert b"more" not in wire.transport.written


def test_a_stream_that_begins_after_its_client_has_gone_goes_nowhere() -> None:
    kept: list[Exchange] = []
    wire = Wire(kept.append).feed(request())
    wire.lose()
    stream = kept[0].begin(200, b"text/plain")
    stream.write(b"some")
    stream.end()
    assert not stream.writable
    assert not wire.transport.written


def test_a_failure_in_mid_stream_is_no_end() -> None:
    streams = Streams()
    wire = Wire(streams).feed(request() * 2)
    first, _ = streams.streams
    first.write(b"some")
    first.break_off()
    written = _taken(wire)
    assert written.endswith(b"4\r\nsome\r\n"), "the final chunk would be an end, and another reply part of this one"
    assert wire.ended
    assert not wire.transport.aborted, "what was written is to arrive"
    assert streams.left == 2, "both are told that nobody reads: the one that broke off, and the one behind it"


def test_where_the_connections_end_is_the_replys_a_failure_resets_it() -> None:
    streams = Streams()
    wire = Wire(streams).feed(OLD)
    streams.streams[0].write(b"some")
    streams.streams[0].break_off()
    assert wire.transport.aborted


def test_a_defect_in_mid_stream_sends_no_second_reply() -> None:
    def app(exchange: Exchange) -> None:
        exchange.begin(200, b"text/plain").write(b"some")
        raise RuntimeError("a defect")

    wire = Wire(app).feed(request())
    assert _taken(wire).endswith(b"4\r\nsome\r\n")
    assert wire.ended


def test_a_server_that_drains_closes_after_the_stream() -> None:
    streams = Streams()
    wire = Wire(streams)
    wire.server.draining = True
    wire.feed(request())
    assert b"connection: close\r\n" in wire.transport.written
    streams.streams[0].write(b"some")
    streams.streams[0].end()
    assert wire.transport.written.endswith(b"4\r\nsome\r\n0\r\n\r\n")
    assert wire.ended


def test_a_body_that_is_awaited_behind_a_stream_is_asked_for_once() -> None:
    """One reply brings on the end of the next, which brings on what the client waits for."""
    kept: list[Exchange] = []
    wire = Wire(kept.append).feed(request() * 2, post("/", b"body", Expect="100-continue")[: -len(b"body")])
    stream = kept[1].begin(200, b"text/plain")
    stream.on_writable = stream.end
    kept[0].reply(200, b"text/plain", b"first")
    assert wire.transport.written.count(b"200 OK") == 2
    assert wire.transport.written.endswith(b"0\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
    assert wire.transport.written.count(b"100 Continue") == 1


def test_answers_after_a_stream_are_as_before() -> None:
    streams = Streams()
    answers = Answers()
    wire = Wire(lambda exchange: (streams if exchange.method == b"GET" else answers)(exchange))
    wire.feed(request())
    streams.streams[0].end()
    _taken(wire)
    wire.feed(post("/", b"body"))
    (reply,) = wire.take()
    assert reply.body == b"POST / 4"
