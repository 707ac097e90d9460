"""Fitted latency: L(b) = b0 + a*b seconds for a batch of b rows, learned from the batches that ran.

Recursive least squares with forgetting, kept as decayed sums (the information form), so it cannot wind up when every batch
has the same size. Warm-up's line is a guess at the shape; what ran says how high it lies, and soon the shape as well. Called by
policy/lane.py. Not aware of: why a batch had its size.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from math import sqrt

FORGETTING = 0.98  # per batch: a memory of about 50 batches (ALGORITHMS of Clipper and BentoML use 50 samples too)
PRIOR_WEIGHT = 1.0  # batches' worth of belief in the calibrated line
SIGMAS = 3.0  # p99 = fit * (1 + 3 * relative deviation): pooled over sizes, as in Clipper's shipped code
OUTLIER = 5.0  # an observation counts as at most 5 times its prediction: one preempted batch must not move the line
LEAST_DEVIATION = 0.05  # a residual counts as at most 3 deviations, taken as no less than this: nor may it blow up the p99
EARLY = 20  # batches at the start, through which the line is drawn afresh with each: until then warm-up's may be all wrong
AGREES = 0.15  # a shape is believed while no recent batch is further from it, relative to the middle one
DISBELIEF = 1e-6  # what is left of a shape that is not: it decides only what the batches leave open
SURPRISE = 0.3  # relative; a batch this far off, and SIGMAS deviations, is news: the STREAK-th in a row draws the line anew
STREAK = 3
NO_SPREAD = 1e-12
BEYOND = 1.5  # times the largest batch that ran: what is surprising there is news at once, for the line was only a guess


class LatencyModel:
    """Predicts batch service times in seconds. `prior` are (rows, seconds) pairs measured at warm-up."""

    def __init__(self, prior: Iterable[tuple[int, float]] = ()) -> None:
        points = list(prior) or [(1, 1e-3), (2, 2e-3)]
        if len({rows for rows, _ in points}) == 1:  # one size tells nothing of the slope: assume no gain from batching
            rows, seconds = points[0]
            points.append((rows * 2, seconds * 2))
        self._sizes = [rows for rows, _ in points]
        self.base_s, self.per_row_s = self._shape = _line_through(
            [(rows, seconds, seconds * seconds) for rows, seconds in points]
        )
        self._variance = self._prior_variance = sum((s / self.mean(r) - 1) ** 2 for r, s in points) / len(points)
        self._deviation = sqrt(self._variance)
        self._recent: deque[tuple[int, float]] = deque(maxlen=EARLY)
        self._early = EARLY
        self._largest = 0
        self._streak = 0  # surprises in a row, negative for those that were quicker than expected
        self._weight = self._rows = self._rows2 = self._seconds = self._cross = 0.0
        self._prior = (0.0, 0.0, 0.0)
        self._restart(())

    @property
    def early(self) -> bool:
        """Each batch still counts for much."""
        return self._early > 0

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
        base_s, per_row_s = self.base_s, self.per_row_s
        expected = base_s + per_row_s * rows
        if seconds < 1e-9:
            seconds = 1e-9
        self._recent.append((rows, seconds))
        if self._early or self._is_news(rows, seconds / expected):
            self._draw()
            return
        if seconds > OUTLIER * expected:
            seconds = OUTLIER * expected
        residual = min(abs(seconds / expected - 1.0), SIGMAS * max(self._deviation, LEAST_DEVIATION))
        self._variance = FORGETTING * self._variance + (1.0 - FORGETTING) * residual * residual
        self._deviation = sqrt(self._variance)
        keep, prior = FORGETTING, self._prior
        renew = 1.0 - FORGETTING  # what is forgotten of the batches comes back as the prior's sizes, on the line as it is now:
        self._weight = keep * self._weight + renew * prior[0]  # the sums keep their spread, and a wrong calibration is gone
        self._rows = keep * self._rows + renew * prior[1]
        self._rows2 = keep * self._rows2 + renew * prior[2]
        self._seconds = keep * self._seconds + renew * (prior[0] * base_s + prior[1] * per_row_s)
        self._cross = keep * self._cross + renew * (prior[1] * base_s + prior[2] * per_row_s)
        self._add(rows, seconds, expected)
        self._solve()

    def _is_news(self, rows: int, ratio: float) -> bool:
        """The line is wrong, not the batch: several in a row were off to one side, or one far beyond all that ran before."""
        gap = 1.0 + max(SURPRISE, SIGMAS * self._deviation)
        beyond = rows > BEYOND * self._largest
        if rows > self._largest:
            self._largest = rows
        if ratio > gap:
            self._streak = max(self._streak, 0) + 1
        elif ratio * gap < 1.0:
            self._streak = min(self._streak, 0) - 1
        else:
            self._streak = 0
            return False
        if beyond:
            return True
        if abs(self._streak) < STREAK:
            return False
        while len(self._recent) > STREAK:  # what ran before tells of another time
            self._recent.popleft()
        self._shape = self.base_s, self.per_row_s
        self._largest = max(rows for rows, _ in self._recent)
        return True

    def _draw(self) -> None:
        """The line afresh, through the recent batches; the shape, moved to their height, fills in what they leave open.

        By relative errors, weighted by the measured time: a cold first batch that took ten times as long counts a hundredth.
        """
        if self._early:
            self._early -= 1
        self._streak = 0
        recent = self._recent
        self._largest = max(self._largest, recent[-1][0])
        base_s, per_row_s = self._shape
        ratios = sorted([seconds / (base_s + per_row_s * rows) for rows, seconds in recent])
        height = ratios[(len(ratios) - 1) // 2]
        base_s, per_row_s = base_s * height, per_row_s * height
        agrees = ratios[-1] <= (1.0 + AGREES) * height and ratios[0] * (1.0 + AGREES) >= height
        weight = (PRIOR_WEIGHT if agrees else DISBELIEF) / len(self._sizes)
        points = [(rows, seconds, 1.0) for rows, seconds in recent]
        points += [(rows, base_s + per_row_s * rows, weight) for rows in self._sizes]
        self.base_s, self.per_row_s = _line_through(points)
        self._spread(recent)
        self._restart(recent)

    def _spread(self, recent: Sequence[tuple[int, float]] | deque[tuple[int, float]]) -> None:
        """The deviation of these batches from the line, where one outlier counts as three times the middle one."""
        residuals = sorted([abs(seconds / self.mean(rows) - 1.0) for rows, seconds in recent])
        most = SIGMAS * max(residuals[len(residuals) // 2], LEAST_DEVIATION)
        squares = sum([min(residual, most) ** 2 for residual in residuals])
        self._variance = (squares + self._prior_variance) / max(len(residuals) - 1, 1)
        self._deviation = sqrt(self._variance)

    def _restart(self, recent: Iterable[tuple[int, float]]) -> None:
        """Sums as if these batches, and the calibrated sizes on the line, were all that ever ran."""
        share = PRIOR_WEIGHT / len(self._sizes)
        self._weight = self._rows = self._rows2 = self._seconds = self._cross = 0.0
        for rows in self._sizes:
            self._add(rows, self.mean(rows), self.mean(rows), share)
        self._prior = self._weight, self._rows, self._rows2
        for rows, seconds in recent:
            expected = self.mean(rows)
            self._add(rows, min(seconds, OUTLIER * expected), expected)

    def _add(self, rows: int, seconds: float, expected: float, share: float = 1.0) -> None:
        """Errors count relative to what is expected, or to the half or double of what it was where that is nearer."""
        scale = min(max(expected, 0.5 * seconds), 2.0 * seconds)
        share /= scale * scale
        self._weight += share
        self._rows += share * rows
        self._rows2 += share * rows * rows
        self._seconds += share * seconds
        self._cross += share * rows * seconds

    def _solve(self) -> None:
        self.base_s, self.per_row_s = _solved(self._weight, self._rows, self._rows2, self._seconds, self._cross)


def _line_through(points: Iterable[tuple[int, float, float]]) -> tuple[float, float]:
    """The line (base, per row) of least relative errors through (rows, seconds, weight)."""
    weight = sum_rows = rows2 = sum_seconds = cross = 0.0
    for rows, seconds, share in points:
        share /= seconds * seconds
        weight += share
        sum_rows += share * rows
        rows2 += share * rows * rows
        sum_seconds += share * seconds
        cross += share * rows * seconds
    return _solved(weight, sum_rows, rows2, sum_seconds, cross)


def _solved(weight: float, rows: float, rows2: float, seconds: float, cross: float) -> tuple[float, float]:
    """Base and slope of the least squares with these sums, neither below 0."""
    spread = weight * rows2 - rows * rows
    if spread <= NO_SPREAD * weight * rows2:  # all of one size, but for rounding: assume no gain from batching
        return 0.0, max(cross / rows2, 1e-12)
    slope = (weight * cross - rows * seconds) / spread
    base = (seconds - slope * rows) / weight
    if slope < 0.0:  # noise: more rows cannot take less time
        slope, base = 0.0, seconds / weight
    elif base < 0.0:
        slope, base = cross / rows2, 0.0
    return base, max(slope, 1e-12)
