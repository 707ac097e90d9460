"""How many instances a load wants: windows, bursts, delays, what was learnt of numbers that did not suffice, bounds."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.policy.scaling import KNATIVE, RAY_SERVE, Bounds, Load, Meter, Rule, ScalePolicy, Static, Windowed

BATCH, CAPACITY = 8.0, 40.0  # so one instance is right for 11.2 rows in flight and 28 rows a second
WIDE = Bounds(1, 16)
HOUR_S = 3600


def load(at: float, instances: int, rate: float, *, in_flight: float = 0.0, missed: float = 0.0, busy: float = 0.0) -> Load:
    return Load(
        at=at,
        instances=instances,
        in_flight=in_flight,
        arrived=rate,
        missed=missed,
        busy=busy,
        batch=BATCH,
        capacity=CAPACITY,
        start_s=5.0,
    )


class Run:
    """A policy that is told of one load after the other, and obeyed at once."""

    def __init__(self, policy: ScalePolicy, bounds: Bounds = WIDE, instances: int = 1) -> None:
        self.policy = policy
        self.bounds = bounds
        self.instances = instances
        self.now = 0.0
        self.changes: list[tuple[float, int]] = []
        self.reasons: list[str] = []

    def go(self, seconds: int, make: Callable[[float, int], Load]) -> "Run":
        for _ in range(seconds):
            self.now += 1.0
            advice = self.policy.decide(make(self.now, self.instances), self.bounds)
            if advice.count != self.instances:
                self.instances = advice.count
                self.reasons.append(advice.reason)
                self.changes.append((self.now, self.instances))
        return self

    def rate(self, seconds: int, rate: float) -> "Run":
        return self.go(seconds, lambda at, instances: load(at, instances, rate))

    def in_flight(self, seconds: int, rows: float) -> "Run":
        return self.go(seconds, lambda at, instances: load(at, instances, 1.0, in_flight=rows))

    def busy(self, seconds: int, share: float) -> "Run":
        return self.go(seconds, lambda at, instances: load(at, instances, 1.0, busy=share))


def counts(changes: Iterable[tuple[float, int]]) -> list[int]:
    return [count for _, count in changes]


@pytest.mark.parametrize(("rate", "wanted"), [(1.0, 1), (28.0, 1), (30.0, 1), (32.0, 2), (56.0, 2), (100.0, 4), (1000.0, 16)])
def test_arrivals_need_what_serves_them_with_room_to_spare(rate: float, wanted: int) -> None:
    run = Run(Windowed(Rule())).rate(300, rate)
    assert run.instances == wanted


@pytest.mark.parametrize(("rows", "wanted"), [(11.0, 1), (12.0, 1), (13.0, 2), (30.0, 3), (60.0, 6)])
def test_rows_in_flight_need_instances_that_have_time_for_them(rows: float, wanted: int) -> None:
    assert Run(Windowed(Rule())).in_flight(300, rows).instances == wanted
    assert Run(Windowed(Rule(target=1e9))).in_flight(300, rows).instances == 1


@pytest.mark.parametrize(("busy", "wanted"), [(0.7, 1), (0.75, 1), (0.9, 2), (2.8, 4), (2.9, 5)])
def test_instances_that_are_busy_need_others(busy: float, wanted: int) -> None:
    run = Run(Windowed(Rule(signal="utilisation", by_rate=False, panic_at=100.0))).busy(300, busy)
    assert run.instances == wanted


def test_a_burst_is_answered_within_the_short_window() -> None:
    run = Run(Windowed(Rule())).rate(600, 20.0)
    run.rate(60, 200.0)
    at, count = run.changes[0]
    assert at - 600.0 <= Rule().panic_s
    assert count >= 3
    assert run.instances >= 7
    assert run.changes[-1][0] - 600.0 <= 2 * Rule().panic_s
    assert "burst" in run.reasons[0]


def test_after_a_burst_nothing_goes_before_it_has_been_calm_for_long_enough_and_then_by_halves() -> None:
    rule = Rule()
    run = Run(Windowed(rule)).rate(600, 20.0).rate(30, 200.0)
    ended_at, before = run.now, len(run.changes)
    run.rate(HOUR_S, 10.0)
    down = run.changes[before:]
    assert down[0][0] - ended_at >= rule.down_delay_s
    assert counts(down) == [3, 1]


def test_chance_is_no_burst() -> None:
    """Of a slow model three requests in three seconds are much more than usual, and mean nothing."""

    def slow(at: float, instances: int) -> Load:
        return replace(load(at, instances, 1.0 if at > 300 else 0.3), capacity=0.6, batch=1.0)

    assert Run(Windowed(Rule()), instances=1).go(303, slow).changes == []


def test_a_number_that_did_not_suffice_is_not_gone_back_to_at_the_same_rate() -> None:
    """A second instance halves more than the rows in flight: by these alone it would come and go for ever."""

    def batches(at: float, instances: int) -> Load:
        return load(at, instances, 20.0, in_flight=14.0 if instances == 1 else 4.0)

    assert counts(Run(Windowed(Rule())).go(3 * HOUR_S, batches).changes) == [2]
    forgetful = Run(Windowed(Rule(remember_s=0.0, remember_burst_s=0.0))).go(3 * HOUR_S, batches)
    assert len(forgetful.changes) > 20
    calmer = Run(Windowed(Rule())).go(300, batches).rate(300, 14.0)
    assert counts(calmer.changes) == [2, 1]


def test_an_objective_that_is_missed_needs_one_more_until_it_is_not() -> None:
    def hard(at: float, instances: int) -> Load:
        return load(at, instances, 20.0, in_flight=3.0, missed=1.0 if instances < 3 else 0.0)

    run = Run(Windowed(Rule())).go(HOUR_S, hard)
    assert counts(run.changes) == [2, 3]
    assert Run(Windowed(Rule(most_missed=0.1))).go(HOUR_S, hard).changes == []


def test_nothing_is_given_up_while_too_much_of_an_hour_missed_the_objective() -> None:
    run = Run(Windowed(Rule()), instances=4)
    run.go(10, lambda at, instances: load(at, instances, 100.0, missed=80.0))
    run.rate(HOUR_S - 120, 10.0)
    assert counts(run.changes) == [5]
    run.rate(HOUR_S, 10.0)
    assert run.instances == 1


def test_knatives_defaults() -> None:
    run = Run(Windowed(KNATIVE), instances=8).in_flight(300, 35.0)
    assert counts(run.changes) == [4, 2, 1]  # halves, without delay
    assert run.in_flight(300, 80.0).instances == 2
    assert run.in_flight(6, 500.0).instances >= 4  # a panic
    assert run.in_flight(50, 10.0).instances >= 4


def test_ray_serves_defaults() -> None:
    run = Run(Windowed(RAY_SERVE)).in_flight(25, 3.9)
    assert run.changes == []
    run.in_flight(60, 3.9)
    assert counts(run.changes) == [2]
    began_at = run.now
    run.in_flight(700, 1.0)
    assert run.instances == 1
    assert run.changes[-1][0] - began_at >= 600.0


# Zero


def test_nothing_is_left_once_nothing_came_for_long_enough_and_the_first_request_has_one_started() -> None:
    run = Run(Windowed(Rule()), Bounds(2, 8, zero_after_s=300.0), instances=2).rate(100, 5.0)
    run.rate(299, 0.0)
    assert run.instances == 2
    run.rate(2, 0.0)
    assert run.instances == 0
    assert "nothing came" in run.reasons[-1]
    assert run.rate(1000, 0.0).instances == 0
    assert run.rate(1, 1.0).instances == 2


def test_without_a_limit_idle_instances_stay() -> None:
    assert Run(Windowed(Rule()), instances=1).rate(HOUR_S, 0.0).instances == 1


# Whatever comes

LOADS = st.lists(
    st.tuples(st.floats(0.0, 500.0), st.floats(0.0, 200.0), st.floats(0.0, 20.0), st.integers(1, 90)), min_size=1, max_size=12
)
RULES = st.sampled_from([Rule(), Rule(signal="utilisation", by_rate=False), KNATIVE, RAY_SERVE, Rule(stable_s=5.0)])


@given(LOADS, RULES, st.integers(1, 5), st.integers(0, 20), st.integers(0, 30))
def test_bounds_are_kept_from_the_first_answer(
    loads: list[tuple[float, float, float, int]], rule: Rule, least: int, more: int, start: int
) -> None:
    run = Run(Windowed(rule), Bounds(least, least + more), instances=start)
    for rate, in_flight, busy, seconds in loads:
        for _ in range(seconds):
            run.go(1, lambda at, count, now=(rate, in_flight, busy): load(at, count, now[0], in_flight=now[1], busy=now[2]))
            assert least <= run.instances <= least + more


@settings(max_examples=6, deadline=None)  # hours each
@given(LOADS, RULES)
def test_a_load_that_stays_comes_to_rest(loads: list[tuple[float, float, float, int]], rule: Rule) -> None:
    """Whatever was before; rows in flight and busy instances are what they are however many instances there are."""
    run = Run(Windowed(rule))
    for rate, in_flight, busy, seconds in loads:
        run.go(seconds, lambda at, count, now=(rate, in_flight, busy): load(at, count, now[0], in_flight=now[1], busy=now[2]))
    run.go(2 * HOUR_S, lambda at, count, now=loads[-1]: load(at, count, now[0], in_flight=now[1], busy=now[2]))
    assert not run.changes or run.changes[-1][0] < run.now - HOUR_S


def test_a_fixed_number_keeps_to_the_bounds_too() -> None:
    assert Static(9).decide(load(1.0, 1, 5.0), Bounds(1, 4)).count == 4


def test_a_meter_makes_rates_and_means_of_counters() -> None:
    meter = Meter(10.0)
    for rows in (2.0, 4.0):
        meter.look(rows)
    more = {"instances": 3, "batch": BATCH, "capacity": CAPACITY, "start_s": 1.0}
    first = meter.load(12.0, arrived=20, missed=4, busy_s=3.0, **more)
    assert (first.in_flight, first.arrived, first.missed, first.busy) == (3.0, 10.0, 2.0, 1.5)
    second = meter.load(13.0, arrived=21, missed=4, busy_s=3.5, **more)
    assert (second.in_flight, second.arrived, second.missed, second.busy, second.instances) == (0.0, 1.0, 0.0, 0.5, 3)
