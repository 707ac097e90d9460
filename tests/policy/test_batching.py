"""The batch limit: what follows from the objective and the fitted line, when it moves, and when a batch waits.

test_limit_steps.py has how it gets there.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.batching import FREE_BATCH_S, OBSERVE_EVERY_S, RECENT_S, REFIT_EVERY, FittedBatching, Take, Wait
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.fitting import EARLY
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import Fcfs

GPU_LIKE = [(rows, 0.010 + 0.0005 * rows) for rows in (1, 2, 4, 8)]
CPU_LIKE = [(rows, 0.001 + 0.004 * rows) for rows in (1, 2, 4, 8)]
TINY = [(rows, 20e-6 + 2e-6 * rows) for rows in (1, 2, 4, 8)]


def knobs(*, max_batch: int = 256, slo_s: float | None = None, max_wait_s: float = 0.0) -> LaneKnobs:
    return LaneKnobs(max_batch=max_batch, max_queue_rows=1000, slo_s=slo_s, max_wait_s=max_wait_s)


def grown(batching: FittedBatching, model: LatencyModel) -> FittedBatching:
    """The same, after batches as large as it would take them, each of which ran as expected."""
    now = 0.0
    for _ in range(EARLY + 12):
        now += 1.0
        batching.observe(batching.limit, model.mean(batching.limit), now)
    return batching


def queue_of(*tickets: Ticket) -> Fcfs:
    queue = Fcfs()
    for ticket in tickets:
        queue.push(ticket, ticket.arrived_at)
    return queue


@pytest.mark.parametrize(
    ("prior", "slo_s", "max_batch", "limit"),
    [
        pytest.param(GPU_LIKE, 0.100, 256, 72, id="(46 ms - 10 ms) / 0.5 ms per row"),
        pytest.param(GPU_LIKE, 0.100, 64, 64, id="never more than max_batch"),
        pytest.param(GPU_LIKE, 0.0315, 256, 8, id="a tight objective"),
        pytest.param(GPU_LIKE, 0.001, 256, 1, id="an objective that cannot be met leaves batches of one"),
        pytest.param(CPU_LIKE, 0.050, 256, 5, id="little gain from batching"),
        pytest.param(GPU_LIKE, None, 256, 28, id="no objective: 5 x L(1), half of it, less 8 %: (24.15 ms - 10 ms) / 0.5 ms"),
        pytest.param(TINY, None, 1024, 490, id="no objective and a tiny model: a batch of 1 ms is free"),
        pytest.param(GPU_LIKE, None, 1, 1, id="a model that does not batch"),
    ],
)
def test_limit_follows_from_the_objective(
    prior: list[tuple[int, float]], slo_s: float | None, max_batch: int, limit: int
) -> None:
    model = LatencyModel(prior)
    batching = FittedBatching(knobs(max_batch=max_batch, slo_s=slo_s), model)
    assert (batching.limit, batching.goal) == (1, limit), "whatever warm-up said, the first batch holds one row"
    assert grown(batching, model).limit == limit


def test_budget_is_half_the_objective_less_eight_percent() -> None:
    assert FittedBatching(knobs(slo_s=0.1), LatencyModel(GPU_LIKE)).budget_s() == pytest.approx(0.1 / 2 * 0.92)


@pytest.mark.parametrize(("slo_s", "budget_s"), [(None, 0.002), (0.1, 0.002), (0.002, 0.00092)])
def test_a_bound_on_a_batchs_time_holds_whatever_the_objective_allows(slo_s: float | None, budget_s: float) -> None:
    bounded = LaneKnobs(max_batch=1024, max_queue_rows=1000, slo_s=slo_s, max_batch_s=0.002)
    assert FittedBatching(bounded, LatencyModel(GPU_LIKE)).budget_s() == pytest.approx(budget_s)


def test_budget_without_an_objective_is_a_multiple_of_one_row_and_at_least_a_millisecond() -> None:
    assert FittedBatching(knobs(), LatencyModel(GPU_LIKE)).budget_s() == pytest.approx(5 * 0.0105 / 2 * 0.92)
    assert FittedBatching(knobs(), LatencyModel(TINY)).budget_s() == FREE_BATCH_S


@given(
    prior=st.lists(st.tuples(st.integers(1, 256), st.floats(1e-6, 10.0)), max_size=6),
    slo_s=st.none() | st.floats(1e-4, 100.0),
    max_batch=st.integers(1, 4096),
    history=st.lists(st.tuples(st.integers(1, 256), st.floats(0.0, 10.0)), max_size=120),
)
def test_limit_is_within_one_and_max_batch_and_its_p99_in_budget(
    prior: list[tuple[int, float]], slo_s: float | None, max_batch: int, history: list[tuple[int, float]]
) -> None:
    model = LatencyModel(prior)
    batching = FittedBatching(knobs(max_batch=max_batch, slo_s=slo_s), model)
    now = 0.0
    for rows, service_s in history:
        now += max(service_s, OBSERVE_EVERY_S)
        batching.observe(rows, service_s, now)
        assert 1 <= batching.limit <= max_batch
    batching.configure(knobs(max_batch=max_batch, slo_s=slo_s))  # looks at the limit afresh
    second_row = slo_s is None and batching.limit == 2
    longest_s = model.mean(2) if second_row else model.p99(batching.limit)
    tries_two = batching.limit == 2 and {rows for rows, _ in history} == {1}  # of which only warm-up has spoken so far
    assert batching.limit == 1 or tries_two or longest_s <= batching.budget_s() * (1 + 1e-9)


@given(waiting=st.integers(1, 40), now=st.floats(0.0, 100.0))
def test_never_waits_by_default(waiting: int, now: float) -> None:
    model = LatencyModel(GPU_LIKE)
    batching = grown(FittedBatching(knobs(max_batch=16), model), model)
    queue = queue_of(*(Ticket(number, now) for number in range(waiting)))
    assert batching.decide(queue, now) == Take(16)


def test_waits_for_a_full_batch_until_the_head_has_waited_max_wait() -> None:
    model = LatencyModel(GPU_LIKE)
    batching = grown(FittedBatching(knobs(max_batch=4, max_wait_s=0.5), model), model)
    queue = queue_of(Ticket(1, 10.0), Ticket(2, 10.2))
    assert batching.decide(queue, 10.2) == Wait(10.5)
    assert batching.decide(queue, 10.5) == Take(4), "a Wait is over at the very time that it names"
    queue.push(Ticket(3, 10.3, rows=2), 10.3)
    assert batching.decide(queue, 10.3) == Take(4), "a full batch does not wait"


def test_new_knobs_hold_at_once() -> None:
    model = LatencyModel(GPU_LIKE)
    batching = grown(FittedBatching(knobs(max_batch=4, max_wait_s=0.5), model), model)
    queue = queue_of(Ticket(1, 10.0))
    batching.configure(knobs(max_batch=8))
    assert batching.decide(queue, 10.0) == Take(8)
    batching.configure(knobs(max_batch=8, slo_s=0.001))
    assert batching.decide(queue, 10.0) == Take(1)


def test_a_limit_that_holds_moves_only_every_so_many_batches() -> None:
    model = LatencyModel(GPU_LIKE)
    batching = grown(FittedBatching(knobs(slo_s=0.1), model), model)
    batching.configure(knobs(slo_s=0.1))  # the count begins here
    for batch in range(1, REFIT_EVERY):
        batching.observe(8, 1.2 * 0.014, 200.0 + batch)
        assert batching.limit == 72
    batching.observe(8, 1.2 * 0.014, 200.0 + REFIT_EVERY)
    assert 30 < batching.limit < 65


def test_a_batch_over_its_budget_shrinks_the_limit_at_once_and_one_within_it_lets_it_grow_back() -> None:
    model = LatencyModel(GPU_LIKE)
    batching = grown(FittedBatching(knobs(slo_s=0.1), model), model)
    batching.observe(72, 0.092, 100.0)  # twice the budget
    assert batching.limit == 36, "what would just have been in time"
    batching.observe(36, 0.028, 101.0)
    assert batching.limit == pytest.approx(72, rel=0.15), "it was the machine"


def test_the_largest_batch_in_budget_is_forgotten_after_a_while() -> None:
    model = LatencyModel(GPU_LIKE)
    batching = grown(FittedBatching(knobs(slo_s=0.1), model), model)
    for batch in range(3 * REFIT_EVERY):
        batching.observe(1, 0.0105, 33.0 + batch * RECENT_S / REFIT_EVERY)
    assert batching.goal == 72
    assert batching.limit in (36, 72)
    for batch in range(20 * REFIT_EVERY):
        batching.observe(1, 0.0105, 500.0 + batch * RECENT_S / REFIT_EVERY)
    assert batching.limit == 2


def test_of_quick_batches_a_sample_is_learned_from() -> None:
    model = LatencyModel(TINY)
    batching = FittedBatching(knobs(), model)
    before = model.mean(1)
    batching.observe(2, model.mean(2), 1.0)
    batching.observe(1, before * 2, 5.0)
    learned = model.mean(1)
    assert learned > before
    batching.observe(1, before * 2, 5.0 + 0.9 * OBSERVE_EVERY_S)
    assert model.mean(1) == learned
    batching.observe(1, before * 2, 5.0 + 1.1 * OBSERVE_EVERY_S)
    assert model.mean(1) != learned
    learned = model.mean(1)
    batching.observe(4, before * 4, 5.0 + 1.2 * OBSERVE_EVERY_S)
    assert model.mean(1) != learned, "of more rows than ever ran, always"


@pytest.mark.parametrize(("slo_s", "limits"), [(None, {2}), (0.125, {1, 2})])
def test_noise_takes_away_the_second_row_only_for_an_objective(slo_s: float | None, limits: set[int]) -> None:
    model = LatencyModel([(1, 0.025), (2, 0.050)])
    batching = grown(FittedBatching(knobs(slo_s=slo_s), model), model)
    seen = set()
    for batch in range(6 * REFIT_EVERY):
        rows = 1 + batch % 2
        batching.observe(rows, 0.025 * rows * (0.85, 0.85, 1.15, 1.15)[batch % 4], float(batch))
        seen.add(batching.limit)
    assert seen == limits


def test_without_an_objective_the_second_row_keeps_to_the_bound_on_a_batchs_time() -> None:
    bounded = LaneKnobs(max_batch=64, max_queue_rows=1000, max_batch_s=0.040)
    assert FittedBatching(bounded, LatencyModel([(1, 0.025), (2, 0.050)])).goal == 1
