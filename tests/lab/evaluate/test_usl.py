"""The scalability law is found again in throughput that follows it, and nothing is claimed from too few points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.evaluate.usl import Fit, fit

LEVELS = (1, 2, 4, 8, 16, 32, 64)


def _law(single: float, contention: float, coherence: float) -> Fit:
    return Fit(single_rps=single, contention=contention, coherence=coherence, best_n=None, r2=1.0)


@settings(deadline=None)  # the first solution loads libraries
@given(single=st.floats(0.1, 1e5), contention=st.floats(0.0, 1.0), coherence=st.floats(0.0, 0.1))
def test_known_parameters_are_found(single: float, contention: float, coherence: float) -> None:
    law = _law(single, contention, coherence)
    found = fit([(n, law.at(n)) for n in LEVELS])
    assert found is not None
    assert found.single_rps == pytest.approx(single, rel=1e-3)
    assert found.contention == pytest.approx(contention, abs=2e-3)
    assert found.coherence == pytest.approx(coherence, abs=2e-4)
    assert found.r2 > 0.999 or contention > 0.99  # with a contention of 1 all throughputs are alike


@given(contention=st.floats(0.01, 0.5), coherence=st.floats(1e-4, 0.02), seed=st.integers(0, 2**31), noise=st.floats(0.0, 0.05))
def test_noise_moves_the_curve_no_further_than_itself(contention: float, coherence: float, seed: int, noise: float) -> None:
    law = _law(100.0, contention, coherence)
    random = np.random.default_rng(seed)
    points = [(n, law.at(n) * (1.0 + noise * float(random.uniform(-1.0, 1.0)))) for n in LEVELS]
    found = fit(points)
    assert found is not None
    missed = sum((found.at(n) - rps) ** 2 for n, rps in points)
    truth = sum((law.at(n) - rps) ** 2 for n, rps in points)
    assert missed <= truth * (1 + 1e-6) + 1e-6  # least squares: the law itself is no nearer to the points


@settings(deadline=None)
@given(rates=st.lists(st.floats(1.0, 1e5), min_size=4, max_size=7))
def test_nothing_is_negative_whatever_was_measured(rates: list[float]) -> None:
    found = fit(list(zip(LEVELS, rates, strict=False)))
    assert found is not None
    assert found.single_rps > 0.0
    assert min(found.contention, found.coherence) >= 0.0
    assert found.best_n is None or found.best_n >= 1.0
    assert found.r2 <= 1.0


def test_the_maximum_is_where_the_law_has_it() -> None:
    law = _law(50.0, 0.05, 0.01)
    found = fit([(n, law.at(n)) for n in LEVELS])
    assert found is not None
    assert found.best_n == pytest.approx((0.95 / 0.01) ** 0.5, rel=1e-3)


def test_throughput_that_never_falls_has_no_maximum() -> None:
    found = fit([(n, 10.0 * n) for n in LEVELS])
    assert found is not None
    assert found.best_n is None
    assert found.at(1000) == pytest.approx(10_000, rel=1e-3)


@pytest.mark.parametrize("points", [[], [(1, 5.0), (2, 9.0), (4, 15.0)], [(1, 5.0), (1, 5.1), (2, 9.0), (4, 15.0)]])
def test_too_few_points_are_not_fitted(points: list[tuple[float, float]]) -> None:
    assert fit(points) is None
