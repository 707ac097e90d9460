"""What quantile forecasts are worth on what came: pinball loss, coverage, and whether one is better than another by chance.

Called by training.py and benchmarks. Not aware of: how a forecast is made.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pinball(target: Floats, quantiles: Floats, levels: Sequence[float]) -> Floats:
    """[N, horizons, levels] of targets [N, horizons] (Koenker & Bassett 1978), in the target's unit."""
    missed = target[..., None] - quantiles
    return np.maximum(np.asarray(levels) * missed, (np.asarray(levels) - 1.0) * missed)


def coverage(target: Floats, quantiles: Floats) -> Floats:
    """[horizons, levels]: the share of targets at or below; what a level promises."""
    return np.asarray((target[..., None] <= quantiles).mean(0))


def bootstrap(differences: Floats, block: int, *, times: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % interval by the circular block bootstrap (Politis & Romano 1992): neighbours are alike, blocks are not.

    `differences` [N] in the order of time; `block`: how many go together.
    """
    count = len(differences)
    random = np.random.default_rng(seed)
    sums = np.concatenate(([0.0], np.cumsum(np.concatenate((differences, differences[:block])))))
    starts = random.integers(0, count, (times, max(count // block, 1)))
    means = ((sums[starts + block] - sums[starts]) / block).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def autocorrelation(values: Floats, lag: int) -> float:
    """Of values with themselves so many places later; 0 where nothing varies."""
    apart = values - values.mean()
    variance = float((apart**2).mean())
    return float((apart[lag:] * apart[:-lag]).mean()) / variance if variance > 0.0 else 0.0
