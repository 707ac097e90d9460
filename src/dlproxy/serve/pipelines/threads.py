"""Threads that steps of pipelines run Python code on, shared by all pipelines of a process: the earliest deadline first.

Used by calls.py. Not aware of: pipelines, what the code is.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from math import inf
from threading import Condition, Thread
from typing import Any

from msgspec import Struct


class Job(Struct, eq=False):
    """`work` runs on a thread and never raises; `done` gets what it gives, on the loop, or None if it was not begun by
    `begin_by`. Not called at all after `cancelled` was set in time.
    """

    work: Callable[[], Any]
    done: Callable[[Any], None]
    loop: asyncio.AbstractEventLoop
    begin_by: float = inf
    cancelled: bool = False


class Threads:
    """At most so many, started when there is work for them. `clock`: that of the deadlines."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self.most = most
        self._clock = clock
        self._jobs: list[tuple[float, int, Job]] = []
        self._numbers = count()
        self._changed = Condition()
        self._threads: list[Thread] = []
        self._idle = 0
        self._stopping = False

    def __len__(self) -> int:
        return len(self._threads)

    def put(self, job: Job, deadline_at: float) -> None:
        """Run it, before those with later deadlines."""
        with self._changed:
            heappush(self._jobs, (deadline_at, next(self._numbers), job))
            if self._idle >= len(self._jobs):
                self._changed.notify()
            elif len(self._threads) < self.most:
                thread = Thread(target=self._work, name=f"dlproxy-steps-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()

    async def stop(self) -> None:
        """Finish what runs; nothing else is begun. Jobs that are put later start new threads."""
        with self._changed:
            threads, self._threads, self._stopping = self._threads, [], True
            self._jobs.clear()
            self._changed.notify_all()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        self._stopping = False

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)
            del job  # which keeps tensors alive

    def _next(self) -> Job | None:
        with self._changed:
            while not self._stopping:
                if self._jobs:
                    return heappop(self._jobs)[2]
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return None

    def _run(self, job: Job) -> None:
        if job.cancelled:
            return
        result = job.work() if self._clock() < job.begin_by else None
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits
            job.loop.call_soon_threadsafe(job.done, result)
