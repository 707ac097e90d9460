"""How like two loads are: how long the gaps are, in which order they come, and how large bursts get.

Called by training.py. Not aware of: where the loads come from.
"""

from math import log

import numpy as np
from numpy.typing import NDArray

from dlproxy.lab.learn.synthesis.fits import Numbers

SCALES_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)  # of counts, for the index of dispersion
CORRELATED_S = (0.1, 1.0, 10.0)  # of counts, for their autocorrelation
GAP_LAGS, COUNT_LAGS = 50, 10
BURST_S = 0.05  # arrivals with shorter gaps belong to one burst
PEAK_S = 1.0
CHOSEN_BY = ("ks", "acf_gaps", "acf_counts", "dispersion")
NEAREST = 1e-6
LEAST_GAP_S = 1e-6  # what is shorter counts as this: the resolution of recorded times


class Load:
    """What one load is like. `instants` in seconds, ascending."""

    def __init__(self, instants: Numbers) -> None:
        gaps = np.maximum(np.diff(instants), LEAST_GAP_S)
        self.logs = np.log10(gaps)
        self.gaps = _autocorrelation(self.logs, GAP_LAGS)
        self.counts = [_autocorrelation(counts(instants, scale_s), COUNT_LAGS) for scale_s in CORRELATED_S]
        self.dispersion = np.array([_dispersion(counts(instants, scale_s)) for scale_s in SCALES_S])
        self.longest_burst = _longest(gaps < BURST_S) + 1
        peak = counts(instants, PEAK_S)
        self.peak_over_mean = float(peak.max() / peak.mean())


def compare(made: Load, real: Load) -> dict[str, float]:
    """How far apart they are, 0 for equal. `wasserstein`: in decades of the gaps. Of dispersion and bursts: the logarithm of
    the ratio, so 0.69 is half or double; of the autocorrelations the mean difference over lags (and scales).
    """
    everywhere = np.sort(np.concatenate([made.logs, real.logs]))
    below = [np.searchsorted(np.sort(one.logs), everywhere, side="right") / len(one.logs) for one in (made, real)]
    apart = np.abs(below[0] - below[1])
    return {
        "ks": float(apart.max()),
        "wasserstein": float((apart[:-1] * np.diff(everywhere)).sum()),
        "acf_gaps": float(np.abs(made.gaps - real.gaps).mean()),
        "acf_counts": float(np.abs(np.array(made.counts) - np.array(real.counts)).mean()),
        "dispersion": float(np.abs(np.log(made.dispersion / real.dispersion)).mean()),
        "longest_burst": abs(log(made.longest_burst / real.longest_burst)),
        "peak": abs(log(made.peak_over_mean / real.peak_over_mean)),
    }


def distance(made: Load, real: Load) -> float:
    """One number to choose by: the geometric mean of four distances, so that half as far counts the same in each."""
    found = compare(made, real)
    return float(np.exp(np.mean([log(max(found[name], NEAREST)) for name in CHOSEN_BY])))


def counts(instants: Numbers, scale_s: float) -> Numbers:
    """Arrivals in each whole stretch of so many seconds, from the first to the last; one stretch at least."""
    since = instants - instants[0]
    stretches = max(int(since[-1] / scale_s), 1)
    return np.bincount((since / scale_s).astype(np.int64), minlength=stretches)[:stretches].astype(np.float64)


def _dispersion(numbers: Numbers) -> float:
    """Variance over mean: 1 of a Poisson process. No less than a hundredth, so that its logarithm stays a number."""
    return max(float(numbers.var() / numbers.mean()), 0.01)


def _autocorrelation(values: Numbers, lags: int) -> Numbers:
    """At the lags 1 to `lags`; 0 where there is nothing to compare, or nothing varies."""
    values = values - values.mean()
    variance = float((values**2).mean())
    if variance == 0.0:
        return np.zeros(lags)
    found = [
        float((values[lag:] * values[:-lag]).mean()) / variance if lag < len(values) else 0.0 for lag in range(1, lags + 1)
    ]
    return np.array(found)


def _longest(flags: NDArray[np.bool_]) -> int:
    """How many in a row are true, at most."""
    ends = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((ends[1::2] - ends[::2]).max(initial=0))
