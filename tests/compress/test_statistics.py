"""Bounds hold as often as they say, from few examples nothing is concluded, and what slows both models slows no ratio."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.compress import CompressError
from dlproxy.compress.statistics import Floats, examples_needed, loss_bounds, most_lost, speed

TRIALS = 300
OFTEN = 0.09  # of the trials: 5 % and what chance adds to it in so many


def bounds(lost: Floats, seed: int = 0) -> tuple[float, float]:
    values, counts = np.unique(lost, return_counts=True)
    return loss_bounds(counts, lambda drawn: drawn @ values / len(lost), lost, seed=seed)


@pytest.mark.parametrize(
    ("lost", "examples", "share"),
    [(0, 10, 0.2589), (1, 10, 0.3942), (2, 20, 0.2826), (0, 300, 0.00994), (5, 5, 1.0), (9, 10**6, 1.5705e-5)],
)
def test_what_is_lost_at_most_as_tables_have_it(lost: int, examples: int, share: float) -> None:
    assert most_lost(lost, examples) == pytest.approx(share, rel=2e-3)


@given(st.floats(0.001, 0.9))
def test_the_fewest_examples_that_show_a_loss_is_small(most: float) -> None:
    needed = examples_needed(most)
    assert most_lost(0, needed) <= most
    assert needed == 1 or most_lost(0, needed - 1) > most


@pytest.mark.parametrize(
    ("examples", "lose", "gain"),
    [(50, 0.03, 0.0), (100, 0.01, 0.01), (300, 0.01, 0.0), (300, 0.03, 0.02), (2000, 0.01, 0.005), (2000, 0.2, 0.2)],
)
def test_the_loss_of_all_is_seldom_above_the_bound(examples: int, lose: float, gain: float) -> None:
    rng = np.random.default_rng(1)
    drawn = rng.choice([1.0, -1.0, 0.0], size=(TRIALS, examples), p=[lose, gain, 1.0 - lose - gain])
    passed = sum(bounds(lost)[1] < lose - gain for lost in drawn)
    assert passed <= OFTEN * TRIALS


def test_the_loss_of_all_is_seldom_outside_where_every_example_differs() -> None:
    found = np.array([bounds(lost) for lost in np.random.default_rng(2).uniform(-0.1, 0.3, size=(TRIALS // 2, 50))])
    assert (found[:, 1] < 0.1).mean() <= OFTEN
    assert (found[:, 0] > 0.1).mean() <= OFTEN


@pytest.mark.parametrize("examples", [1, 30, 300, 3000])
def test_where_nothing_differs_the_rule_of_three_holds(examples: int) -> None:
    low, high = bounds(np.zeros(examples))
    assert low == 0.0
    assert min(0.5, 2.5 / examples) < high <= 3.0 / examples


def test_one_that_is_a_little_worse_is_not_easier_to_take_than_one_that_is_the_same() -> None:
    same, noise = np.zeros(100), np.full(100, 1e-4)
    assert bounds(noise)[1] > bounds(same)[1]


def test_the_same_seed_gives_the_same() -> None:
    lost = np.random.default_rng(0).normal(size=100)
    assert bounds(lost, 3) == bounds(lost, 3) != bounds(lost, 4)


def test_labels_that_do_not_differ_tell_nothing() -> None:
    with pytest.raises(CompressError, match="nearly all the same"):
        loss_bounds([5], lambda drawn: np.full(len(drawn), np.inf), np.zeros(5), seed=0)


def test_what_slows_a_round_slows_no_ratio() -> None:
    slowed = 1.0 + np.random.default_rng(0).exponential(1.0, 30)
    found = speed(8, list(0.02 * slowed), list(0.01 * slowed), seed=0)
    assert (found.ratio, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.rows == 8
    assert found.original_s == pytest.approx(2 * found.candidate_s)


def test_a_ratio_that_is_not_known_has_a_wide_interval() -> None:
    rng = np.random.default_rng(0)
    found = speed(1, list(rng.exponential(1.0, 20)), list(rng.exponential(1.0, 20)), seed=0)
    assert found.low < 1.0 < found.high


@pytest.mark.parametrize(
    ("original", "candidate", "clue"),
    [([1.0] * 5, [1.0] * 5, "6 rounds"), ([1.0] * 9, [1.0] * 8, "6 rounds"), ([1.0] * 9, [0.0] * 9, "in no time")],
)
def test_times_that_are_none(original: list[float], candidate: list[float], clue: str) -> None:
    with pytest.raises(CompressError, match=clue):
        speed(1, original, candidate, seed=0)
