"""Says in the log that a drain has begun, and how it ended. Called by serve/server.py.

Not aware of: how requests are drained.
"""

import logging
from collections.abc import Iterable
from time import monotonic

from dlproxy.message import FailureKind
from dlproxy.telemetry.stats import ModelStats

log = logging.getLogger(__name__)


class Farewell:
    """Made when the drain begins; `over` when it has ended, whatever of it was cut."""

    def __init__(self, stats: Iterable[ModelStats], connections: int, drain_s: float) -> None:
        self._stats = list(stats)
        self._began_at = monotonic()
        self._before = self._counts()
        log.info("draining: %d open connections have up to %g s to get their answers", connections, drain_s)

    def over(self) -> None:
        answered, failed, cut = (now - before for now, before in zip(self._counts(), self._before, strict=True))
        seconds = monotonic() - self._began_at
        log.info("drained in %.1f s: %d requests answered, %d failed, %d cut", seconds, answered, failed, cut)

    def _counts(self) -> tuple[int, int, int]:
        """Requests that were answered, that failed, and whose clients have gone."""
        for stats in self._stats:
            stats.settle()
        answered = sum(stats.request.count for stats in self._stats)
        cut = sum(stats.failures[FailureKind.CANCELLED] for stats in self._stats)
        return answered, sum(sum(stats.failures.values()) for stats in self._stats) - cut, cut
