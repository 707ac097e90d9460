"""Where to cut: exactly, by dynamic programming over the order of the nodes; and which layouts a number of cores allows.

Pure. Called by search.py with measured seconds. Not aware of: models, files.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

SAME = 0.02  # layouts that differ by less are equally good: the simpler one is taken

Floats = NDArray[np.float64]


class Chain(Struct, frozen=True):
    """What decides on cuts. `seconds`: of each node; `may`: places, from 0 to the number of nodes, where a cut is possible.

    `reads`: by node, the producers (-1: an input) and the seconds of handing over of the tensors that it reads; `gives`: by
    node, for each tensor, its last reader and the seconds of handing it over.
    """

    seconds: Floats
    may: Sequence[int]
    reads: Sequence[Sequence[tuple[int, str, float]]]
    gives: Sequence[Sequence[tuple[int, float]]]


def stage_costs(chain: Chain) -> Floats:
    """Seconds [places, places] of a stage from one place to a later one, handing over included; inf where it is none."""
    places = list(chain.may)
    sums = np.concatenate([[0.0], np.cumsum(chain.seconds)])
    costs = np.full((len(places), len(places)), inf)
    for first, start in enumerate(places):
        comes, seen = 0.0, set[str]()
        leaves: list[tuple[int, float]] = []
        number = start
        for last in range(first + 1, len(places)):
            for number in range(places[last - 1], places[last]):
                for producer, name, handing_s in chain.reads[number]:
                    if producer < start and name not in seen:
                        seen.add(name)
                        comes += handing_s
                leaves += chain.gives[number]
            leaves = [(reader, handing_s) for reader, handing_s in leaves if reader >= places[last]]
            if leaves:  # else it gives nothing that could be handed over
                goes = sum(handing_s for _, handing_s in leaves)
                costs[first, last] = sums[places[last]] - sums[start] + comes + goes
    return costs


def cut(costs: Floats, stages: int) -> list[int]:
    """The places, as indices of `costs`, of the first stage's start to the last one's end: the largest stage is as small as can
    be. Raises ValueError where there are fewer places than stages.
    """
    count = len(costs)
    if not 1 <= stages < count:
        raise ValueError(f"into {count - 1} at most")
    best, total = costs[0].copy(), costs[0].copy()
    back: list[NDArray[np.intp]] = []
    for _ in range(1, stages):
        worst = np.maximum(best[:, None], costs)
        sums = total[:, None] + costs
        least = worst.min(axis=0)
        sums = np.where(worst <= least, sums, inf)
        from_ = sums.argmin(axis=0)
        back.append(from_)
        best, total = least, sums[from_, np.arange(count)]
    if not np.isfinite(best[-1]):
        raise ValueError("into fewer")
    places = [count - 1]
    for from_ in reversed(back):
        places.append(int(from_[places[-1]]))
    return [0, *reversed(places)]


def largest(costs: Floats, places: Sequence[int]) -> float:
    """Seconds of the slowest of these stages."""
    return float(max(costs[one, other] for one, other in pairwise(places)))


class Layout(Struct, frozen=True, kw_only=True):
    """`replicas` of a pipeline of `stages`, whose large products are in `parts`. `slowest_s`: of the stage that takes longest
    for a batch; `latency_s`: of a batch that finds nobody waiting; `weights`: bytes of the largest part.
    """

    replicas: int
    stages: int
    parts: int
    slowest_s: float
    latency_s: float
    weights: int

    @property
    def cores(self) -> int:
        return self.replicas * self.stages * self.parts

    @property
    def batches_per_s(self) -> float:
        return self.replicas / self.slowest_s


def shapes(cores: int, *, stages: int = 0, parts: int = 0) -> Iterator[tuple[int, int, int]]:
    """(replicas, stages, parts) that take these cores at most, as many replicas as there is room for; 0: any number."""
    for some in [stages] if stages else range(1, cores + 1):
        for others in [parts] if parts else range(1, cores // some + 1):
            if some * others <= cores:
                yield cores // (some * others), some, others


def choose(layouts: Sequence[Layout], *, latency: bool) -> Layout:
    """The best by throughput, or by latency; of those within SAME of it the one of the fewest parts, and the fewest cores."""

    def worth(one: Layout) -> float:
        return 1.0 / one.latency_s if latency else one.batches_per_s

    most = max(map(worth, layouts))
    near = [one for one in layouts if worth(one) >= most * (1.0 - SAME)]
    return min(near, key=lambda one: (one.stages * one.parts, one.cores, -worth(one)))
