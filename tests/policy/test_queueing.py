"""The queue: order, shapes, sums and deadlines, each step compared with a plain list that holds the same tickets."""

from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dlproxy.message import Ticket
from dlproxy.policy.queueing import Fcfs


def queue_of(*tickets: Ticket) -> Fcfs:
    queue = Fcfs()
    for ticket in tickets:
        queue.push(ticket)
    return queue


def ids(tickets: list[Ticket]) -> list[int]:
    return [ticket.id for ticket in tickets]


@pytest.mark.parametrize(
    ("waiting", "rows", "taken"),
    [
        pytest.param([1, 1, 1], 2, [1, 2], id="oldest first"),
        pytest.param([1, 1, 1], 9, [1, 2, 3], id="all that there is"),
        pytest.param([2, 2, 2], 5, [1, 2], id="never more rows than asked for"),
        pytest.param([2, 4, 1], 5, [1], id="nobody overtakes the next in line"),
        pytest.param([7, 1], 4, [1], id="a larger first ticket comes alone"),
        pytest.param([4, 1], 4, [1], id="exactly full"),
        pytest.param([], 4, [], id="nothing waits"),
    ],
)
def test_pop_takes_the_oldest_that_fit(waiting: list[int], rows: int, taken: list[int]) -> None:
    queue = queue_of(*(Ticket(number, 0.0, rows=size) for number, size in enumerate(waiting, start=1)))
    assert ids(queue.pop(rows)) == taken


def test_a_batch_has_one_shape_and_the_oldest_shape_goes_first() -> None:
    shapes = [(1, (8,)), (2, (9,)), (3, (8,)), (4, (9,)), (5, (8,))]
    queue = queue_of(*(Ticket(number, 0.0, shape_key=shape) for number, shape in shapes))
    assert ids(queue.pop(2)) == [1, 3]
    assert ids(queue.pop(9)) == [2, 4]
    assert ids(queue.pop(9)) == [5]
    assert queue.rows == len(queue) == 0


def test_a_shape_that_was_emptied_comes_back_behind_the_others() -> None:
    queue = queue_of(Ticket(1, 0.0, shape_key=(8,)), Ticket(2, 0.0, shape_key=(9,)))
    assert ids(queue.pop(1)) == [1]
    queue.push(Ticket(3, 0.0, shape_key=(8,)))
    assert ids(queue.pop(1)) == [2]
    queue.push(Ticket(4, 0.0, shape_key=(9,)))
    assert ids(queue.pop(2)) == [3]
    assert ids(queue.pop(2)) == [4]


def test_shapes_that_come_and_go_leave_nothing_behind() -> None:
    queue = Fcfs()
    for number in range(1000):
        queue.push(Ticket(number, 0.0, shape_key=(number,)))
        queue.pop(1) if number % 2 else queue.remove(number)
    assert len(queue._shapes) <= 1


def test_head_is_what_the_next_pop_begins_with() -> None:
    queue = queue_of(Ticket(1, 0.0), Ticket(2, 0.0))
    head = queue.head()
    assert head is not None
    assert head.id == 1
    assert queue.pop(1) == [head]
    queue.pop(1)
    assert queue.head() is None


def test_expire_takes_out_whose_time_has_come_earliest_deadline_first() -> None:
    queue = queue_of(Ticket(1, 0.0, 5.0), Ticket(2, 0.0, 3.0), Ticket(3, 0.0), Ticket(4, 0.0, 3.5), Ticket(5, 0.0, 5.1))
    assert queue.next_deadline() == 3.0
    assert ids(queue.expire(2.9)) == []
    assert ids(queue.expire(5.0)) == [2, 4, 1], "a deadline that is now has passed"
    assert queue.next_deadline() == 5.1
    assert ids(queue.pop(9)) == [3, 5]
    assert queue.next_deadline() == inf


def test_remove_takes_out_one_and_only_once() -> None:
    queue = queue_of(Ticket(1, 0.0, rows=2), Ticket(2, 0.0, rows=3))
    removed = queue.remove(1)
    assert removed is not None
    assert (removed.id, queue.rows, len(queue)) == (1, 3, 1)
    assert queue.remove(1) is None
    assert queue.remove(99) is None


@pytest.mark.parametrize("standing", [0, 1, 50])
def test_deadlines_of_departed_tickets_are_forgotten(standing: int) -> None:
    queue = queue_of(*(Ticket(-1 - number, 0.0, 1e9) for number in range(standing)))
    for number in range(10_000):  # timeouts of an hour at 1,000 requests a second
        queue.push(Ticket(number, number / 1e3, number / 1e3 + 3600.0))
        queue.remove(number)
    assert len(queue._deadlines) <= 2 * (standing + 1) + 65


class FcfsAgainstAList(RuleBasedStateMachine):
    """Whatever is done to the queue is done to a list of tickets too."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Fcfs()
        self.waiting: list[Ticket] = []
        self.pushed = 0
        self.now = 0.0

    @rule(
        rows=st.integers(1, 4),
        shape=st.sampled_from([(), (3,), (3, 224), (5,)]),
        patience_s=st.sampled_from([inf, 0.5, 1.0, 3.0]),
    )
    def push(self, rows: int, shape: tuple[int, ...], patience_s: float) -> None:
        self.pushed += 1
        ticket = Ticket(self.pushed, self.now, self.now + patience_s, rows, shape_key=shape)
        self.waiting.append(ticket)
        self.queue.push(ticket)

    @rule(rows=st.integers(1, 8))
    def pop(self, rows: int) -> None:
        expected: list[Ticket] = []
        for ticket in [other for other in self.waiting if other.shape_key == self.waiting[0].shape_key]:
            if expected and sum(taken.rows for taken in expected) + ticket.rows > rows:
                break
            expected.append(ticket)
        self.waiting = [ticket for ticket in self.waiting if ticket not in expected]
        assert ids(self.queue.pop(rows)) == ids(expected)

    @precondition(lambda self: self.pushed)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ticket_id = data.draw(st.integers(1, self.pushed))
        expected = next((ticket for ticket in self.waiting if ticket.id == ticket_id), None)
        assert self.queue.remove(ticket_id) is expected
        if expected is not None:
            self.waiting.remove(expected)

    @rule(step_s=st.sampled_from([0.0, 0.3, 0.5, 2.0]))
    def expire(self, step_s: float) -> None:
        self.now += step_s
        expected = [ticket for ticket in self.waiting if ticket.deadline_at <= self.now]
        self.waiting = [ticket for ticket in self.waiting if ticket.deadline_at > self.now]
        expired = self.queue.expire(self.now)
        assert sorted(ids(expired)) == ids(expected)
        assert [ticket.deadline_at for ticket in expired] == sorted(ticket.deadline_at for ticket in expected)

    @invariant()
    def agrees_with_the_list(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.rows == sum(ticket.rows for ticket in self.waiting)
        assert self.queue.head() is (self.waiting[0] if self.waiting else None)
        earliest = min((ticket.deadline_at for ticket in self.waiting), default=inf)
        assert earliest == inf or self.queue.may_expire
        assert self.queue.next_deadline() == earliest


FcfsAgainstAList.TestCase.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)
TestFcfsAgainstAList = FcfsAgainstAList.TestCase
