"""The day: its cycle, its sale, who asks for what; the same for a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dlproxy.lab.casestudy.day import KNOWN, OF_BOTS, SALE, SHARES, Day, Kind, make_day, rate_at


def _day(seed: int = 3) -> Day:
    return make_day(mean_rps=200.0, length_s=100.0, seed=seed)


def test_the_busiest_hour_has_three_times_the_rate_of_the_quietest_and_the_sale_six_times_the_mean() -> None:
    outside = np.concatenate((np.linspace(0.0, SALE[0], 500, endpoint=False), np.linspace(SALE[1], 1.0, 500)))
    rates = rate_at(outside, 200.0)
    assert rates.max() / rates.min() == pytest.approx(3.0, rel=1e-3)
    assert rate_at(np.linspace(*SALE, 500, endpoint=False), 200.0).mean() == pytest.approx(1200.0, rel=1e-2)


def test_arrivals_follow_the_rate() -> None:
    day = _day()
    counts, edges = np.histogram(day.at_s, bins=20, range=(0.0, 100.0))
    middles = (edges[1:] + edges[:-1]) / 200.0
    expected = rate_at(middles, 200.0) * 5.0
    np.testing.assert_allclose(counts, expected, atol=float(5.0 * np.sqrt(expected.max())))
    assert day.in_sale.mean() == pytest.approx(0.6 / (0.9 + 0.6), abs=0.02)


@given(seed=some.integers(0, 1000), mean_rps=some.floats(1.0, 50.0), length_s=some.floats(1.0, 20.0))
def test_times_are_in_order_and_pictures_are_known(seed: int, mean_rps: float, length_s: float) -> None:
    day = make_day(mean_rps=mean_rps, length_s=length_s, seed=seed)
    assert np.all(np.diff(day.at_s) >= 0.0)
    assert day.at_s.size == day.kind.size == day.picture.size
    assert not day.at_s.size or 0.0 <= day.at_s[0] <= day.at_s[-1] <= length_s
    assert np.all((day.picture >= 0) & (day.picture < day.pictures))


def test_bots_repeat_a_few_pictures_and_most_others_are_new() -> None:
    day = _day()
    assert day.picture[day.kind == Kind.BOT].max() < OF_BOTS
    people = day.picture[day.kind != Kind.BOT]
    assert (people >= KNOWN).mean() == pytest.approx(0.7, abs=0.02)
    assert np.unique(people[people >= KNOWN]).size == (people >= KNOWN).sum()
    np.testing.assert_allclose(np.bincount(day.kind) / day.kind.size, SHARES, atol=0.01)


def test_a_seed_gives_the_same_day_and_another_one_another() -> None:
    assert np.array_equal(_day().at_s, _day().at_s)
    assert np.array_equal(_day().picture, _day().picture)
    assert not np.array_equal(_day().at_s[:50], _day(4).at_s[:50])
