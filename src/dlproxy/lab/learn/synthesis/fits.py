"""Models of arrivals fitted to gaps without a network: renewal processes, and blocks of the trace itself.

Called by training.py. Not aware of: traces' files, how good they are (likeness.py).
"""

from collections.abc import Callable
from math import log, sqrt
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
CHUNK = 4096


class Source(Protocol):
    """A model of arrivals that has been fitted."""

    @property
    def spec(self) -> str:
        """The same as `--arrivals` has it; empty if it has not."""
        ...

    def instants(self, duration_s: float, random: np.random.Generator) -> Numbers:
        """When requests arrive, in ascending order, from 0 to below `duration_s` seconds."""
        ...


def until(duration_s: float, gaps: Callable[[int], Numbers]) -> Numbers:
    """Instants with gaps that are drawn so many at a time."""
    pieces: list[Numbers] = []
    at = 0.0
    while at < duration_s:
        pieces.append(at + np.cumsum(gaps(CHUNK)))
        at = float(pieces[-1][-1])
    found = np.concatenate(pieces) if pieces else np.zeros(0)
    return found[found < duration_s]


class Gamma(Struct, frozen=True):
    """Independent gaps by a Gamma distribution of this shape; 1 is a Poisson process."""

    shape: float
    mean_s: float

    @property
    def spec(self) -> str:
        return "poisson" if self.shape == 1.0 else f"gamma:cv={1.0 / sqrt(self.shape):.4g}"

    def instants(self, duration_s: float, random: np.random.Generator) -> Numbers:
        return until(duration_s, lambda count: random.gamma(self.shape, self.mean_s / self.shape, count))


def gamma(gaps: Numbers) -> Gamma:
    """The most likely shape: where log k - digamma(k) is the log of the mean gap less the mean of their logs; by halving."""
    mean_s = float(gaps.mean())
    wanted = log(mean_s) - float(np.log(gaps).mean())
    low, high = log(1e-4), log(1e6)
    for _ in range(60):
        middle = (low + high) / 2
        shape = float(np.exp(middle))
        low, high = (middle, high) if log(shape) - digamma(shape) > wanted else (low, middle)
    return Gamma(float(np.exp(low)), mean_s)


def gamma_by_moments(gaps: Numbers) -> Gamma:
    """With the mean and the coefficient of variation of the gaps."""
    return Gamma(float(gaps.mean() ** 2 / gaps.var()), float(gaps.mean()))


def digamma(value: float) -> float:
    """Above 0; by its recurrence up to 6 and its asymptotic series from there (Abramowitz and Stegun 6.3.5 and 6.3.18)."""
    below = 0.0
    while value < 6.0:
        below += 1.0 / value
        value += 1.0
    square = 1.0 / (value * value)
    return log(value) - 0.5 / value - square * (1 / 12 - square * (1 / 120 - square / 252)) - below


class Blocks(Struct, frozen=True):
    """Stretches of the recorded gaps that begin anywhere, of `length` gaps on average: the stationary bootstrap.

    Source: Politis and Romano, JASA 1994.
    """

    gaps: Numbers
    length: float
    spec: str = ""

    def instants(self, duration_s: float, random: np.random.Generator) -> Numbers:
        def draw(count: int) -> Numbers:
            begins = random.random(count) * self.length < 1.0
            begins[0] = True
            first = np.maximum.accumulate(np.where(begins, np.arange(count), 0))
            places = random.integers(len(self.gaps), size=count)[first] + np.arange(count) - first
            found: Numbers = self.gaps[places % len(self.gaps)]
            return found

        return until(duration_s, draw)
