"""Jobs in virtual time: known orders, and that knowing times never makes the mean worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.learn.service.training import waited
from dlproxy.lab.learn.service.waiting import Discipline, balanced, queued

JOBS = st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.01, 5.0)), min_size=1, max_size=30)


@settings(max_examples=40)
@given(JOBS)
def test_in_turn_at_one_server_latencies_follow_lindleys_recursion(jobs: list[tuple[float, float]]) -> None:
    at, seconds = np.cumsum([gap for gap, _ in jobs]).tolist(), [took for _, took in jobs]
    expected, free = [], 0.0
    for due, took in zip(at, seconds, strict=True):
        free = max(free, due) + took
        expected.append(free - due)
    even = [1.0] * len(at)
    np.testing.assert_allclose(queued(at, seconds, even, "fcfs", 1), expected)
    np.testing.assert_allclose(balanced(at, seconds, even, 1), expected)


@pytest.mark.parametrize(
    ("discipline", "latencies"), [("fcfs", [4.0, 6.5, 7.0]), ("sjf", [4.0, 7.5, 3.5]), ("hrrn", [4.0, 7.5, 3.5])]
)
def test_the_shorter_one_goes_first_where_it_is_asked_for(discipline: Discipline, latencies: list[float]) -> None:
    seconds = [4.0, 3.5, 1.0]
    np.testing.assert_allclose(queued([0.0, 1.0, 1.5], seconds, seconds, discipline, 1), latencies)


def test_a_job_goes_where_least_is_left_of_what_was_predicted() -> None:
    at, seconds = [0.0, 0.0, 0.0], [5.0, 1.0, 1.0]
    assert balanced(at, seconds, seconds, 2).tolist() == [5.0, 1.0, 2.0]
    assert balanced(at, seconds, [1.0, 1.0, 1.0], 2).tolist() == [5.0, 1.0, 6.0]


@settings(max_examples=4)
@given(st.integers(0, 999))
def test_exact_predictions_help_and_even_ones_change_nothing(seed: int) -> None:
    seconds = np.random.default_rng(seed).lognormal(0.0, 1.0, 300)
    figures = waited({"exact": seconds, "even": np.ones(300)}, seconds, jobs=600, seed=seed)
    assert figures["sjf exact mean"] < 1.0
    assert figures["sjf exact slowdown"] < 0.9
    for name in ("sjf even mean", "hrrn even p99"):
        assert figures[name] == pytest.approx(1.0)
    assert figures["balancing exact mean"] < figures["balancing even mean"]
