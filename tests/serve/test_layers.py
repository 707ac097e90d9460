"""The quota layer: what it lets through, what it answers itself, and that it never raises."""

import logging

import pytest

from dlproxy.message import Failure, FailureKind, Request, Response, Ticket, Timing
from dlproxy.policy.quota import Quota, Quotas
from dlproxy.serve.layers import QuotaLayer
from dlproxy.service import ReplyTo, Service
from dlproxy.testing import ManualClock

ANSWER = Response("", "m", "1", [], Timing(0.0, 0.0, 0.0))


class Answers:
    """A service that completes every request at once, and remembers what it was asked."""

    def __init__(self) -> None:
        self.submitted: list[int] = []
        self.cancelled: list[int] = []

    def submit(self, request: Request, reply: ReplyTo) -> None:
        self.submitted.append(request.ticket.id)
        reply.completed(ANSWER)

    def cancel(self, request: Request) -> None:
        self.cancelled.append(request.ticket.id)


class Reply:
    def __init__(self) -> None:
        self.got: list[Response | Failure] = []

    def completed(self, response: Response) -> None:
        self.got.append(response)

    def failed(self, failure: Failure) -> None:
        self.got.append(failure)


class BrokenReply(Reply):
    def failed(self, failure: Failure) -> None:
        raise OSError("the socket has gone")


class Rig:
    """Two requests a second, two at once."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.inner = Answers()
        self.refused: list[tuple[Failure, int]] = []
        self.quotas = Quotas({"*": Quota(requests_per_s=2.0)})
        self.layer = self.around(self.inner)

    def around(self, inner: Service) -> QuotaLayer:
        return QuotaLayer(inner, self.quotas, clock=self.clock, on_refused=self._refused)

    def _refused(self, failure: Failure, request: Request) -> None:
        self.refused.append((failure, request.ticket.id))

    def request(self, number: int, tenant: str = "a") -> Request:
        return Request(Ticket(number, self.clock(), tenant=tenant), "m", [], ())

    def send(self, number: int, tenant: str = "a") -> Response | Failure:
        reply = Reply()
        self.layer.submit(self.request(number, tenant), reply)
        (got,) = reply.got
        return got


def test_lets_through_what_is_within_the_quota() -> None:
    rig = Rig()
    assert [rig.send(1), rig.send(2)] == [ANSWER, ANSWER]
    assert rig.inner.submitted == [1, 2]
    assert rig.refused == []


def test_answers_the_rest_at_once_and_reports_it() -> None:
    rig = Rig()
    got = [rig.send(number) for number in range(1, 5)]
    failure = got[2]
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.QUOTA
    assert failure.retry_after_s == 0.5
    assert rig.inner.submitted == [1, 2], "the model hears nothing of it"
    assert rig.refused == [(failure, 3), (got[3], 4)]


def test_reads_the_clock_for_every_request() -> None:
    rig = Rig()
    for number in range(3):
        rig.send(number)
    rig.clock.advance(0.5)
    assert rig.send(4) is ANSWER
    assert isinstance(rig.send(5), Failure)


def test_tenants_are_told_apart() -> None:
    rig = Rig()
    assert [rig.send(1, "a"), rig.send(2, "a")] == [ANSWER, ANSWER]
    assert isinstance(rig.send(3, "a"), Failure)
    assert rig.send(4, "b") is ANSWER


def test_layers_of_two_models_may_share_a_quota() -> None:
    rig = Rig()
    other = rig.around(Answers())
    assert [rig.send(1), rig.send(2)] == [ANSWER, ANSWER]
    reply = Reply()
    other.submit(rig.request(3), reply)
    assert isinstance(reply.got[0], Failure)


def test_cancelling_passes_through() -> None:
    rig = Rig()
    rig.layer.cancel(rig.request(7))
    assert rig.inner.cancelled == [7]


def test_a_reply_that_fails_is_logged_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.send(1)
    rig.send(2)
    with caplog.at_level(logging.ERROR):
        rig.layer.submit(rig.request(3), BrokenReply())
    assert "could not hand over the failure of request 3" in caplog.text
    assert [number for _, number in rig.refused] == [3]
