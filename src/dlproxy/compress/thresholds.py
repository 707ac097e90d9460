"""From which confidence on a cheap model's answer may stand for a dear one's: learned from examples, judged on others. Pure.

Called by cascade.py. Not aware of: models, metrics, how confidence is computed, what either model costs.
"""

from math import ceil, inf

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.compress.gate import Speed, examples_to_show
from dlproxy.compress.statistics import Floats, loss_bounds

FOLDS = 5
LEVELS = 50  # shares of examples that the cheap model keeps, from which the threshold is chosen
NONE_SURE = inf
AIM = 0.8  # of the most that may be lost: what is learned to the brim runs over on other examples
_Z = 1.96  # of 95 %, two-sided

Bools = NDArray[np.bool_]


class Validated(Struct, frozen=True, eq=False):
    """`sure`: of each example, whether the cheap model kept it, by the threshold of those folds that it is not in.
    `thresholds`: one of each fold. `threshold`: the one to serve with, none of them is above it.
    """

    sure: Bools
    thresholds: tuple[float, ...]
    threshold: float


class Gain(Struct, frozen=True):
    """Times the throughput of the dear model alone, with batches of `rows`, and the ends of its 95 % interval."""

    rows: int
    ratio: float
    low: float
    high: float


def learn(confidence: Floats, lost: Floats, *, most_loss: float, seed: int = 0) -> float:
    """The threshold with which the cheap model keeps the most, and loses no more than `most_loss` on all examples there are.

    `lost`: the dear model's score less the cheap one's. Tried from few kept examples to all, up to the first level whose upper
    bound is too high: so the bound holds for what is chosen, too, though many were tried (fixed-sequence testing; Angelopoulos
    and others, Learn then Test, 2021). NaN is unsure. NONE_SURE where nothing can be kept.
    """
    found = NONE_SURE
    for threshold in levels(confidence):
        if _bounds(np.where(confidence >= threshold, lost, 0.0), seed)[1] > AIM * most_loss:
            break
        found = threshold
    return found


def levels(confidence: Floats) -> list[float]:
    """Thresholds at even shares of what is kept, the highest first."""
    ranked = np.sort(confidence[~np.isnan(confidence)])[::-1]
    places = np.unique(np.linspace(0, len(ranked), LEVELS + 1).round().astype(np.int64))[1:]
    return list(dict.fromkeys(ranked[places - 1].tolist()))


def _bounds(lost: Floats, seed: int) -> tuple[float, float]:
    values, counts = np.unique(lost, return_counts=True)
    return loss_bounds(counts, lambda drawn: drawn @ values / len(lost), lost, seed=seed)


def cross_validated(confidence: Floats, lost: Floats, *, most_loss: float, seed: int = 0, folds: int = FOLDS) -> Validated:
    """Each fold by a threshold that was learned without it. The one to serve with is the most careful of all that were learned:
    of each fold, and of all examples.
    """
    order = np.random.default_rng(seed).permutation(len(confidence))
    sure = np.zeros(len(confidence), np.bool_)
    thresholds = []
    for held_out in np.array_split(order, folds):
        others = np.ones(len(confidence), np.bool_)
        others[held_out] = False
        threshold = learn(confidence[others], lost[others], most_loss=most_loss, seed=seed)
        sure[held_out] = confidence[held_out] >= threshold
        thresholds.append(threshold)
    whole = learn(confidence, lost, most_loss=most_loss, seed=seed)
    return Validated(sure, tuple(thresholds), max(*thresholds, whole))


def share_interval(count: int, examples: int) -> tuple[float, float]:
    """Between which the share of all examples lies, 95 % sure (Wilson, JASA 22, 1927)."""
    share, square = count / examples, _Z**2 / examples
    middle = share + square / 2
    half = _Z * ((share * (1.0 - share) + square / 4) / examples) ** 0.5
    return max((middle - half) / (1.0 + square), 0.0), min((middle + half) / (1.0 + square), 1.0)


def gain(speed: Speed, escalated: int, examples: int) -> Gain:
    """1 / (cheap's cost as a share of the dear one's + share of rows that the dear one answers, too). `speed`: of the cheap
    model beside the dear one. The interval takes the worse, or better, end of both.
    """
    low, high = share_interval(escalated, examples)
    values = ((speed.ratio, escalated / examples), (speed.low, high), (speed.high, low))
    return Gain(speed.rows, *(1.0 / (1.0 / ratio + share) for ratio, share in values))


def best_gain(confidence: Floats, lost: Floats, *, most_loss: float, speed: Speed) -> float:
    """Of any level, if these examples' loss were exactly all examples': more cannot be hoped for."""
    found = [gain(speed, len(lost), len(lost)).ratio]
    for threshold in levels(confidence):
        kept = confidence >= threshold
        if float(np.where(kept, lost, 0.0).mean()) <= most_loss:
            found.append(gain(speed, int((~kept).sum()), len(lost)).ratio)
    return max(found)


def examples_needed(
    confidence: Floats, lost: Floats, *, most_loss: float, speed: Speed, least_gain: float, seed: int = 0, folds: int = FOLDS
) -> int | None:
    """About how many would show that such a gain is to be had, where these do not and all else stayed: all levels up to the
    first that pays must be passed, without one fold. None: these examples' loss itself is too high before that.
    """
    needed = len(lost)
    for threshold in levels(confidence):
        kept = confidence >= threshold
        left = np.where(kept, lost, 0.0)
        loss = float(left.mean())
        if loss >= AIM * most_loss:
            return None
        low, high = _bounds(left, seed)
        needed = max(needed, examples_to_show(AIM * most_loss, examples=len(lost), loss=loss, low=low, high=high))
        if gain(speed, int((~kept).sum()), len(lost)).ratio >= least_gain:
            return ceil(needed * folds / (folds - 1) / 10) * 10
    return None
