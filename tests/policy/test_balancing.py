"""Peak-EWMA rises at once, decays, never takes errors for speed, forgets the dead; the others take turns, count and draw."""

from collections import Counter
from collections.abc import Callable
from itertools import cycle
from math import exp, isfinite
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.balancing import (
    DECAY_S,
    INITIAL_S,
    MAX_PENALTY_S,
    Balancer,
    LeastLoaded,
    LeastPeakEwma,
    PowerOfTwo,
    RoundRobin,
)

NONE_RUNNING = {"a": 0, "b": 0, "c": 0}


def choose(balancer: LeastPeakEwma, now: float = 0.0, **in_flight: int) -> str:
    return balancer.choose(in_flight or ["a", "b"], in_flight or NONE_RUNNING, now)


def test_an_unknown_instance_is_taken_for_thirty_milliseconds() -> None:
    assert LeastPeakEwma().expected_s("new", 0.0) == INITIAL_S


def test_a_peak_counts_at_once() -> None:
    balancer = LeastPeakEwma()
    balancer.observe("a", 0.010, ok=True, now=0.0)
    balancer.observe("a", 2.0, ok=True, now=0.1)
    assert balancer.expected_s("a", 0.1) == 2.0


def test_a_peak_decays_with_time_not_with_the_number_of_batches() -> None:
    balancer = LeastPeakEwma()
    balancer.observe("a", 2.0, ok=True, now=0.0)
    for _ in range(1000):
        balancer.observe("a", 0.010, ok=True, now=0.0)
    assert balancer.expected_s("a", 0.0) == 2.0
    balancer.observe("a", 0.010, ok=True, now=DECAY_S)
    assert balancer.expected_s("a", DECAY_S) == pytest.approx(2.0 * exp(-1) + 0.010 * (1 - exp(-1)))


def test_the_peak_of_a_silent_instance_decays_so_that_it_is_tried_again() -> None:
    balancer = LeastPeakEwma()
    balancer.observe("a", 2.0, ok=True, now=0.0)
    balancer.observe("b", 0.010, ok=True, now=0.0)
    now = 0.0
    while choose(balancer, now) == "b":
        now += 1.0
        balancer.observe("b", 0.010, ok=True, now=now)
        assert now < 6 * DECAY_S
    assert now > DECAY_S


@pytest.mark.parametrize(
    ("a_s", "b_s", "in_flight", "chosen"),
    [
        pytest.param(0.02, 0.01, {"a": 0, "b": 0}, "b", id="the quicker one"),
        pytest.param(0.02, 0.01, {"a": 0, "b": 2}, "a", id="the one with less to do: 1 x 20 ms before 3 x 10 ms"),
        pytest.param(0.02, 0.01, {"a": 0, "b": 1}, "a", id="ties go to the first listed"),
        pytest.param(0.02, 0.01, {"a": 1, "b": 2}, "b", id="a second batch on the slow one: 2 x 20 ms after 3 x 10 ms"),
    ],
)
def test_least_load_wins(a_s: float, b_s: float, in_flight: dict[str, int], chosen: str) -> None:
    balancer = LeastPeakEwma()
    balancer.observe("a", a_s, ok=True, now=0.0)
    balancer.observe("b", b_s, ok=True, now=0.0)
    assert choose(balancer, **in_flight) == chosen


@pytest.mark.parametrize("healthy_s", [0.001, 0.050, 0.200])
def test_an_instance_that_fails_fast_is_not_preferred(healthy_s: float) -> None:
    balancer = LeastPeakEwma()
    sent = {"healthy": 0, "broken": 0}
    for batch in range(1000):  # one batch at a time, for as long as each takes
        now = batch * healthy_s
        instance = balancer.choose(sent, {"healthy": 0, "broken": 0}, now)
        sent[instance] += 1
        broken = instance == "broken"
        balancer.observe(instance, 1e-4 if broken else healthy_s, ok=not broken, now=now)
    assert sent["broken"] <= 0.02 * 1000


