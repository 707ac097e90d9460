"""Fitted latency over rows and length: c0 + c1*rows + c2*length + c3*rows*length + c4*rows*length^2 seconds.

What a batch costs however small, each row, each step (of a recurrent net), each element, and each pair of elements (attention).
Terms below 0 are left out, so the batches choose which of them there are. Called by policy/cost.py where inputs have more than
one length. Not aware of: why a batch had its size.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from math import exp2, floor, log2, sqrt

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
    nonnegative,
)

TERMS = 5
SOLVE_EVERY = 4  # batches; between them the sums gather, at a third of the cost
SPREAD_EVERY = 50  # batches after which the sizes that are kept in mind are mixed with those of late
SHARED = 8.0  # batches' worth of belief in the deviation of all sizes, for those of like cost

Matrix = list[list[float]]
Coefficients = list[float]


class Surface:
    """`points`: (rows, length) that are kept in mind, at what `shape` says of them, while batches tell little of them."""

    def __init__(
        self, shape: Coefficients, points: Sequence[tuple[int, int]], recent: Iterable[Observed], variance: float
    ) -> None:
        self._shape = self._fit = shape
        self._points = points
        self._recent = deque(recent, maxlen=EARLY)
        self._largest = max([rows * length for rows, length, _ in self._recent], default=0)
        self._longest = max([length for _, length, _ in self._recent] or [length for _, length in points])
        self.early = EARLY
        self._streak: list[Observed] = []
        self._streak_up = False
        self._count = 0
        self._terms: dict[int, tuple[float, float]] = {}
        self._deviations = _Deviations(variance)
        self._sums: Matrix = []
        self._targets: list[float] = []
        self._mind: Matrix = []
        if self._recent:
            self._draw()
        else:
            self._restart(())

    def terms(self, length: int) -> tuple[float, float]:
        """Seconds of a batch of this length, and of each row. Beyond the longest that ran no less than in proportion."""
        terms = self._terms.get(length)
        if terms is None:
            fit, longest = self._fit, self._longest
            terms = fit[0] + fit[2] * length, fit[1] + (fit[3] + fit[4] * length) * length
            if length > longest:
                base_s, row_s = self.terms(longest)
                terms = max(terms[0], base_s * length / longest), max(terms[1], row_s * length / longest)
            if len(self._terms) >= 1024:
                self._terms.clear()
            self._terms[length] = terms
        return terms

    def mean(self, rows: int, length: int) -> float:
        base_s, row_s = self.terms(length)
        return max(base_s + row_s * rows, 1e-12)

    def quantile(self, rows: int, sigmas: float, length: int) -> float:
        mean_s = self.mean(rows, length)
        return mean_s * (1.0 + sigmas * self._deviations.at(mean_s))

    def p99(self, rows: int, length: int) -> float:
        return self._deviations.p99(self.mean(rows, length))

    def observe(self, rows: int, length: int, seconds: float) -> None:
        expected = self.mean(rows, length)
        self._recent.append((rows, length, seconds))
        if self.early or self._is_news(rows, length, seconds, expected):
            self.early = max(self.early - 1, 0)
            self._note_extent(rows, length)
            self._draw()
            return
        self._note_extent(rows, length)
        seconds = min(seconds, OUTLIER * expected)
        self._deviations.observe(expected, abs(seconds / expected - 1.0))
        fit, renew = self._fit, 1.0 - FORGETTING
        remembered = [sum([entry * c for entry, c in zip(row, fit, strict=True)]) for row in self._mind]
        self._targets = [FORGETTING * b + renew * r for b, r in zip(self._targets, remembered, strict=True)]
        self._sums = [
            [FORGETTING * a + renew * m for a, m in zip(row, mind, strict=True)]
            for row, mind in zip(self._sums, self._mind, strict=True)
        ]
        self._add(rows, length, seconds, expected)
        self._count += 1
        if self._count % SOLVE_EVERY == 0:
            self._solve()
        if self._count % SPREAD_EVERY == 0:
            share = 1.0 / (10.0 * sum([FORGETTING**age for age in range(SPREAD_EVERY)]))
            self._mind = [
                [0.9 * m + share * a for m, a in zip(mind, row, strict=True)]
                for mind, row in zip(self._mind, self._sums, strict=True)
            ]

    def _note_extent(self, rows: int, length: int) -> None:
        self._largest = max(self._largest, rows * length)
        if length > self._longest:
            self._longest = length
            self._terms.clear()

    def _is_news(self, rows: int, length: int, seconds: float, expected: float) -> bool:
        """The fit is wrong, not the batch: see LatencyModel. A streak at one end of the lengths tells of that end alone."""
        gap = 1.0 + max(SURPRISE, SIGMAS * self._deviations.at(expected))
        if expected <= seconds * gap and seconds <= gap * expected:
            self._streak.clear()
            return False
        if self._streak and self._streak_up != (seconds > expected):
            self._streak.clear()
        self._streak_up = seconds > expected
        self._streak.append((rows, length, seconds))
        if rows * length > BEYOND * self._largest or length > BEYOND * self._longest:
            return True
        lengths = [length for _, length, _ in self._streak]
        if len(lengths) < STREAK or max(lengths) < 2 * min(lengths):
            return False
        self._recent = deque(self._streak, maxlen=EARLY)
        return True

    def _draw(self) -> None:
        """The fit afresh, through the recent batches; the shape, moved to their height, fills in what they leave open."""
        if not self.early:
            self._shape = self._fit
        self._streak.clear()
        recent, shape = self._recent, self._shape
        ratios = sorted([seconds / max(_value(shape, rows, length), 1e-12) for rows, length, seconds in recent])
        height = ratios[(len(ratios) - 1) // 2]
        agrees = ratios[-1] <= (1.0 + AGREES) * height and ratios[0] * (1.0 + AGREES) >= height
        self._fit = [height * c for c in shape]
        self._terms.clear()
        self._clear_sums()
        weight = (PRIOR_WEIGHT if agrees else DISBELIEF) / len(self._points)
        for rows, length in self._points:
            expected = max(_value(self._fit, rows, length), 1e-12)
            self._add(rows, length, expected, expected, weight)
        for rows, length, seconds in recent:
            self._add(rows, length, seconds, seconds)
        self._solve()
        residuals = [(self.mean(rows, length), seconds) for rows, length, seconds in recent]
        self._deviations.restart([(mean_s, abs(seconds / mean_s - 1.0)) for mean_s, seconds in residuals])
        self._restart(recent)

    def _restart(self, recent: Iterable[Observed]) -> None:
        """Sums as if these batches, and the points, at what the fit says, were all that ever ran."""
        recent = list(recent)
        self._clear_sums()
        points = {*self._points, *[(rows, length) for rows, length, _ in recent]}
        for rows, length in points:
            expected = self.mean(rows, length)
            self._add(rows, length, expected, expected, PRIOR_WEIGHT / len(points))
        self._mind = [list(row) for row in self._sums]
        for rows, length, seconds in recent:
            expected = self.mean(rows, length)
            self._add(rows, length, min(seconds, OUTLIER * expected), expected)

    def _clear_sums(self) -> None:
        self._sums = [[0.0] * TERMS for _ in range(TERMS)]
        self._targets = [0.0] * TERMS

    def _add(self, rows: int, length: int, seconds: float, expected: float, share: float = 1.0) -> None:
        scale = min(max(expected, 0.5 * seconds), 2.0 * seconds)
        share /= scale * scale
        terms = _terms_of(rows, length)
        self._targets = [b + share * seconds * x for b, x in zip(self._targets, terms, strict=True)]
        for x, row in zip(terms, self._sums, strict=True):
            weighted = share * x
            for column, y in enumerate(terms):
                row[column] += weighted * y

    def _solve(self) -> None:
        self._fit = nonnegative(self._sums, self._targets)
        self._terms.clear()


def surface_through(points: Sequence[Observed], variance: float = 0.0) -> Surface:
    """What calibrated (rows, length, seconds) say."""
    sums: Matrix = [[0.0] * TERMS for _ in range(TERMS)]
    targets = [0.0] * TERMS
    for rows, length, seconds in points:
        terms = [x / seconds for x in _terms_of(rows, length)]
        targets = [b + x for b, x in zip(targets, terms, strict=True)]
        sums = [[a + x * y for a, y in zip(row, terms, strict=True)] for row, x in zip(sums, terms, strict=True)]
    return Surface(nonnegative(sums, targets), [(rows, length) for rows, length, _ in points], (), variance)


def _terms_of(rows: int, length: int) -> tuple[float, ...]:
    return 1.0, rows, length, rows * length, rows * length * length


def _value(fit: Coefficients, rows: int, length: int) -> float:
    return fit[0] + fit[1] * rows + fit[2] * length + (fit[3] + fit[4] * length) * rows * length


class _Deviations:
    """Relative deviations of batches from what was expected: of batches of like cost, and of all.

    Costs are alike within a power of the square root of 2. Where few of a kind ran, those of all count more.
    """

    def __init__(self, variance: float) -> None:
        self._first = self._variance = variance
        self._by_cost: dict[int, tuple[float, float]] = {}  # weight, variance
        self._known: list[int] = []
        self._floors: list[float] = []

    def at(self, mean_s: float) -> float:
        return self._of(_kind(mean_s))

    def p99(self, mean_s: float) -> float:
        """Never less for more: no less than that of anything cheaper."""
        kind = _kind(mean_s)
        seconds = mean_s * (1.0 + SIGMAS * self._of(kind))
        below = bisect_left(self._known, kind)
        if below and self._floors[below - 1] > seconds:
            seconds = self._floors[below - 1]
        return max(seconds, exp2(kind / 2.0) * (1.0 + SIGMAS * sqrt(self._variance)))

    def _of(self, kind: int) -> float:
        weight, variance = self._by_cost.get(kind, (0.0, 0.0))
        return sqrt((weight * variance + SHARED * self._variance) / (weight + SHARED))

    def observe(self, mean_s: float, residual: float) -> None:
        kind = _kind(mean_s)
        renew = 1.0 - FORGETTING
        square = min(residual, SIGMAS * max(self._of(kind), LEAST_DEVIATION)) ** 2
        self._variance += renew * (square - self._variance)
        weight, variance = self._by_cost.get(kind, (0.0, 0.0))
        weight = FORGETTING * weight + 1.0
        self._by_cost[kind] = weight, variance + (square - variance) / weight
        self._raise_floors()

    def restart(self, residuals: Sequence[tuple[float, float]]) -> None:
        """These (expected seconds, relative residual) are all that is known; outliers count as three times the middle one."""
        sizes = sorted([residual for _, residual in residuals])
        most = SIGMAS * max(sizes[len(sizes) // 2], LEAST_DEVIATION)
        squares = sum([min(residual, most) ** 2 for residual in sizes])
        self._variance = (squares + self._first) / max(len(sizes) - 1, 1)
        self._by_cost.clear()
        self._raise_floors()

    def _raise_floors(self) -> None:
        self._known = sorted(self._by_cost)
        self._floors, floor_s = [], 0.0
        for kind in self._known:
            floor_s = max(floor_s, exp2((kind + 1) / 2.0) * (1.0 + SIGMAS * self._of(kind)))
            self._floors.append(floor_s)


def _kind(mean_s: float) -> int:
    return floor(2.0 * log2(mean_s))
