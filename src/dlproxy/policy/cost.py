"""Fitted latency: L(b) = b0 + a*b seconds for a batch of b rows, learned from the batches that ran.

Recursive least squares with forgetting, kept as decayed sums (the information form), so it cannot wind up when every batch
has the same size; the calibrated line is where it starts. Called by policy/lane.py. Not aware of: why a batch had its size.
"""

from collections.abc import Iterable
from math import sqrt

FORGETTING = 0.98  # per batch: a memory of about 50 batches (ALGORITHMS of Clipper and BentoML use 50 samples too)
PRIOR_WEIGHT = 1.0  # batches' worth of belief in the calibrated line
SIGMAS = 3.0  # p99 = fit * (1 + 3 * relative deviation): pooled over sizes, as in Clipper's shipped code
OUTLIER = 5.0  # an observation counts as at most 5 times its prediction: one preempted batch must not move the line
LEAST_DEVIATION = 0.05  # a residual counts as at most 3 deviations, taken as no less than this: nor may it blow up the p99


class LatencyModel:
    """Predicts batch service times in seconds. `prior` are (rows, seconds) pairs measured at warm-up."""

    def __init__(self, prior: Iterable[tuple[int, float]] = ()) -> None:
        points = list(prior) or [(1, 1e-3), (2, 2e-3)]
        if len({rows for rows, _ in points}) == 1:  # one size tells nothing of the slope: assume no gain from batching
            rows, seconds = points[0]
            points.append((rows * 2, seconds * 2))
        self._weight = self._rows = self._rows2 = self._seconds = self._cross = 0.0
        self._variance = 0.0
        for rows, seconds in points:
            self._add(rows, seconds)
        share = PRIOR_WEIGHT / len(points)
        self._weight, self._rows, self._rows2 = self._prior = (self._weight * share, self._rows * share, self._rows2 * share)
        self._seconds *= share
        self._cross *= share
        self.base_s = self.per_row_s = 0.0
        self._solve()
        self._variance = sum((s / self.mean(r) - 1) ** 2 for r, s in points) / len(points)
        self._deviation = sqrt(self._variance)

    def mean(self, rows: int) -> float:
        """Expected seconds for a batch of this many rows."""
        return self.base_s + self.per_row_s * rows

    def p99(self, rows: int) -> float:
        """Seconds within which about 99 % of such batches finish."""
        return self.quantile(rows, SIGMAS)

    def quantile(self, rows: int, sigmas: float) -> float:
        """Seconds for such a batch, so many relative deviations above the expected."""
        return (self.base_s + self.per_row_s * rows) * (1.0 + sigmas * self._deviation)

    def rows_within(self, seconds: float, *, most: int) -> int:
        """The largest batch whose p99 is within `seconds`: at least 1, at most `most`."""
        seconds /= 1.0 + SIGMAS * self._deviation
        if self.mean(most) <= seconds:
            return most
        return max(1, min(most, int((seconds - self.base_s) / self.per_row_s + 1e-9)))

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from one batch that ran."""
        expected = self.mean(rows)
        seconds = min(max(seconds, 1e-9), OUTLIER * expected)
        residual = min(abs(seconds / expected - 1.0), SIGMAS * max(self._deviation, LEAST_DEVIATION))
        self._variance = FORGETTING * self._variance + (1.0 - FORGETTING) * residual * residual
        self._deviation = sqrt(self._variance)
        keep, prior = FORGETTING, self._prior
        renew = 1.0 - FORGETTING  # what is forgotten of the batches comes back as the prior's sizes, on the line as it is now:
        base_s, per_row_s = self.base_s, self.per_row_s  # the sums keep their spread, and a wrong calibration does not last
        self._weight = keep * self._weight + renew * prior[0]
        self._rows = keep * self._rows + renew * prior[1]
        self._rows2 = keep * self._rows2 + renew * prior[2]
        self._seconds = keep * self._seconds + renew * (prior[0] * base_s + prior[1] * per_row_s)
        self._cross = keep * self._cross + renew * (prior[1] * base_s + prior[2] * per_row_s)
        self._add(rows, seconds)
        self._solve()

    def _add(self, rows: int, seconds: float) -> None:
        self._weight += 1.0
        self._rows += rows
        self._rows2 += rows * rows
        self._seconds += seconds
        self._cross += rows * seconds

    def _solve(self) -> None:
        spread = self._weight * self._rows2 - self._rows * self._rows
        slope = (self._weight * self._cross - self._rows * self._seconds) / spread
        base = (self._seconds - slope * self._rows) / self._weight
        if slope < 0.0:  # noise: more rows cannot take less time
            slope, base = 0.0, self._seconds / self._weight
        elif base < 0.0:
            slope, base = self._cross / self._rows2, 0.0
        self.base_s = base
        self.per_row_s = max(slope, 1e-12)
