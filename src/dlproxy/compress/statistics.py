"""What may be concluded of all examples and runs from those that were looked at: bounds of a loss, and of a ratio of times.

Called by metrics.py and measure.py. Not aware of: what is lost, models.
"""

from collections.abc import Callable, Iterator, Sequence
from math import ceil, comb, log, log1p

import numpy as np
from numpy.typing import NDArray

from dlproxy.compress import CompressError
from dlproxy.compress.gate import Speed

CHANCE = 0.05  # that a bound is passed
RESAMPLES = 2000
FEW = 10  # from so many examples on that differ outright, a bootstrap sees enough of them
OUTRIGHT = 0.5  # of what one example can lose
LEAST_ROUNDS = 6  # of fewer, all may lie on one side of the median by chance: 2 * 0.5**5 is more than 5 %
_ROOM = 1 << 22  # numbers of a block of resamples

Floats = NDArray[np.float64]


def most_lost(lost: int, examples: int) -> float:
    """The share of all examples that are lost where `lost` of these are: at most so many, but for CHANCE.

    The bound of Clopper and Pearson (Biometrika 26, 1934), one-sided; of none lost it is the rule of three, 3 / n (Hanley and
    Lippman-Hand, JAMA 249, 1983).
    """
    if lost >= examples:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        fewer = sum(comb(examples, k) * share**k * (1.0 - share) ** (examples - k) for k in range(lost + 1))
        low, high = (share, high) if fewer > CHANCE else (low, share)
    return high


def examples_needed(most_loss: float) -> int:
    """To show that no more is lost, where nothing is seen to be lost. `most_loss`: above 0, below 1."""
    return ceil(log(CHANCE) / log1p(-most_loss))


def loss_bounds(
    counts: Sequence[int] | NDArray[np.integer],
    loss: Callable[[Floats], Floats],
    lost: Floats,
    *,
    seed: int,
    weight: float = 1.0,
) -> tuple[float, float]:
    """Between which the loss on all examples lies: each end is passed with a probability of CHANCE.

    `counts`: how many examples are of each kind. `loss`: [resamples, kinds] -> [resamples], of so many of each. `lost`: what
    each example has lost, 1 where it was right and is lost; `weight`: what all would lose if all lost 1, by those that weigh
    the most. From the paired bootstrap's percentiles (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
    13). It cannot draw what did not occur: where few differ outright, the upper end is no lower than Clopper and Pearson's.
    """
    losses = np.concatenate([loss(drawn) for drawn in _resamples(np.asarray(counts), np.random.default_rng(seed))])
    if not np.isfinite(losses).all():
        raise CompressError("the held-out labels are nearly all the same, so that nothing can be judged by them: give others")
    low, high = map(float, np.quantile(losses, (CHANCE, 1.0 - CHANCE)))
    outright = np.abs(lost) >= OUTRIGHT
    if outright.sum() < FEW:
        rest = float(np.where(outright, 0.0, lost).mean())
        high = max(high, max(rest, 0.0) + weight * most_lost(int((outright & (lost > 0.0)).sum()), len(lost)))
    return low, high


def _resamples(counts: NDArray[np.integer], rng: np.random.Generator) -> Iterator[Floats]:
    """Blocks [resamples, kinds]: how often each kind is among as many examples, drawn with replacement."""
    kinds, examples = len(counts), int(counts.sum())
    block = max(_ROOM // kinds, 1)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        if kinds == examples:  # four times as quick as the multinomial
            places = rng.integers(kinds, size=(size, examples)) + np.arange(size)[:, None] * kinds
            drawn = np.bincount(places.ravel(), minlength=size * kinds).reshape(size, kinds)
        else:
            drawn = rng.multinomial(examples, counts / examples, size=size)
        yield drawn.astype(np.float64)


def speed(rows: int, original_s: Sequence[float], candidate_s: Sequence[float], *, seed: int) -> Speed:
    """Of rounds in which both were measured in turn: medians, and the median of each round's ratio with its 95 % interval.

    What slows a round slows both, so rounds are drawn whole (percentile bootstrap). Raises CompressError for too few.
    """
    original, candidate = np.asarray(original_s, np.float64), np.asarray(candidate_s, np.float64)
    if len(original) != len(candidate) or len(original) < LEAST_ROUNDS:
        raise CompressError(f"a speed needs {LEAST_ROUNDS} rounds with both models at least, there are {len(candidate)}")
    if not (np.minimum(original, candidate) > 0.0).all():
        raise CompressError("a model answered in no time at all: what was measured is no batch")
    ratios = original / candidate
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = map(float, np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975)))
    return Speed(rows, float(np.median(original)), float(np.median(candidate)), float(np.median(ratios)), low, high)
