"""Tickets of other lengths join a batch where that is less work than a batch of their own, and nowhere else."""

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.padding import Padding
from dlproxy.policy.queueing import DISCIPLINES, QueueDiscipline
from tests.policy.queues import ids, queue_of

LIMIT = 8
MOST = 0.3


class Cost:
    """base + row * rows + element * rows * length, in seconds; 99 % of batches take no more than 1.2 times as long."""

    def __init__(self, base_s: float, element_s: float) -> None:
        self.base_s = base_s
        self.element_s = element_s

    def mean(self, rows: int, length: int = 1) -> float:
        return self.base_s + self.element_s * rows * length

    def p99(self, rows: int, length: int = 1) -> float:
        return 1.2 * self.mean(rows, length)

    def line_s(self, rows: int, length: int) -> float:
        full, left_over = divmod(rows, LIMIT)
        return full * self.mean(LIMIT, length) + (self.mean(left_over, length) if left_over else 0.0)


GPU = Cost(10e-3, 1e-6)
CPU = Cost(50e-6, 100e-6)


def _ticket(number: int, length: int, *, rows: int = 1, deadline_at: float = inf, family: int = 1) -> Ticket:
    return Ticket(
        number,
        float(number),
        deadline_at,
        rows,
        shape_key=(family, length),
        length=length,
        family=(family,) if family else (),
    )


def _joined(
    queue: QueueDiscipline,
    cost: Cost = GPU,
    *,
    most: float = MOST,
    now: float = 100.0,
    limit_at: Callable[[int], int] = lambda length: LIMIT,
) -> list[Ticket]:
    head = queue.head(now)
    assert head is not None
    padding = Padding(cost, cost.line_s, limit_at)
    return padding.join(queue.pop(limit_at(head.length), now), queue, now, most=most)


def _of(*lengths: int) -> QueueDiscipline:
    return queue_of("fcfs", *[_ticket(number, length) for number, length in enumerate(lengths)])


@pytest.mark.parametrize(
    ("lengths", "batch"),
    [
        ((10, 11, 12, 9), [0, 1, 2, 3]),
        ((10, 10, 12), [0, 1, 2]),
        ((10, 100, 11), [0, 2]),
        ((100, 10, 99), [0, 2]),
        ((10,), [0]),
    ],
    ids=str,
)
def test_neighbours_in_length_join_where_batches_have_a_price(lengths: tuple[int, ...], batch: list[int]) -> None:
    queue = _of(*lengths)
    assert sorted(ids(_joined(queue))) == batch
    assert len(queue) == len(lengths) - len(batch)


def test_nobody_joins_where_only_elements_have_a_price() -> None:
    queue = _of(10, 11, 12, 9)
    assert ids(_joined(queue, CPU)) == [0]
    assert ids(_joined(queue, CPU)) == [1]


@pytest.mark.parametrize(
    ("base_s", "longest"), [(1.1e-3, 0), (1.2e-3, 20), (2.2e-3, 20), (2.3e-3, 30), (3.3e-3, 30), (3.4e-3, 40)]
)
def test_a_row_joins_while_its_padding_costs_less_than_a_batch_and_a_twentieth_of_it_is_saved(
    base_s: float, longest: int
) -> None:
    """Ten elements more for one row of the head's cost 1 ms. Equal lengths need no reason."""
    for length in (20, 30, 40, 50):
        cost = Cost(base_s, 100e-6)
        assert (len(_joined(_of(10, length), cost, most=0.9)) == 2) == (length <= longest)
    assert len(_joined(_of(10, 10, 10), Cost(base_s, 100e-6))) == 3


@pytest.mark.parametrize(("waiting", "joins"), [(1, 1), (7, 7), (8, 0), (16, 0), (17, 7), (19, 7), (23, 7)])
def test_of_a_line_that_fills_batches_some_rows_join_only_if_one_batch_less_is_left(waiting: int, joins: int) -> None:
    queue = _of(10, *[11] * waiting)
    assert len(_joined(queue)) == 1 + joins
    assert len(queue) == waiting - joins


@pytest.mark.parametrize(("limit", "size"), [(8, 7), (7, 7), (6, 4), (5, 4), (4, 4), (3, 4)])
def test_a_batch_stays_within_the_limit_of_its_longest(limit: int, size: int) -> None:
    """Of length 12, three wait: two of them could join a batch of six, but the third would need its own as before."""
    queue = queue_of("fcfs", *[_ticket(number, 10) for number in range(4)], *[_ticket(number, 12) for number in range(4, 7)])
    assert len(_joined(queue, limit_at=lambda length: limit if length > 10 else 8)) == size


