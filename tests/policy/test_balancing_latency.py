"""Peak-EWMA rises at once, decays, never takes errors for speed, forgets the dead; and what its balancers make of it."""

from itertools import cycle
from math import exp, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.balancing import FastestResponse, LeastPeakEwma, PowerOfTwo
from dlproxy.policy.balancing.latency import DECAY_S, ERROR_PENALTY, INITIAL_S, MAX_PENALTY_S, PeakEwma

NONE_RUNNING = {"a": 0, "b": 0, "c": 0}


def choose(balancer: LeastPeakEwma, now: float = 0.0, **in_flight: int) -> str:
    return balancer.choose(in_flight or ["a", "b"], in_flight or NONE_RUNNING, now)


def test_an_unknown_instance_is_taken_for_thirty_milliseconds_or_the_usual_if_that_is_less() -> None:
    latency = PeakEwma()
    assert latency.expected_s("new", 0.0) == INITIAL_S
    latency.observe("a", 0.004, ok=True, now=0.0)
    assert latency.expected_s("newer", 0.0) == 0.004
    for _ in range(200):
        latency.observe("a", 5.0, ok=True, now=0.0)
    assert latency.expected_s("newest", 0.0) == INITIAL_S


def test_a_peak_counts_at_once() -> None:
    latency = PeakEwma()
    latency.observe("a", 0.010, ok=True, now=0.0)
    latency.observe("a", 2.0, ok=True, now=0.1)
    assert latency.expected_s("a", 0.1) == 2.0


def test_a_peak_decays_with_time_not_with_the_number_of_batches() -> None:
    latency = PeakEwma()
    latency.observe("a", 2.0, ok=True, now=0.0)
    for _ in range(1000):
        latency.observe("a", 0.010, ok=True, now=0.0)
    assert latency.expected_s("a", 0.0) == 2.0
    latency.observe("a", 0.010, ok=True, now=DECAY_S)
    assert latency.expected_s("a", DECAY_S) == pytest.approx(2.0 * exp(-1) + 0.010 * (1 - exp(-1)))


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


def test_a_weight_divides_the_load() -> None:
    balancer = LeastPeakEwma()
    balancer.add("b", 0.0, 4.0)
    for instance, service_s in (("a", 0.010), ("b", 0.020)):
        balancer.observe(instance, service_s, ok=True, now=0.0)
    assert choose(balancer, a=0, b=0) == "b", "20 / 4 before 10"
    assert choose(balancer, a=0, b=2) == "a", "3 x 20 / 4 after 10"


@given(
    known_s=st.none() | st.floats(1e-6, 10.0),
    elsewhere_s=st.none() | st.floats(1e-6, 1000.0),
    failed_after_s=st.floats(0.0, 10.0),
    now=st.floats(0.0, 100.0),
)
def test_a_failure_never_makes_an_instance_look_faster_than_it_was_or_others_are(
    known_s: float | None, elsewhere_s: float | None, failed_after_s: float, now: float
) -> None:
    latency = PeakEwma()
    if elsewhere_s is not None:
        for _ in range(200):  # the usual by now
            latency.observe("b", elsewhere_s, ok=True, now=0.0)
    if known_s is not None:
        latency.observe("a", known_s, ok=True, now=0.0)
    before = latency.expected_s("a", now)
    latency.observe("a", failed_after_s, ok=False, now=now)
    assert latency.expected_s("a", now) >= before
    if elsewhere_s is not None:
        assert latency.expected_s("a", now) >= 0.9 * ERROR_PENALTY * elsewhere_s


def test_failures_without_end_stay_finite_and_are_forgiven() -> None:
    balancer, latency = LeastPeakEwma(), PeakEwma()
    for failure in range(1000):
        balancer.observe("a", 0.001, ok=False, now=failure * 0.001)
        latency.observe("a", 0.001, ok=False, now=failure * 0.001)
    assert 0.9 * MAX_PENALTY_S <= latency.expected_s("a", 1.0) <= MAX_PENALTY_S
    assert choose(balancer, 1.0) == "b"
    balancer.observe("b", 0.010, ok=True, now=101.0)
    assert choose(balancer, 101.0) == "a", "after some minute and a half it is tried again"
    latency.observe("a", 0.010, ok=True, now=200.0)
    assert latency.expected_s("a", 200.0) == pytest.approx(0.010, rel=0.01)


def test_an_instance_of_the_same_name_starts_anew() -> None:
    latency = PeakEwma()
    latency.observe("a", 5.0, ok=True, now=0.0)
    latency.forget("a")
    latency.forget("never seen")
    assert latency.expected_s("a", 0.0) == INITIAL_S


@given(
    observed=st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0), st.booleans(), st.floats(0.0, 50.0)), max_size=40
    )
)
def test_expectations_stay_finite(observed: list[tuple[str, float, bool, float]]) -> None:
    latency, now = PeakEwma(), 0.0
    for instance, service_s, ok, step_s in observed:
        now += step_s
        latency.observe(instance, service_s, ok=ok, now=now)
        assert isfinite(latency.expected_s(instance, now))


def test_the_fastest_gets_all_until_a_peak_shows_that_it_is_so_no_more() -> None:
    balancer = FastestResponse()
    for instance, service_s in (("a", 0.020), ("b", 0.010), ("c", 0.030)):
        balancer.observe(instance, service_s, ok=True, now=0.0)
    assert balancer.choose("abc", {"a": 0, "b": 99, "c": 0}, 0.0) == "b"
    balancer.observe("b", 0.040, ok=True, now=0.0)
    assert balancer.choose("abc", {"a": 0, "b": 0, "c": 0}, 0.0) == "a"
    balancer.add("c", 0.0, 2.0)
    assert balancer.choose("abc", {"a": 0, "b": 0, "c": 0}, 0.0) == "c", "30 / 2 before 20"


def test_among_the_equally_fast_the_one_with_less_to_do_is_chosen() -> None:
    assert FastestResponse().choose("abc", {"a": 2, "b": 1, "c": 3}, 0.0) == "b"


def test_of_two_drawn_the_quicker_is_chosen_if_latency_counts() -> None:
    balancer = PowerOfTwo(cycle((0.0, 0.0)).__next__, latency_aware=True)
    for instance, service_s in (("a", 0.010), ("b", 0.035), ("c", 1e-6)):
        balancer.observe(instance, service_s, ok=True, now=0.0)
    fleet = ["a", "b", "c"]
    assert balancer.choose(fleet, {"a": 2, "b": 0, "c": 0}, 0.0) == "a"
    assert balancer.choose(fleet, {"a": 3, "b": 0, "c": 0}, 0.0) == "b"
    balancer.forget("b")
    assert balancer.choose(fleet, {"a": 1, "b": 0, "c": 0}, 0.0) == "b", "no more than 30 ms are assumed of it"
