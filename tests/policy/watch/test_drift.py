"""Drift: distances and their p-values are right, chance raises no alarm, and what is another now does."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.watch.drift import (
    CHANCE,
    REFERENCE,
    SAMPLE,
    Compared,
    Drift,
    Test,
    chi_squared_above,
    compared,
    drifted,
    ks,
    psi,
)

NUMBERS = st.lists(st.floats(-1e6, 1e6) | st.integers(0, 3).map(float), min_size=1, max_size=60).map(sorted)


@given(NUMBERS, NUMBERS)
def test_the_distance_of_kolmogorov_and_smirnov_is_the_largest_gap_of_the_distributions(
    one: list[float], other: list[float]
) -> None:
    def share(values: list[float], most: float) -> float:
        return sum(value <= most for value in values) / len(values)

    distance, p = ks(one, other)
    assert distance == pytest.approx(max(abs(share(one, value) - share(other, value)) for value in one + other), abs=1e-12)
    assert 0.0 <= p <= 1.0


@given(NUMBERS, NUMBERS)
def test_the_stability_index_is_finite_and_never_below_0(one: list[float], other: list[float]) -> None:
    index, p = psi(one, other)
    assert 0.0 <= index < 100.0
    assert 0.0 <= p <= 1.0
    assert psi(one, one) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "freedom", "chance"), [(16.919, 9, 0.05), (3.841, 1, 0.05), (44.3, 9, 1.24e-6), (0.0, 4, 1.0)]
)
def test_chi_squared_is_near_its_tables(value: float, freedom: int, chance: float) -> None:
    assert chi_squared_above(value, freedom) == pytest.approx(chance, rel=1.5 if chance < 1e-3 else 0.1)


@pytest.mark.parametrize("test", ["ks", "psi"])
def test_p_values_are_those_of_chance(test: Test) -> None:
    random = Random(1)
    low = 0
    for _ in range(200):
        one, other = (sorted(random.gauss(0.0, 1.0) for _ in range(count)) for count in (500, 150))
        low += compared("x", test, one, other).p < 0.05
    assert 3 <= low <= 20, "10 of 200 are below 0.05 by chance"


def test_only_what_is_far_off_and_no_chance_has_drifted() -> None:
    sure, far = CHANCE / 10.0, {"psi": 0.3, "ks": 0.2}
    found = [
        Compared("far and sure", "ks", far["ks"], sure, 0.0, 1.0),
        Compared("near", "psi", 0.1, sure, 0.0, 1.0),
        Compared("perhaps chance", "psi", far["psi"], CHANCE / 2.0, 0.0, 1.0),
    ]
    assert [one.name for one in drifted(found)] == ["far and sure"]


def test_samples_are_compared_with_the_first_requests_each_once() -> None:
    random, drift = Random(2), Drift({"x": "psi", "class": "psi", "score": "ks", "constant": "psi", "rare": "ks"})
    looks: list[list[str]] = []
    for number in range(REFERENCE + 4 * SAMPLE):
        off = 1.0 if number >= REFERENCE + 2 * SAMPLE else 0.0
        row = {"x": random.gauss(off, 1.0), "class": float(random.randrange(3)), "score": random.random() ** (1.0 + off)}
        found = drift.add({**row, "constant": 0.0, **({"rare": off} if number % 50 == 0 else {})})
        if found is not None:
            looks.append([one.name for one in drifted(found)])
            assert [one.name for one in found] == ["x", "class", "score", "constant"], "too few had the other"
    assert looks == [[], [], ["x", "score"], ["x", "score"]]


def test_a_class_that_never_came_at_first_is_seen() -> None:
    first, now = sorted([0.0, 1.0] * 500), sorted([0.0] * 100 + [1.0] * 100 + [7.0] * 100)
    index, p = psi(first, now)
    assert index > 1.0
    assert p < 1e-20
