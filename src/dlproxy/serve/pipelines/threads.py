"""Threads that steps of pipelines run Python code on, shared by all pipelines of a process: the lowest rank first.

Used by calls.py; fleet.py asks how long a job would wait. Not aware of: pipelines, what the code is, what ranks mean.
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from math import inf
from threading import Condition, Thread
from typing import Any

from msgspec import Struct

from dlproxy.policy.jobs import JobQueue

SWITCH_S = 50e-6  # after which a thread that wants the GIL insists: a busy event loop gives it up so often that 5 ms never pass


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
        self._jobs: JobQueue[Job] = JobQueue()
        self._changed = Condition()
        self._threads: list[Thread] = []
        self._idle = 0
        self._stopping = False
        self._switch_s = 0.0  # the process's own, before there were threads

    def __len__(self) -> int:
        return len(self._threads)

    @property
    def waiting(self) -> int:
        """Jobs that no thread has begun."""
        return len(self._jobs)

    def would_wait_s(self, rank: float) -> float:
        """Until a job of this rank that came now would begin."""
        with self._changed:
            return self._jobs.would_wait_s(rank)

    def put(self, job: Job, rank: float) -> None:
        """Run it, before those of higher rank."""
        with self._changed:
            self._jobs.put(job, rank)
            if self._idle >= len(self._jobs):
                self._changed.notify()
            elif len(self._threads) < self.most:
                thread = Thread(target=self._work, name=f"dlproxy-steps-{len(self._threads)}", daemon=True)
                if not self._threads:
                    self._switch_s = sys.getswitchinterval()
                    sys.setswitchinterval(SWITCH_S)
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
        if threads:
            sys.setswitchinterval(self._switch_s)
        self._stopping = False

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._run(job)
            del job  # which keeps tensors alive

    def _next(self) -> Job | None:
        with self._changed:
            while not self._stopping:
                if self._jobs:
                    return self._jobs.take(self._clock())
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
