"""What all queue disciplines have in common: batches, shapes, names, refilling, memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import DISCIPLINES, make_queue, refill
from tests.policy.queues import cost_s, drain, ids, knobs, queue_of

every_discipline = pytest.mark.parametrize("discipline", DISCIPLINES)
tickets = st.builds(
    Ticket,
    id=st.just(0),
    arrived_at=st.sampled_from([0.0, 0.25, 0.5]),
    deadline_at=st.sampled_from([1.0, 2.0, 3.5, 1e9]),
    rows=st.integers(1, 5),
    priority=st.integers(0, 9),
    tenant=st.sampled_from(["", "gold", "tin"]),
    shape_key=st.sampled_from([(), (3,), (3, 224)]),
)


def numbered(drawn: list[Ticket]) -> list[Ticket]:
    """The same tickets as they would come: ids in order of arrival."""
    drawn.sort(key=lambda ticket: ticket.arrived_at)
    for number, ticket in enumerate(drawn, start=1):
        ticket.id = number
    return drawn


@every_discipline
@pytest.mark.parametrize(
    ("waiting", "rows", "taken"),
    [
        pytest.param([1, 1, 1], 2, [1, 2], id="oldest first"),
        pytest.param([1, 1, 1], 9, [1, 2, 3], id="all that there is"),
        pytest.param([2, 2, 2], 5, [1, 2], id="never more rows than asked for"),
        pytest.param([4, 4], 3, [1], id="a larger first ticket comes alone"),
        pytest.param([4, 4], 4, [1], id="exactly full"),
        pytest.param([], 4, [], id="nothing waits"),
    ],
)
def test_pop_takes_what_fits(discipline: str, waiting: list[int], rows: int, taken: list[int]) -> None:
    queue = queue_of(discipline, *(Ticket(number, 0.0, rows=size) for number, size in enumerate(waiting, start=1)))
    assert ids(queue.pop(rows, 0.0)) == taken
    assert len(queue) == len(waiting) - len(taken)


@every_discipline
def test_nobody_overtakes_the_next_in_line_by_being_smaller(discipline: str) -> None:
    queue = queue_of(discipline, Ticket(1, 0.0, rows=2), Ticket(2, 1.0, rows=4), Ticket(3, 49.5, rows=1))
    now = 50.0  # the first two have waited so long that they go first by any rule
    assert ids(queue.pop(5, now)) == [1]
    assert ids(queue.pop(5, now)) == [2, 3]


@every_discipline
def test_a_batch_has_one_shape_and_the_first_shape_in_line_goes_first(discipline: str) -> None:
    shapes = [(1, (8,)), (2, (9,)), (3, (8,)), (4, (9,)), (5, (8,))]
    queue = queue_of(discipline, *(Ticket(number, 0.0, shape_key=shape) for number, shape in shapes))
    assert ids(queue.pop(2, 0.0)) == [1, 3]
    assert ids(queue.pop(9, 0.0)) == [2, 4]
    assert ids(queue.pop(9, 0.0)) == [5]
    assert queue.rows == len(queue) == 0
    assert queue.head(0.0) is queue.last(0.0) is None


@every_discipline
def test_a_ticket_can_be_taken_out_from_anywhere_once(discipline: str) -> None:
    waiting = [Ticket(number, 0.0, rows=2, shape_key=(number % 2,)) for number in range(6)]
    queue = queue_of(discipline, *waiting)
    for gone in (2, 5, 0):
        assert gone in queue
        assert queue.remove(gone) is waiting[gone]
        assert gone not in queue
        assert queue.remove(gone) is None
    assert (queue.rows, ids(drain(queue, 0.0))) == (6, [1, 3, 4])


@every_discipline
def test_an_older_ticket_that_comes_late_is_served_by_its_age(discipline: str) -> None:
    queue = queue_of(discipline, *(Ticket(number, 0.0, tenant=str(number)) for number in (5, 9, 3, 7, 1)))
    assert ids(drain(queue, 0.0)) == [1, 3, 5, 7, 9]


def test_an_unknown_discipline_is_refused_with_the_names_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown queue discipline 'lifo': it is one of edf, fcfs, sjf, .*fair"):
        make_queue(LaneKnobs(max_batch=1, max_queue_rows=1, discipline="lifo"), cost_s)


def test_the_default_of_the_knobs_is_a_discipline() -> None:
    assert LaneKnobs(max_batch=1, max_queue_rows=1).discipline == DISCIPLINES[0] == "edf"


@given(drawn=st.lists(tickets, max_size=12), old=st.sampled_from(DISCIPLINES), new=st.sampled_from(DISCIPLINES))
def test_a_change_of_discipline_loses_nothing_and_orders_anew(drawn: list[Ticket], old: str, new: str) -> None:
    waiting = numbered(drawn)
    before, after = queue_of(old, *waiting), make_queue(knobs(new), cost_s)
    assert refill(before, after, 1.0) is after
    assert (len(before), before.rows) == (0, 0)
    assert (len(after), after.rows) == (len(waiting), sum(ticket.rows for ticket in waiting))
    assert ids(drain(after, 1.0)) == ids(drain(queue_of(new, *waiting), 1.0))


@every_discipline
def test_what_has_left_leaves_nothing_behind(discipline: str) -> None:
    """Shapes, sizes and tenants come and go, while one ticket waits on."""
    queue = queue_of(discipline, Ticket(10_000, 1e6, 1e9, priority=8))
    for number in range(3000):
        queue.push(Ticket(number, 0.0, 0.0, number % 300 + 1, tenant=str(number), shape_key=(number % 77,)), 0.0)
        queue.remove(number) if number % 2 else queue.pop(1, 0.0)
    held = {name: len(value) for name, value in vars(queue).items() if isinstance(value, (dict, list))}
    accounts = held.pop("_finish", 0)
    assert held
    assert max(held.values()) <= 3, held
    assert accounts <= 1025


@every_discipline
def test_rows_before_samples_many_shapes(discipline: str) -> None:
    waiting = [Ticket(number, number / 64, rows=2, tenant="gold", shape_key=(number % 50,)) for number in range(1, 401)]
    queue = queue_of(discipline, *waiting)
    newcomer = Ticket(401, 401 / 64, rows=2, tenant="gold")
    assert queue.rows_before(newcomer, newcomer.arrived_at) == 800
    if discipline != "fair":  # there the place of a newcomer is by its tenant
        assert queue.rows_before(Ticket(0, 0.0, rows=2), 401 / 64) == 0
        assert queue.rows_before(Ticket(200, 200 / 64, rows=2), 401 / 64) == pytest.approx(400, abs=20)