@given(
    known_s=st.none() | st.floats(1e-6, 10.0),
    failed_after_s=st.floats(0.0, 10.0),
    now=st.floats(0.0, 100.0),
)
def test_a_failure_never_makes_an_instance_look_faster(known_s: float | None, failed_after_s: float, now: float) -> None:
    balancer = LeastPeakEwma()
    if known_s is not None:
        balancer.observe("a", known_s, ok=True, now=0.0)
    before = balancer.expected_s("a", now)
    balancer.observe("a", failed_after_s, ok=False, now=now)
    assert balancer.expected_s("a", now) >= before


def test_failures_without_end_stay_finite_and_are_forgiven() -> None:
    balancer = LeastPeakEwma()
    for failure in range(1000):
        balancer.observe("a", 0.001, ok=False, now=failure * 0.001)
    assert isfinite(balancer.expected_s("a", 1.0))
    assert balancer.expected_s("a", 1.0) <= MAX_PENALTY_S
    assert choose(balancer, 1.0) == "b"
    balancer.observe("b", 0.010, ok=True, now=101.0)
    assert choose(balancer, 101.0) == "a", "after some minute and a half it is tried again"
    balancer.observe("a", 0.010, ok=True, now=200.0)
    assert balancer.expected_s("a", 200.0) == pytest.approx(0.010, rel=0.01)


def test_an_instance_that_was_never_tried_is_tried_in_time() -> None:
    balancer = LeastPeakEwma()
    for tenth in range(120):
        balancer.observe("a", INITIAL_S / 3, ok=True, now=tenth / 10)
        if choose(balancer, tenth / 10) == "b":
            return
    pytest.fail("b was taken for slow for ever, though nobody had tried it")


def test_an_instance_of_the_same_name_starts_anew() -> None:
    balancer = LeastPeakEwma()
    balancer.observe("a", 5.0, ok=True, now=0.0)
    balancer.forget("a")
    balancer.forget("never seen")
    assert balancer.expected_s("a", 0.0) == INITIAL_S


@given(
    observed=st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0), st.booleans(), st.floats(0.0, 50.0)), max_size=40
    ),
    ready=st.sets(st.sampled_from("abc"), min_size=1),
)
def test_chooses_one_that_is_ready_whatever_it_saw(observed: list[tuple[str, float, bool, float]], ready: set[str]) -> None:
    balancer = LeastPeakEwma()
    now = 0.0
    for instance, service_s, ok, step_s in observed:
        now += step_s
        balancer.observe(instance, service_s, ok=ok, now=now)
        assert isfinite(balancer.expected_s(instance, now))
    assert balancer.choose(sorted(ready), NONE_RUNNING, now) in ready


# Balancers for fleets

FLEET = ["a", "b", "c"]


def spread(balancer: Balancer, rounds: int, *, at_a_time: int) -> Counter[str]:
    """Requests per instance if so many come at a time, and all end before the next ones come."""
    chosen: Counter[str] = Counter()
    for now in range(rounds):
        in_flight = dict.fromkeys(FLEET, 0)
        for _ in range(at_a_time):
            instance = balancer.choose(FLEET, in_flight, float(now))
            in_flight[instance] += 1
            chosen[instance] += 1
        for instance, times in in_flight.items():
            for _ in range(times):
                balancer.observe(instance, 0.010, ok=True, now=float(now))
    return chosen


def test_round_robin_gives_each_its_turn_whatever_it_does() -> None:
    balancer = RoundRobin()
    balancer.observe("a", 60.0, ok=False, now=0.0)
    balancer.forget("b")
    assert [balancer.choose(FLEET, {"a": 99, "b": 0, "c": 0}, 0.0) for _ in range(7)] == ["a", "b", "c", "a", "b", "c", "a"]


def test_round_robin_goes_on_when_some_are_not_ready() -> None:
    balancer = RoundRobin()
    assert [balancer.choose(ready, NONE_RUNNING, 0.0) for ready in (FLEET, ["b"], FLEET, ["a", "c"])] == ["a", "b", "c", "c"]


