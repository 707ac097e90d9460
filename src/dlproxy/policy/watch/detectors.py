"""What makes a score of how far a model's windows are off the usual: control charts, or a network that knows normal ones.

Held by watcher.py. Not aware of: alarms, where the network runs.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from types import MappingProxyType
from typing import Protocol

from dlproxy.policy.watch.features import FEATURES, NAMES

WEIGHT = 0.3  # of the newest window in a chart's average
SPAN = 16  # windows that a network is shown
LIMITS: Mapping[str, float] = MappingProxyType(
    {
        "rate": 14.6,
        "in_flight": 9.4,
        "p50": 19.3,
        "p99": 9.4,
        "cost": 8.3,
        "refused": 20.0,
        "late": 9.0,
        "failed": 6.0,
        "dispersion": 4.6,
        "rows": 7.4,
        "batch": 10.2,
        "hits": 4.0,
    }
)

Score = Callable[[Sequence[Sequence[float]]], float]
"""Of SPAN windows, oldest first, each as spreads off the usual by NAMES."""


class Detector(Protocol):
    """Told of every window; one for each model."""

    def observe(self, off: Sequence[float], now: float) -> float:
        """`off`: spreads off the usual, by NAMES. 1 and more is unusual."""
        ...

    def forget(self) -> None:
        """What was seen so far is no part of what comes."""
        ...


class Charts:
    """An exponentially weighted moving average for each feature (Roberts, Technometrics 1959), each with a limit of its own in
    its standard deviations, if windows were independent, which they are not: limits are measured. The worst one is the score.
    """

    def __init__(self, limits: Mapping[str, float] = LIMITS, weight: float = WEIGHT) -> None:
        self._limits = [limits[name] * sqrt(weight / (2.0 - weight)) for name in NAMES]
        self._sides = [FEATURES[name].side for name in NAMES]
        self._weight = weight
        self.averages = [0.0] * len(NAMES)

    def observe(self, off: Sequence[float], now: float) -> float:
        weight, averages, worst = self._weight, self.averages, 0.0
        for place, value in enumerate(off):
            average = averages[place] = averages[place] + weight * (value - averages[place])
            side = self._sides[place]
            worst = max(worst, (average * side if side else abs(average)) / self._limits[place])
        return worst

    def forget(self) -> None:
        self.averages = [0.0] * len(NAMES)


class Learnt:
    """A network's score of the last SPAN windows; 0 until there are so many."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._windows: deque[Sequence[float]] = deque(maxlen=SPAN)

    def observe(self, off: Sequence[float], now: float) -> float:
        self._windows.append(tuple(off))
        return self._score(list(self._windows)) if len(self._windows) == SPAN else 0.0

    def forget(self) -> None:
        self._windows.clear()
