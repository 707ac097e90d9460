"""The hour that is kept of a model: exact where it is read, of fixed size however long the server runs."""

from bisect import bisect_left
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.telemetry.stats import BOUNDS_S, Histogram
from dlproxy.wire.dashboard import sampling
from dlproxy.wire.dashboard.history import COLUMNS, FINE, HOUR, quantiles

from .rig import BEGAN, Rig


def test_a_second_is_told_as_it_was() -> None:
    rig = Rig("m")
    model = rig.models["m/1"]
    rig.second()
    model.answers(20, rig.now, rows=3, seconds=0.02)
    model.queued = 4
    rig.second()
    told = rig.sampler.history("m", "1", 60)
    newest = {name: told[name][-1] for name in ("step_s", *COLUMNS)}
    p50_s, p99_s = newest.pop("p50_s"), newest.pop("p99_s")
    assert newest == {
        "step_s": 1,
        "rate": 20.0,
        "queued": 4.0,
        "batch_rows": 3.0,
        "utilisation": 0.2,
        "rejects_rate": 0.0,
        "failures_rate": 0.0,
    }
    assert 0.01 < p50_s < p99_s <= 0.025
    assert told["at"][-1] == pytest.approx(rig.sampler.wall(BEGAN + 2.0))


def test_a_model_that_was_never_asked_has_no_arrays() -> None:
    rig = Rig("m", "idle")
    rig.models["m/1"].answers(1, rig.now)
    rig.second(20)
    assert set(rig.sampler.tracks) == {("m", "1")}
    assert rig.sampler.history("idle", "1", HOUR)["rate"] == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 200)), max_size=6), st.integers(1, HOUR))
def test_points_tile_the_time_and_add_up_to_what_was_answered(bursts: list[tuple[int, int]], asked: int) -> None:
    """Bursts of answers, each followed by so many seconds."""
    rig = Rig("m")
    answered: dict[int, int] = {}
    for count, seconds in [(1, 1), *bursts]:
        rig.models["m/1"].answers(count, rig.now + 0.5)
        answered[round(rig.now - BEGAN) + 1] = count
        rig.second(seconds)
    told = rig.sampler.history("m", "1", asked)
    ends, steps = [round(at - rig.sampler.wall(BEGAN)) for at in told["at"]], told["step_s"]
    assert all(before + step == end for before, end, step in zip(ends, ends[1:], steps[1:], strict=False))
    assert ends[-1] == round(rig.now - BEGAN)
    assert min(asked, ends[-1]) <= sum(steps) <= min(asked, ends[-1]) + 18
    since = ends[0] - steps[0]
    expected = sum(count for second, count in answered.items() if second > since)
    assert sum(rate * step for rate, step in zip(told["rate"], steps, strict=True)) == pytest.approx(expected, rel=0.01)


def test_the_objective_is_told_of_an_hour_and_what_is_older_is_forgotten() -> None:
    rig = Rig("m")
    model = rig.models["m/1"]
    model.stats.aim(0.01, 0.9)
    model.answers(95, rig.now + 0.5, seconds=0.004)
    model.answers(5, rig.now + 0.5, seconds=0.04)
    rig.second(30)
    told = rig.sampler.shown(("m", "1"))["objective"]
    assert told == {"seconds": 0.01, "share": 0.9, "met": 0.95, "budget_left": 0.5}
    rig.second(HOUR + 60)
    assert not rig.sampler.tracks
    model.answers(10, rig.now + 0.5, seconds=0.004)
    rig.second(20)
    assert max(rig.sampler.history("m", "1", 60)["rate"]) == 10.0
    assert rig.sampler.shown(("m", "1"))["objective"]["met"] == 1.0


def test_rings_do_not_grow_in_a_week(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model is asked all the time, with pauses; every hour another is loaded, asked and unloaded."""
    monkeypatch.setattr(sampling, "MOST_TRACKS", 3)
    monkeypatch.setattr(sampling, "MOST_EVENTS", 100)
    rig = Rig("m")
    held = []
    for hour in range(7 * 24):
        rig.add(f"of hour {hour}")
        for _ in range(2):
            for model in rig.models.values():
                model.answers(1, rig.now)
            rig.second(3)
        rig.remove(f"of hour {hour}/1")
        rig.now += 3594.0
        rings = [ring for track in rig.sampler.tracks.values() for ring in (track.fine, track.coarse)]
        numbers = sum(len(column) for ring in rings for column in (ring.numbers, *ring.columns))
        held.append((numbers, len(rings), len(rig.sampler.events), len(rig.sampler._watched), len(rig.sampler.versions)))
    assert rig.sampler.happened > 2 * 100
    assert set(held[50:]) == {held[-1]}
    assert held[-1][1:] == (2 * 3, 100, 2, 2)


def test_a_second_in_which_the_loop_stood_still_is_spread_over_those_that_it_took() -> None:
    rig = Rig("m")
    rig.second(10)
    rig.models["m/1"].answers(30, rig.now)
    rig.now += 2.0
    rig.second()
    assert rig.sampler.history("m", "1", 3)["rate"] == [10.0, 10.0, 10.0]


def test_a_look_that_comes_late_moves_answers_and_makes_none() -> None:
    rig = Rig("m")
    for late_s in (0.0, 0.95, 0.01, 0.5, 0.0):
        rig.models["m/1"].answers(5, rig.now)
        rig.now += 1.0
        rig.feed.look(rig.now + late_s)
    assert sum(rig.sampler.history("m", "1", 60)["rate"]) == 25.0


def test_of_more_than_five_minutes_ago_ten_seconds_are_one_point() -> None:
    rig = Rig("m")
    for _ in range(2 * FINE):
        rig.models["m/1"].answers(7, rig.now)
        rig.second()
    told = rig.sampler.history("m", "1", HOUR)
    assert set(told["step_s"]) == {1, 10}
    assert FINE - 10 <= told["step_s"].count(1) <= FINE
    assert set(told["rate"]) == {7.0}


@given(st.lists(st.floats(2e-5, 9.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_in_the_bucket_of_the_exact_one(seconds: list[float], share: float) -> None:
    histogram = Histogram()
    histogram.add_all(seconds)
    exact = sorted(seconds)[min(int(-(-share * len(seconds) // 1)), len(seconds)) - 1]
    (found,) = quantiles(histogram.counts, share)
    assert found is not None
    assert _bounds(exact)[0] <= found <= _bounds(exact)[1] * (1 + 1e-9)


def _bounds(seconds: float) -> Sequence[float]:
    place = bisect_left(BOUNDS_S, seconds)
    return (BOUNDS_S[0] / 2.0, *BOUNDS_S, BOUNDS_S[-1] * 2.0)[place : place + 2]


def test_nothing_answered_has_no_quantiles() -> None:
    assert quantiles(Histogram().counts, 0.5, 0.99) == [None, None]
