"""The quota layer: what it lets through, what it answers itself, and that it never raises."""

import logging

import pytest

from dlproxy.message import (
    Failure,
    FailureKind,
    PartTo,
    Principal,
    Quota,
    Request,
    Response,
    Rest,
    Tensor,
    Ticket,
    Timing,
)
from dlproxy.policy.quota import Quotas
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


class Held:
    """A service that answers when it is told to; with a rest, if there is one."""

    def __init__(self) -> None:
        self.replies: dict[int, ReplyTo] = {}

    def submit(self, request: Request, reply: ReplyTo) -> None:
        self.replies[request.ticket.id] = reply

    def answer(self, number: int, rest: "Parts | None" = None) -> None:
        self.replies.pop(number).completed(Response("", "m", "1", [], Timing(0.0, 0.0, 0.0), rest))

    def fail(self, number: int) -> None:
        self.replies.pop(number).failed(Failure(FailureKind.LATE, "too late"))

    def cancel(self, request: Request) -> None:
        reply = self.replies.pop(request.ticket.id, None)
        if reply is not None:
            reply.failed(Failure(FailureKind.CANCELLED, "cancelled"))


class Parts:
    """A rest whose parts come when they are told to."""

    def __init__(self) -> None:
        self.to: PartTo | None = None
        self.stopped = 0

    def ask(self, to: PartTo) -> None:
        self.to = to

    def stop(self) -> None:
        self.stopped += 1


class PartReader(Reply):
    def part(self, outputs: list[Tensor]) -> None:
        self.rest().ask(self)

    def ended(self) -> None:
        pass

    def rest(self) -> Rest:
        (response,) = [one for one in self.got if isinstance(one, Response)]
        assert response.rest is not None
        return response.rest


class LeavingReply(Reply):
    def completed(self, response: Response) -> None:
        raise OSError("the socket has gone")


def test_a_stages_request_of_a_pipeline_is_not_charged_again() -> None:
    layer = QuotaLayer(Answers(), Quotas({"t": Quota(requests_per_s=1.0)}), clock=ManualClock(), on_refused=lambda *_: None)
    for charged, answered in ((False, True), (False, False), (True, True)):
        reply = Reply()
        layer.submit(Request(Ticket(1, 0.0, tenant="t"), "m", [], (), charged=charged), reply)
        assert isinstance(reply.got[0], Response) is answered


class OneAtATime:
    """A client that may have one request under way, over two models."""

    def __init__(self) -> None:
        self.inner = Held()
        self.quotas = Quotas({})
        self.layer, self.other = (
            QuotaLayer(inner, self.quotas, clock=ManualClock(), on_refused=lambda *_: None) for inner in (self.inner, Answers())
        )
        self.ann = Principal("ann", quota=Quota(concurrent=1))
        self.under_way = self.request(1)

    def request(self, number: int) -> Request:
        return Request(Ticket(number, 0.0), "m", [], (), principal=self.ann)

    def start(self, reply: Reply) -> None:
        self.layer.submit(self.under_way, reply)
        assert not self.free()

    def free(self) -> bool:
        """Whether the other model takes a request now."""
        reply = Reply()
        self.other.submit(self.request(2), reply)
        return isinstance(reply.got[0], Response)

    def stream(self) -> tuple[Parts, PartReader, PartTo]:
        """One that has begun and asked for its second part."""
        parts, reply = Parts(), PartReader()
        self.start(reply)
        self.inner.answer(1, parts)
        reply.rest().ask(reply)
        assert parts.to is not None
        parts.to.part([])
        assert not self.free()
        return parts, reply, parts.to


def test_an_answer_a_failure_and_a_client_that_leaves_give_the_place_back() -> None:
    for end in ("answer", "fail", "cancel", "cancel twice", "the reply cannot be sent", "the same of a stream"):
        rig = OneAtATime()
        rig.start(LeavingReply() if "the" in end else Reply())
        if end == "fail":
            rig.inner.fail(1)
        elif "cancel" in end:
            rig.layer.cancel(rig.under_way)
            rig.layer.cancel(rig.under_way)
        elif "the" in end:
            with pytest.raises(OSError, match="gone"):
                rig.inner.answer(1, Parts() if "stream" in end else None)
        else:
            rig.inner.answer(1)
        assert rig.free(), end


def test_a_stream_takes_its_place_until_it_ends_breaks_off_or_is_left() -> None:
    for end in ("ends", "breaks off", "is stopped", "is cancelled"):
        rig = OneAtATime()
        parts, reply, to = rig.stream()
        if end == "ends":
            to.ended()
        elif end == "breaks off":
            to.failed(Failure(FailureKind.MODEL_FAILED, "gone"))
            assert isinstance(reply.got[-1], Failure)
        elif end == "is stopped":
            reply.rest().stop()
            assert parts.stopped == 1
        else:
            rig.layer.cancel(rig.under_way)
        assert rig.free(), end
        reply.rest().stop()
        rig.layer.cancel(rig.under_way)
        rig.layer.submit(rig.request(3), Reply())
        assert not rig.free(), "a place that was given back twice would be two"


def test_where_tenants_have_no_quotas_clients_without_one_are_not_asked_about() -> None:
    layer = QuotaLayer(Answers(), Quotas({}), clock=lambda: 1 / 0, on_refused=lambda *_: None)
    reply = Reply()
    layer.submit(Request(Ticket(1, 0.0), "m", [], (), principal=Principal("ann")), reply)
    assert reply.got == [ANSWER]
