"""Load that is to come, so that instances are up when it does. Asked by policy/scaling.py.

Not aware of: what is counted, how long a start takes, what a learnt network is made of (fleet/forecasts.py).
"""

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import isfinite, sqrt
from typing import Protocol

from msgspec import Struct

STEP_S = 10.0
LEVEL, TREND, SEASON = 0.3, 0.05, 0.3  # weights of the newest step or season
P90 = 1.28  # standard deviations
DAY_S = 86400.0
DAY_STEP_S = 300.0  # of a day: shorter ones remember the bursts of one day for the next
SURE = 0.9  # the quantile that counts, also of a learnt forecast
AROUND = 2  # steps before and after, which are looked at a season ago: what repeats itself is seldom on the second
ABSURD = 10.0  # times the highest load of any step so far: a network that says more is wrong
MOST_FAULTS = 3  # in a row, after which a network is not asked again


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

    def __init__(
        self,
        season_s: float = 0.0,
        step_s: float = STEP_S,
        *,
        level: float = LEVEL,
        trend: float = TREND,
        season: float = SEASON,
    ) -> None:
        self._step_s = step_s
        self._weights = level, trend, season
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
        mean, deviation = self.expected(at)
        return max(mean + P90 * deviation, 0.0)

    def expected(self, at: float) -> tuple[float, float]:
        """The mean, which may be below 0, and the standard deviation of errors one step ahead; zeros if nothing is known."""
        if self._level is None:
            return 0.0, 0.0
        ahead = at / self._step_s - self._step
        return self._level + self._trend * ahead + self._usual(int(at // self._step_s)), sqrt(self._variance)

    def _usual(self, step: int) -> float:
        return self._season.get(step % self._length, 0.0) if self._length else 0.0

    def _learn(self, load: float) -> None:
        """From the mean of the step that has ended."""
        if self._level is None:
            self._level = load
        of_level, of_trend, of_season = self._weights
        usual, expected = self._usual(self._step), self._level + self._trend
        self._variance += of_level * ((load - expected - usual) ** 2 - self._variance)
        before, self._level = self._level, expected + of_level * (load - usual - expected)
        self._trend += of_trend * (self._level - before - self._trend)
        if self._season:
            self._season[self._step % self._length] = usual + of_season * (load - self._level - usual)
        elif self._length:
            self._first[self._step % self._length] = load
            if len(self._first) == self._length:
                self._level, self._trend = sum(self._first.values()) / self._length, 0.0
                self._season = {place: first - self._level for place, first in self._first.items()}


class Form(Struct, frozen=True, kw_only=True):
    """What a learnt forecast is asked, and what it answers: quantiles of the mean load of the steps that begin `horizons_s`
    after the `length` steps that it sees. `season_s`: of a season, of which it is told what there was one ago.
    """

    step_s: float
    length: int
    horizons_s: tuple[float, ...]
    quantiles: tuple[float, ...]
    season_s: float = DAY_S

    @property
    def sure(self) -> int:
        """The place of the quantile that counts."""
        return next((place for place, one in enumerate(self.quantiles) if one >= SURE), len(self.quantiles) - 1)


class Asked(Struct, frozen=True):
    """`rates`: mean loads of the last steps, oldest first. `bursts`: variance over mean of each step's samples, 0 without load.

    `season`: mean loads a season ago: then, and around each horizon; all -1 while there has been no season yet.
    """

    rates: list[float]
    bursts: list[float]
    season: list[float]


Network = Callable[[Asked], Sequence[Sequence[float]]]
"""The quantiles of each horizon. May raise anything."""


class Steps:
    """Samples of load, each of the time since the one before, as steps; one in which there was no sample is as the next."""

    def __init__(self, form: Form) -> None:
        self.highest = 0.0
        self._form = form
        self._rates: deque[float] = deque(maxlen=form.length)
        self._bursts: deque[float] = deque(maxlen=form.length)
        self._seasons = round(form.season_s / form.step_s)
        self._past = array("d", bytes(8 * (self._seasons + form.length)))  # by step, of a season and of the window before it
        self._known = 0
        self._step: int | None = None
        self._at = 0.0
        self._samples: list[float] = []

    @property
    def ended_at(self) -> float:
        """When the last whole step ended."""
        return (self._step or 0) * self._form.step_s

    def observe(self, load: float, at: float) -> bool:
        """Whether a step has ended with it."""
        step_s, before = self._form.step_s, self._step
        half_s = 0.0 if self._step is None else (at - self._at) / 2.0
        self._at = at
        if self._step is None:
            self._step = int(at // step_s)
        self._close(int((at - half_s) // step_s), load)
        self._samples.append(load)
        self._close(int((at + half_s) // step_s), load)  # the next sample will be of the next step: this one has all of its own
        return before is not None and self._step != before

    def _close(self, until: int, load: float) -> None:
        assert self._step is not None
        while self._step < until:
            samples = self._samples or [load]
            mean = sum(samples) / len(samples)
            squares = sum([(sample - mean) ** 2 for sample in samples])
            self._rates.append(mean)
            self._bursts.append(squares / (len(samples) - 1) / mean if mean > 0.0 and len(samples) > 1 else 0.0)
            self._past[self._step % len(self._past)] = mean
            self.highest = max(self.highest, mean)
            self._known += 1
            self._step += 1
            self._samples.clear()

    def asked(self) -> Asked | None:
        """None as long as there have not been enough steps."""
        form = self._form
        if self._known < form.length or self._step is None:
            return None
        season = [-1.0] * (1 + len(form.horizons_s))
        if self._known >= len(self._past):
            places = [int(horizon_s // form.step_s) for horizon_s in form.horizons_s]
            spans = [(-form.length, 0), *[(place - AROUND, place + AROUND + 1) for place in places]]
            season = [self._mean(self._step - self._seasons + first, last - first) for first, last in spans]
        return Asked(list(self._rates), list(self._bursts), season)

    def _mean(self, first: int, count: int) -> float:
        return sum([self._past[step % len(self._past)] for step in range(first, first + count)]) / count


class Learnt:
    """A network's forecast: its `SURE` quantile, between two horizons in proportion. What it cannot know yet or gets wrong, the
    `fallback` says: where the network fails, or gives no number, a negative one or an absurd one. `tell` hears of that once.
    """

    def __init__(self, form: Form, network: Network, fallback: Forecast, tell: Callable[[str], None]) -> None:
        self._form = form
        self._network = network
        self._fallback = fallback
        self._tell = tell
        self._steps = Steps(form)
        self._answer: list[float] | None = None  # by horizon; empty: the fallback's turn; None: not asked since the last step
        self._faults = 0
        self._told = False

    def observe(self, load: float, at: float) -> None:
        self._fallback.observe(load, at)
        if self._steps.observe(load, at):
            self._answer = None

    def load_at(self, at: float) -> float:
        if self._answer is None:
            self._answer = self._asked() if self._faults < MOST_FAULTS else []
        if not self._answer:
            return self._fallback.load_at(at)
        ahead = at - self._steps.ended_at
        known = list(zip(self._form.horizons_s, self._answer, strict=True))
        for (low, before), (high, after) in pairwise(known):
            if ahead < high:
                share = max(ahead - low, 0.0) / (high - low)
                return before + share * (after - before)
        return known[-1][1]

    def _asked(self) -> list[float]:
        asked = self._steps.asked()
        if asked is None:
            return []
        try:
            answer = self._network(asked)
            found = [float(quantiles[self._form.sure]) for quantiles in answer]
            problem = self._problem(found)
        except Exception as error:  # of whatever runs the network: the fallback needs no reason
            problem = f"it failed: {' '.join(str(error).split())}"
        if not problem:
            self._faults = 0
            return found
        self._faults += 1
        if not self._told:
            self._told = True
            self._tell(f"the learnt forecast is not used where it is no good, Holt-Winters in its place: {problem}")
        return []

    def _problem(self, found: Sequence[float]) -> str:
        """Why this cannot be, in words; empty if it can."""
        if len(found) != len(self._form.horizons_s):
            return f"it gave {len(found)} horizons in place of {len(self._form.horizons_s)}"
        most = ABSURD * (self._steps.highest + 1.0 / self._form.step_s)
        wrong = [one for one in found if not isfinite(one) or not 0.0 <= one <= most]
        return f"it expects {wrong[0]:g} rows/s, and there never were more than {self._steps.highest:.3g}" if wrong else ""
