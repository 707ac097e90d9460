"""Latency over rows and length: what is learned of each kind of model, and what is never predicted."""

from collections.abc import Callable
from math import isfinite
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.cost import LatencyModel, Point
from dlproxy.policy.fitting import nonnegative

Truth = Callable[[int, int], float]
TRUTHS: dict[str, Truth] = {
    "attention": lambda rows, length: 4e-3 + 0.05e-3 * rows * length + 0.2e-6 * rows * length * length,
    "rows alone": lambda rows, _: 1e-3 + 2e-3 * rows,
    "elements": lambda rows, length: 1e-3 + 1e-7 * rows * length,
    "steps": lambda rows, length: 1e-3 + (2e-4 + 1e-5 * rows) * length,
    "nothing": lambda rows, length: 5e-3,
}
PLACES = [(rows, length) for rows in (1, 4) for length in (3, 10, 30, 100, 200)]

lengths = st.integers(0, 500)
sizes = st.integers(1, 64)
seconds = st.floats(1e-6, 10.0)
histories = st.lists(st.tuples(sizes, seconds, lengths), max_size=60)
priors = st.lists(st.tuples(sizes, seconds), max_size=4) | st.lists(st.tuples(sizes, lengths, seconds), max_size=6)


def taught(prior: list[Point], history: list[tuple[int, float, int]]) -> LatencyModel:
    model = LatencyModel(prior)
    for rows, service_s, length in history:
        model.observe(rows, service_s, length)
    return model


def mixed(
    truth: Truth, batches: int, *, noise: float = 0.03, seed: int = 1, longest: int = 200
) -> list[tuple[int, float, int]]:
    random = Random(seed)
    drawn = [(random.choice([1, 1, 2, 4]), random.randint(3, random.choice([20, 80, longest]))) for _ in range(batches)]
    return [(rows, truth(rows, length) * max(random.gauss(1.0, noise), 0.3), length) for rows, length in drawn]


@pytest.mark.parametrize("prior", ["none", "right", "a hundred times too slow", "of one length", "of three"])
@pytest.mark.parametrize("name", TRUTHS)
def test_learns_what_drives_the_cost_from_a_few_dozen_batches(name: str, prior: str) -> None:
    truth = TRUTHS[name]
    points: dict[str, list[Point]] = {
        "none": [],
        "right": [(rows, truth(rows, 8)) for rows in (1, 2, 4, 8)],
        "a hundred times too slow": [(rows, 100 * truth(rows, 8)) for rows in (1, 2, 4, 8)],
        "of one length": [(rows, 8, truth(rows, 8)) for rows in (1, 2, 4, 8)],
        "of three": [(1, length, 0.01 * truth(1, length)) for length in (8, 32, 128)],
    }
    model = taught(points[prior], mixed(truth, 60))
    for rows, length in PLACES:
        assert model.mean(rows, length) == pytest.approx(truth(rows, length), rel=0.2), f"{rows} rows of {length}"
    for rows, service_s, length in mixed(truth, 400, seed=2):
        model.observe(rows, service_s, length)
    for rows, length in PLACES:
        assert model.mean(rows, length) == pytest.approx(truth(rows, length), rel=0.1), f"{rows} rows of {length}"
        assert model.p99(rows, length) <= 1.25 * truth(rows, length)


def test_three_tokens_count_as_much_as_three_hundred() -> None:
    truth: Truth = lambda rows, length: 1e-3 + 2e-4 * rows * length  # noqa: E731
    model = taught([], mixed(truth, 300, noise=0.1, longest=300))
    for length in (3, 30, 300):
        assert model.mean(1, length) == pytest.approx(truth(1, length), rel=0.1)


@given(prior=priors, history=histories, rows=sizes, length=lengths, more=sizes)
def test_more_never_takes_less(
    prior: list[Point], history: list[tuple[int, float, int]], rows: int, length: int, more: int
) -> None:
    model = taught(prior, history)
    for predicted in (model.mean, model.p99):
        least = predicted(rows, length)
        assert isfinite(least)
        assert least > 0.0
        assert predicted(rows + more, length) >= least * (1.0 - 1e-9)
        assert predicted(rows, length + more) >= least * (1.0 - 1e-9)


@given(prior=priors, history=histories, length=lengths, budget_s=st.floats(0.0, 20.0), most=st.integers(1, 100))
def test_rows_within_is_the_largest_batch_in_budget_at_every_length(
    prior: list[Point], history: list[tuple[int, float, int]], length: int, budget_s: float, most: int
) -> None:
    model = taught(prior, history)
    rows = model.rows_within(budget_s, most=most, length=length)
    fitting = [b for b in range(1, most + 1) if model.p99(b, length) <= budget_s * (1 + 1e-8)]
    clearly = [b for b in range(1, most + 1) if model.p99(b, length) <= budget_s * (1 - 1e-8)]
    assert max(clearly, default=1) <= rows <= max(fitting, default=1)


