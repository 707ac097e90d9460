"""Forecasts of load, and instances that are up before it comes."""

from math import pi, sin

import pytest

from dlproxy.policy.forecast import HoltWinters
from dlproxy.policy.scaling import Bounds, Rule, Windowed, make_policy
from tests.policy.test_scaling import CAPACITY, Run, load

PERIOD_S = 1000


def daily(at: float) -> float:
    return 50.0 + 40.0 * sin(2 * pi * at / PERIOD_S)


def test_nothing_is_expected_before_anything_is_known() -> None:
    assert HoltWinters().load_at(100.0) == 0.0


def test_a_load_that_stays_is_expected_to_stay() -> None:
    forecast = HoltWinters()
    for second in range(1000):
        forecast.observe(7.0, float(second))
    assert forecast.load_at(1060.0) == pytest.approx(7.0)


def test_a_load_that_grows_is_expected_to_grow() -> None:
    forecast = HoltWinters()
    for second in range(2000):
        forecast.observe(0.1 * second, float(second))
    assert forecast.load_at(2060.0) == pytest.approx(206.0, rel=0.05)


def test_tomorrow_is_like_today() -> None:
    forecast = HoltWinters(season_s=PERIOD_S, step_s=10.0)
    for second in range(3 * PERIOD_S):
        forecast.observe(daily(second), float(second))
    for ahead in (5, 100, 250, 500, 750):
        at = 3.0 * PERIOD_S + ahead
        assert forecast.load_at(at) == pytest.approx(daily(at), abs=3.0)


def test_what_varies_is_expected_to_be_rather_much() -> None:
    forecast = HoltWinters()
    for second in range(2000):
        forecast.observe(10.0 if second // 10 % 2 else 30.0, float(second))
    assert 24.0 < forecast.load_at(2000.0) < 40.0


def test_instances_are_up_when_a_known_rush_begins() -> None:
    def rush(at: float) -> float:
        return 5 * CAPACITY if at % PERIOD_S >= 600 else 5.0

    run = Run(Windowed(Rule(), HoltWinters(season_s=PERIOD_S, step_s=10.0)))
    run.go(3 * PERIOD_S + 590, lambda at, count: load(at, count, rush(at)))
    calm = run.instances
    run.go(9, lambda at, count: load(at, count, rush(at)))
    assert calm < 5 <= run.instances


def test_a_forecast_wakes_nobody() -> None:
    run = Run(Windowed(Rule(), HoltWinters()), Bounds(1, 8, zero_after_s=1.0)).rate(100, 100.0).rate(2, 0.0)
    assert run.instances == 0
    assert run.rate(100, 0.0).instances == 0


def test_a_steady_load_wants_no_other_number_with_a_forecast_than_without() -> None:
    for forecast in ("trend", "daily"):
        run = Run(make_policy(Rule(), forecast)).rate(3600, 50.0)
        assert [count for _, count in run.changes] == [2]
