"""One simulated instance: how long each of its batches takes, what is wrong with it now, and what it has done so far.

Used by lab/simulate/engine.py for every batch in virtual time; with a runtime it stands in a driver on an event loop.
Not aware of: lanes, nodes, when faults begin and end.
"""

import asyncio
from collections.abc import Callable, Sequence
from math import inf

from msgspec import structs

from dlproxy.instance.batch import BatchResult, run_batch
from dlproxy.instance.runtime import Runtime
from dlproxy.lab.simulate.machine import Machine
from dlproxy.lab.simulate.service_times import ServiceTimes
from dlproxy.message import Request


class SimulatedInstance:
    """Takes as long as a batch of `times`. With a `runtime` it is an Instance, whose answers that computes.

    On an event loop its time is the loop's: it computes there when a batch begins, and reports when the drawn time is over.
    So a quick runtime can stand for a slow model.
    """

    inline = False  # a simulated model may be, which is its node's affair: no instance can make a real loop's time pass

    def __init__(self, name: str, times: ServiceTimes, *, capacity: int = 1, runtime: Runtime | None = None) -> None:
        self.name = name
        self.capacity = capacity
        self.times = times
        self.slowed_by = 1.0
        """Batches that begin from now on take so many times as long."""
        self.machine: Machine | None = None
        """Whose cores it shares; None: it has as many as it needs."""
        self.threads = 1
        """That it computes with there; `times` are those on `timed_on`."""
        self.timed_on = 1
        self.fails_after_s: float | None = None
        """Batches that begin from now on end with an error after so many seconds; None: they succeed."""
        self.planned_faults: list[tuple[str, float, float]] = []
        """Kind, beginning and end of what is going to be wrong with it."""
        self.batch_sizes: dict[int, int] = {}
        """Batches of each size in rows."""
        self.measured_until = inf
        """Batches that begin later count as no work."""
        self.deaths = 0
        """How often it was lost."""
        self.busy_s = 0.0
        self.busy_until = 0.0
        """When the last batch that counts as work ends."""
        self._began_at = 0.0  # the last of them; a loop in its turn is ahead of others' time
        self._rests_since = 0.0
        self._runtime = runtime
        self._running: set[asyncio.TimerHandle] = set()
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    def begin(self, rows: int, now: float, longest: int = 1) -> tuple[float, float, str | None]:
        """Begin a batch, padded to `longest`: the seconds that it runs, when its end is heard of, the error it ends with."""
        service_s, hand_over_s = self.times.draw(rows, now - self._rests_since, longest)
        service_s *= self.slowed_by
        if self.machine is not None:
            service_s = self.machine.begin(service_s, self.threads, now, self.timed_on)
        error = None
        if self.fails_after_s is not None:
            service_s, error = self.fails_after_s, "the simulated instance fails"
        if now < self.measured_until:
            self.busy_s += service_s
            self._began_at, self.busy_until = now, now + service_s
        self.batch_sizes[rows] = self.batch_sizes.get(rows, 0) + 1
        self._rests_since = heard_at = now + service_s + hand_over_s
        return service_s, heard_at, error

    def hold_up(self, seconds: float) -> None:
        """The batch that was begun last takes so much longer; the caller says when it has ended."""
        if self.busy_until < self.measured_until:
            self.busy_s += seconds
        self.busy_until += seconds
        self._rests_since += seconds

    def lose(self, now: float) -> None:
        """It dies: what it runs is never reported. Whoever calls this tells the lane."""
        self.deaths += 1
        self.busy_s -= max(self.busy_until - max(now, self._began_at), 0.0)
        self.busy_until = min(self.busy_until, now)
        for timer in self._running:
            timer.cancel()
        self._running.clear()
        self._at_rest.set()

    def usage(self, seconds: float) -> dict[str, float]:
        """Batches, mean batch size in rows, and the share of the first `seconds` that it was busy."""
        batches = sum(self.batch_sizes.values())
        rows = sum(size * times for size, times in self.batch_sizes.items())
        return {
            "batches": batches,
            "mean_batch": rows / batches if batches else 0.0,
            "utilisation": (self.busy_s - max(self.busy_until - seconds, 0.0)) / seconds if seconds else 0.0,
        }

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        assert self._runtime is not None, f"{self.name} has no runtime to compute answers with"
        assert len(self._running) < self.capacity, f"{self.name} got a batch while it runs {self.capacity}"
        loop = asyncio.get_running_loop()
        rows, longest = sum(request.ticket.rows for request in requests), max(request.ticket.length for request in requests)
        service_s, heard_at, error = self.begin(rows, loop.time(), longest)
        result = run_batch(self._runtime, requests) if error is None else BatchResult([], 0.0, 0.0, error)
        result = structs.replace(result, batch_s=0.0, compute_s=service_s)

        def report() -> None:
            self._running.remove(timer)
            done(result)  # may bring the next batch
            if not self._running:
                self._at_rest.set()

        timer = loop.call_at(heard_at, report)
        self._running.add(timer)
        self._at_rest.clear()

    async def stop(self) -> None:
        await self._at_rest.wait()
