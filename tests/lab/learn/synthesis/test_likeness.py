"""What is measured of a load is what it is, and equal loads are at no distance."""

import numpy as np
import pytest

from dlproxy.lab.learn.synthesis.fits import Gamma
from dlproxy.lab.learn.synthesis.likeness import SCALES_S, Load, compare, counts, distance


def poisson(rate: float, seconds: float, seed: int = 1) -> np.ndarray:
    return Gamma(1.0, 1.0 / rate).instants(seconds, np.random.default_rng(seed))


def test_equal_loads_are_at_no_distance_and_unlike_ones_at_some() -> None:
    one = Load(poisson(5.0, 400.0))
    assert set(compare(one, one).values()) == {0.0}
    near, far = Load(poisson(5.0, 400.0, 2)), Load(Gamma(0.2, 0.2).instants(400.0, np.random.default_rng(1)))
    assert distance(one, one) < distance(near, one) < 0.5 * distance(far, one)
    assert compare(far, one) == pytest.approx(compare(one, far))


def test_counts_of_a_poisson_process_vary_as_much_as_their_mean_and_follow_no_order() -> None:
    load = Load(poisson(10.0, 3000.0))
    np.testing.assert_allclose(load.dispersion[SCALES_S.index(0.1) : SCALES_S.index(3.0)], 1.0, atol=0.15)
    assert np.abs(load.gaps).max() < 0.03


def test_gaps_that_take_turns_are_seen_in_their_order() -> None:
    load = Load(np.cumsum([0.01, 1.0] * 200))
    assert load.gaps[0] == pytest.approx(-1.0, abs=0.02)
    assert load.gaps[1] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("instants", "burst"),
    [
        ([0.0, 1.0, 2.0, 3.0], 1),
        ([0.0, 0.01, 0.02, 5.0, 5.01, 9.0], 3),
        ([0.0, 5.0, 5.01, 5.02, 5.03], 4),
    ],
)
def test_the_longest_burst_is_the_most_arrivals_close_together(instants: list[float], burst: int) -> None:
    assert Load(np.array(instants)).longest_burst == burst


def test_arrivals_are_counted_in_whole_stretches_from_the_first_on() -> None:
    instants = np.array([10.0, 10.5, 11.2, 12.9, 13.4])
    assert counts(instants, 1.0).tolist() == [2, 1, 1]
    assert counts(instants, 60.0).tolist() == [5]
    assert Load(instants).peak_over_mean == pytest.approx(2 / (4 / 3))


def test_wasserstein_is_in_decades() -> None:
    slow = poisson(1.0, 500.0)
    assert compare(Load(slow / 10.0), Load(slow))["wasserstein"] == pytest.approx(1.0, rel=0.02)
