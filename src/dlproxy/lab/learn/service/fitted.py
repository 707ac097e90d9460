"""What the fitted cost of lanes says of batches, as they come: the yardstick of what is learnt. Called by training.py.

Not aware of: networks.
"""

import numpy as np

from dlproxy.lab.learn.service.times import Numbers, Times
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.fitting import SIGMAS

QUANTILES = (0.5, 0.9, 0.99)
Z = (0.0, 1.2816, SIGMAS)  # deviations that the fitted cost takes for them: the normal ones, and what it calls its p99
SETTLED = 0.5  # of the batches that are learned from: from there on it is looked how far off it is


def fitted(known: Times, asked: Times, *, by: str = "length") -> tuple[Numbers, Numbers, Numbers]:
    """Expected seconds [asked]; quantiles [asked, QUANTILES] by its own deviation; and by how far off it was on `known`.

    It learns from each batch right after it has been asked, as a lane's does. `by`: the feature that it takes for the length.
    """
    model = LatencyModel()
    before, _ = _follow(model, known, by)
    means, own = _follow(model, asked, by)
    since = round(SETTLED * len(before))
    ratios = np.quantile(known.seconds[since:] / before[since:], QUANTILES)
    return means, own, means[:, None] * ratios


def pinball(predicted: Numbers, seconds: Numbers) -> Numbers:
    """Mean loss of each quantile, [QUANTILES], in shares of the mean of `seconds`: 0 is exact (Koenker and Bassett 1978)."""
    over = seconds[:, None] - predicted
    levels = np.array(QUANTILES)
    loss: Numbers = np.maximum(levels * over, (levels - 1.0) * over).mean(axis=0) / seconds.mean()
    return loss


def _follow(model: LatencyModel, times: Times, by: str) -> tuple[Numbers, Numbers]:
    means, quantiles = [], []
    rows = np.maximum(times.column("rows"), 1.0).astype(int).tolist()
    lengths = np.maximum(np.rint(_as_length(times.column(by))), 1.0).astype(int).tolist()
    for count, length, seconds in zip(rows, lengths, times.seconds.tolist(), strict=True):
        means.append(model.mean(count, length))
        quantiles.append([model.quantile(count, sigmas, length) for sigmas in Z])
        model.observe(count, seconds, length)
    return np.array(means), np.array(quantiles)


def _as_length(values: Numbers) -> Numbers:
    """A length is whole: shares are taken in hundredths."""
    return values if values.max() > 1.0 else values * 100.0