def test_the_least_loaded_has_the_fewest_in_flight_whatever_its_latency() -> None:
    balancer = LeastLoaded()
    balancer.observe("b", 60.0, ok=False, now=0.0)
    balancer.forget("b")
    for in_flight, expected in (
        ({"a": 2, "b": 0, "c": 1}, "b"),
        ({"a": 2, "b": 3, "c": 1}, "c"),
        ({"a": 0, "b": 3, "c": 1}, "a"),
    ):
        assert [balancer.choose(FLEET, in_flight, 0.0) for _ in range(4)] == [expected] * 4
    assert balancer.choose(["a", "c"], {"a": 5, "b": 0, "c": 6}, 0.0) == "a"


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("make", [RoundRobin, LeastLoaded])
def test_among_equals_everybody_gets_the_same(make: Callable[[], Balancer], at_a_time: int) -> None:
    assert spread(make(), 300, at_a_time=at_a_time) == dict.fromkeys(FLEET, 100 * at_a_time)


def draws(*numbers: float) -> Callable[[], float]:
    return cycle(numbers).__next__


@pytest.mark.parametrize(
    ("first", "second", "in_flight", "chosen"),
    [
        pytest.param(0.0, 0.0, {"a": 1, "b": 0, "c": 0}, "b", id="the first and the one after it"),
        pytest.param(0.0, 0.99, {"a": 1, "b": 0, "c": 0}, "c", id="the first and the last"),
        pytest.param(0.5, 0.0, {"a": 0, "b": 1, "c": 0}, "a", id="the one before"),
        pytest.param(0.5, 0.99, {"a": 0, "b": 1, "c": 2}, "b", id="the third is not looked at, nor the first"),
        pytest.param(0.99, 0.5, {"a": 0, "b": 1, "c": 1}, "c", id="of equals the first drawn"),
    ],
)
def test_of_two_drawn_the_one_with_less_in_flight_is_chosen(
    first: float, second: float, in_flight: dict[str, int], chosen: str
) -> None:
    assert PowerOfTwo(draws(first, second)).choose(FLEET, in_flight, 0.0) == chosen
    assert PowerOfTwo(draws(first, second)).choose(dict.fromkeys(FLEET), in_flight, 0.0) == chosen


def test_of_two_drawn_the_quicker_is_chosen_if_latency_counts() -> None:
    balancer = PowerOfTwo(draws(0.0, 0.0), latency_aware=True)
    for instance, service_s in (("a", 0.010), ("b", 0.035), ("c", 1e-6)):
        balancer.observe(instance, service_s, ok=True, now=0.0)
    assert balancer.choose(FLEET, {"a": 2, "b": 0, "c": 0}, 0.0) == "a"
    assert balancer.choose(FLEET, {"a": 3, "b": 0, "c": 0}, 0.0) == "b"
    balancer.forget("b")
    assert balancer.choose(FLEET, {"a": 2, "b": 0, "c": 0}, 0.0) == "a"
    assert balancer.choose(FLEET, {"a": 3, "b": 0, "c": 0}, 0.0) == "b", "taken for 30 ms again"


def test_one_alone_is_chosen_and_two_are_always_compared() -> None:
    assert PowerOfTwo(Random(1).random).choose(["a"], {"a": 99}, 0.0) == "a"
    balancer = PowerOfTwo(Random(1).random)
    assert {balancer.choose(["a", "b"], {"a": 1, "b": 0}, 0.0) for _ in range(100)} == {"b"}


def test_the_power_of_two_choices_spreads_a_burst_far_better_than_chance() -> None:
    names = [str(number) for number in range(1000)]
    in_flight = dict.fromkeys(names, 0)
    balancer = PowerOfTwo(Random(7).random)
    for _ in range(1000):
        in_flight[balancer.choose(names, in_flight, 0.0)] += 1
    assert max(in_flight.values()) <= 4, "log log n; one choice gives 5 to 7"
    assert len({name for name, times in in_flight.items() if times}) > 700


@given(
    in_flight=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5), min_size=1),
    seed=st.integers(0, 100),
)
def test_all_choose_one_that_is_ready(in_flight: dict[str, int], seed: int) -> None:
    random = Random(seed).random
    for balancer in (RoundRobin(), LeastLoaded(), PowerOfTwo(random), PowerOfTwo(random, latency_aware=True)):
        for now in range(5):
            chosen = balancer.choose(list(in_flight), in_flight, float(now))
            assert chosen in in_flight
            balancer.observe(chosen, 0.1 * now, ok=bool(now % 2), now=float(now))
