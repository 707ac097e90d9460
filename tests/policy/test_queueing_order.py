"""In which order each queue discipline serves: tables, and shortest job first against the theory."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.queueing import DEFAULT_LEVEL, LOWEST_LEVEL, level
from tests.policy.queues import AGEING_S, STARVATION_S, cost_s, drain, ids, queue_of


@pytest.mark.parametrize(("priority", "expected"), [(0, DEFAULT_LEVEL), (1, 1), (4, 4), (8, 8), (9, LOWEST_LEVEL), (10**9, 8)])
def test_level_of_a_priority(priority: int, expected: int) -> None:
    assert level(Ticket(1, 0.0, priority=priority)) == expected


@pytest.mark.parametrize(
    ("due", "order"),
    [
        pytest.param([(3.0, 0), (1.0, 0), (2.0, 0)], [2, 3, 1], id="earliest deadline first"),
        pytest.param([(2.0, 0), (1.0, 0), (2.0, 0), (1.0, 0)], [2, 4, 1, 3], id="ties by id"),
        pytest.param(
            [(inf, 0), (STARVATION_S - 0.1, 0), (STARVATION_S + 0.1, 0)], [2, 1, 3], id="without one: due when starved"
        ),
        pytest.param([(1e9, 0), (inf, 0)], [1, 2], id="a generous deadline is worth no less than none"),
        pytest.param([(2.0, 4), (2.0, 3), (2.0, 8), (2.0, 0)], [2, 1, 4, 3], id="the more urgent one first, 0 is the default"),
        pytest.param([(2.0 + AGEING_S - 0.1, 3), (2.0, 4)], [1, 2], id="a level is worth a little less than ..."),
        pytest.param([(2.0 + AGEING_S + 0.1, 3), (2.0, 4)], [2, 1], id="... and a little more than ageing_s"),
        pytest.param([(2.1, 8), (2.0, 10**6)], [2, 1], id="below the lowest level there is none"),
    ],
)
def test_edf(due: list[tuple[float, int]], order: list[int]) -> None:
    """Deadlines and priorities of tickets that come one after another, a moment apart."""
    tickets = [Ticket(number, number * 1e-3, at, priority=urgency) for number, (at, urgency) in enumerate(due, start=1)]
    queue = queue_of("edf", *tickets)
    assert ids(drain(queue, 0.1)) == order


def test_fcfs_minds_nothing_but_the_order_of_arrival() -> None:
    queue = queue_of("fcfs", Ticket(1, 0.0, rows=9, priority=8), Ticket(2, 0.0, 1.0, priority=1), Ticket(3, 0.0, 0.5))
    assert ids(drain(queue, 0.0)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("arrivals", "now", "order"),
    [
        pytest.param([(0.0, 4), (0.0, 1), (0.0, 2), (0.0, 1)], 1.0, [2, 4, 3, 1], id="smallest first, ties by id"),
        pytest.param([(0.0, 4), (1.0, 1)], STARVATION_S - 0.1, [2, 1], id="not starved yet"),
        pytest.param([(0.0, 4), (1.0, 1)], STARVATION_S, [1, 2], id="starved goes first"),
        pytest.param([(0.0, 4), (0.5, 2), (1.0, 1)], 99.0, [1, 2, 3], id="among the starved the oldest"),
    ],
)
def test_sjf(arrivals: list[tuple[float, int]], now: float, order: list[int]) -> None:
    queue = queue_of("sjf", *(Ticket(number, at, rows=rows) for number, (at, rows) in enumerate(arrivals, start=1)))
    assert ids(drain(queue, now)) == order


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=30))
def test_sjf_has_the_least_mean_wait_of_a_set_of_jobs(sizes: list[int]) -> None:
    """Smith 1956, and so never more than FCFS."""
    waits: dict[str, float] = {}
    for discipline in ("sjf", "fcfs"):
        queue = queue_of(discipline, *(Ticket(number, 0.0, rows=rows) for number, rows in enumerate(sizes)))
        clock_s = total_s = 0.0
        for ticket in drain(queue, 0.0):
            total_s += clock_s
            clock_s += cost_s(ticket.rows)
        waits[discipline] = total_s
    least_s = sum(cost_s(rows) * behind for behind, rows in enumerate(sorted(sizes, reverse=True)))
    assert waits["sjf"] == least_s <= waits["fcfs"]


def test_sjf_of_very_many_sizes_rounds_them_a_little() -> None:
    sizes = [(number * 7919) % 100_003 + 1 for number in range(2000)]
    queue = queue_of("sjf", *(Ticket(number, 0.0, rows=rows) for number, rows in enumerate(sizes)))
    assert len(queue._lines) < 256 + 17 * 16, "one class for each size up to 256 of them, then 16 for each power of two"
    served = [ticket.rows for ticket in drain(queue, 0.0)]
    assert sorted(served) == sorted(sizes)
    for position, rows in enumerate(served):
        assert rows <= min(served[position:]) * (1 + 2 / 16)


@pytest.mark.parametrize(
    ("arrivals", "now", "order"),
    [
        pytest.param([(0.0, 7), (0.0, 1)], 1.0, [2, 1], id="the shorter of equal age"),
        pytest.param([(0.0, 7), (3.0, 1)], 3.9, [1, 2], id="waited 3.9 of 4 s against 0.9 of 1 s"),
        pytest.param([(0.0, 7), (3.0, 1)], 4.1, [2, 1], id="waited 4.1 of 4 s against 1.1 of 1 s"),
        pytest.param([(0.0, 7), (1.0, 7), (1.0, 3)], 2.0, [1, 3, 2], id="ratios 0.5, 0.25 and 0.5: ties by id"),
    ],
)
def test_hrrn(arrivals: list[tuple[float, int]], now: float, order: list[int]) -> None:
    queue = queue_of("hrrn", *(Ticket(number, at, rows=rows) for number, (at, rows) in enumerate(arrivals, start=1)))
    assert ids(drain(queue, now)) == order


@pytest.mark.parametrize(
    ("arrivals", "now", "order"),
    [
        pytest.param(
            [(0.0, 16), (0.0, 15), (0.0, 7), (0.0, 3), (0.0, 1)], 1.0, [5, 4, 3, 1, 2], id="quanta of 1, 2, 4 and 8 s"
        ),
        pytest.param([(0.0, 7), (0.0, 4), (0.0, 3), (0.0, 2)], 1.0, [3, 4, 1, 2], id="FCFS within a level"),
        pytest.param([(0.0, 7), (0.0, 99), (1.0, 1)], STARVATION_S, [1, 2, 3], id="the boost makes all equal"),
        pytest.param(
            [(0.0, 99), (STARVATION_S, 7), (STARVATION_S, 1)], STARVATION_S, [1, 3, 2], id="what comes then is not boosted"
        ),
    ],
)
def test_mlfq(arrivals: list[tuple[float, int]], now: float, order: list[int]) -> None:
    queue = queue_of("mlfq", *(Ticket(number, at, rows=rows) for number, (at, rows) in enumerate(arrivals, start=1)))
    assert ids(drain(queue, now)) == order


@pytest.mark.parametrize(
    ("arrivals", "order"),
    [
        pytest.param([(0.0, 5), (0.0, 1), (0.0, 0), (0.0, 4), (0.0, 1)], [2, 5, 3, 4, 1], id="by level, FCFS within one"),
        pytest.param([(0.0, 8), (7 * AGEING_S - 0.1, 1)], [2, 1], id="seven levels up"),
        pytest.param([(0.0, 8), (7 * AGEING_S + 0.1, 1)], [1, 2], id="seven levels up, but aged"),
        pytest.param([(0.0, 50), (3 * AGEING_S + 4 * AGEING_S + 0.1, 1)], [1, 2], id="level 50 is level 8"),
    ],
)
def test_priority(arrivals: list[tuple[float, int]], order: list[int]) -> None:
    queue = queue_of(
        "priority", *(Ticket(number, at, priority=urgency) for number, (at, urgency) in enumerate(arrivals, start=1))
    )
    assert ids(drain(queue, 9.0)) == order
