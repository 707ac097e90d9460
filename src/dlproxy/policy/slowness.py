"""Which instances are so slow that waiting for another is better, although they are idle. Called by policy/pool.py.

Not aware of: balancing among those that are not.
"""

from collections.abc import Iterable
from math import exp

from msgspec import Struct

SLOW = 4.0  # times as long as the others' batches; machines that share cores differ by 2 to 3 from batch to batch
PAUSE_S = 0.25  # no machine that can serve pauses for longer: one batch that was so much later tells enough
DECAY_S = 10.0  # time constant with which slowness is forgotten, so that the instance is tried again (as in peak-EWMA)


class _Record(Struct):
    last: float = 1.0  # batch time by predicted time of the latest batch
    factor: float = 1.0  # of the last two batches the lesser one: a batch late by less than PAUSE_S may be the machine's fault
    at: float = 0.0


class Slowness:
    """How many times the predicted batch time each instance takes, by its last two batches."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def observe(self, instance: str, service_s: float, *, predicted_s: float, now: float) -> None:
        """A batch took so many seconds, where `predicted_s` is what its size takes."""
        record = self._records.setdefault(instance, _Record())
        factor = service_s / predicted_s
        late = service_s - predicted_s > PAUSE_S
        record.factor = max(factor if late else min(record.last, factor), 1.0)
        record.last = factor
        record.at = now

    def of(self, instance: str, now: float) -> float:
        """At least 1, which also stands for an unknown instance."""
        record = self._records.get(instance)
        if record is None or record.factor <= SLOW:
            return 1.0
        return max(record.factor * exp((record.at - now) / DECAY_S), 1.0)

    def suspects(self, instances: Iterable[str]) -> bool:
        """All of them were slow when they last ran, however long ago."""
        return all(instance in self._records and self._records[instance].factor > SLOW for instance in instances)

    def excess(self, idle: Iterable[str], busy: Iterable[str], now: float) -> float:
        """Predicted batch times that the best idle instance takes longer than the best busy one; 0 if it is not slow."""
        best_idle = min(self.of(instance, now) for instance in idle)
        if best_idle <= SLOW:
            return 0.0
        best_busy = min((self.of(instance, now) for instance in busy), default=best_idle)
        return best_idle - best_busy if best_idle > SLOW * best_busy else 0.0

    def forget(self, instance: str) -> None:
        self._records.pop(instance, None)
