"""The queueing model of the rules: bounds, directions, and what a simulated lane misses; then what the rules make of it."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.policy.tuning.rules import Cost, CostBook, Load, Rules, share_missed
from dlproxy.policy.tuning.window import Window, joined
from tests.policy.tuning.lanes import KNOBS, SPACE, simulated

costs = st.builds(Cost, st.floats(0.0, 0.05), st.floats(1e-5, 0.02))
loads = st.builds(Load, st.floats(0.1, 50_000.0), st.floats(1.0, 16.0), st.floats(1.0, 50.0))
objectives = st.floats(0.005, 5.0)
bounds = st.sampled_from([1, 2, 8, 64, 256])


@given(costs, st.integers(1, 16), loads, objectives, bounds, st.floats(0.0, 0.1))
def test_what_misses_is_a_share(
    cost: Cost, instances: int, load: Load, objective_s: float, max_batch: int, wait_s: float
) -> None:
    missed = share_missed(cost, instances, load, objective_s, max_batch=max_batch, wait_s=wait_s)
    assert 0.0 <= missed <= 1.0


@given(costs, st.integers(1, 16), loads, st.floats(1.0, 3.0), objectives, bounds)
def test_more_load_misses_no_less(
    cost: Cost, instances: int, load: Load, times: float, objective_s: float, max_batch: int
) -> None:
    more = Load(load.rate * times, load.rows, load.dispersion)
    before = share_missed(cost, instances, load, objective_s, max_batch=max_batch)
    assert share_missed(cost, instances, more, objective_s, max_batch=max_batch) >= before - 1e-5


@given(costs, st.integers(1, 15), loads, objectives, bounds)
def test_another_instance_misses_no_more(cost: Cost, instances: int, load: Load, objective_s: float, max_batch: int) -> None:
    before = share_missed(cost, instances, load, objective_s, max_batch=max_batch)
    assert share_missed(cost, instances + 1, load, objective_s, max_batch=max_batch) <= before + 1e-5


@given(costs, st.integers(1, 16), loads, objectives, bounds, st.floats(0.0, 0.5), st.floats(0.0, 0.5))
def test_waiting_longer_misses_no_less(
    cost: Cost, instances: int, load: Load, objective_s: float, max_batch: int, wait_s: float, more_s: float
) -> None:
    before = share_missed(cost, instances, load, objective_s, max_batch=max_batch, wait_s=wait_s)
    after = share_missed(cost, instances, load, objective_s, max_batch=max_batch, wait_s=wait_s + more_s)
    assert after >= before - 1e-5


@pytest.mark.parametrize(
    ("cost", "instances", "arrivals", "rate", "objective_s"),
    [
        pytest.param(Cost(0.005, 0.001), 1, "poisson", 1150.0, 0.1, id="overload"),
        pytest.param(Cost(0.005, 0.001), 2, "gamma:cv=4.5", 1500.0, 0.05, id="bursts on two instances"),
        pytest.param(Cost(0.002, 0.004), 1, "gamma:cv=4.5", 180.0, 0.2, id="bursts of costly rows"),
        pytest.param(Cost(0.002, 0.004), 4, "poisson", 1200.0, 0.1, id="four instances overloaded"),
        pytest.param(Cost(0.005, 0.001), 1, "poisson", 500.0, 0.1, id="enough for all"),
    ],
)
def test_it_agrees_with_a_simulated_lane_within_a_factor(
    cost: Cost, instances: int, arrivals: str, rate: float, objective_s: float
) -> None:
    seen = joined(simulated(cost, instances, arrivals, rate, objective_s, 20_000 / rate))
    load = Load(seen.arrived / seen.seconds, 1.0, max(seen.dispersion, 1.0))
    said = share_missed(cost, instances, load, objective_s, max_batch=256)
    assert (said + 1e-3) / (seen.missed / seen.ended + 1e-3) == pytest.approx(1.0, abs=0.6)


def at(rate: float, missed: int, *, seconds: float = 5.0) -> Window:
    """One row each, batches of four and eight rows on the line 5 ms + 1 ms a row."""
    arrived = int(rate * seconds)
    seen = {rows: (50, 50 * (0.005 + 0.001 * rows)) for rows in (4, 8)}
    return Window(
        at=5.0,
        seconds=seconds,
        arrived=arrived,
        answered=arrived,
        in_time=arrived - missed,
        rows=arrived,
        dispersion=1.0,
        costs=seen,
    )


def test_a_cost_that_was_not_seen_is_scaled_by_threads_and_cores() -> None:
    book = CostBook()
    assert book.cost((1, 1), 4) is None
    book.observe((1, 1), at(100.0, 0))
    seen, wide, crowded = book.cost((1, 1), 4), book.cost((1, 4), 4), book.cost((8, 1), 4)
    assert seen is not None
    assert wide is not None
    assert crowded is not None
    assert (seen.base_s, seen.row_s) == (pytest.approx(0.005), pytest.approx(0.001))
    assert wide.seconds(8) == pytest.approx(seen.seconds(8) * (0.3 + 0.7 / 4))
    assert crowded.seconds(8) == pytest.approx(2.0 * seen.seconds(8))


def test_rules_ask_for_more_instances_where_one_is_too_few() -> None:
    proposal = Rules().act(at(2000.0, 5000), {**KNOBS, "max_batch": 64}, SPACE, 5.0)
    assert proposal is not None
    assert proposal.knobs["instances"] == 4
    assert proposal.gain > 0.1


def test_without_an_objective_nothing_misses_it() -> None:
    cost = Cost(0.005, 0.001)
    assert share_missed(cost, 1, Load(100.0, 1.0, 1.0), inf, max_batch=8) == 0.0
    proposal = Rules().act(at(100.0, 0), KNOBS, replace(SPACE, objective_s=inf), 5.0)
    assert proposal is not None
    assert proposal.harmless, "all that there is to propose is room for more"


def test_rules_leave_alone_what_is_pinned_and_what_is_good() -> None:
    pinned = {"instances", "threads", "max_batch", "max_wait_s"}
    assert Rules().act(at(2000.0, 5000), KNOBS, replace(SPACE, pinned=frozenset(pinned)), 5.0) is None
    good = {"max_batch": 64, "max_wait_s": 0.0, "instances": 4, "threads": 1}
    assert Rules().act(at(100.0, 0), good, SPACE, 5.0) is None
