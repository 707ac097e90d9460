"""What a trial has shown: requests under the old knobs and under the new ones, in slices of time that take turns.

Taking turns makes both see the same load, whatever it does meanwhile (a switchback experiment: Bojinov, Simchi-Levi and Zhao,
"Design and Analysis of Switchback Experiments", Management Science 2023). Called by pilot.py. Not aware of: knobs.
"""

from math import sqrt
from typing import Literal

from msgspec import Struct

from dlproxy.policy.tuning.window import Window

CLEARLY = 3.0  # standard errors: a trial is looked at some ten times, so 0.1 % each makes about 1 %
AGREEING = 2.0  # standard errors, where a model has predicted the same
UNLIKELY, DOUBTFUL = 1.0, 2.0  # standard errors to the bad side, at which what promised a gain, or no harm, is given up
LIKELY = 1.0
FEWEST = 20  # requests on each side before anything is said
MATTERS = 0.002  # of all requests: less is no reason to change anything, however sure

Verdict = Literal["better", "worse", "alike", "unclear"]


class Side(Struct):
    """One of the two."""

    seconds: float = 0.0
    ended: int = 0
    missed: int = 0
    failed: int = 0
    in_time: int = 0
    slices: int = 0

    def add(self, window: Window) -> None:
        self.seconds += window.seconds
        self.ended += window.ended
        self.missed += window.missed
        self.failed += window.failed
        self.in_time += window.in_time
        self.slices += 1

    def join(self, other: "Side") -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def share(self) -> float:
        """Of the requests, those that missed the objective or failed."""
        return (self.missed + self.failed) / max(self.ended, 1)

    @property
    def rate(self) -> float:
        """Answers in time, per second."""
        return self.in_time / max(self.seconds, 1e-9)


class Evidence:
    """`by_rate`: more answers in time are better, for clients that send the next request when they have the answer."""

    def __init__(self, *, by_rate: bool) -> None:
        self.old, self.new = Side(), Side()
        self.by_rate = by_rate
        self._clustered = 0.0

    @property
    def _effect(self) -> float:
        """How many requests tell as much as one that is independent: those of a batch fare alike, and those of a burst do."""
        return 1.0 + self._clustered / max(self.old.seconds + self.new.seconds, 1e-9)

    def add(self, window: Window, *, new: bool) -> None:
        (self.new if new else self.old).add(window)
        batches = sum([count for count, _ in window.costs.values()])
        self._clustered += window.seconds * (max(window.dispersion, 1.0) + window.rows / max(batches, 1))

    def join(self, other: "Evidence") -> None:
        """With all that the other has seen."""
        self.old.join(other.old)
        self.new.join(other.new)
        self._clustered += other._clustered

    @property
    def difference(self) -> float:
        """By which part of all requests the new knobs do better; by rate: of the old knobs' answers in time."""
        old, new = self.old, self.new
        if self.by_rate:
            return new.rate / old.rate - 1.0 if old.rate else float(new.rate > 0.0)
        return old.share - new.share

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        old, new = self.old, self.new
        if self.by_rate:
            return sqrt(self._effect * (1.0 / max(old.in_time, 1) + 1.0 / max(new.in_time, 1)))
        return sqrt(self._effect * (_variance(old) + _variance(new)))

    def verdict(self) -> Verdict:
        """As far as it is clear by now."""
        if min(self.old.ended, self.new.ended) < FEWEST:
            return "unclear"
        difference, error = self.difference, self.error
        if difference > max(CLEARLY * error, MATTERS):
            return "better"
        if difference < -max(CLEARLY * error, MATTERS):
            return "worse"
        return "alike" if error < MATTERS else "unclear"

    def is_futile(self, *, harmless: bool) -> bool:
        """More likely worse than not, so that a longer trial would cost more than it could tell."""
        if self.new.ended < FEWEST:
            return False
        return self.difference < -max((DOUBTFUL if harmless else UNLIKELY) * self.error, MATTERS)

    def confirms(self, gain: float) -> bool:
        """It is about what was predicted, so that less is needed to believe it."""
        if min(self.old.ended, self.new.ended) < FEWEST:
            return False
        return self.difference > max(AGREEING * self.error, gain / 3.0, MATTERS)

    @property
    def is_likely(self) -> bool:
        """Rather better than not: enough for what was expected to be."""
        return self.difference > max(LIKELY * self.error, MATTERS)

    def words(self) -> str:
        """What was measured."""
        old, new = self.old, self.new
        if self.by_rate:
            return f"{new.rate:.4g} answers in time per second after {old.rate:.4g}"
        return f"{new.share:.2%} of {new.ended} requests missed the objective, {old.share:.2%} of {old.ended} before"


def _variance(side: Side) -> float:
    share = (side.missed + side.failed + 1.0) / (side.ended + 2.0)  # Laplace: none seen is not none there
    return share * (1.0 - share) / max(side.ended, 1)
