"""Code that waits for one of some threads: the lowest rank first, and how long one that came now would wait.

Used by serve/pipelines/threads.py and lab/simulate. Not aware of: threads, clocks, what the code is, what ranks mean.
"""

from bisect import bisect_left, insort
from itertools import count
from math import inf
from typing import Generic, Protocol, TypeVar

MEMORY = 0.95  # of the time from one beginning to the next, kept at each further one: about the last 20 count


class Waiting(Protocol):
    """`begin_by`: when it need not begin any more; `cancelled`: it need not at all."""

    begin_by: float
    cancelled: bool


Job = TypeVar("Job", bound=Waiting)


class JobQueue(Generic[Job]):
    """As many may run at a time as its owner has threads."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Job]] = []  # in order
        self._numbers = count()
        self._each_s = 0.0  # from one that begins to the next, while some wait
        self._begun_at = inf  # the last one, if others waited then

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: Job, rank: float) -> None:
        """Before those of higher rank."""
        insort(self._waiting, (rank, next(self._numbers), job))

    def take(self, now: float) -> Job:
        """The first one. What comes to nothing takes no time and shows none."""
        job = self._waiting.pop(0)[2]
        if not job.cancelled and now < job.begin_by:
            if self._begun_at < inf:
                took_s = now - self._begun_at
                self._each_s = self._each_s * MEMORY + took_s * (1.0 - MEMORY) if self._each_s else took_s
            self._begun_at = now if self._waiting else inf
        return job

    def would_wait_s(self, rank: float) -> float:
        """Until one of this rank that came now would begin."""
        return bisect_left(self._waiting, (rank,)) * self._each_s

    def clear(self) -> None:
        self._waiting.clear()
