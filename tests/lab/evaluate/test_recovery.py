"""What was kept and how long recovery took, on made-up timelines."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.evaluate.recovery import effect, per_interval, rate

STEP_S = 0.1
OFFERED = 1e4  # more than any of these timelines answers


def _timeline(*stretches: tuple[float, float]) -> list[tuple[float, float]]:
    """Samples of a goodput that was so high for so many seconds, and then the next."""
    at, counted = 100.0, 0.0
    samples = [(at, counted)]
    for length_s, per_second in stretches:
        for _ in range(round(length_s / STEP_S)):
            at, counted = at + STEP_S, counted + per_second * STEP_S
            samples.append((at, counted))
    return samples


@settings(deadline=None)
@given(before=st.floats(200.0, 5000.0), kept=st.floats(0.0, 0.9), lasting=st.floats(0.0, 2.0))
def test_goodput_that_comes_back_after_a_while(before: float, kept: float, lasting: float) -> None:
    lasting = round(lasting, 1)
    samples = _timeline((2.0, before), (2.0, before * kept), (lasting, 0.0), (4.0, before))
    found = effect(samples, OFFERED, 102.0, 102.0, 104.0, 104.0)
    assert found.before_rps == pytest.approx(before)
    assert found.during_rps == pytest.approx(before * kept, abs=1e-6)
    assert found.recovery_s is not None
    # a window of half a second may hold a few percent of what was before
    assert lasting - 0.1 <= found.recovery_s <= lasting + 1e-6


def test_a_fault_that_does_nothing_needs_no_recovery() -> None:
    found = effect(_timeline((8.0, 500.0)), OFFERED, 102.0, 102.0, 104.0, 104.0)
    assert found.recovery_s == 0.0
    assert found.during_rps == pytest.approx(found.before_rps)


def test_goodput_that_stays_below_is_not_back() -> None:
    found = effect(_timeline((2.0, 500.0), (2.0, 0.0), (4.0, 450.0)), OFFERED, 102.0, 102.0, 104.0, 104.0)
    assert found.recovery_s is None
    assert found.watched_s == pytest.approx(4.0)


def test_a_load_that_ended_during_the_fault_is_not_back() -> None:
    found = effect(_timeline((2.0, 500.0), (1.0, 0.0)), OFFERED, 102.0, 102.0, 104.0, 104.0)
    assert found.recovery_s is None
    assert found.watched_s == 0.0


def test_one_answer_less_in_a_slow_timeline_is_no_fault() -> None:
    samples = _timeline((4.0, 10.0))
    late = [(at, counted if at < 104.0 else counted - 1) for at, counted in _timeline((12.0, 10.0))]
    assert effect(late, OFFERED, 102.0, 102.0, 103.5, 103.5).recovery_s is not None
    assert effect(samples, OFFERED, 101.0, 101.0, 102.0, 102.0).recovery_s == 0.0


def test_no_samples_say_nothing() -> None:
    found = effect([], OFFERED, 1.0, 1.0, 2.0, 2.0)
    assert (found.before_rps, found.recovery_s) == (0.0, None)
    assert rate([(0.0, 0.0)], 0.0, 1.0) == 0.0


def test_intervals_of_a_chart_add_up() -> None:
    samples = _timeline((1.0, 100.0), (1.0, 50.0))
    drawn = per_interval(samples, 0.5)
    assert [round(rps) for _, rps in drawn] == [100, 100, 50, 50]
    assert drawn[0][0] == pytest.approx(0.25)


def test_a_backlog_that_is_answered_is_no_goodput_to_lose() -> None:
    found = effect(_timeline((2.0, 900.0), (6.0, 600.0)), 600.0, 102.0, 102.0, 104.0, 104.0)
    assert found.before_rps == 600.0
    assert found.recovery_s == 0.0
