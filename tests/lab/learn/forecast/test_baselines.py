"""Baselines: each finds what it is made for, and is tuned on validation alone."""

import numpy as np
import pytest

from dlproxy.lab.learn.forecast.baselines import Part, baselines, losses, part_of
from dlproxy.lab.learn.forecast.series import Block, Floats, Site
from dlproxy.policy.forecast import Form, HoltWinters

FORM = Form(step_s=5.0, length=12, horizons_s=(5.0, 60.0), quantiles=(0.5, 0.9))
LEVELS = FORM.quantiles
SECONDS = 4000


def parts(rate: Floats) -> list[Part]:
    site = Site(np.random.default_rng(1).poisson(rate).astype(float), FORM)
    return [part_of([(site, site.places(block, 5))]) for block in (Block(0, 2000), Block(2200, 3000), Block(3200, 4000))]


def lost(rate: Floats) -> dict[str, float]:
    """On the test block, by name."""
    train, validation, test = parts(rate)
    found = baselines("rate", LEVELS, train, validation)
    return {name: float(losses(one.quantiles(test), test, "rate", LEVELS).mean()) for name, one in found.items()}


def test_noise_alone_has_nothing_beyond_its_quantiles() -> None:
    by_name = lost(np.full(SECONDS, 20.0))
    assert min(by_name.values()) > 0.95 * by_name["always the same"]


def test_what_repeats_itself_is_the_seasonal_one_s() -> None:
    by_name = lost(np.where(np.arange(SECONDS) % 240 < 60, 60.0, 5.0))
    assert by_name["seasonal naive"] < 0.5 * by_name["last value"]


def test_what_stays_for_long_is_the_last_value_s_and_the_autoregression_s() -> None:
    walk = np.repeat(np.random.default_rng(2).choice([5.0, 20.0, 60.0, 100.0], SECONDS // 200), 200)
    by_name = lost(walk)
    for name in ("last value", "Holt-Winters, tuned", "linear AR"):
        assert by_name[name] < 0.8 * by_name["always the same"]


def test_quantiles_do_not_cross_and_are_none_below_0() -> None:
    train, validation, test = parts(np.where(np.arange(SECONDS) % 100 < 10, 20.0, 0.1))
    for channel in ("rate", "burst"):
        for one in baselines(channel, LEVELS, train, validation).values():
            quantiles = one.quantiles(test)
            assert (quantiles >= 0.0).all()
            assert (np.diff(quantiles, axis=-1) >= -1e-9).all()


def test_holt_winters_is_the_one_that_is_served() -> None:
    train, validation, test = parts(np.linspace(5.0, 40.0, SECONDS))
    served = HoltWinters()
    site, at = test.pieces[0]
    for second, count in enumerate(site.counts[: int(at[0])].tolist(), 1):
        served.observe(count, second - 0.5)
    quantiles = baselines("rate", LEVELS, train, validation)["Holt-Winters"].quantiles(test)
    expected = [served.load_at(float(at[0]) + horizon_s) for horizon_s in FORM.horizons_s]
    assert quantiles[0, :, 1] == pytest.approx(expected, rel=1e-2)


def test_of_parts_that_nobody_else_keeps_each_has_its_own_answer() -> None:
    """A part that is gone leaves its place in memory to the next one."""
    rate = np.linspace(5.0, 40.0, SECONDS)
    train, validation, _ = parts(rate)
    smoothed = baselines("rate", LEVELS, train, validation)["Holt-Winters"]
    site = train.pieces[0][0]
    for step in range(5, 12):
        found = smoothed.quantiles(part_of([(site, site.places(Block(2200, 3000), step))]))
        assert len(found) == len(site.places(Block(2200, 3000), step))
