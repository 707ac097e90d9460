"""What is learned holds for all examples there are, folds are judged unseen, and gains are what costs make of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.compress import statistics
from dlproxy.compress.gate import Speed
from dlproxy.compress.statistics import Floats, loss_bounds
from dlproxy.compress.thresholds import (
    AIM,
    NONE_SURE,
    best_gain,
    cross_validated,
    examples_needed,
    gain,
    learn,
    levels,
    share_interval,
)

MOST = 0.02
TRIALS = 60
OFTEN = 0.12  # of the trials: 5 % and what chance adds to it in so many


def drawn(examples: int, seed: int, *, worst: float = 0.4) -> tuple[Floats, Floats]:
    """(confidence, lost): even from 0 to 1; the less sure, the more is lost: worst * (1 - confidence) ** 2 of the examples."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(examples)
    wrong = rng.random(examples) < worst * (1.0 - confidence) ** 2 + 0.01
    gained = rng.random(examples) < 0.01
    return confidence, wrong.astype(np.float64) - gained


def lost_by(threshold: float, *, worst: float = 0.4) -> float:
    """Of all examples there are, as `drawn` draws them."""
    return worst * (1.0 - min(threshold, 1.0)) ** 3 / 3


def bound(lost: Floats) -> float:
    values, counts = np.unique(lost, return_counts=True)
    return loss_bounds(counts, lambda some: some @ values / len(lost), lost, seed=0)[1]


def speed(ratio: float, spread: float = 0.1) -> Speed:
    return Speed(1, 1.0, 1.0 / ratio, ratio, ratio * (1.0 - spread), ratio * (1.0 + spread))


def test_what_is_learned_seldom_loses_more_on_all_examples() -> None:
    learned = [learn(*drawn(800, seed), most_loss=MOST) for seed in range(TRIALS)]
    assert sum(lost_by(threshold) > MOST for threshold in learned) <= OFTEN * TRIALS
    assert sum(threshold < 1.0 for threshold in learned) >= 0.9 * TRIALS, "and yet something is kept"


def test_what_holds_by_cross_validation_holds_for_all_examples() -> None:
    found = [(cross_validated(*drawn(800, seed), most_loss=MOST), drawn(800, seed)[1]) for seed in range(TRIALS // 4)]
    taken = [one for one, lost in found if bound(np.where(one.sure, lost, 0.0)) <= MOST]
    assert len(taken) >= 0.8 * len(found)
    assert sum(lost_by(one.threshold) > MOST for one in taken) <= OFTEN * len(found)


@given(st.integers(0, 99), st.floats(0.005, 0.2))
@settings(max_examples=10, deadline=None)
def test_the_chosen_level_and_all_that_keep_less_are_within_the_bound(seed: int, most: float) -> None:
    confidence, lost = drawn(500, seed)
    threshold = learn(confidence, lost, most_loss=most)
    kept = [level for level in levels(confidence) if level >= threshold]
    assert all(bound(np.where(confidence >= level, lost, 0.0)) <= AIM * most for level in kept)
    assert (threshold == NONE_SURE) == (not kept)


@given(st.integers(0, 99), st.integers(2, 6))
@settings(max_examples=3, deadline=None)
def test_who_is_kept_does_not_depend_on_what_the_own_fold_loses(seed: int, folds: int) -> None:
    confidence, lost = drawn(300, seed)
    order = np.random.default_rng(seed).permutation(300)
    before = cross_validated(confidence, lost, most_loss=0.1, seed=seed, folds=folds)
    for number, fold in enumerate(np.array_split(order, folds)):
        other = lost.copy()
        other[fold] = 1.0
        after = cross_validated(confidence, other, most_loss=0.1, seed=seed, folds=folds)
        assert after.thresholds[number] == before.thresholds[number]
        assert (after.sure[fold] == before.sure[fold]).all()
    assert before.threshold >= max(before.thresholds)


def test_too_few_examples_keep_nothing_and_the_fewest_that_can_keep_all() -> None:
    enough = statistics.examples_needed(AIM * MOST)
    for examples, expected in ((enough - 1, NONE_SURE), (enough, 0.5)):
        assert learn(np.full(examples, 0.5), np.zeros(examples), most_loss=MOST) == expected


def test_what_is_no_number_is_unsure() -> None:
    confidence = np.where(np.arange(400) % 2 == 0, np.nan, 0.7)
    lost = np.where(np.isnan(confidence), 1.0, 0.0)
    found = cross_validated(confidence, lost, most_loss=MOST)
    assert (found.threshold, found.sure.mean()) == (0.7, 0.5)


@given(st.floats(1.01, 1e4), st.integers(0, 1000))
def test_a_gain_is_what_costs_and_escalated_rows_make_of_it(ratio: float, escalated: int) -> None:
    found = gain(speed(ratio), escalated, 1000)
    rows, cheap_s, dear_s = 1000, 1.0 / ratio, 1.0
    assert found.ratio == pytest.approx(rows * dear_s / (rows * cheap_s + escalated * dear_s))
    assert found.low <= found.ratio <= found.high
    assert escalated == 1000 or gain(speed(ratio), escalated + 1, 1000).ratio < found.ratio


@pytest.mark.parametrize(
    ("count", "examples", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)]
)
def test_a_share_lies_between_wilson_s_ends(count: int, examples: int, low: float, high: float) -> None:
    assert share_interval(count, examples) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_so_many_examples_as_are_said_to_be_needed_are_enough(seed: int) -> None:
    confidence, lost = drawn(150, seed)
    assert learn(confidence, lost, most_loss=MOST) == NONE_SURE
    needed = examples_needed(confidence, lost, most_loss=MOST, speed=speed(50.0), least_gain=1.15)
    assert best_gain(confidence, lost, most_loss=MOST, speed=speed(50.0)) > 1.15
    if needed is None:  # too much is lost where it is surest
        assert any(np.where(confidence >= level, lost, 0.0).mean() >= AIM * MOST for level in levels(confidence))
        return
    times = math.ceil(needed / 150)
    whole = cross_validated(np.tile(confidence, times), np.tile(lost, times), most_loss=MOST)
    assert gain(speed(50.0), int((confidence < whole.threshold).sum()), 150).ratio >= 1.15


@pytest.mark.parametrize(("ratio", "worst"), [(1.1, 0.4), (50.0, 30.0)])
def test_no_number_of_examples_makes_what_does_not_pay(ratio: float, worst: float) -> None:
    confidence, lost = drawn(300, 1, worst=worst)
    assert best_gain(confidence, lost, most_loss=MOST, speed=speed(ratio)) < 1.5
    assert examples_needed(confidence, lost, most_loss=MOST, speed=speed(ratio), least_gain=1.5) is None
