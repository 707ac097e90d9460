"""Service times: the described line with its spread, and draws among what was measured and nothing else."""

from collections import Counter
from itertools import pairwise
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.lab.simulate.service_times import FEWEST, STRETCH, Fitted, Measured, Sample

DRAWN = 20_000
SAMPLES = [Sample(1, 0.010, 1e-4), Sample(1, 0.014, 2e-4), Sample(4, 0.020, 3e-4), Sample(8, 0.040, 4e-4)]


def test_a_line_without_spread_is_the_line() -> None:
    line = Fitted(0.010, 0.002)
    assert [line.draw(rows) for rows in (1, 4, 100)] == [(pytest.approx(0.010 + 0.002 * rows), 0.0) for rows in (1, 4, 100)]
    assert line.mean(4) == pytest.approx(0.018)


@pytest.mark.parametrize("cv", [0.05, 0.5, 1.0, 2.0])
def test_a_spread_keeps_the_mean_and_has_the_deviation_asked_for(cv: float) -> None:
    line = Fitted(0.010, 0.002, cv=cv, seed=1)
    drawn = [line.draw(5)[0] for _ in range(DRAWN)]
    assert min(drawn) > 0.0
    assert fmean(drawn) == pytest.approx(0.020, rel=5 * cv / DRAWN**0.5)
    assert stdev(drawn) / 0.020 == pytest.approx(cv, rel=0.02 + 0.1 * cv)


def test_exponential_times_are_exponential() -> None:
    line = Fitted(0.010, 0.0, exponential=True, seed=2)
    drawn = sorted(line.draw(1)[0] for _ in range(DRAWN))
    assert fmean(drawn) == pytest.approx(0.010, rel=0.04)
    assert stdev(drawn) == pytest.approx(0.010, rel=0.06)
    assert drawn[DRAWN // 2] == pytest.approx(0.010 * 0.6931, rel=0.06)


@pytest.mark.parametrize("make", [lambda seed: Fitted(0.01, 0.0, cv=0.3, seed=seed), lambda seed: Measured(SAMPLES, seed=seed)])
def test_a_seed_decides_what_is_drawn(make: type) -> None:
    def drawn(seed: int) -> list[float]:
        times = make(seed)
        return [times.draw(1)[0] for _ in range(5000)]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_only_what_was_measured_is_drawn_all_of_it_and_equally_often() -> None:
    measured = Measured(SAMPLES, seed=1)
    drawn = Counter(measured.draw(1) for _ in range(DRAWN))
    assert drawn.keys() == {(0.010, 1e-4), (0.014, 2e-4)}
    assert drawn[0.010, 1e-4] == pytest.approx(DRAWN / 2, rel=0.05)
    assert {measured.draw(8) for _ in range(100)} == {(0.040, 4e-4)}


def test_between_two_measured_sizes_means_lie_on_a_line_and_draws_are_those_of_the_nearer_scaled() -> None:
    measured = Measured(SAMPLES, seed=1)
    assert measured.mean(1) == pytest.approx(0.012)
    assert measured.mean(6) == pytest.approx(0.030)
    assert measured.mean(2) == pytest.approx(0.012 + 0.008 / 3)
    assert [measured.draw(7) for _ in range(50)] == [(pytest.approx(0.035), 4e-4)] * 50
    near = {measured.draw(2)[0] for _ in range(200)}
    assert sorted(near) == pytest.approx([0.010 * measured.mean(2) / 0.012, 0.014 * measured.mean(2) / 0.012])


def test_beyond_the_largest_measured_size_times_rise_as_the_line_through_all_of_them() -> None:
    measured = Measured([Sample(1, 0.011), Sample(2, 0.012), Sample(4, 0.014)])
    assert measured.mean(14) == pytest.approx(0.024)
    assert measured.draw(14) == (pytest.approx(0.024), 0.0)


def test_below_the_smallest_measured_size_times_fall_no_steeper_than_in_proportion() -> None:
    measured = Measured([Sample(4, 0.014), Sample(8, 0.018)])
    assert measured.mean(1) == pytest.approx(0.011)
    steep = Measured([Sample(4, 0.004), Sample(8, 0.100)])
    assert steep.mean(1) == pytest.approx(0.001)


def test_one_measured_size_says_nothing_of_batching_gains() -> None:
    measured = Measured([Sample(4, 0.020)])
    assert [measured.mean(rows) for rows in (1, 4, 8)] == pytest.approx([0.005, 0.020, 0.040])
    assert measured.draw(8)[0] == pytest.approx(0.040)


def test_batches_are_drawn_in_stretches_as_they_were_recorded_and_all_equally_often() -> None:
    recorded = [Sample(1, 0.001 + number / 1e6, at_s=number / 100) for number in range(300)]
    measured = Measured(reversed(recorded), seed=1)
    drawn = [round((measured.draw(1)[0] - 0.001) * 1e6) for _ in range(300 * 2000)]
    follows = sum((before + 1) % 300 == after for before, after in pairwise(drawn)) / len(drawn)
    assert follows == pytest.approx(1 - 1 / STRETCH, abs=0.005)
    times = Counter(drawn)
    assert sorted(times) == list(range(300))
    assert stdev(times.values()) / 2000 < 0.10, "a stretch ends anywhere, so none is left out"
    assert fmean(drawn) == pytest.approx(149.5, rel=0.02)


def test_each_size_has_stretches_of_its_own() -> None:
    recorded = [Sample(1 + number % 2, 0.001 * (1 + number), at_s=float(number)) for number in range(10)]
    measured = Measured(recorded, seed=1)
    small, large = zip(*[(measured.draw(1)[0], measured.draw(2)[0]) for _ in range(1000)], strict=True)
    assert set(small) == {sample.service_s for sample in recorded if sample.rows == 1}
    assert set(large) == {sample.service_s for sample in recorded if sample.rows == 2}


@given(steps=st.lists(st.tuples(st.integers(1, 20), st.floats(1e-6, 1e-2)), min_size=1, max_size=8))
def test_means_rise_with_the_rows_if_the_measured_ones_do(steps: list[tuple[int, float]]) -> None:
    samples, rows, seconds = [], 0, 0.0
    for more_rows, more_s in steps:
        rows, seconds = rows + more_rows, seconds + more_s
        samples.append(Sample(rows, seconds))
    measured = Measured(samples)
    means = [measured.mean(size) for size in range(1, rows + 30)]
    assert min(means) > 0.0
    assert all(before <= after * (1 + 1e-9) for before, after in pairwise(means))


def test_a_batch_after_a_rest_is_drawn_from_those_after_as_long_a_rest() -> None:
    warm = [Sample(1, 0.001, idle_s=0.0)] * FEWEST
    cold = [Sample(1, 0.002, idle_s=0.010)] * FEWEST
    few = [Sample(1, 0.009, idle_s=0.002)] * (FEWEST - 1)
    measured = Measured([*warm, *few, *cold])
    drawn = {idle_s: {measured.draw(1, idle_s)[0] for _ in range(200)} for idle_s in (0.0, 0.0002, 0.008, 0.1, 1000.0)}
    assert drawn == {0.0: {0.001}, 0.0002: {0.001}, 0.008: {0.002}, 0.1: {0.002}, 1000.0: {0.002}}
    assert len({measured.draw(1, 0.002)[0] for _ in range(200)}) == 1, "too few of its kind: those of a neighbouring one"
    assert {Measured(few).draw(1, 0.1)[0] for _ in range(50)} == {0.009}, "too few of every kind: all"
