"""Admission: who is refused, with which words and advice, and who never is."""

from dataclasses import dataclass
from math import inf, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.admission import Admission, Backlog
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import QueueDiscipline, make_queue

LINE = [(rows, 0.010 + 0.001 * rows) for rows in (1, 2, 4, 8)]  # exact, so that p99 = mean = 10 ms + 1 ms per row
MAX_QUEUE_ROWS = 20


@dataclass
class Before:
    """What a ticket finds: so many queued rows, and the rest."""

    queued_rows: int
    rest: Backlog


class Rule(Admission):
    """Admission behind tickets of one row each, first come, first served."""

    def judge(self, ticket: Ticket, before: Before, now: float) -> Failure | None:
        queue = waiting(*[Ticket(-number, now) for number in range(before.queued_rows)])
        refusal = self.admit(ticket, queue, before.rest, now)
        return None if refusal is None else refusal.failure


def waiting(*tickets: Ticket, discipline: str = "fcfs") -> QueueDiscipline:
    queue = make_queue(
        LaneKnobs(max_batch=8, max_queue_rows=100, discipline=discipline), lambda rows, length: 0.010 + 0.001 * rows * length
    )
    for ticket in tickets:
        queue.push(ticket, ticket.arrived_at)
    return queue


def admission(max_queue_rows: int = MAX_QUEUE_ROWS, prior: list[tuple[int, float]] | None = None) -> Rule:
    return Rule(LaneKnobs(max_batch=8, max_queue_rows=max_queue_rows), LatencyModel(prior or LINE))


def backlog(queued_rows: int = 0, *, instances: int = 1, idle: bool = False, busy_s: float = 0.0, limit: int = 8) -> Before:
    return Before(queued_rows, Backlog(batch_limit=limit, instances=instances, idle=idle, busy_s=busy_s))


def refusal(ticket: Ticket, before: Before, now: float = 0.0) -> Failure:
    failure = admission().judge(ticket, before, now)
    assert failure is not None
    return failure


def test_refuses_all_without_a_live_instance() -> None:
    failure = refusal(Ticket(1, 0.0), backlog(instances=0))
    assert failure.kind is FailureKind.UNAVAILABLE
    assert failure.retry_after_s == 1.0


@pytest.mark.parametrize(
    ("queued", "rows", "refused"),
    [
        pytest.param(19, 1, False, id="the last place"),
        pytest.param(20, 1, True, id="full"),
        pytest.param(18, 3, True, id="the sum counts"),
        pytest.param(0, 20, False, id="as much as the queue holds"),
        pytest.param(0, 21, False, id="more than the queue ever holds, while it is empty: else it could never run"),
        pytest.param(1, 21, True, id="more than the queue ever holds, behind another"),
    ],
)
def test_queue_is_bounded_in_rows(queued: int, rows: int, refused: bool) -> None:
    failure = admission().judge(Ticket(1, 0.0, rows=rows), backlog(queued), 0.0)
    assert (failure is not None and failure.kind is FailureKind.QUEUE_FULL) is refused


def test_a_full_queue_says_how_full_and_when_to_come_back() -> None:
    failure = refusal(Ticket(1, 0.0), backlog(20, busy_s=0.005))
    assert "20 rows wait, the limit is 20" in failure.message
    assert failure.retry_after_s == pytest.approx(2 * 0.018 + 0.005), (
        "two batches of 8 and the running one; with the 4 left over it would run"
    )


@pytest.mark.parametrize(
    ("left_s", "before", "refused"),
    [
        pytest.param(0.0, backlog(idle=True), True, id="it has passed"),
        pytest.param(0.001, backlog(idle=True), False, id="idle and empty: run it, a prediction may be wrong"),
        pytest.param(0.010, backlog(), True, id="one row alone takes 11 ms"),
        pytest.param(0.012, backlog(), False, id="in time when an instance frees itself now"),
        pytest.param(0.012, backlog(busy_s=0.005), True, id="the running batch counts"),
        pytest.param(0.030, backlog(8), False, id="after a full batch of 18 ms"),
        pytest.param(0.028, backlog(8), True, id="late after a full batch of 18 ms"),
        pytest.param(0.028, backlog(8, instances=2), False, id="two instances halve the wait"),
        pytest.param(0.0125, backlog(1), False, id="it rides with the row before it, 12 ms for both"),
        pytest.param(0.0115, backlog(1), True, id="late with that row, though not alone"),
        pytest.param(0.0305, backlog(9), False, id="after a full batch, with the row that is left over"),
        pytest.param(0.0295, backlog(9), True, id="late by that too"),
        pytest.param(0.026, backlog(7, limit=7), True, id="the limit counts: 17 ms before it and 11 ms of its own"),
        pytest.param(inf, backlog(19, busy_s=100.0), False, id="no deadline, no hurry"),
    ],
)
def test_refuses_what_would_be_late(left_s: float, before: Before, refused: bool) -> None:
    failure = admission().judge(Ticket(1, 5.0, 5.0 + left_s), before, 5.0)
    assert (failure is not None and failure.kind is FailureKind.DEADLINE) is refused


