"""Windows in both directions, back-pressure, and the memory that one connection may take."""

import asyncio
import gc
import gzip
import random
import tracemalloc
import weakref
import zlib
from collections.abc import Mapping

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import Failure, FailureKind, InferenceError, Principal
from dlproxy.wire.grpc import frames
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.connection import GrpcConnection
from dlproxy.wire.grpc.frames import END_HEADERS, END_STREAM, HEADERS, RST_STREAM, frame, settings, window_update
from dlproxy.wire.grpc.header_blocks import MAX_BLOCKS
from dlproxy.wire.grpc.receiving import BURST, MOST_STORED, WINDOW
from dlproxy.wire.grpc.server import GrpcServer, Methods
from dlproxy.wire.terms import Peer
from tests.wire.fixtures import FakeTransport

from .fixtures import ECHO, KEEP, TALK, Methodical
from .framed import GrpcWire, data, headers, message, unary

PIECE = 1 << 18
LARGE = HttpLimits(max_body_bytes=1 << 26)


def whole(stream: int, size: int) -> list[bytes]:
    """A message of this size in frames, without the end."""
    sent = message(bytes(size))
    return [data(stream, sent[at : at + PIECE]) for at in range(0, len(sent), PIECE)]


# What is sent


@pytest.mark.parametrize("window", [0, 1, 7, 100, 16384])
def test_answers_leave_as_the_streams_window_lets_them(window: int) -> None:
    wire = GrpcWire(Methodical().methods).feed(settings({frames.INITIAL_WINDOW: window}), unary(1, b"x" * 300))
    assert len(wire.answers[1].data) == min(window, 305)
    while not wire.answers[1].ended:
        before = len(wire.answers[1].data)
        wire.feed(window_update(1, 50))
        assert len(wire.answers[1].data) <= before + 50
    assert wire.answers[1].messages == [b"x" * 300]
    assert wire.connection.held_bytes == 0


def test_a_client_that_does_not_read_keeps_no_neighbours_rows() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(settings({frames.INITIAL_WINDOW: 100}), unary(1, b"", path=KEEP))
    batch = bytearray(1_000_000)
    methodical.kept[0][0].reply(b"head", memoryview(batch)[:1000])
    batch.clear()  # which no view of it would allow
    wire.feed(window_update(1, 10_000))
    assert wire.answers[1].messages == [b"head" + bytes(1000)]


def test_answers_leave_as_the_connections_window_lets_them_a_frame_of_each_in_turn() -> None:
    wire = GrpcWire(Methodical().methods).feed(settings({frames.INITIAL_WINDOW: 1 << 20}))
    wire.feed(unary(1, bytes(200_000)), unary(3, bytes(200_000)))
    assert sum(len(answer.data) for answer in wire.answers.values()) == 65535
    wire.feed(window_update(0, 200_000))
    first, second = wire.answers[1].data, wire.answers[3].data
    assert abs(len(first) - len(second)) <= 65535 + 16384
    wire.feed(window_update(0, 1 << 20))
    assert all(answer.ended and answer.status == 0 for answer in wire.answers.values())


def test_a_small_answer_passes_large_ones_that_wait_for_their_windows() -> None:
    wire = GrpcWire(Methodical().methods).feed(settings({frames.INITIAL_WINDOW: 1000}))
    wire.feed(unary(1, bytes(5000)), unary(3, b"small"))
    assert wire.answers[3].ended
    assert not wire.answers[1].ended


def test_a_window_may_become_negative() -> None:
    wire = GrpcWire(Methodical().methods).feed(settings({frames.INITIAL_WINDOW: 1000}), unary(1, bytes(3000)))
    wire.feed(settings({frames.INITIAL_WINDOW: 10}), window_update(1, 980))
    assert len(wire.answers[1].data) == 1000
    wire.feed(window_update(1, 20))
    assert len(wire.answers[1].data) == 1010
    wire.feed(settings({frames.INITIAL_WINDOW: 5000}))
    assert wire.answers[1].ended


