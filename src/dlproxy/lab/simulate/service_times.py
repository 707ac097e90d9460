"""How long a simulated batch takes: the fitted line L(b) = base + row * b with a spread, or what a live run measured.

Called by lab/simulate/engine.py once per batch. Not aware of: instances, faults, clocks.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from math import log, sqrt
from typing import Protocol

import numpy as np

from dlproxy.policy.cost import LatencyModel

DRAWS = 4096  # random numbers drawn at a time


class ServiceTimes(Protocol):
    """Draws (service, hand-over): seconds that the batch runs, and seconds more until the lane hears that it is done."""

    def draw(self, rows: int) -> tuple[float, float]: ...

    def mean(self, rows: int) -> float:
        """Expected seconds for a batch of so many rows."""
        ...


class Fitted:
    """base_s + row_s * rows, times a factor of mean 1 and coefficient of variation `cv` (log-normal; cv 1 is `exponential`)."""

    def __init__(self, base_s: float, row_s: float, *, cv: float = 0.0, exponential: bool = False, seed: int = 0) -> None:
        self.base_s = base_s
        self.row_s = row_s
        self._factors = _factors(cv, exponential, seed) if cv or exponential else None

    def draw(self, rows: int) -> tuple[float, float]:
        seconds = self.base_s + self.row_s * rows
        return (seconds if self._factors is None else seconds * next(self._factors)), 0.0

    def mean(self, rows: int) -> float:
        return self.base_s + self.row_s * rows


class Measured:
    """Draws among the batches that were measured: those of the nearest size, scaled to the size asked for.

    `samples` are (rows, service seconds, hand-over seconds), at least one. Mean times lie on straight lines between the
    measured sizes; beyond them they rise as the line fitted to all of them does.
    """

    def __init__(self, samples: Iterable[tuple[int, float, float]], *, seed: int = 0) -> None:
        by_size: dict[int, list[tuple[float, float]]] = {}
        for rows, service_s, hand_over_s in samples:
            by_size.setdefault(rows, []).append((service_s, hand_over_s))
        self._sizes = sorted(by_size)
        self._samples = by_size
        self._means = {rows: sum(service for service, _ in times) / len(times) for rows, times in by_size.items()}
        self._row_s = LatencyModel(self._means.items()).per_row_s
        self._random = np.random.default_rng(seed)
        self._uniform = self._draws()

    def draw(self, rows: int) -> tuple[float, float]:
        size = self._nearest(rows)
        samples = self._samples[size]
        service_s, hand_over_s = samples[int(next(self._uniform) * len(samples))]
        return (service_s if size == rows else service_s * self.mean(rows) / self._means[size]), hand_over_s

    def mean(self, rows: int) -> float:
        sizes, means = self._sizes, self._means
        if rows in means:
            return means[rows]
        index = bisect_left(sizes, rows)
        if index == len(sizes):
            return means[sizes[-1]] + self._row_s * (rows - sizes[-1])
        if index == 0:
            smallest = means[sizes[0]]
            return max(smallest - self._row_s * (sizes[0] - rows), smallest * rows / sizes[0])
        low, high = sizes[index - 1], sizes[index]
        return means[low] + (means[high] - means[low]) * (rows - low) / (high - low)

    def _nearest(self, rows: int) -> int:
        if rows in self._samples:
            return rows
        index = bisect_left(self._sizes, rows)
        return min(self._sizes[max(index - 1, 0) : index + 1], key=lambda size: abs(size - rows))

    def _draws(self) -> Iterator[float]:
        while True:
            yield from self._random.random(DRAWS).tolist()


def _factors(cv: float, exponential: bool, seed: int) -> Iterator[float]:
    random = np.random.default_rng(seed)
    sigma = sqrt(log(1.0 + cv * cv))
    while True:
        draws = random.standard_exponential(DRAWS) if exponential else random.lognormal(-sigma * sigma / 2, sigma, DRAWS)
        yield from draws.tolist()
