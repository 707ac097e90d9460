"""Latencies in an HdrHistogram of 1 microsecond to 1 hour with three significant digits, filled from arrays.

The library gives the format that other tools read; recording one value at a time costs 1 us in it, an array here 15 ns each.
Called by result.py. Not aware of: what the latencies are of.
"""

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3
_HALF = 1024  # half of the 2048 linear steps per power of two that three digits need
_BITS = 11


class Histogram:
    """Counts of latencies. Quantiles are exact to three digits; the largest value is kept as it is."""

    def __init__(self) -> None:
        self._counts = np.zeros(HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS).counts_len, dtype=np.int64)
        self._sum_us = 0.0
        self.count = 0
        self.max_s = 0.0

    def add(self, latencies_s: NDArray[np.float64]) -> None:
        """Count latencies in seconds; beyond an hour they count as an hour."""
        if not latencies_s.size:
            return
        micros = np.clip(np.rint(latencies_s * 1e6), LOWEST_US, HIGHEST_US).astype(np.int64)
        bucket = np.frexp((micros | (2 * _HALF - 1)).astype(np.float64))[1] - _BITS
        index = bucket * _HALF + (micros >> bucket)
        self._counts += np.bincount(index, minlength=self._counts.size)
        self._sum_us += float(micros.sum())
        self.count += latencies_s.size
        self.max_s = max(self.max_s, float(latencies_s.max()))

    def merge(self, other: "Histogram") -> None:
        """Add another one's counts."""
        self._counts += other._counts
        self._sum_us += other._sum_us
        self.count += other.count
        self.max_s = max(self.max_s, other.max_s)

    @property
    def mean_s(self) -> float:
        """Mean latency in seconds; 0 if there is none."""
        return self._sum_us / self.count * 1e-6 if self.count else 0.0

    def quantile_s(self, quantile: float) -> float:
        """The latency in seconds that this share (0 to 1) of all did not exceed; 0 if there is none."""
        if not self.count:
            return 0.0
        rank = max(int(np.ceil(quantile * self.count - 1e-9)), 1)
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(_middle_us(index) * 1e-6, self.max_s)

    def steps(self) -> list[tuple[float, int]]:
        """(latency in seconds, how many) of every step that holds any, rising: all that a distribution plot needs."""
        return [(_middle_us(int(index)) * 1e-6, int(self._counts[index])) for index in np.flatnonzero(self._counts)]

    def encode(self) -> str:
        """HdrHistogram's V2 compressed format in base64, in microseconds."""
        library = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
        for index in np.flatnonzero(self._counts):
            library.record_value(_lowest_us(int(index)), int(self._counts[index]))
        encoded: bytes = library.encode()
        return encoded.decode("ascii")

    @classmethod
    def decode(cls, encoded: str) -> "Histogram":
        """What `encode` gave; sum and largest value to three digits. Raises ValueError for anything else."""
        try:
            library = HdrHistogram.decode(encoded)
        except Exception as error:  # the library raises whatever its decoder of base64, zlib or ctypes does
            raise ValueError(f"no HdrHistogram: {error}") from None
        made = cls()
        for item in library.get_recorded_iterator():
            micros = item.value_iterated_to
            made.add(np.full(item.count_added_in_this_iter_step, micros * 1e-6))
        return made


def _lowest_us(index: int) -> int:
    """The smallest value that is counted at this index."""
    bucket = max(index // _HALF - 1, 0)
    return (index - bucket * _HALF) << bucket


def _middle_us(index: int) -> float:
    bucket = max(index // _HALF - 1, 0)
    return _lowest_us(index) + ((1 << bucket) - 1) / 2