def test_many_rows_that_do_not_fit_beside_those_left_over_get_a_batch_of_their_own() -> None:
    rule = admission()
    assert rule.judge(Ticket(1, 0.0, 0.029, rows=6), backlog(3), 0.0) is not None, "13 ms before it and 16 ms of its own"
    assert rule.judge(Ticket(1, 0.0, 0.0295, rows=6), backlog(3), 0.0) is None


def test_a_late_ticket_is_told_what_is_left_and_what_it_takes() -> None:
    failure = refusal(Ticket(1, 0.0, 0.020), backlog(8))
    assert failure.message == ("Request timeout expired: 20.0 ms are left, it would wait about 18.0 ms and run up to 11.0 ms")
    assert failure.retry_after_s == pytest.approx(0.018)


def test_new_knobs_hold_at_once() -> None:
    rule = admission()
    assert rule.judge(Ticket(1, 0.0), backlog(10), 0.0) is None
    rule.configure(LaneKnobs(max_batch=8, max_queue_rows=10))
    assert rule.judge(Ticket(1, 0.0), backlog(10), 0.0) is not None


tickets = st.builds(
    Ticket,
    id=st.just(1),
    arrived_at=st.just(0.0),
    deadline_at=st.just(inf) | st.floats(-1.0, 50.0),
    rows=st.integers(1, 40),
)
backlogs = st.builds(
    backlog,
    st.integers(0, 40),
    limit=st.integers(1, 16),
    instances=st.integers(0, 4),
    idle=st.booleans(),
    busy_s=st.floats(0.0, 10.0),
)
priors = st.lists(st.tuples(st.integers(1, 64), st.floats(1e-6, 1000.0)), max_size=4)


@given(ticket=tickets, before=backlogs, prior=priors, now=st.floats(0.0, 10.0))
def test_an_idle_instance_and_an_empty_queue_never_refuse_unless_the_deadline_passed(
    ticket: Ticket, before: Before, prior: list[tuple[int, float]], now: float
) -> None:
    before = backlog(0, limit=before.rest.batch_limit, instances=before.rest.instances + 1, idle=True)
    assert (admission(prior=prior).judge(ticket, before, now) is not None) == (ticket.deadline_at <= now)


@given(ticket=tickets, before=backlogs, prior=priors, now=st.floats(0.0, 10.0))
def test_every_refusal_names_its_reason_and_sane_advice(
    ticket: Ticket, before: Before, prior: list[tuple[int, float]], now: float
) -> None:
    failure = admission(prior=prior).judge(ticket, before, now)
    if failure is None:
        assert before.rest.instances
        assert ticket.deadline_at > now
        assert not before.queued_rows or before.queued_rows + ticket.rows <= MAX_QUEUE_ROWS
        return
    assert failure.kind in (FailureKind.UNAVAILABLE, FailureKind.QUEUE_FULL, FailureKind.DEADLINE)
    assert failure.message
    if failure.retry_after_s is not None:
        assert isfinite(failure.retry_after_s)
        assert failure.retry_after_s >= 0.0


@given(ticket=tickets, before=backlogs, now=st.floats(0.0, 10.0))
def test_less_before_it_never_turns_a_yes_into_a_no(ticket: Ticket, before: Before, now: float) -> None:
    if before.queued_rows and admission().judge(ticket, before, now) is None:
        fewer = Before(before.queued_rows - 1, before.rest)
        assert admission().judge(ticket, fewer, now) is None


@pytest.mark.parametrize(
    ("discipline", "ticket", "refused"),
    [
        pytest.param("fcfs", Ticket(9, 0.0, 0.030), True, id="behind 16 rows by order of arrival: 36 ms"),
        pytest.param("edf", Ticket(9, 0.0, 0.030), False, id="before all of them, with 7 that ride along: 18 ms"),
        pytest.param("edf", Ticket(9, 0.0, 0.017), True, id="those that ride along make its batch longer"),
        pytest.param("edf", Ticket(9, 0.0, 60.0, priority=7), False, id="last, but there is time"),
        pytest.param("priority", Ticket(9, 0.0, 0.030, priority=1), False, id="the most urgent waits for nobody"),
    ],
)
def test_only_what_goes_before_it_counts(discipline: str, ticket: Ticket, refused: bool) -> None:
    queue = waiting(*[Ticket(number, 0.0, 0.5) for number in range(16)], discipline=discipline)
    rest = Backlog(batch_limit=8, instances=1, idle=False, busy_s=0.0)
    assert (admission(max_queue_rows=100).admit(ticket, queue, rest, 0.0) is not None) is refused