def test_no_head_is_made_late_by_what_joins() -> None:
    """A batch of two takes 10.02 ms, and 1.2 times that at worst; of one, no less than 10.01."""
    for left_s, size in ((12.0e-3, 1), (13.0e-3, 2)):
        queue = queue_of("edf", _ticket(0, 10, deadline_at=100.0 + left_s), _ticket(1, 12))
        assert len(_joined(queue)) == size


def test_tickets_of_other_families_or_none_never_join() -> None:
    queue = queue_of("fcfs", _ticket(0, 10), _ticket(1, 11, family=2), _ticket(2, 11, family=0), _ticket(3, 11))
    assert ids(_joined(queue)) == [0, 3]
    assert ids(_joined(queue)) == [1]
    assert ids(_joined(queue)) == [2]


@pytest.mark.parametrize("discipline", DISCIPLINES)
@example([(3, 1), (11, 3), (11, 3), (11, 3)], 0.1, 0.1).via("two of three tickets fit, which leaves more padding than three")
@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=1, max_size=40),
    base_s=st.sampled_from([0.0, 1e-4, 1e-3, 1e-1]),
    most=st.sampled_from([0.0, 0.1, 0.3, 0.9]),
)
def test_batches_keep_their_bounds_and_begin_with_the_head(
    discipline: str, sizes: list[tuple[int, int]], base_s: float, most: float
) -> None:
    queue = queue_of(discipline, *[_ticket(number, length, rows=rows) for number, (length, rows) in enumerate(sizes)])
    cost, served = Cost(base_s, 1e-4), []
    while len(queue):
        head = queue.head(100.0)
        assert head is not None
        batch = _joined(queue, cost, most=most)
        assert batch[0].id == head.id
        rows, longest = sum(ticket.rows for ticket in batch), max(ticket.length for ticket in batch)
        real = sum(ticket.rows * ticket.length for ticket in batch)
        assert rows <= LIMIT
        assert rows * longest - real <= most * rows * longest + 1e-9
        apart: dict[int, int] = {}
        for ticket in batch:
            apart[ticket.length] = apart.get(ticket.length, 0) + ticket.rows
        alone_s = sum(cost.mean(count, length) for length, count in apart.items())
        assert cost.mean(rows, longest) <= alone_s + 1e-9, "no more work than a batch for each length"
        served += ids(batch)
    assert sorted(served) == list(range(len(sizes)))
    assert queue.rows == 0


@pytest.mark.parametrize("discipline", DISCIPLINES)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["push", "push", "pop", "line", "remove"]), st.integers(1, 6), st.integers(1, 3)))
)
def test_a_queue_knows_which_lengths_wait(discipline: str, steps: list[tuple[str, int, int]]) -> None:
    queue, waiting, number = queue_of(discipline), dict[int, Ticket](), 0
    for step, length, rows in steps:
        if step == "push":
            number += 1
            waiting[number] = _ticket(number, length, rows=rows)
            queue.push(waiting[number], 100.0)
        elif step == "remove":
            if waiting:
                gone = sorted(waiting)[length % len(waiting)]
                queue.remove(gone)
                del waiting[gone]
        elif step == "pop":
            for ticket in queue.pop(rows, 100.0):
                del waiting[ticket.id]
        else:
            line = [ticket for ticket in waiting.values() if ticket.length == length]
            if line:
                taken = queue.pop_line((1, length), rows, 100.0)
                assert all(ticket.length == length for ticket in taken)
                assert sum(ticket.rows for ticket in taken) <= rows
                assert taken or any(ticket.rows > rows for ticket in line)
                for ticket in taken:
                    del waiting[ticket.id]
        lengths = sorted({ticket.length for ticket in waiting.values()})
        assert queue.relatives(_ticket(0, 99)) == [(length, (1, length)) for length in lengths]
        for other in lengths:
            rows_there = sum(ticket.rows for ticket in waiting.values() if ticket.length == other)
            assert queue.rows_of((1, other)) == rows_there
        assert queue.rows == sum(ticket.rows for ticket in waiting.values())
        head = queue.head(100.0)
        assert (head is None) == (not waiting)
