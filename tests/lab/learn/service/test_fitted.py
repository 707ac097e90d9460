"""The yardsticks: the lanes' fitted cost as it would have predicted, and the loss by which quantiles are judged."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.learn.service.fitted import QUANTILES, fitted, pinball
from dlproxy.lab.learn.service.times import Times, made_up
from dlproxy.lab.learn.service.training import best_feature


def line(count: int, seed: int, spread: float) -> Times:
    random = np.random.default_rng(seed)
    rows, share = random.integers(1, 33, count), random.uniform(0.1, 1.0, count)
    seconds = (2e-3 + 3e-4 * rows) * random.lognormal(0.0, spread, count)
    return Times(("rows", "share"), np.column_stack([rows, share]).astype(float), seconds)


@settings(max_examples=8)
@given(st.integers(0, 99))
def test_of_a_line_the_fitted_cost_is_right_and_its_counted_errors_are_quantiles(seed: int) -> None:
    times = line(1600, seed, 0.15)
    real = times.part(0.5, 1.0)
    means, own, counted = fitted(times.part(0.0, 0.5), real)
    np.testing.assert_allclose(np.median(real.seconds / means), 1.0, atol=0.05)
    assert (np.diff(own, axis=1) > 0.0).all()
    below = (real.seconds[:, None] <= counted).mean(axis=0)
    np.testing.assert_allclose(below, QUANTILES, atol=0.07)


@settings(max_examples=20)
@given(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=60), st.floats(0.5, 1.5))
def test_no_other_number_has_less_pinball_loss_than_the_quantile(values: list[float], factor: float) -> None:
    seconds = np.array(values)
    best = np.quantile(seconds, QUANTILES, method="inverted_cdf")
    ones = np.ones((len(seconds), 1))
    assert (pinball(ones * best, seconds) <= pinball(ones * best * factor, seconds) + 1e-12).all()


def test_what_is_exact_has_no_loss() -> None:
    seconds = np.array([0.1, 0.2])
    assert pinball(np.repeat(seconds[:, None], 3, axis=1), seconds).tolist() == [0.0, 0.0, 0.0]


def test_the_feature_that_time_depends_on_is_found() -> None:
    random = np.random.default_rng(1)
    known = line(1200, 1, 0.1)
    by_share = Times(known.names, known.features, (1e-3 + 1e-2 * known.column("share")) * random.lognormal(0.0, 0.05, 1200))
    assert best_feature(by_share.part(0.0, 0.7), by_share.part(0.7, 1.0)) == "share"
    times = made_up(count=1500)
    assert best_feature(times.part(0.0, 0.7), times.part(0.7, 1.0)) == "length*share"
