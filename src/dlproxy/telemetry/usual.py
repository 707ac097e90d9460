"""What requests of a model usually take, phase by phase, and how large they are: what a slow one is compared with.

Asked by exemplars.py for requests that it keeps. Not aware of: single batches.
"""

from collections import deque
from collections.abc import Sequence
from math import inf
from statistics import median

from dlproxy.policy.why import Case, Phase
from dlproxy.telemetry.stats import BOUNDS_S, Histogram, ModelStats

KNOWN_S = 1.0  # what is usual is looked up no oftener
ENOUGH = 100  # requests, of which some more do not change what is usual
USUAL_S = 300.0  # what is usual is what was so in the last five to ten minutes


class Usual:
    """What the phases of a model's requests take of late, and how large they are."""

    def __init__(self, stats: ModelStats) -> None:
        self._stats = stats
        self._counts: deque[dict[Phase, list[int]]] = deque(maxlen=2)
        self._until = self._known_until = -inf
        self._phases: dict[Phase, float] = {}
        self._rows: deque[int] = deque(maxlen=32)
        self._lengths: deque[int] = deque(maxlen=32)

    def phases(self, now: float) -> dict[Phase, float]:
        """Medians in seconds, of those that ModelStats counts. The same dict for a while."""
        if now >= self._known_until:
            stats = self._stats
            counted: tuple[tuple[Phase, Histogram], ...] = (
                ("queue", stats.queue),
                ("batch", stats.batch),
                ("compute", stats.compute),
                ("split", stats.split),
            )
            before = self._counts[0] if self._counts else {}
            self._phases = {phase: _middle(histogram.counts, before.get(phase)) for phase, histogram in counted}
            self._known_until = now + KNOWN_S if stats.queue.count >= ENOUGH else now
            if now >= self._until:
                self._counts.append({phase: list(histogram.counts) for phase, histogram in counted})
                self._until = now + USUAL_S
        return self._phases

    def sampled(self, case: Case) -> None:
        self._rows.append(case.rows)
        self._lengths.append(case.length)

    def sizes(self) -> tuple[float, float]:
        return (median(self._rows), median(self._lengths)) if self._rows else (1.0, 1.0)


def _middle(counts: Sequence[int], before: Sequence[int] | None) -> float:
    """The median of what a histogram has counted since `before`, as if what is in a bucket were spread evenly over it."""
    new = counts if before is None else [count - then for count, then in zip(counts, before, strict=True)]
    if not any(new):
        new = counts
    half, below, least = sum(new) / 2, 0.0, 0.0
    for count, bound in zip(new, (*BOUNDS_S, BOUNDS_S[-1]), strict=True):
        if count and below + count >= half:
            return least + (bound - least) * (half - below) / count
        below, least = below + count, bound
    return 0.0
