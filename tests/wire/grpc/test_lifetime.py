"""Time-outs, deadlines, keep-alive and the drain of one connection, in virtual time."""

import asyncio

import pytest

from dlproxy.config import HttpLimits
from dlproxy.wire.grpc.connection import MOST_STRIKES
from dlproxy.wire.grpc.frames import CONTINUATION, END_HEADERS, HEADERS, PING, ErrorCode, frame, number, settings, window_update
from dlproxy.wire.grpc.lifetime import LAST_CALL, MIN_PING_S
from dlproxy.wire.grpc.server import GrpcServer
from dlproxy.wire.listening import DRAIN_GRACE_S

from .fixtures import ECHO, KEEP, TALK, Methodical
from .framed import GREETING, GrpcWire, data, headers, message, unary

LIMITS = HttpLimits()


def later(wire: GrpcWire, seconds: float, step: float = 0.5) -> GrpcWire:
    """As the sweep lets time pass."""
    for _ in range(round(seconds / step)):
        wire.age(step)
    return wire


@pytest.mark.parametrize("sent", [b"", GREETING[:10], GREETING[:24], GREETING[:-1]])
def test_who_does_not_greet_is_cut(sent: bytes) -> None:
    wire = later(GrpcWire(Methodical().methods, greeting=sent), LIMITS.header_timeout_s)
    assert wire.outcome == "open"
    assert later(wire, 1).outcome == "GOAWAY PROTOCOL_ERROR"


def test_a_frame_must_arrive_in_time_but_not_sooner_because_the_connection_is_old() -> None:
    methodical = Methodical()
    wire = later(GrpcWire(methodical.methods).feed(unary(1, path=KEEP)), 60)
    later(wire.feed(unary(3)[:20]), 5)
    assert wire.outcome == "open"
    wire.feed(unary(3)[20:], headers(5, flags=0))
    assert wire.answers[3].ended
    assert later(wire, LIMITS.header_timeout_s + 1).outcome == "GOAWAY PROTOCOL_ERROR"
    assert methodical.told == ["abandoned"]


def test_a_header_block_that_trickles_is_not_waited_for() -> None:
    wire = GrpcWire(Methodical().methods).feed(headers(1, flags=0))
    piece = frame(CONTINUATION, 0, 1, b"\0")
    for _ in range(9):
        later(wire.feed(piece[:3]), 0.5).feed(piece[3:])
        later(wire, 0.5)
    assert wire.outcome == "open"
    assert later(wire.feed(piece[:3]), 1.5).outcome == "GOAWAY PROTOCOL_ERROR"


def test_a_large_frame_may_take_longer() -> None:
    wire = GrpcWire(Methodical().methods).feed(headers(1), data(1, message(bytes(200_000)))[:160_000])
    assert later(wire, 19).outcome == "open"
    assert later(wire, 2).outcome == "GOAWAY PROTOCOL_ERROR"


def test_a_message_that_trickles_is_not_waited_for() -> None:
    wire = GrpcWire(Methodical().methods).feed(headers(1), data(1, message(bytes(1000))[:6]))
    for _ in range(40):
        later(wire, 1).feed(*([data(1, b"\0")] if 1 not in wire.answers else []))
    assert wire.answers[1].status == 1
    wire.feed(headers(3, TALK), data(3, b"\0"))
    assert later(wire, 40).answers[3].status == 1
    wire.feed(headers(5, TALK), data(5, message()))
    later(wire, 60)
    assert not wire.answers[5].ended  # it is between messages


def test_a_slow_upload_that_keeps_the_pace_is_waited_for() -> None:
    methodical = Methodical()
    sent = message(bytes(3_000_000))
    wire = GrpcWire(methodical.methods).feed(headers(1, KEEP))
    step = 20_000
    for at in range(0, len(sent), step):
        later(wire.feed(data(1, sent[at : at + step], ends=at + step >= len(sent))), 1)
    assert len(methodical.kept) == 1


def test_an_idle_connection_is_closed_and_one_with_a_call_is_not() -> None:
    wire = later(GrpcWire(Methodical().methods).feed(unary(1)), LIMITS.idle_timeout_s)
    assert wire.goaway is None
    assert later(wire, 1).outcome == "GOAWAY NO_ERROR"
    wire = GrpcWire(Methodical().methods).feed(unary(1, path=KEEP))
    later(wire, LIMITS.idle_timeout_s + 10)
    assert wire.goaway is None


