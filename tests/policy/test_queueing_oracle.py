"""Every queue discipline against a list that is sorted anew for each question; whatever is done to one is done to the other."""

from collections.abc import Callable
from fractions import Fraction
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from dlproxy.message import Ticket
from dlproxy.policy.queueing import DISCIPLINES, make_queue
from tests.policy.queues import AGEING_S, STARVATION_S, WEIGHTS, cost_s, ids, knobs

Key = Callable[[Ticket, float], float | Fraction]


def levels_of(ticket: Ticket) -> int:
    return {0: 4}.get(ticket.priority, min(ticket.priority, 8))


def feedback_level(ticket: Ticket, now: float) -> float:
    if ticket.arrived_at < now // STARVATION_S * STARVATION_S:
        return 0
    return sum(cost_s(ticket.rows) > quantum_s for quantum_s in (1.0, 2.0, 4.0))


KEYS: dict[str, Key] = {
    "fcfs": lambda ticket, now: 0,
    "edf": lambda ticket, now: min(ticket.deadline_at, ticket.arrived_at + STARVATION_S) + (levels_of(ticket) - 4) * AGEING_S,
    "priority": lambda ticket, now: ticket.arrived_at + levels_of(ticket) * AGEING_S,
    "sjf": lambda ticket, now: -inf if now >= ticket.arrived_at + STARVATION_S else cost_s(ticket.rows),
    "hrrn": lambda ticket, now: -Fraction(now - ticket.arrived_at + cost_s(ticket.rows)) / Fraction(cost_s(ticket.rows)),
    "mlfq": feedback_level,
}


class Sorted:
    """The order by a key, ties by id."""

    def __init__(self, key: Key) -> None:
        self.waiting: list[Ticket] = []
        self.key = key

    def push(self, ticket: Ticket) -> None:
        self.waiting.append(ticket)

    def order(self, now: float) -> list[Ticket]:
        return sorted(self.waiting, key=lambda ticket: (self.key(ticket, now), ticket.id))

    def before(self, newcomer: Ticket, now: float) -> int:
        place = (self.key(newcomer, now), newcomer.id)
        return sum(ticket.rows for ticket in self.waiting if (self.key(ticket, now), ticket.id) < place)

    def pop(self, rows: int, now: float) -> list[Ticket]:
        order = self.order(now)
        taken: list[Ticket] = []
        for ticket in order:
            if ticket.shape_key == order[0].shape_key:
                if taken and sum(other.rows for other in taken) + ticket.rows > rows:
                    break
                taken.append(ticket)
        self.waiting = [ticket for ticket in self.waiting if ticket not in taken]
        return taken

    def remove(self, ticket: Ticket) -> None:
        self.waiting.remove(ticket)


class FairShares(Sorted):
    """Start-time fair queueing by its definition, with a tag for each ticket and all tenants remembered."""

    def __init__(self) -> None:
        super().__init__(lambda ticket, now: self.start.get(ticket.id, max(self.virtual, self.finish.get(ticket.tenant, 0.0))))
        self.start: dict[int, float] = {}
        self.finish: dict[str, float] = {}
        self.virtual = 0.0

    def push(self, ticket: Ticket) -> None:
        self.start[ticket.id] = self.key(ticket, 0.0)
        self.finish[ticket.tenant] = self.start[ticket.id] + self.length(ticket)
        super().push(ticket)

    def pop(self, rows: int, now: float) -> list[Ticket]:
        taken = super().pop(rows, now)
        if taken:
            tags = [self.start[taken[-1].id], *(self.start[ticket.id] for ticket in self.waiting)]
            self.virtual = max(self.virtual, min(tags))
        self.end_busy_period()
        return taken

    def remove(self, ticket: Ticket) -> None:
        super().remove(ticket)
        self.finish[ticket.tenant] -= self.length(ticket)
        self.end_busy_period()

    def end_busy_period(self) -> None:
        if not self.waiting:
            self.virtual = max([self.virtual, *self.finish.values()])

    @staticmethod
    def length(ticket: Ticket) -> float:
        return cost_s(ticket.rows) / WEIGHTS.get(ticket.tenant, 1.0)


class AgainstASortedList(RuleBasedStateMachine):
    def __init__(self, discipline: str) -> None:
        super().__init__()
        self.discipline = discipline
        self.queue = make_queue(knobs(discipline), cost_s)
        self.oracle = FairShares() if discipline == "fair" else Sorted(KEYS[discipline])
        self.pushed = 0
        self.now = 0.0

    @initialize(sizes=st.sampled_from([(1,), (3,), (1, 2, 5, 20)]))
    def choose_sizes(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes

    @rule(
        size=st.integers(0, 3),
        shape=st.sampled_from([(), (3,), (3, 224)]),
        patience_s=st.sampled_from([inf, 0.5, 1.0, 3.0, 20.0]),
        priority=st.sampled_from([0, 0, 1, 3, 9]),
        tenant=st.sampled_from(["", "gold", "tin"]),
    )
    def push(self, size: int, shape: tuple[int, ...], patience_s: float, priority: int, tenant: str) -> None:
        self.pushed += 1
        rows = self.sizes[size % len(self.sizes)]
        ticket = Ticket(self.pushed, self.now, self.now + patience_s, rows, priority, tenant, shape)
        self.check_rows_before(ticket)
        self.queue.push(ticket, self.now)
        self.oracle.push(ticket)

    def check_rows_before(self, newcomer: Ticket) -> None:
        before = self.queue.rows_before(newcomer, self.now)
        assert 0 <= before <= self.queue.rows
        if len(self.sizes) == 1 or self.discipline in ("sjf", "hrrn", "fcfs"):
            later_s = cost_s(max(self.queue.rows, 1)) if self.discipline == "hrrn" else 0.0
            assert before == self.oracle.before(newcomer, self.now + later_s)

    @rule(rows=st.integers(1, 25))
    def pop(self, rows: int) -> None:
        head = self.queue.head(self.now)
        taken = self.queue.pop(rows, self.now)
        assert taken[:1] == ([] if head is None else [head])
        assert len(taken) <= 1 or sum(ticket.rows for ticket in taken) <= rows
        assert ids(taken) == ids(self.oracle.pop(rows, self.now))

    @precondition(lambda self: self.pushed)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ticket_id = data.draw(st.integers(1, self.pushed))
        expected = next((ticket for ticket in self.oracle.waiting if ticket.id == ticket_id), None)
        assert (ticket_id in self.queue) is (expected is not None)
        assert self.queue.remove(ticket_id) is expected
        assert ticket_id not in self.queue
        if expected is not None:
            self.oracle.remove(expected)

    @rule(step_s=st.sampled_from([0.25, 1.0, 4.0]))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @invariant()
    def agree(self) -> None:
        order = self.oracle.order(self.now)
        assert len(self.queue) == len(order)
        assert self.queue.rows == sum(ticket.rows for ticket in order)
        assert self.queue.head(self.now) is (order[0] if order else None)
        assert self.queue.last(self.now) is (order[-1] if order else None)

    def teardown(self) -> None:
        """Everything that was pushed and not taken out comes out in the end."""
        while expected := self.oracle.pop(7, self.now):
            assert ids(self.queue.pop(7, self.now)) == ids(expected)
        assert self.queue.pop(7, self.now) == []


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_agrees_with_a_sorted_list(discipline: str) -> None:
    run_state_machine_as_test(
        lambda: AgainstASortedList(discipline),
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None),
    )
