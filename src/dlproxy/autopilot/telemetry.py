"""Windows of one live model, made of the counters that serve/driver.py and fleet/roster.py write. What the result cache answers
is left out: no knob of a lane changes it.

Called by flight.py. Not aware of: knobs, who reads windows.
"""

from collections.abc import Callable

from dlproxy.message import FailureKind
from dlproxy.policy.scaling import MISSED
from dlproxy.policy.tuning.window import Counts, Window, WindowMeter
from dlproxy.telemetry.stats import ModelStats, Timings

MOST_TIMED = 1000  # latencies of a window, the last ones
FAULTS = (FailureKind.MODEL_FAILED, FailureKind.UNAVAILABLE)
CAME = (*MISSED, *FAULTS, FailureKind.CANCELLED)  # others were refused before they came to the model


class Telemetry:
    """`open_requests`: how many are not answered yet; `rows_under_way`: rows that wait or run. Ends with `stop`."""

    def __init__(
        self,
        stats: ModelStats,
        open_requests: Callable[[], int],
        rows_under_way: Callable[[], int],
        *,
        objective_s: float,
        at: float,
    ) -> None:
        self._stats = stats
        self._open_requests = open_requests
        self._rows_under_way = rows_under_way
        self._timings = Timings(MOST_TIMED, objective_s)
        self._meter = WindowMeter(at)
        stats.settle()
        stats.readers.append(self._timings)
        self._meter.window(at, self.counts(), (), up=0)  # what happened before is nothing of ours

    def aim(self, objective_s: float) -> None:
        """Answers count as in time within so many seconds, from now on."""
        self._timings.objective_s = objective_s

    def stop(self) -> None:
        """Nobody reads any more."""
        if self._timings in self._stats.readers:
            self._stats.readers.remove(self._timings)

    def look(self) -> None:
        """Some times in each window, at equal intervals."""
        self._meter.look(self._arrived(), self._rows_under_way())

    def window(self, at: float, *, up: int) -> Window:
        """What happened since the last one."""
        window = self._meter.window(at, self.counts(), self._timings.newest_s, up=up)
        self._timings.newest_s.clear()
        return window

    def counts(self) -> Counts:
        """Since the model was loaded; of batches the time that its lane takes them to have cost."""
        stats = self._stats
        stats.settle()
        failures = stats.failures
        return Counts(
            arrived=self._arrived(),
            answered=stats.computed,
            in_time=self._timings.in_time,
            refused=sum([failures[kind] for kind in MISSED]),
            failed=sum([failures[kind] for kind in FAULTS]),
            rows=stats.rows,
            costs={rows: (size.batches, size.batch_s + size.compute_s) for rows, size in stats.batch_sizes.items()},
        )

    def _arrived(self) -> int:
        stats = self._stats
        stats.settle()
        failures = stats.failures
        return stats.computed + sum([failures[kind] for kind in CAME]) + self._open_requests()
