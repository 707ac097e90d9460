"""Deadlines that pass: which is next, whose have passed, and that those of departed and answered tickets are forgotten."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.expiry import Deadlines, Promises
from dlproxy.policy.queueing import DISCIPLINES, QueueDiscipline
from tests.policy.queues import ids, queue_of


def waiting(*tickets: Ticket, discipline: str = "fcfs") -> tuple[QueueDiscipline, Deadlines]:
    queue, deadlines = queue_of(discipline, *tickets), Deadlines()
    for ticket in tickets:
        if ticket.deadline_at < inf:
            deadlines.add(ticket, queue)
    return queue, deadlines


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_takes_out_whose_time_has_come_earliest_deadline_first(discipline: str) -> None:
    due = [5.0, 3.0, inf, 3.5, 5.1]
    queue, deadlines = waiting(*(Ticket(number, 0.0, at) for number, at in enumerate(due, start=1)), discipline=discipline)
    assert deadlines.next_at(queue) == 3.0
    assert ids(deadlines.expired(queue, 2.9)) == []
    assert ids(deadlines.expired(queue, 5.0)) == [2, 4, 1], "a deadline that is now has passed"
    assert deadlines.next_at(queue) == 5.1
    assert sorted(ids(queue.pop(9, 5.0))) == [3, 5]
    assert deadlines.next_at(queue) == inf


def test_nothing_may_expire_where_nothing_has_a_deadline() -> None:
    queue, deadlines = waiting(Ticket(1, 0.0), Ticket(2, 0.0))
    assert not deadlines.pending
    assert deadlines.next_at(queue) == inf
    deadlines.add(Ticket(3, 0.0, 1.0), queue)
    assert deadlines.pending


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, inf]), max_size=12),
    st.sets(st.integers(0, 11)),
    st.sampled_from([0.5, 1.0, 2.5, 9.0]),
)
def test_agrees_with_a_list(due: list[float], departed: set[int], now: float) -> None:
    tickets = [Ticket(number, 0.0, at) for number, at in enumerate(due)]
    queue, deadlines = waiting(*tickets)
    for number in departed:
        queue.remove(number)
    left = sorted(
        (ticket for ticket in tickets if ticket.id not in departed), key=lambda ticket: (ticket.deadline_at, ticket.id)
    )
    assert deadlines.next_at(queue) == min((ticket.deadline_at for ticket in left), default=inf)
    assert deadlines.expired(queue, now) == [ticket for ticket in left if ticket.deadline_at <= now]
    assert deadlines.next_at(queue) == min((ticket.deadline_at for ticket in left if ticket.deadline_at > now), default=inf)
    assert bool(deadlines.pending) is any(now < ticket.deadline_at < inf for ticket in left)


@pytest.mark.parametrize("standing", [0, 1, 50])
def test_deadlines_of_departed_tickets_are_forgotten(standing: int) -> None:
    queue, deadlines = waiting(*(Ticket(-1 - number, 0.0, 1e9) for number in range(standing)))
    for number in range(10_000):  # timeouts of an hour at 1,000 requests a second
        ticket = Ticket(number, number / 1e3, number / 1e3 + 3600.0)
        queue.push(ticket, ticket.arrived_at)
        deadlines.add(ticket, queue)
        queue.remove(number)
    assert len(deadlines.pending) <= 2 * (standing + 1) + 64


def test_what_has_departed_is_looked_at_once() -> None:
    queue, deadlines = waiting(*(Ticket(number, 0.0, 1.0 + number) for number in range(10)))
    queue.pop(7, 0.0)
    assert deadlines.next_at(queue) == 8.0
    assert len(deadlines.pending) == 3


# What clients were promised


def promises(*due: float) -> Promises:
    made = Promises()
    for number, at in enumerate(due):
        made.add(Ticket(number, 0.0, at, answer_by=at))
    return made


def test_answers_are_due_earliest_first_and_once() -> None:
    made = promises(5.0, 3.0, 3.5, 5.1)
    assert made.next_at() == 3.0
    assert ids(made.due(2.9)) == []
    assert ids(made.due(5.0)) == [1, 2, 0]
    assert (made.next_at(), list(made.open)) == (5.1, [3])
    assert ids(made.due(9.0)) == [3]
    assert (made.next_at(), made.open) == (inf, {})


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), max_size=12), st.sets(st.integers(0, 11)), st.sampled_from([0.5, 2.0, 9.0])
)
def test_promises_agree_with_a_list(due: list[float], answered: set[int], now: float) -> None:
    made = promises(*due)
    for number in answered:
        made.open.pop(number, None)
    left = sorted((at, number) for number, at in enumerate(due) if number not in answered)
    assert made.next_at() == min((at for at, _ in left), default=inf)
    assert ids(made.due(now)) == [number for at, number in left if at <= now]
    assert sorted(made.open) == sorted(number for at, number in left if at > now)


def test_promises_that_were_kept_are_forgotten() -> None:
    made = promises(1e9)
    for number in range(1, 10_000):
        made.add(Ticket(number, 0.0, answer_by=3600.0 + number))
        del made.open[number]
    assert len(made._heap) <= 2 + 64
    assert made.next_at() == 1e9