def test_frames_are_as_large_as_the_client_takes_them() -> None:
    wire = GrpcWire(Methodical().methods)
    wire.feed(settings({frames.INITIAL_WINDOW: 1 << 20, frames.MAX_FRAME: 20_000}), window_update(0, 1 << 20))
    wire.feed(unary(1, bytes(100_000)))
    sizes = [len(found.data) for found in wire.frames if found.type == 0]
    assert sizes == [20_000] * 5 + [5]


def test_who_may_not_write_is_told_when_it_may_whatever_stood_in_the_way() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK))
    call = methodical.talks[0]
    # the connection's window, taken exactly
    wire.feed(window_update(1, 1 << 20))
    methodical.told.clear()
    call.send(bytes(65535 - 5))
    assert not call.writable
    assert not call.held
    wire.feed(window_update(0, 1 << 21))
    assert methodical.told == ["writable"]
    # its own
    call.send(bytes((1 << 20) - 5))
    assert not call.writable
    wire.feed(window_update(1, 1))
    assert methodical.told == ["writable"] * 2
    wire.feed(window_update(0, 1 << 20), settings({frames.INITIAL_WINDOW: 1 << 20}))
    told = len(methodical.told)
    # the socket
    wire.transport.stuck = True
    call.send(bytes(100_000))
    assert not call.writable
    wire.transport.unstick()
    wire.deliver()
    assert len(methodical.told) > told
    assert call.writable


def test_windows_that_grow_by_crumbs_are_an_attack_only_while_answers_wait() -> None:
    wire = GrpcWire(Methodical().methods).feed(*[window_update(0, 1)] * 3000)
    assert wire.outcome == "open"
    wire = GrpcWire(Methodical().methods).feed(settings({frames.INITIAL_WINDOW: 0}), unary(1, bytes(10_000)))
    wire.feed(*[window_update(1, 1)] * 3000)
    assert wire.outcome == "GOAWAY ENHANCE_YOUR_CALM"


# What is received


def test_a_long_message_gets_new_windows_and_comes_whole() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, KEEP), *whole(1, 20 << 20), data(1, b"", ends=True))
    assert [len(found) for _, found in methodical.kept] == [20 << 20]
    assert wire.windows(1) > 18 << 20
    assert wire.windows(0) > 18 << 20
    assert not wire.connection._stored_bytes


def test_a_client_that_does_not_read_gets_no_more_windows_and_no_messages_are_taken() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK))
    sent = b"".join([data(1, message(bytes(1000))) for _ in range(100)])
    for _ in range(9):
        wire.feed(sent)
    assert len(methodical.heard) == 66  # as many as the client takes back, and one
    assert wire.windows(1) == 0
    assert wire.connection._stored_bytes < WINDOW
    wire.feed(window_update(1, 1 << 22), window_update(0, 1 << 22))
    assert len(methodical.heard) < 9 * 100  # in bursts


async def test_a_burst_of_messages_is_delivered_over_several_turns_of_the_loop() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK), data(1, message() * 1000, ends=True))
    assert len(methodical.heard) == BURST
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(methodical.heard) == 1000
    wire.deliver()
    assert wire.answers[1].ended
    assert len(wire.answers[1].messages) == 1000


def test_a_call_that_is_paused_hears_nothing_until_it_goes_on() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK))
    call = methodical.talks[0]
    heard: list[bytes] = []

    def one_at_a_time(message: bytes) -> None:
        heard.append(message)
        call.pause()

    call.on_message = one_at_a_time
    wire.feed(data(1, message(b"a") + message(b"b") + message(b"c"), ends=True))
    for so_far in ([b"a"], [b"a", b"b"], [b"a", b"b", b"c"]):
        assert heard == so_far
        assert not call.ended
        call.resume()
    wire.deliver()
    assert wire.answers[1].status == 0


def test_a_stream_whose_message_is_refused_hears_that_nobody_waits_for_its_answers_any_more() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods, limits=HttpLimits(max_body_bytes=100)).feed(headers(1, TALK), data(1, message(b"a")))
    assert methodical.told == []
    wire.feed(data(1, message(bytes(101))))
    assert wire.answers[1].status == Status.RESOURCE_EXHAUSTED
    assert methodical.told == ["abandoned"]


