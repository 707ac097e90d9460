"""Load that is to come, so that instances are up when it does. Asked by policy/scaling.py.

Not aware of: what is counted, how long a start takes.
"""

from math import sqrt
from typing import Protocol

STEP_S = 10.0
LEVEL, TREND, SEASON = 0.3, 0.05, 0.3  # weights of the newest step or season
P90 = 1.28  # standard deviations
DAY_S = 86400.0
DAY_STEP_S = 300.0  # of a day: shorter ones remember the bursts of one day for the next


class Forecast(Protocol):
    """Learns from what it is told, in the order of time."""

    def observe(self, load: float, at: float) -> None: ...

    def load_at(self, at: float) -> float:
        """What is expected then, rather too much than too little; 0 as long as nothing is known."""
        ...


class HoltWinters:
    """Additive exponential smoothing: level, trend and, where load repeats itself every `season_s` seconds, a season.

    Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 8.3; the first season is kept whole, and is what the next
    one begins with. Adds 1.28 of the errors' standard deviation: the 90 % quantile.
    """

    def __init__(self, season_s: float = 0.0, step_s: float = STEP_S) -> None:
        self._step_s = step_s
        self._length = round(season_s / step_s)
        self._first: dict[int, float] = {}
        self._season: dict[int, float] = {}
        self._level: float | None = None
        self._trend = self._variance = 0.0
        self._step = 0
        self._sum = 0.0
        self._times = 0

    def observe(self, load: float, at: float) -> None:
        step = int(at // self._step_s)
        if self._times and step != self._step:
            self._learn(self._sum / self._times)
            self._sum, self._times = 0.0, 0
        self._step = step
        self._sum += load
        self._times += 1

    def load_at(self, at: float) -> float:
        if self._level is None:
            return 0.0
        ahead = at / self._step_s - self._step
        usual = self._level + self._trend * ahead + self._usual(int(at // self._step_s))
        return max(usual + P90 * sqrt(self._variance), 0.0)

    def _usual(self, step: int) -> float:
        return self._season.get(step % self._length, 0.0) if self._length else 0.0

    def _learn(self, load: float) -> None:
        """From the mean of the step that has ended."""
        if self._level is None:
            self._level = load
        usual, expected = self._usual(self._step), self._level + self._trend
        self._variance += LEVEL * ((load - expected - usual) ** 2 - self._variance)
        before, self._level = self._level, expected + LEVEL * (load - usual - expected)
        self._trend += TREND * (self._level - before - self._trend)
        if self._season:
            self._season[self._step % self._length] = usual + SEASON * (load - self._level - usual)
        elif self._length:
            self._first[self._step % self._length] = load
            if len(self._first) == self._length:
                self._level, self._trend = sum(self._first.values()) / self._length, 0.0
                self._season = {place: first - self._level for place, first in self._first.items()}
