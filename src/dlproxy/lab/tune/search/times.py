"""What is known of a layout's batch times and of what surrounds them: measured apart, then learnt from a live run.

Made by calibrate.py and live.py, used by predict.py. Not aware of: how anything was measured.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.report.histogram import Histogram
from dlproxy.lab.simulate.engine import LoopCosts
from dlproxy.lab.simulate.machine import Machine
from dlproxy.lab.simulate.recording import Batches, answers
from dlproxy.lab.simulate.service_times import Sample
from dlproxy.lab.simulate.shared_core import separate

READ_S, WRITE_S, MOST_READ_S = 25e-6, 15e-6, 200e-6  # of the event loop for a request, until a live run has shown it
PATH_S = 250e-6  # between client and loop, both ways, until then
QUANTILES = 200  # at which the path is known
STALL = 3.0
FEWEST = 100  # batches of a live run from which one learns
FEW = 5  # of one size, to compare it with what was measured before


class Times(Struct, frozen=True):
    """Of one layout. `slowdown`: how many times as long a batch takes when all instances are busy as when one is.

    `path_s`: what a request takes besides the loop and the lane, at evenly spaced quantiles. `batched`: whether requests share
    batches. `live`: whether this was learnt from a server under load, whose loop takes `read_s` of the batches' own core.
    """

    samples: list[Sample]
    slowdown: float = 1.0
    batched: bool = True
    read_s: float = READ_S
    path_s: tuple[float, ...] = (PATH_S,)
    live: bool = False

    @property
    def prior(self) -> list[tuple[int, float]]:
        """Mean seconds of a batch of each size that was measured, as the lane wants them."""
        by_size: dict[int, list[float]] = {}
        for sample in self.samples:
            by_size.setdefault(sample.rows, []).append(sample.service_s)
        return [(rows, sum(took) / len(took)) for rows, took in sorted(by_size.items())]

    @property
    def costs(self) -> LoopCosts:
        if self.live:
            return LoopCosts(read_s=self.read_s, shares_core=True)
        return LoopCosts(read_s=self.read_s, write_s=WRITE_S)

    def machine(self, instances: int) -> "Contention":
        return Contention(self.slowdown, instances)

    def with_path(self, latencies_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Latencies in rising order as clients see them."""
        return latencies_s + np.interp(shares(latencies_s.size), shares(len(self.path_s)), self.path_s)

    def scaled(self, factor: float) -> "Times":
        """Every batch takes so many times as long."""
        samples = [sample._replace(service_s=sample.service_s * factor) for sample in self.samples]
        return Times(samples, self.slowdown, self.batched, self.read_s, self.path_s, self.live)


class Contention(Machine):
    """Instances that slow each other as was measured: by nothing alone, by `slowdown` when all are busy."""

    def __init__(self, slowdown: float, instances: int) -> None:
        super().__init__(instances)
        self._each = (slowdown - 1.0) / (instances - 1) if instances > 1 else 0.0
        self._ends: list[float] = []

    def begin(self, service_s: float, threads: int, now: float, timed_on: int = 1) -> float:
        self._ends = [end for end in self._ends if end > now]
        seconds = service_s * (1.0 + self._each * len(self._ends))
        self._ends.append(now + seconds)
        return seconds


def shares(count: int) -> NDArray[np.float64]:
    """So many shares of a distribution, evenly spaced."""
    found: NDArray[np.float64] = (np.arange(count) + 0.5) / count
    return found


def from_calibration(alone: Sequence[Sample], together: Sequence[Sample], *, batched: bool, read_s: float = READ_S) -> Times:
    """`together`: with all instances busy; those samples count as if each had been alone.

    What takes several times as long as its like was held up by others on the machine, who do so to every layout: left in, the
    layout of a quiet moment would win. Live runs bring it back.
    """
    alone, together = _without_stalls(alone), _without_stalls(together)
    slowdown = _slowdown(alone, together)
    apart = [sample._replace(service_s=sample.service_s / slowdown) for sample in together]
    return Times([*alone, *apart], slowdown, batched, read_s)