def test_a_stream_whose_service_fails_hears_so_too() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK))
    methodical.talks[0].on_message = lambda _: 1 / 0  # type: ignore[assignment, return-value]
    wire.feed(data(1, message(b"a")))
    assert wire.answers[1].status == Status.INTERNAL
    assert methodical.told == ["abandoned"]


def test_a_call_may_resume_within_its_message_and_end_within_it() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK))
    call = methodical.talks[0]
    heard: list[bytes] = []

    def hear(message: bytes) -> None:
        heard.append(message)
        call.pause()
        call.resume()
        if message == b"b":
            call.end(Status.CANCELLED)

    call.on_message = hear
    wire.feed(data(1, message(b"a") + message(b"b") + message(b"c")), data(1, message(b"d")), data(1, b"", ends=True))
    assert heard == [b"a", b"b"]
    assert wire.answers[1].status == 1
    assert not wire.connection._stored_bytes


def test_many_large_messages_at_a_time_come_one_after_the_other() -> None:
    methodical = Methodical()
    limits = HttpLimits(max_body_bytes=4 << 20)
    wire = GrpcWire(methodical.methods, limits).feed(*[headers(stream, KEEP) for stream in range(1, 21, 2)])
    left = {stream: [*whole(stream, 4 << 20), data(stream, b"", ends=True)] for stream in range(1, 21, 2)}
    allowed = dict.fromkeys(left, WINDOW)
    most = 0
    while any(left.values()):  # as a client that obeys its windows, a frame of each call in turn
        before = sum(map(len, left.values()))
        for stream, pieces in left.items():
            room = allowed[stream] + wire.windows(stream)
            if pieces and room >= len(pieces[0]) - 9:
                allowed[stream] -= len(pieces[0]) - 9
                wire.feed(pieces.pop(0))
                most = max(most, wire.connection._stored_bytes)
        assert sum(map(len, left.values())) < before, "nothing goes on"
    assert len(methodical.kept) == 10
    assert most < limits.max_body_bytes + 10 * WINDOW
    assert not wire.connection._stored_bytes
    assert not wire.answers or all(answer.reset is None for answer in wire.answers.values())


def test_a_call_that_waits_for_its_service_does_not_hold_up_others() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods, HttpLimits(max_body_bytes=1 << 20))
    large = message(bytes(1_000_000))
    wire.feed(headers(1, TALK), data(1, large[:PIECE]), data(1, large[:PIECE]))
    for stream in (3, 5):
        wire.feed(headers(stream, KEEP), *[data(stream, large[at : at + PIECE]) for at in range(0, PIECE * 3, PIECE)])
    assert (wire.windows(3), wire.windows(5)) == (0, 0)  # the first call goes first
    methodical.talks[0].pause()
    wire.age(0.5)
    assert wire.windows(3) == 3 * PIECE
    assert wire.windows(5) == 0
    wire.feed(data(3, large[PIECE * 3 :], ends=True))
    assert wire.windows(5) == 3 * PIECE


def test_when_even_what_windows_allow_is_too_much_the_newest_large_message_is_refused() -> None:
    methodical = Methodical()
    limits = HttpLimits(max_body_bytes=1 << 20)
    wire = GrpcWire(methodical.methods, limits)
    for stream in range(1, 21, 2):
        wire.feed(headers(stream, KEEP), *whole(stream, 900_000)[:3])
    assert wire.connection._stored_bytes <= MOST_STORED << 20
    refused = [stream for stream, answer in wire.answers.items() if "grpc-status" in answer.fields]
    assert refused == [11, 13, 15, 17, 19]
    assert {wire.answers[stream].status for stream in refused} == {8}
    wire.feed(whole(1, 900_000)[3], data(1, b"", ends=True))
    assert len(methodical.kept) == 1


