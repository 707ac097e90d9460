"""How long a simulated batch takes: the fitted line L(b) = base + row * b with a spread, or what a live run measured.

Called by lab/simulate/instance.py once per batch. Not aware of: instances, faults, clocks.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from math import log, sqrt
from typing import NamedTuple, Protocol

import numpy as np

from dlproxy.policy.cost import LatencyModel

DRAWS = 4096  # random numbers drawn at a time
REST_S = (
    0.00025,
    0.001,
    0.004,
    0.016,
)  # between these an instance has rested about equally: caches and clocks go cold in steps
STRETCH = 30  # batches in a row that are drawn as they were recorded: a machine's slow tenths of a second come in a row
FEWEST = 20  # batches after rests of one kind that are enough to draw from


class ServiceTimes(Protocol):
    """How long batches take, on an instance that has stood idle for so long."""

    def draw(self, rows: int, idle_s: float = 0.0, length: int = 1) -> tuple[float, float]:
        """(service, hand-over): seconds that a batch of rows of this length runs, and then until the lane hears of it."""
        ...

    def mean(self, rows: int) -> float:
        """Expected seconds for a batch of so many rows."""
        ...


class Fitted:
    """base_s + row_s * rows * length, times a factor of mean 1 and variation `cv`: log-normal, or `exponential`."""

    def __init__(self, base_s: float, row_s: float, *, cv: float = 0.0, exponential: bool = False, seed: int = 0) -> None:
        self.base_s = base_s
        self.row_s = row_s
        self._factors = _factors(cv, exponential, seed) if cv or exponential else None

    def draw(self, rows: int, idle_s: float = 0.0, length: int = 1) -> tuple[float, float]:
        seconds = self.base_s + self.row_s * rows * length
        return (seconds if self._factors is None else seconds * next(self._factors)), 0.0

    def mean(self, rows: int) -> float:
        return self.base_s + self.row_s * rows


class Sample(NamedTuple):
    """One batch of a live run: its size, its times in seconds, how long its instance had stood idle before, and when it
    began, in seconds from the run's first.
    """

    rows: int
    service_s: float
    hand_over_s: float = 0.0
    idle_s: float = 0.0
    at_s: float = 0.0


class Measured:
    """Draws among the batches that were measured: those of the nearest size, scaled to the size asked for.

    A batch after a rest of several milliseconds finds cold caches and takes longer (a quick model by 40 %), so one is drawn
    that came after a rest as long, if there are FEWEST such. Mean times lie on straight lines between the measured sizes;
    beyond them they rise as the line fitted to all of them does.

    A machine has slow moments and quick ones, and a queue feels the difference between ten slow batches in a row and ten
    over the hour. So batches are drawn in stretches of those that were recorded one after the other.
    """

    def __init__(self, samples: Iterable[Sample], *, seed: int = 0) -> None:
        by_size: dict[int, list[Sample]] = {}
        for sample in samples:
            by_size.setdefault(sample.rows, []).append(sample)
        self._sizes = sorted(by_size)
        self._pools = {rows: _by_rest(sized) for rows, sized in by_size.items()}
        self._means = {rows: sum(sample.service_s for sample in sized) / len(sized) for rows, sized in by_size.items()}
        self._row_s = LatencyModel(self._means.items()).per_row_s
        self._random = np.random.default_rng(seed)
        self._uniform = self._draws()

    def draw(self, rows: int, idle_s: float = 0.0, length: int = 1) -> tuple[float, float]:
        size = self._nearest(rows)
        sample = self._pools[size][bisect_left(REST_S, idle_s)].draw(self._uniform)
        service_s = sample.service_s
        return (service_s if size == rows else service_s * self.mean(rows) / self._means[size]), sample.hand_over_s

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
        if rows in self._pools:
            return rows
        index = bisect_left(self._sizes, rows)
        return min(self._sizes[max(index - 1, 0) : index + 1], key=lambda size: abs(size - rows))

    def _draws(self) -> Iterator[float]:
        while True:
            yield from self._random.random(DRAWS).tolist()


class _Pool:
    """Samples in order of time, as a circle, drawn in stretches that may begin anywhere, of STRETCH samples on average.

    So each is as likely as any other: the stationary bootstrap (Politis and Romano, JASA 1994).
    """

    def __init__(self, samples: list[Sample]) -> None:
        self._samples = sorted(samples, key=_began_at)
        self._position = -1

    def draw(self, uniform: Iterator[float]) -> Sample:
        samples = self._samples
        if len(samples) == 1:
            return samples[0]
        if self._position < 0 or next(uniform) * STRETCH < 1.0:
            self._position = int(next(uniform) * len(samples))
        else:
            self._position = (self._position + 1) % len(samples)
        return samples[self._position]


def _began_at(sample: Sample) -> float:
    return sample.at_s


def _by_rest(samples: list[Sample]) -> list[_Pool]:
    """The samples after rests of each kind; of the nearest kind that has enough, or all, where there are too few."""
    kinds: list[list[Sample]] = [[] for _ in range(len(REST_S) + 1)]
    for sample in samples:
        kinds[bisect_left(REST_S, sample.idle_s)].append(sample)
    enough = [kind for kind, found in enumerate(kinds) if len(found) >= FEWEST]
    if not enough:
        return [_Pool(samples)] * len(kinds)
    pools = {kind: _Pool(kinds[kind]) for kind in enough}
    return [pools[min(enough, key=lambda other: abs(other - kind))] for kind in range(len(kinds))]


def _factors(cv: float, exponential: bool, seed: int) -> Iterator[float]:
    random = np.random.default_rng(seed)
    sigma = sqrt(log(1.0 + cv * cv))
    while True:
        draws = random.standard_exponential(DRAWS) if exponential else random.lognormal(-sigma * sigma / 2, sigma, DRAWS)
        yield from draws.tolist()
