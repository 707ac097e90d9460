"""The response formula against simulated queues, and its curve: convex, and as near to the formula as promised."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.lab.tune.placement.delay import LEAST_LOAD, TOLERANCE, curve, mean_response_s

ROWS = 30_000
HULL = 0.1  # the formula, a minimum of two, bends the wrong way where they cross, and is too high there: the hull lies below


def simulated_response_s(*, rate: float, base_s: float, row_s: float, limit: int, seed: int = 1) -> float:
    """One server, Poisson arrivals, everything that waits (at most `limit` rows) is the next batch."""
    arrived = np.cumsum(np.random.default_rng(seed).exponential(1.0 / rate, ROWS))
    begin, now, total = 0, 0.0, 0.0
    while begin < ROWS:
        now = max(now, float(arrived[begin]))
        end = min(int(np.searchsorted(arrived, now, side="right")), begin + limit)
        now += base_s + row_s * (end - begin)
        total += (end - begin) * now - float(arrived[begin:end].sum())
        begin = end
    return total / ROWS


@pytest.mark.parametrize(("base_s", "row_s", "limit"), [(5, 1, 1), (0.3, 1, 2), (100, 1, 3), (1, 1, 4), (10, 1, 32)])
@pytest.mark.parametrize(("load", "error"), [(0.05, 0.12), (0.4, 0.12), (0.7, 0.12), (0.8, 0.17)])
def test_formula_is_near_simulation(base_s: float, row_s: float, limit: int, load: float, error: float) -> None:
    rate = load * limit / (base_s + row_s * limit)
    predicted = mean_response_s(np.array([rate]), base_s=base_s, row_s=row_s, limit=limit)[0]
    assert predicted == pytest.approx(simulated_response_s(rate=rate, base_s=base_s, row_s=row_s, limit=limit), rel=error)


@pytest.mark.parametrize("load", [0.01, 0.3, 0.9])
def test_batches_of_one_are_pollaczek_khinchine(load: float) -> None:
    predicted = mean_response_s(np.array([load]), base_s=0.25, row_s=0.75, limit=1)[0]
    assert predicted == pytest.approx(1.0 + load / (2.0 * (1.0 - load)))


lines = st.tuples(st.floats(0.0, 50.0), st.floats(0.05, 5.0), st.integers(1, 64), st.floats(0.1, 0.9))


@given(lines)
def test_curve_rises_ever_steeper_and_covers_the_usable_rate(line: tuple[float, float, int, float]) -> None:
    base_s, row_s, limit, load = line
    usable = load * limit / (base_s + row_s * limit)
    widths, slopes = curve(usable, base_s=base_s, row_s=row_s, limit=limit)
    assert widths.sum() == pytest.approx(usable)
    assert (widths > 0).all()
    assert (np.diff(slopes) > -1e-9 * slopes[-1]).all()
    assert slopes[0] >= (base_s + row_s) * 0.999


@given(lines)
def test_curve_is_near_the_formula(line: tuple[float, float, int, float]) -> None:
    base_s, row_s, limit, load = line
    usable = load * limit / (base_s + row_s * limit)
    widths, slopes = curve(usable, base_s=base_s, row_s=row_s, limit=limit)
    corners = np.concatenate(([0.0], np.cumsum(widths)))
    rates = np.linspace(LEAST_LOAD, 1.0, 200) * usable
    seconds = np.interp(rates, corners, np.concatenate(([0.0], np.cumsum(widths * slopes)))) / rates
    ratio = seconds / mean_response_s(rates, base_s=base_s, row_s=row_s, limit=limit)
    assert ratio.max() < 1.0 + TOLERANCE + 0.02
    assert ratio.min() > 1.0 - HULL
