"""Hidden rates are found again from the gaps alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.learn.synthesis import mmpp as module
from dlproxy.lab.learn.synthesis.mmpp import Mmpp, mmpp

from .loads import gaps

TWO = Mmpp(np.array([1.0, 20.0]), np.array([[0.0, 0.1], [0.5, 0.0]]))
THREE = Mmpp(np.array([0.5, 10.0, 200.0]), np.array([[0.0, 0.1, 0.02], [0.5, 0.0, 0.1], [0.5, 1.5, 0.0]]))


def gaps_of(model: Mmpp, seconds: float, seed: int) -> np.ndarray:
    return np.maximum(np.diff(model.instants(seconds, np.random.default_rng(seed))), 1e-9)


def test_two_rates_and_how_long_they_last_are_found() -> None:
    found = mmpp(gaps_of(TWO, 1500.0, 1), 2)
    np.testing.assert_allclose(found.rates, TWO.rates, rtol=0.15)
    np.testing.assert_allclose(found.leaving, TWO.leaving, rtol=0.35)
    assert found.rate == pytest.approx(TWO.rate, rel=0.15)


def test_three_rates_are_found_with_their_shares_of_the_time() -> None:
    found = mmpp(gaps_of(THREE, 800.0, 1), 3)
    np.testing.assert_allclose(found.rates, THREE.rates, rtol=0.25)
    np.testing.assert_allclose(found.shares, THREE.shares, atol=0.06)
    assert found.spec == ""


def test_what_it_says_for_arrivals_makes_the_same_load() -> None:
    spec = "mmpp:high=15,share=0.2,dwell=2"
    found = mmpp(gaps(spec, 8_000), 2)
    said = {name: float(value) for name, _, value in (part.partition("=") for part in found.spec[5:].split(","))}
    assert said == pytest.approx({"high": 15.0, "share": 0.2, "dwell": 2.0}, rel=0.4)
    assert found.rate == pytest.approx(5.0, rel=0.1)


def test_no_round_makes_the_load_less_likely() -> None:
    seen = gaps_of(TWO, 150.0, 5)
    model, start, before = Mmpp(np.array([2.0, 9.0]), np.array([[0.0, 1.0], [1.0, 0.0]])), np.array([0.5, 0.5]), -np.inf
    for _ in range(12):
        model, start = module._round(model, start, seen)
        assert model.log_likelihood >= before - 1e-6
        before = model.log_likelihood
    spent = (model.shares * model.leaving.sum(axis=1)).tolist()
    assert spent[0] == pytest.approx(spent[1])  # as often into a state as out of it


@settings(max_examples=30)
@given(st.integers(1, 70), st.integers(1, 4), st.integers(0, 10_000))
def test_the_scan_is_the_plain_product(count: int, states: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrices, vector = random.uniform(1e-6, 1.0, (count, states, states)), random.uniform(0.1, 1.0, states)
    expected = [vector / vector.sum()]
    for matrix in matrices:
        after = expected[-1] @ matrix
        expected.append(after / after.sum())
    np.testing.assert_allclose(module._after_each(vector, matrices), expected, rtol=1e-9)
