"""Threads that code of pipelines runs on, in virtual time; their queue is production's.

Made by run.py, shared by the pipelines of a node. Not aware of: pipelines, what the code is.
"""

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from msgspec import Struct

from dlproxy.cores import usable_cores
from dlproxy.policy.jobs import JobQueue

if TYPE_CHECKING:
    from dlproxy.lab.simulate.engine import Heap


class SimulatedJob(Struct, eq=False):
    """`done(instant)` when it has run for so many seconds, from `begun_at` on; `late(instant)` if it was not begun in time."""

    seconds: float
    done: Callable[[float], None]
    late: Callable[[float], None]
    begin_by: float = inf
    begun_at: float = inf
    cancelled: bool = False


class SimulatedThreads:
    """As many as this machine's server would have, if none are said."""

    def __init__(self, most: int = 0) -> None:
        self.jobs: JobQueue[SimulatedJob] = JobQueue()
        self._idle = most or usable_cores()
        self._behind: SimulatedJob | None = None

    def put(self, job: SimulatedJob, rank: float, now: float, heap: "Heap") -> None:
        """When a thread is free, before those of higher rank."""
        self.jobs.put(job, rank)
        heap.at(now, self._go_on, heap)

    def put_behind(self, job: SimulatedJob) -> None:
        """On the thread of the one that is done now."""
        self._behind = job

    def _go_on(self, heap: "Heap", now: float) -> None:
        while self._idle and self.jobs:
            job = self.jobs.take(now)
            if job.cancelled:
                continue
            if now >= job.begin_by:
                job.late(now)
                continue
            self._idle -= 1
            self._begin(job, heap, now)

    def _begin(self, job: SimulatedJob, heap: "Heap", now: float) -> None:
        job.begun_at = now
        heap.at(now + job.seconds, self._end, (job, heap))

    def _end(self, what: "tuple[SimulatedJob, Heap]", now: float) -> None:
        job, heap = what
        job.done(now)
        behind, self._behind = self._behind, None
        if behind is not None:
            self._begin(behind, heap, now)
        else:
            self._idle += 1
            self._go_on(heap, now)
