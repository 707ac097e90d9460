"""The fitted line: what it learns from noisy batches, what it never predicts, and the largest batch within a budget."""

from collections.abc import Callable
from math import isfinite
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.fitting import EARLY, OUTLIER, SIGMAS

SIZES = (1, 2, 4, 8, 16, 32)
seconds = st.floats(1e-7, 100.0)
sizes = st.integers(1, 4096)
priors = st.lists(st.tuples(sizes, seconds), max_size=8)
histories = st.lists(st.tuples(sizes, st.floats(0.0, 100.0)), max_size=60)


def line(base_s: float, per_row_s: float) -> Callable[[int], float]:
    return lambda rows: base_s + per_row_s * rows


def calibrated(base_s: float, per_row_s: float) -> LatencyModel:
    return LatencyModel([(rows, base_s + per_row_s * rows) for rows in SIZES])


def learn(model: LatencyModel, time_of: Callable[[int], float], *, batches: int, noise: float = 0.0, seed: int = 1) -> None:
    """Show the model that many batches of mixed sizes, with Gaussian relative noise."""
    random = Random(seed)
    for _ in range(batches):
        rows = random.choice(SIZES)
        model.observe(rows, time_of(rows) * max(0.1, random.gauss(1.0, noise)))


def taught(prior: list[tuple[int, float]], history: list[tuple[int, float]]) -> LatencyModel:
    model = LatencyModel(prior)
    for rows, service_s in history:
        model.observe(rows, service_s)
    return model


def test_an_exact_calibration_is_predicted_exactly() -> None:
    model = calibrated(0.010, 0.0005)
    for rows in (1, 3, 32, 100):
        assert model.mean(rows) == pytest.approx(0.010 + 0.0005 * rows)
        assert model.p99(rows) == pytest.approx(model.mean(rows))


def test_one_calibrated_size_means_no_gain_from_batching() -> None:
    model = LatencyModel([(4, 0.008)])
    assert model.mean(4) == pytest.approx(0.008)
    assert model.mean(8) == pytest.approx(0.016)


def test_without_calibration_there_is_still_a_line() -> None:
    assert LatencyModel().mean(1) == pytest.approx(1e-3)
    assert LatencyModel().mean(10) == pytest.approx(1e-2)


@pytest.mark.parametrize(("base_s", "per_row_s"), [(10e-3, 0.5e-3), (1e-3, 4e-3), (20e-6, 3e-6), (0.0, 1e-3), (5e-3, 0.0)])
@pytest.mark.parametrize("seed", range(5))
def test_learns_the_true_line_from_noisy_batches_whatever_the_prior_said(base_s: float, per_row_s: float, seed: int) -> None:
    truth = line(base_s, per_row_s)
    model = calibrated(base_s * 2 + 1e-5, per_row_s / 2)
    learn(model, truth, batches=500, noise=0.05, seed=seed)
    for rows in SIZES:  # 5 % noise and a memory of about 50 batches: 10 % on the line, of which 1.5 standard errors at the ends
        assert model.mean(rows) == pytest.approx(truth(rows), rel=0.10), f"at {rows} rows"
    assert model.base_s == pytest.approx(base_s, abs=0.08 * truth(16))
    assert model.per_row_s == pytest.approx(per_row_s, abs=0.08 * truth(16) / 16)


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.15])
def test_p99_covers_about_99_percent_of_gaussian_batches(noise: float) -> None:
    model = calibrated(0.010, 0.001)
    learn(model, line(0.010, 0.001), batches=500, noise=noise)
    random = Random(2)
    draws = [(rows, (0.010 + 0.001 * rows) * random.gauss(1.0, noise)) for rows in random.choices(SIZES, k=4000)]
    within = sum(service_s <= model.p99(rows) for rows, service_s in draws) / len(draws)
    assert 0.97 <= within <= 1.0
    assert model.p99(8) <= model.mean(8) * (1.0 + 1.6 * SIGMAS * noise), "nor is it far above"


@given(prior=priors, history=histories, rows=sizes)
@example(prior=[(1, 1.0), (2, 1e-7)], history=[], rows=4096)
@example(prior=[], history=[(1, 100.0), (4096, 0.0)], rows=1)
def test_predictions_are_positive_finite(prior: list[tuple[int, float]], history: list[tuple[int, float]], rows: int) -> None:
    model = taught(prior, history)
    assert isfinite(model.mean(rows))
    assert isfinite(model.p99(rows))
    assert 0.0 < model.mean(rows) <= model.p99(rows)
    assert model.base_s >= 0.0
    assert model.per_row_s > 0.0


@given(prior=priors, history=histories, rows=sizes, more=sizes)
def test_more_rows_never_take_less_time(
    prior: list[tuple[int, float]], history: list[tuple[int, float]], rows: int, more: int
) -> None:
    model = taught(prior, history)
    assert model.mean(rows + more) >= model.mean(rows)
    assert model.p99(rows + more) >= model.p99(rows)


@given(prior=priors, history=histories, budget_s=st.floats(0.0, 50.0), most=st.integers(1, 200))
@example(prior=[(1, 0.011), (2, 0.012)], history=[], budget_s=0.020, most=64)  # the bound falls on a whole number of rows
@example(prior=[(1, 0.011), (2, 0.012)], history=[], budget_s=0.0, most=64)
def test_rows_within_is_the_largest_batch_in_budget(
    prior: list[tuple[int, float]], history: list[tuple[int, float]], budget_s: float, most: int
) -> None:
    model = taught(prior, history)
    rows = model.rows_within(budget_s, most=most)
    assert 1 <= rows <= most
    fitting = [b for b in range(1, most + 1) if model.p99(b) <= budget_s * (1 + 1e-9)]
    clearly_fitting = [b for b in range(1, most + 1) if model.p99(b) <= budget_s * (1 - 1e-9)]
    assert max(clearly_fitting, default=1) <= rows <= max(fitting, default=1)