def test_a_client_that_is_silent_while_it_has_calls_is_asked_and_then_cut() -> None:
    methodical = Methodical()
    wire = later(GrpcWire(methodical.methods).feed(unary(1, path=KEEP)), LIMITS.idle_timeout_s + 1)
    assert [found.opaque_data for found in wire.frames if found.type == PING] == [bytes(8)]
    later(wire.feed(frame(PING, 1, 0, bytes(8))), LIMITS.idle_timeout_s)
    assert not wire.transport.aborted
    later(wire, LIMITS.write_timeout_s + 1)
    assert wire.transport.aborted


def test_an_answer_that_is_not_read_is_taken_back() -> None:
    wire = GrpcWire(Methodical().methods).feed(settings({4: 100}), unary(1, bytes(500)))
    later(wire, LIMITS.write_timeout_s - 1).feed(window_update(1, 10))
    assert later(wire, LIMITS.write_timeout_s - 1).outcome == "open"
    assert later(wire, 2).outcome == "RST 1 CANCEL"
    assert wire.feed(unary(3)).answers[3].ended


def test_a_stream_that_is_not_read_is_taken_back_and_what_its_client_still_sends_is_no_mistake() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(settings({4: 100}), headers(1, TALK), data(1, message(bytes(200))))
    assert later(wire, LIMITS.write_timeout_s + 1).outcome == "RST 1 CANCEL"
    assert methodical.told == ["abandoned"]
    assert wire.feed(data(1, message()), unary(3)).answers[3].ended


def test_a_call_that_its_service_pauses_is_not_late() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK))
    methodical.talks[0].pause()
    later(wire.feed(data(1, message(b"x")[:3])), 60)
    methodical.talks[0].resume()
    later(wire.feed(data(1, message(b"x")[3:])), 60)
    assert wire.answers[1].messages == [b"x"]
    assert not wire.answers[1].ended


def test_an_answer_that_comes_late_is_not_taken_back_for_that() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(settings({4: 100}), headers(1, TALK))
    later(wire, LIMITS.write_timeout_s + 5)
    methodical.talks[0].send(bytes(500))
    assert later(wire, 1).outcome == "open"


def test_a_client_that_does_not_read_the_socket_is_cut() -> None:
    wire = GrpcWire(Methodical().methods)
    wire.transport.stuck = True
    wire.feed(settings({4: 1 << 20}), window_update(0, 1 << 20), unary(1, bytes(200_000)))
    later(wire, LIMITS.write_timeout_s)
    assert not wire.transport.aborted
    later(wire, 1)
    assert wire.transport.aborted


def test_pings_without_calls_are_counted_unless_they_come_seldom() -> None:
    wire = GrpcWire(Methodical().methods)
    for _ in range(10):
        later(wire.feed(frame(PING, 0, 0, b"abcdefgh")), MIN_PING_S)
    assert wire.outcome == "open"
    assert [found.opaque_data for found in wire.frames if found.type == PING] == [b"abcdefgh"] * 10
    for _ in range(MOST_STRIKES + 1):
        later(wire.feed(frame(PING, 0, 0, bytes(8))), 0.5)
    assert wire.outcome == "open"  # the first did not come too soon
    wire.feed(frame(PING, 0, 0, bytes(8)))
    assert wire.outcome == "GOAWAY ENHANCE_YOUR_CALM"
    assert wire.goaway is not None
    assert wire.goaway.additional_data == b"too_many_pings"


def test_one_connection_too_many_is_told_so() -> None:
    server = GrpcServer(Methodical().methods, HttpLimits(max_connections=1))
    first, second = GrpcWire(server.methods, server=server), GrpcWire(server.methods, server=server)
    assert first.outcome == "open"
    assert second.outcome == "GOAWAY ENHANCE_YOUR_CALM"


def test_the_debug_data_of_a_goaway_is_short() -> None:
    wire = GrpcWire(Methodical().methods).feed(frame(HEADERS, END_HEADERS, 1, b"\xff" + b"\xff" * 5000))
    assert wire.goaway is not None
    assert len(wire.goaway.additional_data) <= 200


# Deadlines

looptime = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


