"""What a model did of late: its counters, looked at once a second, in rings of fixed size that reach back an hour.

Called by feed.py, which looks at no model that is at rest. Not aware of: HTTP, who reads, lanes.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import isnan, nan
from operator import sub
from typing import NamedTuple

from dlproxy.message import FailureKind
from dlproxy.policy.scaling import MISSED
from dlproxy.telemetry.stats import BOUNDS_S, ModelStats

REJECTED = (*MISSED, FailureKind.QUOTA)
FAILED = (FailureKind.MODEL_FAILED, FailureKind.UNAVAILABLE)
PHASES = ("queue", "batch", "compute", "split")
COLUMNS = ("rate", "p50_s", "p99_s", "queued", "batch_rows", "utilisation", "rejects_rate", "failures_rate")
FINE, COARSE_S, COARSE = 300, 10, 360  # points a second apart; seconds from a coarse point to the next; how many of those
HOUR = COARSE_S * COARSE
BOUNDS = (BOUNDS_S[0] / 2.0, *BOUNDS_S, BOUNDS_S[-1] * 2.0)  # of the buckets, as if the first and the last had some
WINDOW = 5  # seconds whose answers tell quantiles and means


class Counts(NamedTuple):
    """Since the model was loaded, until the end of the second of this number; or in a time of so many seconds. `latency`:
    answered requests per bucket of BOUNDS_S.
    """

    seconds: int
    rows: int
    batches: int
    remembered: int
    rejects: int
    failures: int
    met: int
    missed: int
    hits: int
    look_ups: int
    busy_s: float
    queue_s: float
    batch_s: float
    compute_s: float
    split_s: float
    latency: Sequence[int]

    def since(self, before: "Counts") -> "Counts":
        return Counts._make([*map(sub, self[:-1], before[:-1]), list(map(sub, self.latency, before.latency))])

    @property
    def answered(self) -> int:
        return sum(self.latency)

    def per_second(self, number: float) -> float:
        return number / self.seconds if self.seconds else 0.0


def counted(stats: ModelStats, number: int) -> Counts:
    """All so far."""
    stats.settle()
    objective, cache, failures = stats.objective, stats.cache, stats.failures
    rejects = sum([failures[kind] for kind in REJECTED])
    missed = 0 if objective is None else objective.late + sum([failures[kind] for kind in (*MISSED, *FAILED)])
    hits = 0 if cache is None else cache.hits + cache.joined
    return Counts(
        seconds=number,
        rows=stats.rows,
        batches=stats.batches,
        remembered=stats.remembered,
        rejects=rejects,
        failures=sum([failures[kind] for kind in FAILED]),
        met=0 if objective is None else objective.met,
        missed=missed,
        hits=hits,
        look_ups=0 if cache is None else hits + cache.misses,
        busy_s=stats.busy_s,
        queue_s=stats.queue.total_s,
        batch_s=stats.batch.total_s,
        compute_s=stats.compute.total_s,
        split_s=stats.split.total_s,
        latency=stats.request.counts.copy(),
    )


def nothing(number: int = 0) -> Counts:
    return Counts._make([number, *[0] * 14, [0] * (len(BOUNDS_S) + 1)])


def quantiles(latency: Sequence[int], *shares: float) -> list[float | None]:
    """Seconds, as near as the buckets tell; None if nothing was answered."""
    counted = list(accumulate(latency))
    if not counted[-1]:
        return [None] * len(shares)
    found: list[float | None] = []
    for share in shares:
        rank = share * counted[-1]
        place = bisect_left(counted, rank)
        low, high = BOUNDS[place], BOUNDS[place + 1]
        into = 1.0 - (counted[place] - rank) / latency[place]
        found.append(low * float((high / low) ** into))
    return found


def utilisation(counts: Counts, capacity: int) -> float:
    """The share of the instances' time, which ran `capacity` batches at a time, that batches took."""
    return min(counts.per_second(counts.busy_s) / capacity, 1.0) if capacity else 0.0


def batch_rows(counts: Counts) -> float | None:
    return counts.rows / counts.batches if counts.batches else None


class _Ring:
    """Points of equal steps, the newest `length` of them. A point that was not put there is of a time at rest."""

    __slots__ = ("columns", "length", "numbers")

    def __init__(self, length: int, columns: int) -> None:
        self.length = length
        self.numbers = array("q", [-1]) * length
        self.columns = [array("f", [0.0]) * length for _ in range(columns)]

    def put(self, first: int, last: int, values: Sequence[float | None]) -> None:
        """The points of these numbers, which are all alike."""
        for number in range(max(first, last - self.length + 1), last + 1):
            place = number % self.length
            self.numbers[place] = number
            for column, value in zip(self.columns, values, strict=True):
                column[place] = nan if value is None else value

    def at(self, number: int) -> int | None:
        """Where this point is; None if there is none."""
        place = number % self.length
        return place if self.numbers[place] == number else None


