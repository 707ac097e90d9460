"""The cores of a simulated machine: how much longer a batch takes beside others, and how much shorter on several threads.

Used by lab/simulate/instance.py for each batch. Not aware of: instances, lanes.
"""

from heapq import heappop, heappush

PARALLEL = 0.7  # of a batch's work that threads can share (Amdahl's law)


class Machine:
    """`cores` may change while it runs. A batch is slowed by those that run when it begins, and slows none of them."""

    def __init__(self, cores: float, parallel: float = PARALLEL) -> None:
        self.cores = float(cores)
        self._parallel = parallel
        self._running: list[tuple[float, int]] = []  # when they end, and their threads
        self._threads = 0

    def begin(self, service_s: float, threads: int, now: float, timed_on: int = 1) -> float:
        """Seconds that a batch takes here which takes `service_s` on `timed_on` threads alone."""
        running = self._running
        while running and running[0][0] <= now:
            self._threads -= heappop(running)[1]
        self._threads += threads
        seconds = service_s * max(self._threads / self.cores, 1.0)
        if threads != timed_on:
            seconds *= stretch(threads, self._parallel) / stretch(timed_on, self._parallel)
        heappush(running, (now + seconds, threads))
        return seconds


def stretch(threads: int, parallel: float = PARALLEL) -> float:
    """The time of a batch on so many threads over that on one: Amdahl's law."""
    return 1.0 - parallel + parallel / threads