@looptime
@pytest.mark.parametrize(("timeout", "seconds"), [(b"2S", 2.0), (b"50m", 0.05), (b"0n", 0.0), (b"1M", 60.0)])
async def test_a_streaming_call_ends_at_its_deadline(timeout: bytes, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK, (b"grpc-timeout", timeout)))
    told: asyncio.Future[float] = loop.create_future()
    methodical.talks[0].on_abandoned = lambda: told.set_result(loop.time())
    began = loop.time()
    assert await told - began == pytest.approx(seconds, abs=0.02)
    wire.deliver()
    assert wire.answers[1].status == 4
    assert not wire.connection.calls


@looptime
async def test_a_deadline_cuts_through_answers_that_are_not_read() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(settings({4: 10}), headers(1, TALK, (b"grpc-timeout", b"1S")))
    methodical.talks[0].send(bytes(100))
    methodical.talks[0].end()
    reset = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(1.1, reset.set_result, None)
    await reset
    wire.deliver()
    assert wire.outcome == "RST 1 CANCEL"
    assert methodical.told == []  # its service had ended it


async def test_calls_without_a_deadline_make_no_timer_and_those_that_end_leave_none() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK), headers(3, TALK, (b"grpc-timeout", b"99999999H")))
    assert [call.timer for call in methodical.talks] == [None, None]
    wire.feed(headers(5, TALK, (b"grpc-timeout", b"5S")), data(5, b"", ends=True))
    timer = methodical.talks[2].timer
    assert timer is not None
    assert timer.cancelled()


# Draining


def draining(methodical: Methodical) -> GrpcWire:
    wire = GrpcWire(methodical.methods).feed(unary(1, path=KEEP))
    wire.server.draining = True
    wire.connection.begin_grace()
    wire.deliver()
    return wire


def goaways(wire: GrpcWire) -> list[int]:
    assert all(found.error_code == ErrorCode.NO_ERROR for found in wire.frames if found.type == 7)
    return [found.last_stream_id for found in wire.frames if found.type == 7]


@pytest.mark.parametrize("answers_pings", [True, False])
def test_a_drain_serves_what_was_on_its_way_refuses_the_rest_and_closes_behind_the_last(answers_pings: bool) -> None:
    methodical = Methodical()
    wire = draining(methodical)
    assert goaways(wire) == [2**31 - 1]
    wire.feed(unary(3, path=KEEP), unary(5, path=ECHO))  # on their way when the client learnt of it
    assert wire.answers[5].messages == [b"hello"]
    if answers_pings:
        assert LAST_CALL in [found.opaque_data for found in wire.frames if found.type == PING]
        wire.feed(frame(PING, 1, 0, LAST_CALL))
    else:
        wire.age(DRAIN_GRACE_S + 0.1)
    assert goaways(wire) == [2**31 - 1, 5]
    wire.feed(unary(7))
    assert wire.answers[7].reset == ErrorCode.REFUSED_STREAM
    for call, sent in methodical.kept:
        assert not wire.transport.eof
        call.reply(sent)
    wire.deliver()
    assert [wire.answers[stream].messages for stream in (1, 3)] == [[b"hello"]] * 2
    assert wire.transport.eof
    assert methodical.told == []


def test_a_client_that_goes_on_calling_and_answers_no_ping_does_not_hold_up_the_drain() -> None:
    wire = draining(Methodical())
    for stream in range(3, 23, 2):
        wire.feed(unary(stream)).age(0.1)
    assert len(goaways(wire)) == 2
    assert wire.answers[21].reset == ErrorCode.REFUSED_STREAM


def test_an_idle_connection_drains_at_once_if_its_client_answers() -> None:
    wire = GrpcWire(Methodical().methods)
    wire.server.draining = True
    wire.connection.begin_grace()
    wire.feed(frame(PING, 1, 0, LAST_CALL))
    assert wire.transport.eof
    assert wire.goaway is not None
    assert wire.goaway.last_stream_id == 0


def test_that_ping_means_nothing_before_the_drain() -> None:
    wire = GrpcWire(Methodical().methods).feed(frame(PING, 1, 0, LAST_CALL), unary(1))
    assert wire.answers[1].ended
    assert wire.outcome == "open"


def test_the_last_stream_of_a_refusal_is_the_last_that_was_begun() -> None:
    wire = GrpcWire(Methodical().methods).feed(unary(1), unary(7), frame(6, 0, 0, b"short"))
    assert wire.goaway is not None
    assert wire.goaway.last_stream_id == 7
    assert number(7) in wire.goaway.serialize()
