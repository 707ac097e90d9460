"""Fits find the parameters that made a load, and what they make has them."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.learn.synthesis.fits import Blocks, Gamma, digamma, gamma, gamma_by_moments, until

from .loads import gaps


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, -0.5772156649015329), (0.5, -0.5772156649015329 - 2 * log(2)), (10.0, 2.2517525890667211), (1e4, 9.21029037114285)],
)
def test_digamma_has_its_known_values(value: float, expected: float) -> None:
    assert digamma(value) == pytest.approx(expected, abs=1e-8)


@given(st.floats(0.01, 50.0))
def test_digamma_follows_its_recurrence(value: float) -> None:
    assert digamma(value + 1.0) == pytest.approx(digamma(value) + 1.0 / value, rel=1e-7, abs=1e-7)


@settings(max_examples=12)
@given(st.floats(0.2, 20.0), st.floats(1e-3, 10.0), st.integers(0, 99))
def test_the_shape_and_the_mean_of_gamma_gaps_are_found(shape: float, mean_s: float, seed: int) -> None:
    drawn = np.random.default_rng(seed).gamma(shape, mean_s / shape, 20_000)
    found = gamma(drawn)
    assert found.shape == pytest.approx(shape, rel=0.06)
    assert found.mean_s == pytest.approx(mean_s, rel=0.06)
    assert gamma_by_moments(drawn).shape == pytest.approx(shape, rel=0.2)


@pytest.mark.parametrize("spec", ["poisson", "gamma:cv=2.5"])
def test_what_it_says_for_arrivals_makes_the_same_load(spec: str) -> None:
    found = gamma(gaps(spec, 30_000))
    again = gamma(gaps(found.spec, 30_000, seed=2, rate=1.0 / found.mean_s))
    assert again.shape == pytest.approx(found.shape, rel=0.05)
    assert again.mean_s == pytest.approx(0.2, rel=0.1)
    assert Gamma(1.0, 0.2).spec == "poisson"


def test_instants_ascend_from_0_to_the_end_with_the_rate_of_the_fit() -> None:
    found = Gamma(0.5, 0.1).instants(2000.0, np.random.default_rng(1))
    assert len(found) == pytest.approx(20_000, rel=0.05)
    assert found[0] >= 0.0
    assert 1990.0 < found[-1] < 2000.0
    assert (np.diff(found) >= 0.0).all()
    assert len(until(0.0, np.ones)) == 0


@pytest.mark.parametrize("length", [1, 4, 50])
def test_blocks_keep_the_gaps_and_their_order_for_so_long(length: int) -> None:
    recorded = np.arange(1.0, 1001.0)
    made = np.diff(Blocks(recorded, length).instants(1e7, np.random.default_rng(3)))
    assert set(np.rint(made)) <= set(recorded)
    follows = np.rint(np.diff(made)) % 1000 == 1
    assert follows.mean() == pytest.approx(1.0 - 1.0 / length, abs=0.02)
    assert made.mean() == pytest.approx(500.5, rel=0.1)
