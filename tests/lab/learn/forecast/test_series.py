"""Series of arrivals: what is learnt from is what the server will ask, and no block tells of another."""

from pathlib import Path

import numpy as np
import pytest

from dlproxy.lab.learn.forecast.backtest import autocorrelation, bootstrap, coverage, pinball
from dlproxy.lab.learn.forecast.days import DAY_S, counts, habits
from dlproxy.lab.learn.forecast.series import Block, Site, blocked, joined, site_of, some
from dlproxy.lab.load.arrivals import read_trace
from dlproxy.policy.forecast import Form, Steps

FORM = Form(step_s=5.0, length=12, horizons_s=(2.0, 10.0, 60.0), quantiles=(0.5, 0.9, 0.99), season_s=600.0)


def test_the_server_asks_what_was_learnt_from() -> None:
    random = np.random.default_rng(1)
    site = Site(random.poisson(random.gamma(2.0, 2.0, 2000)).astype(float), FORM)
    steps, asked = Steps(FORM), {}
    for second, count in enumerate(site.counts.tolist(), 1):
        if steps.observe(count, float(second)) and (one := steps.asked()) is not None:
            asked[second] = one
    at = np.array([second for second in asked if second <= 1900])
    examples = site.examples(at)
    assert len(at) > 300
    np.testing.assert_allclose(examples.window[:, :, 0], [asked[second].rates for second in at.tolist()])
    np.testing.assert_allclose(examples.window[:, :, 1], [asked[second].bursts for second in at.tolist()], atol=1e-9)
    known = at >= 600 + 60
    np.testing.assert_allclose(examples.season[known], [asked[second].season for second in at[known].tolist()])
    assert (examples.season[~known] == -1.0).all()


def test_targets_are_what_comes_a_horizon_later() -> None:
    site = Site(np.arange(400.0), FORM)
    examples = site.examples(np.array([100]))
    assert examples.rate.tolist() == [[104.0, 112.0, 162.0]]  # the means of 102 to 106, 110 to 114, 160 to 164
    assert examples.burst == pytest.approx(np.array([[2.5 / 104.0, 2.5 / 112.0, 2.5 / 162.0]]))
    assert examples.window[0, -1].tolist() == pytest.approx([97.0, 2.5 / 97.0])


def test_blocks_do_not_meet_and_the_last_origin_tests_on_the_end() -> None:
    splits = list(blocked(3600, origins=3, test=0.1, gap=120))
    assert splits[-1].test == Block(3240, 3600)
    site = Site(np.zeros(3600), FORM)
    for split in splits:
        before = 0
        for block in (split.train, split.validation, split.test):
            assert block.start >= before
            before = block.end + 120 if block is not split.test else block.end
            at = site.places(block)
            assert at[0] + 2 >= block.start
            assert at[-1] + 60 + 5 <= block.end


def test_arrivals_are_counted_by_the_second_and_examples_are_joined_and_chosen(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("\n".join(f"{second + 0.5}" for second in range(300) for _ in range(second % 3)))
    site = site_of(read_trace(tmp_path / "trace.csv"), FORM)
    assert site.counts[:6].tolist() == [1.0, 2.0, 0.0, 1.0, 2.0, 0.0]
    ours = site.examples(np.arange(60, 200, 5))
    both = joined([ours, ours])
    assert len(both) == 2 * len(ours)
    assert len(some(both, both.at < 100)) == 16


def test_a_made_up_day_has_its_pattern_and_its_usual_bursts() -> None:
    random = np.random.default_rng(3)
    site = habits(random)
    made = counts(site, 3, random)
    hours = made.reshape(3, 24, -1).mean(2)
    assert len(made) == 3 * DAY_S
    assert hours[:, 10:14].mean() > hours[:, [0, 1, 22, 23]].mean()
    assert np.array_equal(counts(site, 1, np.random.default_rng(5)), counts(site, 1, np.random.default_rng(5)))
    assert all(habits(random, other=True).factor >= 4.0 >= habits(random).factor for _ in range(20))


def test_pinball_is_least_at_the_quantile_and_coverage_is_its_level() -> None:
    target = np.random.default_rng(1).exponential(1.0, (20_000, 1))
    levels = (0.5, 0.9, 0.99)
    right = np.quantile(target, levels)[None, None].repeat(len(target), 0)
    least = pinball(target, right, levels).mean(0)
    for factor in (0.8, 1.2):
        assert (pinball(target, right * factor, levels).mean(0) > least).all()
    assert coverage(target, right).ravel() == pytest.approx(levels, abs=1e-3)


def test_the_bootstrap_heeds_that_neighbours_are_alike() -> None:
    random = np.random.default_rng(2)
    noise = np.repeat(random.normal(0.0, 1.0, 40), 50)
    mean, low, high = bootstrap(noise, 50, times=500)
    narrow = bootstrap(noise, 1, times=500)
    assert low < 0.0 < high
    assert low < mean < high
    assert high - low > 4.0 * (narrow[2] - narrow[1])
    assert autocorrelation(noise, 1) > 0.9
    assert abs(autocorrelation(noise, 500)) < 0.5
    assert autocorrelation(np.ones(100), 1) == 0.0