class Track:
    """One model's. `look` is called every second from when it did something until it is at `rest` again."""

    def __init__(self, stats: ModelStats, number: int, counted: Counts | None = None) -> None:
        """`number`: of the second before the first one that counts; `counted`: until then, None for nothing."""
        self.first = number
        self.fine = _Ring(FINE, len(COLUMNS))
        self.coarse = _Ring(COARSE, len(COLUMNS) + 2)  # and how many requests met the objective, and missed it
        self.restart(stats, number, counted)

    def restart(self, stats: ModelStats, number: int, counted: Counts | None = None) -> None:
        """It is counted anew, as the model was loaded again."""
        self.stats, self.last = stats, number
        self._hour = (0, 0)
        self._begin(nothing(number) if counted is None else counted._replace(seconds=number))

    def wake(self, number: int) -> None:
        """It has been at rest until the end of this second."""
        self.last = number
        self._begin(self._recent[-1]._replace(seconds=number))

    def _begin(self, counts: Counts) -> None:
        self._recent: deque[Counts] = deque([counts], WINDOW + 1)
        self._step, into = divmod(self.last, COARSE_S)
        self._base = counts._replace(seconds=counts.seconds - into)  # a coarse point is of all of its time
        self._most_queued = 0

    @property
    def second(self) -> Counts:
        """What it did in the last one."""
        return self._recent[-1].since(self._recent[-2]) if len(self._recent) > 1 else nothing()

    @property
    def seconds(self) -> Counts:
        """What it did in the last WINDOW of them."""
        return self._recent[-1].since(self._recent[0])

    @property
    def objective(self) -> tuple[int, int]:
        """Requests of the last hour that met it, and that did not."""
        newest, (met, missed) = self._recent[-1], self._hour
        return met + newest.met - self._base.met, missed + newest.missed - self._base.missed

    def rests(self) -> bool:
        """Nothing has moved for so long that the next look would find the same."""
        newest, oldest = self._recent[-1], self._recent[0]
        return newest[1:] == oldest[1:] == self._base[1:] and len(self._recent) > WINDOW

    def look(self, number: int, *, queued: int, capacity: int) -> None:
        """The second of this number has ended."""
        before, newest = self._recent[-1], counted(self.stats, number)
        self._recent.append(newest)
        self.fine.put(self.last + 1, number, _point(newest.since(before), queued, capacity))
        self._most_queued = max(self._most_queued, queued)
        self.last, step = number, number // COARSE_S
        if step == self._step:
            return
        past = newest.since(self._base)
        point = _point(past, self._most_queued, capacity)
        self.coarse.put(self._step, step - 1, [*point, past.met, past.missed])
        self._step, self._base, self._most_queued = step, newest, queued
        steps = [place for place in map(self.coarse.at, range(step - COARSE, step)) if place is not None]
        met, missed = self.coarse.columns[-2:]
        self._hour = int(sum([met[place] for place in steps])), int(sum([missed[place] for place in steps]))

    @property
    def counts(self) -> Counts:
        """All since it was loaded."""
        return self._recent[-1]

    def points(self, first: int, last: int) -> Iterator[tuple[int, int, Sequence[float | None]]]:
        """From the second of one number to that of another: the number, seconds that the point is of, what is in COLUMNS.

        At rest all is 0 or None. There is none from before the first look, or the last hour.
        """
        oldest = max(first, self.first + 1, last - HOUR + 1)
        fine = max(oldest, last - FINE + 1)
        if fine > oldest:
            steps = range(max((oldest - 1) // COARSE_S, last // COARSE_S - COARSE), -(-(fine - 1) // COARSE_S))
            for step in steps:
                yield (step + 1) * COARSE_S, COARSE_S, _read(self.coarse, step)
            fine = steps.stop * COARSE_S + 1
        for number in range(fine, last + 1):
            yield number, 1, _read(self.fine, number)


def _point(counts: Counts, queued: int, capacity: int) -> list[float | None]:
    """In the order of COLUMNS."""
    return [
        counts.per_second(counts.answered),
        *quantiles(counts.latency, 0.5, 0.99),
        queued,
        batch_rows(counts),
        utilisation(counts, capacity),
        counts.per_second(counts.rejects),
        counts.per_second(counts.failures),
    ]


AT_REST: Sequence[float | None] = [None if name in ("p50_s", "p99_s", "batch_rows") else 0.0 for name in COLUMNS]


def _read(ring: _Ring, number: int) -> Sequence[float | None]:
    place = ring.at(number)
    if place is None:
        return AT_REST
    return [None if isnan(column[place]) else column[place] for column in ring.columns[: len(COLUMNS)]]
