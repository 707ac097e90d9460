"""Whether what comes to a model, and what it answers, is still as it was: samples against a reference, number by number.

Fed by serve/drift.py. Not aware of: tensors, what a number means.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil, erfc, exp, log, sqrt
from typing import Literal

from msgspec import Struct

REFERENCE = 1000  # requests that tell how things are
SAMPLE = 300  # that are compared with them at a time; each is looked at once
BINS = 10
FEW_VALUES = 20  # different ones: counted each by itself
MOST_PSI, MOST_KS = 0.2, 0.15  # less is no drift, however sure it is
CHANCE = 1e-6  # of a false alarm in one look: where one is taken every half minute, one a year

Test = Literal["psi", "ks"]


class Compared(Struct, frozen=True):
    """One number of the requests: how far it is off, and how likely that is by chance. `before`, `now`: its means."""

    name: str
    test: Test
    distance: float
    p: float
    before: float
    now: float

    @property
    def drifted(self) -> bool:
        """Of itself: whether it is far off, whatever chance may do."""
        return self.distance >= (MOST_PSI if self.test == "psi" else MOST_KS)


class Drift:
    """`tests`: the numbers that there are, by name. The first REFERENCE rows are what is usual; then `add` has a result at the
    end of each SAMPLE.
    """

    def __init__(self, tests: Mapping[str, Test]) -> None:
        self._tests = tests
        self._reference: dict[str, list[float]] = {name: [] for name in tests}
        self._sample: dict[str, list[float]] = {name: [] for name in tests}
        self._rows = 0
        self._sampled = 0

    def add(self, row: Mapping[str, float]) -> list[Compared] | None:
        """One request's numbers; those that it lacks are left out."""
        self._rows += 1
        first = self._rows <= REFERENCE
        into = self._reference if first else self._sample
        for name, value in row.items():
            if name in into:
                into[name].append(value)
        if first:
            if self._rows == REFERENCE:
                for values in self._reference.values():
                    values.sort()
            return None
        self._sampled += 1
        if self._sampled < SAMPLE:
            return None
        found = [
            compared(name, test, self._reference[name], sorted(self._sample[name]))
            for name, test in self._tests.items()
            if len(self._reference[name]) >= SAMPLE and len(self._sample[name]) >= SAMPLE // 2
        ]
        self._sampled, self._sample = 0, {name: [] for name in self._tests}
        return found


def drifted(found: Sequence[Compared]) -> list[Compared]:
    """Those that are surely off: by Bonferroni over all that were looked at, and CHANCE a look."""
    return [one for one in found if one.drifted and one.p <= CHANCE / len(found)]


def compared(name: str, test: Test, reference: Sequence[float], sample: Sequence[float]) -> Compared:
    """Both are sorted and not empty."""
    distance, p = (psi if test == "psi" else ks)(reference, sample)
    return Compared(name, test, distance, p, sum(reference) / len(reference), sum(sample) / len(sample))


def ks(reference: Sequence[float], sample: Sequence[float]) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of two sorted samples, and its p-value (Stephens, JRSS B 1970); ties raise it."""
    here, there = len(reference), len(sample)
    distance = max(
        abs(find(reference, value) / here - find(sample, value) / there)
        for value in set(sample)  # between two of them the sample's does not change, and the reference's only grows
        for find in (bisect_left, bisect_right)
    )
    root = sqrt(here * there / (here + there))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.3:
        return distance, 1.0
    p = 2.0 * sum((-1) ** (term - 1) * exp(-2.0 * (term * scaled) ** 2) for term in range(1, 101))
    return distance, min(max(p, 0.0), 1.0)


def psi(reference: Sequence[float], sample: Sequence[float]) -> tuple[float, float]:
    """The population stability index of two sorted samples, in tenths of the reference or by value where there are few, and its
    p-value: times n m / (n + m) it is about chi-squared (Yurdakul and Naranjo, J. Risk Model Validation 2020).
    """
    here, there = len(reference), len(sample)
    first, second = _counted(reference, sample)
    bins = len(first)
    if bins < 2:
        return 0.0, 1.0
    index = 0.0
    for one, other in zip(first, second, strict=True):
        expected, actual = (one + 0.5) / (here + 0.5 * bins), (other + 0.5) / (there + 0.5 * bins)
        index += (actual - expected) * log(actual / expected)
    return index, chi_squared_above(index * here * there / (here + there), bins - 1)


def _counted(reference: Sequence[float], sample: Sequence[float]) -> tuple[list[int], list[int]]:
    values = sorted(set(reference))
    if len(values) <= FEW_VALUES:
        first, second = Counter(reference), Counter(sample)
        other = len(sample) - sum([second[value] for value in values])  # values that the reference never had
        unknown = ([0], [other]) if other else ([], [])
        return [first[value] for value in values] + unknown[0], [second[value] for value in values] + unknown[1]
    edges = sorted({reference[ceil(len(reference) * part / BINS) - 1] for part in range(1, BINS)})
    return _in_bins(reference, edges), _in_bins(sample, edges)


def _in_bins(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_left(edges, value)] += 1
    return counts


def chi_squared_above(value: float, freedom: int) -> float:
    """The chance of more, by Wilson and Hilferty's cube root (PNAS 1931)."""
    if value <= 0.0:
        return 1.0
    spread = 2.0 / (9.0 * freedom)
    return 0.5 * erfc(((value / freedom) ** (1.0 / 3.0) - 1.0 + spread) / sqrt(2.0 * spread))