def test_a_client_that_leaves_its_answers_unread_gets_no_further_calls() -> None:
    limits = HttpLimits(max_body_bytes=100_000)
    wire = GrpcWire(Methodical().methods, limits).feed(settings({frames.INITIAL_WINDOW: 0}))
    for stream in range(1, 21, 2):
        wire.feed(unary(stream, bytes(90_000)))
    refused = [answer for answer in wire.answers.values() if answer.fields.get("grpc-status") == "8"]
    assert len(refused) == 5
    assert wire.connection.held_bytes < 500_000
    wire.feed(settings({frames.INITIAL_WINDOW: 1 << 20}), window_update(0, 1 << 20), unary(99))
    assert wire.answers[99].messages == [b"hello"]
    assert wire.connection.held_bytes == 0


def test_the_socket_is_not_read_while_the_client_does_not_read() -> None:
    wire = GrpcWire(Methodical().methods)
    wire.transport.stuck = True
    wire.feed(*[frame(6, 0, 0, bytes(8)) + unary(stream, bytes(500)) for stream in range(1, 1000, 2)])
    assert wire.transport.reading_paused
    assert len(wire.transport.unsent) < 70_000
    wire.transport.unstick()
    wire.deliver()
    assert len(wire.answers) > 100


def test_more_data_in_one_go_than_the_connections_window_is_an_error() -> None:
    opened = b"".join([headers(stream, KEEP) for stream in range(1, 41, 2)])
    sent = b"".join([data(stream, message(bytes(1 << 20))[: PIECE * 4 - 1][:PIECE]) * 3 for stream in range(1, 41, 2)])
    assert len(sent) < 1 << 24
    assert GrpcWire(Methodical().methods, LARGE).feed(opened + sent).goaway is None
    more = b"".join([data(stream, bytes(PIECE)) for stream in range(1, 41, 2)])
    assert GrpcWire(Methodical().methods, LARGE).feed(opened + sent + more).outcome == "GOAWAY FLOW_CONTROL_ERROR"


def test_what_comes_behind_the_end_of_an_answer_that_is_held_is_ignored() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(settings({frames.INITIAL_WINDOW: 10}), headers(1, TALK))
    methodical.talks[0].send(bytes(100))
    methodical.talks[0].end()
    wire.feed(data(1, message(b"ignored")), data(1, b"x"), data(1, b"", ends=True), window_update(1, 1000))
    assert methodical.heard == []
    assert wire.answers[1].ended
    assert wire.outcome == "open"  # no reset: the client has ended it, too


def test_trailers_end_a_message_too_soon() -> None:
    wire = GrpcWire(Methodical().methods).feed(headers(1, TALK), data(1, b"\0\0"), frame(HEADERS, END_HEADERS | END_STREAM, 1))
    assert wire.answers[1].status == 3


def test_a_mistake_behind_answers_that_fill_the_socket_still_ends_the_connection() -> None:
    wire = GrpcWire(Methodical().methods).feed(settings({frames.INITIAL_WINDOW: 1 << 20}), window_update(0, 1 << 20))
    wire.transport.stuck = True
    wire.feed(unary(1, bytes(100_000)) + frame(6, 0, 0, b"short"))
    assert wire.transport.eof
    assert not wire.transport.reading_paused  # else nobody would hear that the client has gone
    wire.transport.unstick()
    wire.deliver()
    assert wire.outcome == "GOAWAY FRAME_SIZE_ERROR"


# What is left


def test_a_reset_reaches_the_service_and_takes_everything_away() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(unary(1, path=KEEP), headers(3, TALK), data(3, b"\0"))
    wire.feed(frame(RST_STREAM, 0, 1, bytes(4)), frame(RST_STREAM, 0, 3, bytes(4)))
    assert methodical.told == ["abandoned"] * 2
    methodical.kept[0][0].reply(b"too late")
    methodical.talks[0].send(b"too late")
    methodical.talks[0].end()
    wire.deliver()
    assert not wire.answers
    assert not wire.connection.calls
    assert not wire.connection._stored_bytes


