"""Fitted latency: L(b) = b0 + a*b seconds for a batch of b rows, learned from those that ran; by length too, if that varies.

Recursive least squares with forgetting, kept as decayed sums (the information form), so it cannot wind up when every batch
has the same size. Warm-up's line is a guess at the shape; what ran says how high it lies, and soon the shape as well. Called by
policy/lane.py. Not aware of: why a batch had its size.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from math import sqrt

from dlproxy.policy.fitting import (
    AGREES,
    BEYOND,
    DISBELIEF,
    EARLY,
    FORGETTING,
    LEAST_DEVIATION,
    OUTLIER,
    PRIOR_WEIGHT,
    SIGMAS,
    STREAK,
    SURPRISE,
    Observed,
    line,
)
from dlproxy.policy.surface import Surface, surface_through

SEVERAL = -1  # in place of the one length

Point = Sequence[float]
"""(rows, seconds) of a calibrated batch, or (rows, length, seconds)."""


class LatencyModel:
    """Predicts batch service times in seconds. `prior` are (rows, seconds) or (rows, length, seconds) measured at warm-up.

    While all batches have rows of one length this is a line over rows, `base_s` and `per_row_s`; else a Surface over both, of
    which these two are what it says at the length that ran last. A length that has not run costs no less than in proportion
    if it is longer, and a share of each row's time if it is shorter.
    """

    def __init__(self, prior: Iterable[Point] = ()) -> None:
        points = list(prior) or [(1, 1e-3), (2, 2e-3)]
        lengths = {int(point[1]) or 1 for point in points if len(point) > 2}
        self._surface: Surface | None = None
        self._length = next(iter(lengths), 1)
        self._any_length = not lengths  # nobody has said yet of which length the line speaks
        if len(lengths) > 1:
            self._length = SEVERAL
            self._surface = surface_through(
                [(int(point[0]), int(point[1]) or 1, point[2]) for point in points if len(point) > 2]
            )
        sizes = [(int(point[0]), float(point[-1])) for point in points]
        if len({rows for rows, _ in sizes}) == 1:  # one size tells nothing of the slope: assume no gain from batching
            rows, seconds = sizes[0]
            sizes.append((rows * 2, seconds * 2))
        self._sizes = [rows for rows, _ in sizes]
        self.base_s, self.per_row_s = self._shape = _line_through(
            [(rows, seconds, seconds * seconds) for rows, seconds in sizes]
        )
        variances = [(seconds / (self.base_s + self.per_row_s * rows) - 1) ** 2 for rows, seconds in sizes]
        self._variance = self._prior_variance = sum(variances) / len(sizes)
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
        return (self._early if self._surface is None else self._surface.early) > 0

    def mean(self, rows: int, length: int = 1) -> float:
        """Expected seconds for a batch of this many rows of this length."""
        if length == self._length:
            return self.base_s + self.per_row_s * rows
        base_s, per_row_s = self._terms(length)
        return base_s + per_row_s * rows

    def p99(self, rows: int, length: int = 1) -> float:
        """Seconds within which about 99 % of such batches finish."""
        if length == self._length:
            return (self.base_s + self.per_row_s * rows) * (1.0 + SIGMAS * self._deviation)
        if self._surface is not None:
            return self._surface.p99(rows, length or 1)
        return self.quantile(rows, SIGMAS, length)

    def quantile(self, rows: int, sigmas: float, length: int = 1) -> float:
        """Seconds for such a batch, so many relative deviations above the expected."""
        if self._surface is not None:
            return self._surface.quantile(rows, sigmas, length or 1)
        return self.mean(rows, length) * (1.0 + sigmas * self._deviation)

    def rows_within(self, seconds: float, *, most: int, length: int = 1) -> int:
        """The largest batch whose p99 is within `seconds`: at least 1, at most `most`."""
        if self._surface is not None:
            return self._rows_by_halving(seconds, most, length)
        seconds /= 1.0 + SIGMAS * self._deviation
        base_s, per_row_s = (self.base_s, self.per_row_s) if length == self._length else self._terms(length)
        if base_s + per_row_s * most <= seconds:
            return most
        return max(1, min(most, int((seconds - base_s) / per_row_s + 1e-9)))

    def _rows_by_halving(self, seconds: float, most: int, length: int) -> int:
        least = 1
        while least < most:
            middle = (least + most + 1) // 2
            if self.p99(middle, length) <= seconds * (1.0 + 1e-9):
                least = middle
            else:
                most = middle - 1
        return least

    def _terms(self, length: int) -> tuple[float, float]:
        """Base and seconds per row at a length other than that of the line."""
        if self._surface is not None:
            base_s, per_row_s = self._surface.terms(length or 1)
            return base_s, max(per_row_s, 1e-12)
        if self._any_length:
            return self.base_s, self.per_row_s
        share = (length or 1) / self._length
        return (self.base_s if share < 1.0 else self.base_s * share), self.per_row_s * share

    def observe(self, rows: int, seconds: float, length: int = 1) -> None:
        """Learn from one batch that ran."""
        if seconds < 1e-9:
            seconds = 1e-9
        if length != self._length or self._any_length:
            length = length or 1  # a row of nothing costs no less than one of the least
            if self._any_length:
                self._length, self._any_length = length, False
            elif length != self._length:
                self._observe_length(rows, seconds, length)
                return
        base_s, per_row_s = self.base_s, self.per_row_s
        expected = base_s + per_row_s * rows
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
        self.base_s, self.per_row_s = line(self._weight, self._rows, self._rows2, self._seconds, self._cross)

    def _observe_length(self, rows: int, seconds: float, length: int) -> None:
        if self._surface is None:  # the second length: from now on it counts
            recent: list[Observed] = [(size, self._length, took) for size, took in self._recent]
            shape = [self.base_s, 0.0, 0.0, self.per_row_s / self._length, 0.0]
            points = [(size, self._length) for size in self._sizes]
            self._surface = Surface(shape, points, recent, self._prior_variance)
            self._length = SEVERAL
        self._surface.observe(rows, length, seconds)
        self.base_s, self.per_row_s = self._terms(length)

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
        if not beyond:
            if abs(self._streak) < STREAK:
                return False
            while len(self._recent) > STREAK:  # what ran before tells of another time
                self._recent.popleft()
            self._largest = max(rows for rows, _ in self._recent)
        self._shape = self.base_s, self.per_row_s
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

    def _spread(self, recent: Iterable[tuple[int, float]]) -> None:
        """The deviation of these batches from the line, where one outlier counts as three times the middle one."""
        residuals = sorted([abs(seconds / (self.base_s + self.per_row_s * rows) - 1.0) for rows, seconds in recent])
        most = SIGMAS * max(residuals[len(residuals) // 2], LEAST_DEVIATION)
        squares = sum([min(residual, most) ** 2 for residual in residuals])
        self._variance = (squares + self._prior_variance) / max(len(residuals) - 1, 1)
        self._deviation = sqrt(self._variance)

    def _restart(self, recent: Iterable[tuple[int, float]]) -> None:
        """Sums as if these batches, and the calibrated sizes on the line, were all that ever ran."""
        share = PRIOR_WEIGHT / len(self._sizes)
        self._weight = self._rows = self._rows2 = self._seconds = self._cross = 0.0
        for rows in self._sizes:
            expected = self.base_s + self.per_row_s * rows
            self._add(rows, expected, expected, share)
        self._prior = self._weight, self._rows, self._rows2
        for rows, seconds in recent:
            expected = self.base_s + self.per_row_s * rows
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
    return line(weight, sum_rows, rows2, sum_seconds, cross)
