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


class HistogramError(ValueError):
    """A text that is no encoded histogram; the message says why."""


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
        micros = _micros(latencies_s)
        self._counts += np.bincount(_index(micros), minlength=self._counts.size)
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

    def share_within(self, latency_s: float) -> float:
        """The share (0 to 1) of all that did not exceed this latency, to three digits of it; 0 if there is none."""
        if not self.count or latency_s <= 0.0:
            return 0.0
        within = int(self._counts[: int(_index(_micros(np.array([latency_s])))[0]) + 1].sum())
        return within / self.count

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
        """What `encode` gave; sum and largest value to three digits. Raises HistogramError for anything else."""
        try:
            library = HdrHistogram.decode(encoded)
        except Exception as error:  # the library raises whatever its decoder of base64, zlib or ctypes does
            raise HistogramError(f"not an HdrHistogram: {error}") from None
        made = cls()
        if (library.unit_magnitude, library.sub_bucket_count) == (0, 2 * _HALF) and library.counts_len == made._counts.size:
            made._counts += np.array(library.counts, dtype=np.int64)  # the same layout; iterating takes half a second
        else:
            for item in library.get_recorded_iterator():
                index = int(_index(_micros(np.array([item.value_iterated_to * 1e-6])))[0])
                made._counts[index] += item.count_added_in_this_iter_step
        made._recount()
        return made

    def _recount(self) -> None:
        """Sum and largest value from the counts."""
        indices = np.flatnonzero(self._counts)
        self.count = int(self._counts.sum())
        self._sum_us = sum(_middle_us(int(index)) * int(self._counts[index]) for index in indices)
        self.max_s = (_lowest_us(int(indices[-1]) + 1) - 1) * 1e-6 if indices.size else 0.0


def _micros(latencies_s: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.clip(np.rint(latencies_s * 1e6), LOWEST_US, HIGHEST_US).astype(np.int64)


def _index(micros: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each is counted: as HdrHistogram lays its counts out."""
    bucket = np.frexp((micros | (2 * _HALF - 1)).astype(np.float64))[1] - _BITS
    index: NDArray[np.int64] = bucket * _HALF + (micros >> bucket)
    return index


def _lowest_us(index: int) -> int:
    """The smallest value that is counted at this index."""
    bucket = max(index // _HALF - 1, 0)
    return (index - bucket * _HALF) << bucket


def _middle_us(index: int) -> float:
    bucket = max(index // _HALF - 1, 0)
    return _lowest_us(index) + ((1 << bucket) - 1) / 2