def test_a_service_that_fails_ends_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods)

    def fail(*_: object) -> None:
        raise ValueError("a defect")

    for stream, told in ((1, "on_message"), (3, "on_half_closed"), (5, "on_writable"), (7, "on_abandoned")):
        wire.feed(headers(stream, TALK))
        setattr(methodical.talks[-1], told, fail)
        wire.feed(window_update(stream, 1), data(stream, message(b"x")))
        wire.feed(frame(RST_STREAM, 0, stream, bytes(4)) if stream == 7 else data(stream, b"", ends=True))
    assert [answer.fields.get("grpc-status") for answer in wire.answers.values()] == ["13", "13", "13", None]
    assert caplog.text.count("a defect") == 8  # with the line of code that raised it
    assert not wire.connection.calls
    assert wire.outcome == "RST 1 NO_ERROR, 5 NO_ERROR"


def test_a_connection_that_is_lost_goes_without_the_garbage_collector() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods, HttpLimits())
    wire.feed(unary(1), unary(3, path=KEEP), headers(5, TALK), data(5, message() + b"\0"), headers(7, KEEP), data(7, b"\0\0"))
    wire.feed(frame(HEADERS, 0, 9, b"\0"), b"\0")
    wire.lose()
    assert methodical.told == ["abandoned"] * 2
    gone = weakref.ref(wire.connection)
    gc.disable()
    try:
        del wire.transport.protocol, wire
        assert all(call.ended for call in (*methodical.talks, *[call for call, _ in methodical.kept]))
        methodical.talks.clear()
        methodical.kept.clear()
        assert gone() is None
    finally:
        gc.enable()


def test_an_idle_connection_keeps_no_message() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(settings({frames.INITIAL_WINDOW: 1 << 30}), window_update(0, 1 << 30))
    tracemalloc.start()
    try:
        for stream, path in ((1, KEEP), (3, KEEP), (5, TALK)):
            wire.feed(headers(stream, path), *whole(stream, 1_000_000), data(stream, b"", ends=True))
        for call, sent in methodical.kept:
            call.reply(sent)
        wire.deliver()
        assert [len(answer.messages[0]) for answer in wire.answers.values()] == [1_000_000] * 3
        methodical.kept.clear()
        methodical.heard.clear()
        wire.answers.clear()
        wire.frames.clear()
        del call, sent
        assert tracemalloc.get_traced_memory()[0] < 400_000
    finally:
        tracemalloc.stop()


def test_who_asks_is_decided_before_the_message_comes_and_may_end_the_call() -> None:
    asked: list[tuple[bytes, bytes]] = []

    def identify(peer: Peer, method: bytes, path: bytes, fields: Mapping[bytes, bytes]) -> Principal:
        asked.append((method, path))
        if b"authorization" not in fields:
            raise InferenceError(Failure(FailureKind.UNAUTHENTICATED, "who are you?"))
        return Principal("somebody")

    methodical = Methodical()
    wire = GrpcWire(methodical.methods, server=GrpcServer(methodical.methods, HttpLimits(), identify))
    wire.feed(headers(1, KEEP))
    assert (wire.answers[1].status, wire.answers[1].fields["grpc-message"]) == (16, "who are you?")
    for stream in (3, 5):
        wire.feed(headers(stream, KEEP, (b"authorization", b"x")) + data(stream, message(), ends=True))
    assert [call.principal.name for call, _ in methodical.kept] == ["somebody"] * 2
    assert asked == [(b"POST", KEEP)] * 3


def test_what_is_remembered_of_headers_is_bounded() -> None:
    wire = GrpcWire(Methodical().methods)
    for stream in range(1, 1501, 4):
        wire.feed(headers(stream, ECHO, (b"x", b"%d" % stream), flags=END_HEADERS | END_STREAM))
        wire.feed(headers(stream + 2, ECHO, (b"x", b"%d" % stream + b"a" * 5000), flags=END_HEADERS | END_STREAM))
        assert len(wire.connection._known) <= MAX_BLOCKS
    assert all(len(block) <= 1024 for block in wire.connection._known)