@pytest.mark.parametrize("factor", [10.0, 1000.0])
def test_one_preempted_batch_hardly_moves_anything(factor: float) -> None:
    model = calibrated(0.010, 0.001)
    learn(model, line(0.010, 0.001), batches=300, noise=0.05)
    mean_s, p99_s, limit = model.mean(16), model.p99(16), model.rows_within(0.046, most=256)
    model.observe(16, 0.026 * factor)
    assert model.mean(16) == pytest.approx(mean_s, rel=0.10), "it counts as OUTLIER times its prediction, one of about 50"
    assert model.p99(16) == pytest.approx(p99_s, rel=0.15), "nor does the spread that it adds shrink the batches"
    assert model.rows_within(0.046, most=256) >= 0.75 * limit
    learn(model, line(0.010, 0.001), batches=100, noise=0.05, seed=3)
    assert model.mean(16) == pytest.approx(mean_s, rel=0.05), "and it is forgotten"


def test_many_batches_of_one_size_do_not_wind_up() -> None:
    model = calibrated(0.010, 0.001)
    random = Random(4)
    for _ in range(10_000):
        model.observe(8, 0.018 * random.gauss(1.0, 0.05))
    assert model.mean(8) == pytest.approx(0.018, rel=0.05)
    for rows in SIZES:  # nothing was learned of other sizes, so the calibration still speaks for them
        assert model.mean(rows) == pytest.approx(0.010 + 0.001 * rows, rel=0.35), f"at {rows} rows"
    learn(model, line(0.010, 0.002), batches=150)
    assert model.mean(32) == pytest.approx(0.074, rel=0.1), "and a new regime is learned as fast as ever"


@pytest.mark.parametrize("batches_before", [0, 200, 5_000])
def test_follows_a_threefold_slow_down_and_the_way_back(batches_before: int) -> None:
    model = calibrated(0.010, 0.001)
    learn(model, line(0.010, 0.001), batches=batches_before, noise=0.03)
    learn(model, line(0.030, 0.003), batches=100, noise=0.03)
    assert model.mean(8) == pytest.approx(3 * 0.018, rel=0.15)
    learn(model, line(0.030, 0.003), batches=100, noise=0.03)
    assert model.mean(8) == pytest.approx(3 * 0.018, rel=0.06)
    learn(model, line(0.010, 0.001), batches=200, noise=0.03)
    assert model.mean(8) == pytest.approx(0.018, rel=0.08)
    assert model.p99(8) < 1.5 * model.mean(8)


def test_a_wrong_prior_is_overcome_even_though_outliers_are_clipped() -> None:
    too_fast = calibrated(0.0001, 0.00001)
    learn(too_fast, line(0.010, 0.001), batches=400)
    assert too_fast.mean(8) == pytest.approx(0.018, rel=0.1)
    too_slow = calibrated(1.0, 0.1)
    learn(too_slow, line(0.010, 0.001), batches=400)
    assert too_slow.mean(8) == pytest.approx(0.018, rel=0.1)


def test_an_observation_counts_at_most_as_outlier_times_the_prediction() -> None:
    models = calibrated(0.010, 0.001), calibrated(0.010, 0.001)
    for model, seconds in zip(models, (99.0, OUTLIER * 0.014), strict=True):
        learn(model, line(0.010, 0.001), batches=EARLY + 1)
        model.observe(4, seconds)
    assert models[0].mean(4) == pytest.approx(models[1].mean(4))


@pytest.mark.parametrize("factor", [0.01, 0.5, 2.0, 100.0])
def test_the_first_batch_tells_how_high_the_line_lies(factor: float) -> None:
    model = calibrated(0.010, 0.001)
    model.observe(1, 0.011 * factor)
    for rows in SIZES:
        assert model.mean(rows) == pytest.approx((0.010 + 0.001 * rows) * factor)


@pytest.mark.parametrize("truth", [(0.010, 0.001), (0.0, 0.0115), (0.010, 0.0), (1e-5, 2e-5)])
@pytest.mark.parametrize("prior", [(1e-5, 1e-3), (1.0, 1e-6), (0.0, 1e-4), (1e-3, 0.0)])
def test_three_batches_of_different_sizes_are_enough_to_forget_a_wrong_calibration(
    truth: tuple[float, float], prior: tuple[float, float]
) -> None:
    model = calibrated(*prior)
    for rows in (1, 2, 4):
        model.observe(rows, line(*truth)(rows))
    for rows in SIZES:
        assert model.mean(rows) == pytest.approx(line(*truth)(rows), rel=0.15)


def test_a_cold_first_batch_is_soon_forgotten() -> None:
    model = calibrated(0.010, 0.001)
    model.observe(1, 0.5)
    for rows in (1, 2, 4):
        model.observe(rows, 0.010 + 0.001 * rows)
    assert model.mean(8) == pytest.approx(0.018, rel=0.1)


def test_three_batches_in_a_row_that_are_off_alike_are_a_new_time() -> None:
    model = calibrated(0.010, 0.001)
    learn(model, line(0.010, 0.001), batches=300, noise=0.03)
    for rows in (8, 8, 16):
        model.observe(rows, 3 * (0.010 + 0.001 * rows))
    assert model.mean(8) == pytest.approx(3 * 0.018, rel=0.1)
    assert model.p99(8) < 1.5 * model.mean(8)
