"""Fronts and hypervolumes: by hand, and against a count of random points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.lab.learn.pareto.front import Point, front, hypervolume

shares = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.2])
points = st.lists(st.tuples(shares, shares, shares), max_size=8)


def test_what_nothing_dominates_is_the_front() -> None:
    assert front([(0.5, 0.5), (0.1, 0.9), (0.5, 0.6), (0.9, 0.1), (0.5, 0.5)]) == [(0.1, 0.9), (0.5, 0.5), (0.9, 0.1)]


@pytest.mark.parametrize(
    ("found", "reference", "volume"),
    [
        ([], (1.0, 1.0), 0.0),
        ([(0.25,)], (1.0,), 0.75),
        ([(0.5, 0.5)], (1.0, 1.0), 0.25),
        ([(0.5, 0.5), (0.25, 0.75)], (1.0, 1.0), 0.25 + 0.25 * 0.25),
        ([(0.0, 0.0, 0.0)], (1.0, 2.0, 3.0), 6.0),
        ([(0.0, 1.0, 0.0)], (1.0, 1.0, 1.0), 0.0),
    ],
)
def test_the_volume_that_is_dominated(found: list[Point], reference: Point, volume: float) -> None:
    assert hypervolume(found, reference) == pytest.approx(volume)


@given(points)
def test_the_volume_is_that_of_the_points_that_are_dominated(found: list[Point]) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(0.025, 1.0, 0.05)] * 3), -1).reshape(-1, 3)
    dominated = np.zeros(len(grid), bool)
    for point in found:
        dominated |= (grid >= np.array(point)).all(1)
    assert hypervolume(found, (1.0, 1.0, 1.0)) == pytest.approx(float(dominated.mean()), abs=1e-9)
