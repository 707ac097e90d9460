"""What the fits of latency (cost.py over rows, surface.py over rows and length) share: constants, and least squares.

Not aware of: batches.
"""

from collections.abc import Sequence
from math import sqrt

FORGETTING = 0.98  # per batch: a memory of about 50 batches (ALGORITHMS of Clipper and BentoML use 50 samples too)
PRIOR_WEIGHT = 1.0  # batches' worth of belief in what was calibrated
SIGMAS = 3.0  # p99 = fit * (1 + 3 * relative deviation): pooled over sizes, as in Clipper's shipped code
OUTLIER = 5.0  # an observation counts as at most 5 times its prediction: one preempted batch must not move the fit
LEAST_DEVIATION = 0.05  # a residual counts as at most 3 deviations, taken as no less than this: nor may it blow up the p99
EARLY = 20  # batches at the start, through which the fit is drawn afresh with each: until then warm-up's may be all wrong
AGREES = 0.15  # a shape is believed while no recent batch is further from it, relative to the middle one
DISBELIEF = 1e-6  # what is left of a shape that is not: it decides only what the batches leave open
SURPRISE = 0.3  # relative; a batch this far off, and SIGMAS deviations, is news: the STREAK-th in a row draws the fit anew
STREAK = 3
BEYOND = 1.5  # times the largest batch that ran: what is surprising there is news at once, for the fit was only a guess
NO_SPREAD = 1e-12  # relative; below it all sizes are one, but for rounding
RIDGE = 1e-10  # relative; of terms that the batches cannot tell apart
LEAST_GAIN = 1e-9  # relative; a term is not taken in for less

Observed = tuple[int, int, float]
"""(rows, length, seconds) of a batch."""


def line(weight: float, rows: float, rows2: float, seconds: float, cross: float) -> tuple[float, float]:
    """Base and slope of the least squares with these sums, neither below 0."""
    spread = weight * rows2 - rows * rows
    if spread <= NO_SPREAD * weight * rows2:  # assume no gain from batching
        return 0.0, max(cross / rows2, 1e-12)
    slope = (weight * cross - rows * seconds) / spread
    base = (seconds - slope * rows) / weight
    if slope < 0.0:  # noise: more rows cannot take less time
        slope, base = 0.0, seconds / weight
    elif base < 0.0:
        slope, base = cross / rows2, 0.0
    return base, max(slope, 1e-12)


def nonnegative(sums: Sequence[Sequence[float]], targets: Sequence[float]) -> list[float]:
    """Least squares with no coefficient below 0, from the normal equations (Lawson and Hanson 1974, algorithm NNLS)."""
    size = len(targets)
    scales = [1.0 / sqrt(sums[term][term]) if sums[term][term] > 0.0 else 0.0 for term in range(size)]
    scaled = [[sums[i][j] * scales[i] * scales[j] for j in range(size)] for i in range(size)]
    wanted = [target * scale for target, scale in zip(targets, scales, strict=True)]
    enough = LEAST_GAIN * max(wanted, default=0.0)
    found = [0.0] * size
    chosen: list[int] = []
    for _ in range(3 * size):
        gains = [wanted[i] - sum([scaled[i][j] * found[j] for j in chosen]) for i in range(size)]
        best = max([i for i in range(size) if i not in chosen], key=lambda i: gains[i], default=-1)
        if best < 0 or gains[best] <= enough:
            break
        chosen.append(best)
        while chosen:
            values = _solved([[scaled[i][j] + RIDGE * (i == j) for j in chosen] for i in chosen], [wanted[i] for i in chosen])
            below = [(i, value) for i, value in zip(chosen, values, strict=True) if value <= 0.0]
            if not below:
                break
            step = min([found[i] / (found[i] - value) if found[i] > value else 0.0 for i, value in below])
            for i, value in zip(chosen, values, strict=True):
                found[i] += step * (value - found[i])
            gone = {i for i, _ in below if found[i] <= 1e-15} or {min(below, key=lambda pair: found[pair[0]])[0]}
            for i in gone:
                found[i] = 0.0
            chosen = [i for i in chosen if i not in gone]
        if best not in chosen:
            break
        for i, value in zip(chosen, values, strict=True):
            found[i] = value
    return [value * scale for value, scale in zip(found, scales, strict=True)]


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination; the matrix is symmetric and positive definite, so it needs no pivots."""
    size = len(right)
    for column in range(size):
        for row in range(column + 1, size):
            factor = matrix[row][column] / matrix[column][column]
            if factor:
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[column], strict=True)]
                right[row] -= factor * right[column]
    for column in reversed(range(size)):
        right[column] = (right[column] - sum([matrix[column][j] * right[j] for j in range(column + 1, size)])) / matrix[column][
            column
        ]
    return right
