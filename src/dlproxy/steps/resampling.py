"""Audio at another sampling rate, by a polyphase filter.

Called by sound.py. Not aware of: files.
"""

from functools import lru_cache
from math import gcd, pi

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dlproxy.steps.values import Floats

CROSSINGS = 32  # of the sinc on each side
STOP_DB = 80.0  # by which what would alias is lowered: more than the noise of 13 bits
_BETA = 0.1102 * (STOP_DB - 8.7)
_CUTOFF = 1.0 - (STOP_DB - 8.0) / (2.285 * 2 * CROSSINGS) / pi / 2  # half of the transition below half the lower rate
_MOST_TAPS = 1 << 22  # 16 MiB
_COLUMNS = 128  # samples that are made by one product of matrices, for each of _BLOCK periods
_BLOCK = 1 << 10


def resampled(samples: Floats, rate: int, wanted: int) -> Floats:
    """[n] at `rate` -> [ceil(n * wanted / rate)] at `wanted`. Raises ValueError for rates too odd for a filter."""
    if rate == wanted or not len(samples):
        return samples
    common = gcd(rate, wanted)
    up, down = wanted // common, rate // common
    taps = _phases(up, down)
    width = taps.shape[1]
    count = -(-len(samples) * up // down)
    repeats = max(_COLUMNS // up, 1)
    period, step = up * repeats, down * repeats  # after so many samples made and given, all begins anew
    blocks = -(-count // period)
    padded = np.pad(samples, (width // 2, blocks * step + width - width // 2 - len(samples)))
    found = np.empty((blocks, period), np.float32)
    for first in range(0, min(period, count), _COLUMNS):
        numbers = np.arange(first, min(first + _COLUMNS, period))
        begins = numbers * down // up
        rows = begins - begins[0]
        matrix = np.zeros((rows[-1] + width, len(numbers)), np.float32)
        matrix[rows[:, None] + np.arange(width), np.arange(len(numbers))[:, None]] = taps[numbers % up]
        windows = sliding_window_view(padded, len(matrix))[begins[0] :: step]
        for at in range(0, blocks, _BLOCK):
            part = found[at : at + _BLOCK, first : first + _COLUMNS]
            part[:] = np.ascontiguousarray(windows[at : at + len(part)]) @ matrix
    return found.ravel()[:count]


@lru_cache(maxsize=8)
def _phases(up: int, down: int) -> Floats:
    """[up, taps]: of sample n of the result, those of phase n % up. A sinc windowed by Kaiser's, whose beta and width are
    Kaiser's formulas (Oppenheim and Schafer, Discrete-Time Signal Processing, 7.6).
    """
    cutoff = min(1.0, up / down) * _CUTOFF  # as a share of half the rate that is given
    half = int(CROSSINGS / cutoff) + 1
    if max(up, _COLUMNS) * (2 * half + 1) > _MOST_TAPS:
        raise ValueError(f"the audio's rate is to the wanted one as {down} to {up}, for which a filter would be too large")
    fractions = (np.arange(up) * down % up / up)[:, None]
    distance = np.arange(-half, half + 1) - fractions  # of a sample that is given, from the one to be made
    inside = np.clip(1.0 - (distance * cutoff / CROSSINGS) ** 2, 0.0, None)
    taps: NDArray[np.float64] = cutoff * np.sinc(cutoff * distance) * np.i0(_BETA * np.sqrt(inside)) / np.i0(_BETA)
    taps *= np.abs(distance) * cutoff <= CROSSINGS
    taps /= taps.sum(axis=1, keepdims=True)
    return taps.astype(np.float32)