def _without_stalls(samples: Sequence[Sample]) -> list[Sample]:
    """None takes more than STALL times the median of its size."""
    by_size: dict[int, list[float]] = {}
    for sample in samples:
        by_size.setdefault(sample.rows, []).append(sample.service_s)
    most = {rows: STALL * float(np.median(took)) for rows, took in by_size.items()}
    hand_over_s = STALL * float(np.median([sample.hand_over_s for sample in samples])) if samples else 0.0
    return [
        sample._replace(service_s=min(sample.service_s, most[sample.rows]), hand_over_s=min(sample.hand_over_s, hand_over_s))
        for sample in samples
    ]


def _slowdown(alone: Sequence[Sample], together: Sequence[Sample]) -> float:
    """The median over sizes of how much longer batches take together, at least 1."""
    ratios = []
    for rows in {sample.rows for sample in alone} & {sample.rows for sample in together}:
        one, all_ = (np.median([sample.service_s for sample in found if sample.rows == rows]) for found in (alone, together))
        ratios.append(float(all_ / one))
    return max(float(np.median(ratios)), 1.0) if ratios else 1.0


def learnt(log: Path, clients: Histogram, loads: Sequence[float], warm_up_s: float, before: Times, instances: int) -> Times:
    """From the recording of a server under load: its batches less what the loop took of their core, and its requests' path.

    `loads`: when each load was ordered, on the recorded clock; it warms up from its first request on. `clients`: what those of
    the last load saw. Too few batches teach nothing. Raises LogError.
    """
    batches = Batches(log)
    began = [batches.arrivals[batches.arrivals >= ordered_at - batches.first_at] for ordered_at in loads]
    if not clients.count or not began or not began[-1].size:
        return before
    since_s = float(began[0][0]) + warm_up_s
    arrival_s, apart = separate(batches.samples, batches.arrivals)
    if arrival_s > MOST_READ_S:  # no request costs the loop so much: others on the machine held up both
        arrival_s, apart = 0.0, batches.samples
    kept = _alone([sample for sample in apart if sample.at_s >= since_s], before.slowdown, instances)
    if len(kept) < FEWEST:
        return before
    found, at = answers(log), shares(QUANTILES)
    inside = found[found[:, 0] >= float(began[-1][0]) + batches.first_at + warm_up_s, 1]
    seconds, counts = zip(*clients.steps(), strict=True)
    path_s = np.quantile(np.repeat(seconds, counts), at) - np.quantile(inside, at) - arrival_s
    path = tuple(path_s.clip(min=0.0).tolist())
    return Times([*kept, *_not_seen(kept, before)], before.slowdown, before.batched, arrival_s, path, True)


def _alone(samples: Sequence[Sample], slowdown: float, instances: int) -> list[Sample]:
    """As long as they would have been with no other instance busy. `samples` in the order in which they ended."""
    if instances == 1 or slowdown == 1.0:
        return list(samples)
    begun = np.sort([sample.at_s for sample in samples])
    ended = np.sort([sample.at_s + sample.service_s for sample in samples])
    each = (slowdown - 1.0) / (instances - 1)
    at = [sample.at_s for sample in samples]
    others = np.clip(np.searchsorted(begun, at) - np.searchsorted(ended, at, "right"), 0, instances - 1)
    return [
        sample._replace(service_s=sample.service_s / (1.0 + each * busy))
        for sample, busy in zip(samples, others.tolist(), strict=True)
    ]


def _not_seen(seen: Sequence[Sample], before: Times) -> list[Sample]:
    """Batches of sizes that did not come up: as measured before, in proportion to what the other sizes turned out to take."""
    sizes = {sample.rows for sample in seen}
    ratio = ratio_of(seen, before)
    return [sample._replace(service_s=sample.service_s * ratio) for sample in before.samples if sample.rows not in sizes]


def ratio_of(seen: Sequence[Sample], before: Times) -> float:
    """How many times as long these batches took as those of their size before: the median over sizes, 1 if none is known."""
    sizes: dict[int, list[float]] = {}
    for sample in seen:
        sizes.setdefault(sample.rows, []).append(sample.service_s)
    known = dict(before.prior)
    ratios = [float(np.mean(took)) / known[rows] for rows, took in sizes.items() if rows in known and len(took) >= FEW]
    return float(np.median(ratios)) if ratios else 1.0