def test_one_length_is_todays_line_whatever_the_length() -> None:
    random = Random(1)
    one, other = LatencyModel([(1, 0.011), (2, 0.012)]), LatencyModel([(1, 0.011), (2, 0.012)])
    for _ in range(200):
        rows, factor = random.choice([1, 2, 4, 8]), random.gauss(1.0, 0.05)
        one.observe(rows, (0.010 + 0.001 * rows) * factor)
        other.observe(rows, (0.010 + 0.001 * rows) * factor, 128)
    assert (one.base_s, one.per_row_s) == (other.base_s, other.per_row_s)
    assert one.p99(5) == other.p99(5, 128)


def test_a_length_that_never_ran_costs_in_proportion_at_least_if_longer_and_its_share_if_shorter() -> None:
    model = taught([], [(rows, 0.010 + 0.001 * rows, 100) for rows in (1, 2, 4, 8)])
    assert model.mean(1, 200) == pytest.approx(2 * 0.011, rel=1e-3)
    assert model.mean(1, 10) == pytest.approx(0.010 + 0.0001, rel=1e-3)
    for truth in TRUTHS.values():
        model = taught([], mixed(truth, 200, noise=0.0))
        assert model.mean(2, 400) >= 0.99 * truth(2, 400)


def test_one_preempted_batch_hardly_moves_anything() -> None:
    truth = TRUTHS["attention"]
    model = taught([], mixed(truth, 300))
    before = [model.p99(rows, length) for rows, length in PLACES]
    model.observe(2, 50 * truth(2, 100), 100)
    for _ in range(4):
        model.observe(1, truth(1, 50), 50)
    for (rows, length), p99_s in zip(PLACES, before, strict=True):
        assert model.p99(rows, length) == pytest.approx(p99_s, rel=0.2)


def test_follows_a_threefold_slow_down_and_the_way_back() -> None:
    truth = TRUTHS["attention"]
    model = taught([], mixed(truth, 300))
    for factor in (3.0, 1.0):
        for rows, service_s, length in mixed(truth, 60, seed=3):
            model.observe(rows, factor * service_s, length)
        for rows, length in PLACES:
            assert model.mean(rows, length) == pytest.approx(factor * truth(rows, length), rel=0.15)


def test_a_long_run_of_one_length_does_not_forget_the_others() -> None:
    truth = TRUTHS["attention"]
    model = taught([], mixed(truth, 300))
    random = Random(4)
    for _ in range(2000):
        model.observe(2, truth(2, 50) * random.gauss(1.0, 0.03), 50)
    for rows, length in PLACES:
        assert model.mean(rows, length) == pytest.approx(truth(rows, length), rel=0.3), f"{rows} rows of {length}"


def test_each_cost_has_its_own_deviation() -> None:
    truth: Truth = lambda rows, length: 1e-3 + 1e-4 * rows * length  # noqa: E731
    random, model = Random(5), LatencyModel()
    for _ in range(600):
        length = random.choice([4, 400])
        model.observe(1, truth(1, length) * random.gauss(1.0, 0.2 if length == 4 else 0.02), length)
    assert model.p99(1, 4) > 1.4 * truth(1, 4)
    assert model.p99(1, 400) < 1.2 * truth(1, 400)


@given(st.lists(st.lists(st.floats(0.0, 10.0), min_size=4, max_size=4), min_size=1, max_size=12), st.data())
def test_nonnegative_least_squares_cannot_be_bettered_by_moving_one_coefficient(
    rows: list[list[float]], data: st.DataObject
) -> None:
    wanted = data.draw(st.lists(st.floats(0.0, 10.0), min_size=len(rows), max_size=len(rows)))
    sums = [[sum(row[i] * row[j] for row in rows) for j in range(4)] for i in range(4)]
    found = nonnegative(sums, [sum(row[i] * value for row, value in zip(rows, wanted, strict=True)) for i in range(4)])

    def error(coefficients: list[float]) -> float:
        return sum(
            (sum(c * x for c, x in zip(coefficients, row, strict=True)) - value) ** 2
            for row, value in zip(rows, wanted, strict=True)
        )

    least = error(found)
    assert min(found) >= 0.0
    for term in range(4):
        for step in (-0.01, 0.01):
            moved = [max(c + step * (i == term), 0.0) for i, c in enumerate(found)]
            assert error(moved) >= least - 1e-6 * (1.0 + least)
