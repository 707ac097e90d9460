"""The Universal Scalability Law, X(n) = l n / (1 + s (n - 1) + k n (n - 1)), fitted to measured throughput (Gunther 2007).

l, s and k are his lambda, sigma and kappa. Called by scalability.py. Not aware of: how throughput was measured, what n counts.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

LEAST_POINTS = 4  # of different n: three parameters fit any three points, which says nothing
_NOTHING = 1e-6  # less of a loss than this at the largest n is rounding
_STEPS = 50
_HALVINGS = 30

Array = NDArray[np.float64]


class Fit(Struct, frozen=True, kw_only=True):
    """lambda (`single_rps`): throughput of one. sigma (`contention`): part that only one can do at a time. kappa (`coherence`):
    what each pair costs. `best_n`: where throughput is highest, None if it never falls again. `r2`: explained variance.
    """

    single_rps: float
    contention: float
    coherence: float
    best_n: float | None
    r2: float

    def at(self, n: float) -> float:
        """Throughput of n by the law."""
        return self.single_rps * n / (1.0 + self.contention * (n - 1.0) + self.coherence * n * (n - 1.0))


def fit(points: Sequence[tuple[float, float]]) -> Fit | None:
    """The law that is nearest to (n, throughput) in least squares, with nothing below 0; None for too few points."""
    known = [(n, rps) for n, rps in points if rps > 0.0]
    if len({n for n, _ in known}) < LEAST_POINTS:
        return None
    n, x = np.array(known, dtype=np.float64).T
    scale = float(x.max())
    found = _refined(n, x / scale, _linear(n, x / scale))
    single, contention, coherence = found.tolist()
    coherence = coherence if coherence * float(n.max()) ** 2 > _NOTHING else 0.0
    missed = float(((_law(n, found) * scale - x) ** 2).sum())
    spread = float(((x - x.mean()) ** 2).sum())
    best_n = sqrt((1.0 - contention) / coherence) if coherence > 0.0 and contention < 1.0 else None
    if coherence > 0.0 and contention >= 1.0:
        best_n = 1.0
    return Fit(
        single_rps=single * scale,
        contention=contention,
        coherence=coherence,
        best_n=None if best_n is None else max(best_n, 1.0),
        r2=1.0 - missed / spread if spread > 0.0 else 1.0 if missed < 1e-9 * scale**2 else 0.0,
    )


def _law(n: Array, parameters: Array) -> Array:
    single, contention, coherence = parameters
    rates: Array = single * n / (1.0 + contention * (n - 1.0) + coherence * n * (n - 1.0))
    return rates


def _linear(n: Array, x: Array) -> Array:
    """n / X = a + b (n - 1) + c n (n - 1): linear in 1/l, s/l, k/l. Weighted so that errors of X count, not those of 1/X.

    Of all ways to hold b or c at 0, the best one in which nothing is negative.
    """
    weights = x**2 / n
    columns = np.stack([np.ones_like(n), n - 1.0, n * (n - 1.0)], axis=1) * weights[:, None]
    wanted = n / x * weights
    best, least = np.array([1.0 / x.max(), 0.0, 0.0]), np.inf
    for free in ([0, 1, 2], [0, 1], [0, 2], [0]):
        solved = np.zeros(3)
        solved[free] = np.linalg.lstsq(columns[:, free], wanted, rcond=None)[0]
        missed = float(((columns @ solved - wanted) ** 2).sum())
        if solved[0] > 0.0 and solved.min() >= 0.0 and missed < least:
            best, least = solved, missed
    return np.array([1.0 / best[0], best[1] / best[0], best[2] / best[0]])


def _refined(n: Array, x: Array, start: Array) -> Array:
    """Gauss-Newton on X itself, halving each step until it helps and staying where nothing is negative."""
    found = start
    missed = float(((_law(n, found) - x) ** 2).sum())
    for _ in range(_STEPS):
        single, contention, coherence = found
        below = 1.0 + contention * (n - 1.0) + coherence * n * (n - 1.0)
        slopes = np.stack(
            [n / below, -single * n * (n - 1.0) / below**2, -single * n**2 * (n - 1.0) / below**2],
            axis=1,
        )
        rest = x - _law(n, found)
        # a parameter that is 0 and would become negative is held
        free = [i for i in range(3) if found[i] > 0.0 or float(slopes[:, i] @ rest) > 0.0]
        step = np.zeros(3)
        step[free] = np.linalg.lstsq(slopes[:, free], rest, rcond=None)[0]
        for halving in range(_HALVINGS):
            tried = np.maximum(found + step * 0.5**halving, [1e-12, 0.0, 0.0])
            misses = float(((_law(n, tried) - x) ** 2).sum())
            if misses < missed * (1.0 - 1e-12):
                found, missed = tried, misses
                break
        else:
            break
    return found
