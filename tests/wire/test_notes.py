"""What doors note of single requests: bodies that come bit by bit, answers that are not taken; and of nothing else."""

import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import Request, Ticket
from dlproxy.policy.why import Phase
from dlproxy.telemetry.journal import Journal
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.frames import window_update
from dlproxy.wire.grpc.server import GrpcServer, Methods
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.server import HttpServer
from tests.wire.fixtures import Wire, post
from tests.wire.grpc.fixtures import ECHO
from tests.wire.grpc.framed import GrpcWire, data, headers, message, unary

LARGE = 300_000


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.journal = Journal(lambda: self.now)
        self.sent: list[tuple[int, float]] = []
        self.journal.on_sent = lambda ticket_id, seconds: self.sent.append((ticket_id, seconds))

    def request(self) -> Request:
        return Request(Ticket(7, self.now), "m", [], ())

    def noted(self) -> dict[int, tuple[dict[Phase, float], bool]]:
        return {number: (dict(notes.phases), notes.sending) for number, notes in self.journal.notes.items()}


@pytest.fixture
def clock() -> Clock:
    return Clock()


def http(clock: Clock, answer: bytes) -> Wire:
    def app(exchange: Exchange) -> None:
        exchange.asks(clock.request())
        exchange.reply(200, b"text/plain", answer)

    return Wire(app, server=HttpServer(app, HttpLimits(), journal=clock.journal))


def grpc(clock: Clock, answer: bytes) -> GrpcWire:
    def method(call: Call, sent: bytes) -> None:
        call.asks(clock.request())
        call.reply(answer)

    methods = Methods({ECHO: method}, {})
    return GrpcWire(methods, server=GrpcServer(methods, HttpLimits(), journal=clock.journal))


def test_nothing_is_noted_of_what_comes_and_leaves_at_once(clock: Clock) -> None:
    http(clock, b"ok").feed(post("/", b"body"))
    http(clock, b"x" * LARGE).feed(post("/", b"body"))
    grpc(clock, b"ok").feed(unary(1))
    assert clock.noted() == {}


def test_a_body_in_two_reads_is_noted_with_the_time_between(clock: Clock) -> None:
    whole = post("/", b"some body")
    wire = http(clock, b"ok").feed(whole[:-3])
    clock.now = 2.0
    wire.feed(whole[-3:])
    assert clock.noted() == {7: ({"receive": 2.0}, False)}


def test_a_message_in_two_frames_is_noted_with_the_time_between(clock: Clock) -> None:
    wire = grpc(clock, b"ok").feed(headers(1), data(1, message(b"hello")[:6]))
    clock.now = 2.0
    wire.feed(data(1, message(b"hello")[6:], ends=True))
    assert clock.noted() == {7: ({"receive": 2.0}, False)}


def test_an_answer_that_is_not_taken_is_noted_until_it_has_left(clock: Clock) -> None:
    wire = http(clock, b"x" * LARGE)
    wire.transport.stuck = True
    wire.feed(post("/", b"body"))
    assert clock.noted() == {7: ({}, True)}
    clock.now = 3.0
    wire.transport.unstick()
    assert (clock.noted(), clock.sent) == ({7: ({"send": 3.0}, False)}, [(7, 3.0)])


@pytest.mark.parametrize("leaves", [False, True])
def test_an_answer_without_a_window_is_noted_until_it_has_left(clock: Clock, leaves: bool) -> None:
    wire = grpc(clock, b"x" * LARGE).feed(unary(1))
    assert clock.noted() == {7: ({}, True)}
    clock.now = 3.0
    if leaves:
        wire.lose()
    else:
        wire.feed(window_update(0, LARGE), window_update(1, LARGE))
    assert (clock.noted(), clock.sent) == ({7: ({"send": 3.0}, False)}, [(7, 3.0)])


def test_a_client_that_stops_reading_later_is_none_of_a_large_answer_s(clock: Clock) -> None:
    wire = http(clock, b"x" * LARGE).feed(post("/", b"body"))
    clock.now = 60.0
    wire.connection.pause_writing()
    wire.connection.resume_writing()
    assert (clock.noted(), clock.sent) == ({}, [])