# Compression


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_are_compressed_if_the_client_compresses_takes_it_and_it_helps(coding: str) -> None:
    wbits = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}[coding]

    def ask(stream: int, sent: bytes, accept: bytes) -> None:
        deflater = zlib.compressobj(wbits=wbits)
        small = deflater.compress(sent) + deflater.flush()
        more = ((b"grpc-encoding", coding.encode()), (b"grpc-accept-encoding", accept))
        wire.feed(headers(stream, ECHO, *more), data(stream, message(small, compressed=1), ends=True))

    wire = GrpcWire(Methodical().methods)
    noise = random.Random(1).randbytes(1000)
    ask(1, b"x" * 1000, f"identity, {coding}".encode())
    ask(3, b"x" * 1000, b"identity")
    ask(5, noise, coding.encode())
    ask(7, b"short", coding.encode())
    wire.feed(headers(9, ECHO, (b"grpc-accept-encoding", coding.encode())) + data(9, message(b"x" * 1000), ends=True))
    first = wire.answers[1]
    assert first.fields["grpc-encoding"] == coding
    assert first.data[0] == 1
    assert zlib.decompress(first.messages[0], wbits) == b"x" * 1000
    for stream, expected in ((3, b"x" * 1000), (5, noise), (7, b"short"), (9, b"x" * 1000)):
        assert wire.answers[stream].data[0] == 0
        assert wire.answers[stream].messages == [expected]


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"no gzip", 3), (b"", 3), (None, 8), (b"cut", 3), (b"behind", 3)],
    ids=["no gzip", "empty", "bomb", "cut", "behind"],
)
def test_what_is_not_rightly_compressed_is_refused(sent: bytes | None, status: int) -> None:
    whole = gzip.compress(b"hello")
    known = {b"cut": whole[:-3], b"behind": whole + b"x"}
    bomb = gzip.compress(bytes(10 << 20))
    wire = GrpcWire(Methodical().methods, HttpLimits(max_body_bytes=1 << 20))
    payload = bomb if sent is None else known.get(sent, sent)
    wire.feed(headers(1, ECHO, (b"grpc-encoding", b"gzip")), data(1, message(payload, compressed=1), ends=True))
    assert wire.answers[1].status == status


# An independent client


def test_another_implementation_of_http2_agrees_with_all_that_is_written() -> None:
    """h2 checks states, windows and header blocks of a random dialogue; every message comes back."""
    rng = random.Random(20260501)
    for _ in range(10):
        _dialogue(rng)


def _dialogue(rng: random.Random) -> None:
    kept: list[Call] = []

    def later(call: Call, sent: bytes) -> None:
        kept.append(call)
        call.path = sent

    server = GrpcServer(Methods({ECHO: later}, {TALK: Methodical().talk}), HttpLimits())
    connection, transport = GrpcConnection(server), FakeTransport()
    connection.connection_made(transport)
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    client.initiate_connection()
    client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: rng.choice((700, 5000, 65535, 1 << 20))})
    got: dict[int, bytes] = {}
    ended: set[int] = set()
    expected: dict[int, bytes] = {}

    def exchange() -> None:
        connection.age(0)  # time passes, so that small windows are no attack
        connection.data_received(client.data_to_send())
        written = bytes(transport.written)
        transport.written.clear()
        for event in client.receive_data(written):
            if isinstance(event, h2.events.DataReceived):
                got[event.stream_id] = got.get(event.stream_id, b"") + event.data
                if event.flow_controlled_length:
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)

    exchange()
    for _ in range(20):
        stream, sent = client.get_next_available_stream_id(), rng.randbytes(rng.choice((0, 1, 300, 20_000, 100_000)))
        path = rng.choice((ECHO, TALK))
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"a"),
            (b"content-type", b"application/grpc"),
        ]
        client.send_headers(stream, [*fields, (b"te", b"trailers"), (b"x", b"%d" % rng.randrange(3))])
        framed = message(sent)
        for at in range(0, len(framed), 16_000):
            piece = framed[at : at + 16_000]
            client.send_data(stream, piece, end_stream=at + 16_000 >= len(framed), pad_length=rng.choice((None, 0, 200)))
        expected[stream] = framed
        exchange()
        if kept and rng.random() < 0.5:
            call = kept.pop(rng.randrange(len(kept)))
            call.reply(call.path)
    for call in kept:
        call.reply(call.path)
    for _ in range(200_000):
        if len(ended) == len(expected):
            break
        exchange()
    assert got == expected
    assert not connection.calls
