"""Slowness: two slow batches make an instance slow, one quick one makes it quick, and time forgives."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.slowness import DECAY_S, PAUSE_S, SLOW, Slowness

BATCH_S = 1e-9  # so quick that no batch is late by a pause


def slowness(**factors: float) -> Slowness:
    """Each instance has shown its factor twice, at time 0."""
    slow = Slowness()
    for name, factor in factors.items():
        slow.observe(name, factor * BATCH_S, predicted_s=BATCH_S, now=0.0)
        slow.observe(name, factor * BATCH_S, predicted_s=BATCH_S, now=0.0)
    return slow


def test_one_late_batch_is_an_accident_and_two_are_not() -> None:
    slow = Slowness()
    slow.observe("a", 50.0 * BATCH_S, predicted_s=BATCH_S, now=0.0)
    assert slow.of("a", 0.0) == 1.0
    slow.observe("a", 20.0 * BATCH_S, predicted_s=BATCH_S, now=0.0)
    assert slow.of("a", 0.0) == 20.0, "the lesser of the two"
    slow.observe("a", 1.1 * BATCH_S, predicted_s=BATCH_S, now=0.0)
    assert slow.of("a", 0.0) == 1.0


def test_an_unknown_instance_is_as_predicted_and_a_forgotten_one_unknown() -> None:
    slow = slowness(a=9.0)
    assert slow.of("b", 0.0) == 1.0
    slow.forget("a")
    slow.forget("a")
    assert slow.of("a", 0.0) == 1.0


@pytest.mark.parametrize(
    ("idle", "busy", "excess"),
    [
        pytest.param("s", "q", 19.0, id="slow against as predicted"),
        pytest.param("s", "sq", 19.0, id="the best of the busy counts"),
        pytest.param("sq", "q", 0.0, id="one of the idle is well"),
        pytest.param("s", "", 0.0, id="nobody to wait for"),
        pytest.param("s", "s", 0.0, id="all are slow"),
        pytest.param("s", "m", 0.0, id="20 is not four times 6"),
        pytest.param("v", "m", 94.0, id="100 is"),
        pytest.param("f", "q", 0.0, id="four times is usual between machines"),
    ],
)
def test_excess(idle: str, busy: str, excess: float) -> None:
    slow = slowness(s=20.0, v=100.0, m=6.0, f=SLOW)
    assert slow.excess(idle, busy, 0.0) == pytest.approx(excess)


@given(factors=st.lists(st.floats(0.01, 1e6), min_size=2, max_size=5), times=st.lists(st.floats(0.0, 200.0), min_size=2))
def test_excess_only_falls_as_time_passes_and_ends(factors: list[float], times: list[float]) -> None:
    slow = slowness(**{f"i{number}": factor for number, factor in enumerate(factors)})
    names = [f"i{number}" for number in range(len(factors))]
    over_time = [slow.excess(names[:1], names[1:], now) for now in sorted(times)]
    assert over_time == sorted(over_time, reverse=True)
    assert slow.excess(names[:1], names[1:], DECAY_S * 20.0) == 0.0


@given(factor=st.floats(SLOW * 1.001, 1e6), now=st.floats(0.0, 100.0))
def test_it_decays_to_one(factor: float, now: float) -> None:
    assert slowness(a=factor).of("a", now) == pytest.approx(max(factor * exp(-now / DECAY_S), 1.0))


def test_a_batch_that_is_later_than_any_pause_tells_enough() -> None:
    slow = Slowness()
    slow.observe("a", 0.020 + PAUSE_S, predicted_s=0.020, now=0.0)
    assert slow.of("a", 0.0) == 1.0
    slow.observe("b", 0.021 + PAUSE_S, predicted_s=0.020, now=0.0)
    assert slow.of("b", 0.0) == pytest.approx(13.55)


def test_suspects_stay_so_until_a_quick_batch() -> None:
    slow = slowness(s=20.0, q=1.0)
    assert slow.suspects(["s"])
    assert not slow.suspects(["s", "q"])
    assert not slow.suspects(["unknown"])
    slow.observe("s", 1.0 * BATCH_S, predicted_s=BATCH_S, now=1e6)
    assert not slow.suspects(["s"])
