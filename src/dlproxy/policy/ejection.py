"""Outlier ejection: instances that fail get no batches for a while, then one as a probe. Called by policy/lane.py.

After Envoy's outlier detection: errors in a row, or a success rate far below the others'; longer each time; never most of them.
Not aware of: batches, balancing, why an instance failed.
"""

from enum import Enum
from math import inf, sqrt

from msgspec import Struct

BASE_S = 10.0  # the first ejection; each further one takes twice as long (Envoy: 30 s, then 60, 90, ...)
LONGEST_S = 300.0  # Envoy's max_ejection_time
RECOVERY_S = 10.0  # so long closed takes one doubling back (Envoy: one step per healthy interval, 10 s)
MOST_OUT = 0.5  # share of the instances that may be out at a time; Envoy's 10 % would never eject one of a few
WINDOW_S = 10.0  # the success rate is judged over so long (Envoy's interval)
LEAST_INSTANCES = 5  # that ran LEAST_BATCHES in a window: fewer tell nothing of what is usual (Envoy's minima)
LEAST_BATCHES = 100
SIGMAS = 1.9  # an outlier's success rate is below mean - 1.9 deviations (Envoy)
LEAST_DEVIATION = 0.02  # taken as no less: among flawless others Envoy's rule ejects for one error in 100


class Circuit(Enum):
    """CLOSED: gets batches. OPEN: gets none. HALF_OPEN: gets one, whose outcome closes or opens it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class _Record(Struct, eq=False):
    closed_at: float
    circuit: Circuit = Circuit.CLOSED
    suspect: bool = False  # not closed, or its latest batch failed: whatever else needs a look at a success
    streak: int = 0  # errors in a row
    ran: int = 0  # batches in this window, and how many of them failed
    failed: int = 0
    outlier: bool = False  # its success rate was, in the window before: its next error ejects it
    doublings: int = 0  # the next ejection takes BASE_S times 2 to this, less one for each RECOVERY_S that it stayed closed
    due_at: float = -inf  # when it may be tried, if it is open
    probing: bool = False


class OutlierEjection:
    """The circuits of one lane's instances. `after` errors in a row open one; 0: none is ever ejected.

    At most half of the instances are open or half-open: never the only one, of two at most one. At that limit an error changes
    nothing, and the next one asks again. `now` never decreases. Methods raise KeyError for an instance that was not added,
    except `observe`: a batch may outlive its instance.
    """

    def __init__(self, *, after: int = 5) -> None:
        assert after >= 0
        self._after = after
        self._records: dict[str, _Record] = {}
        self._out: dict[str, _Record] = {}  # open or half-open
        self._window_at = -inf

    def configure(self, *, after: int) -> list[str]:
        """From now on; 0 closes all. Returns the instances that this closed."""
        assert after >= 0
        self._after = after
        return self._close_beyond(self._most_out())

    def add(self, instance: str, now: float) -> None:
        """A new instance; it starts closed, whatever one of the same name did before."""
        assert instance not in self._records, f"instance {instance} was added already"
        self._records[instance] = _Record(now)

    def forget(self, instance: str) -> list[str]:
        """It has gone. Returns the instances that close because too many of those left would be out, the next due first."""
        del self._records[instance]
        self._out.pop(instance, None)
        return self._close_beyond(self._most_out())

    def observe(self, instance: str, *, ok: bool, now: float) -> bool:
        """A batch on it ended, well or with an error. True if that changed its state.

        A success in half-open closes it, an error opens it again for twice as long, also if the batch began before the probe.
        """
        record = self._records.get(instance)
        if record is None:
            return False
        record.ran += 1
        if ok and not record.suspect:  # the usual case: done
            return False
        if ok:
            return self._succeeded(instance, record, now)
        return self._failed(instance, record, now)

    def due(self, now: float) -> list[str]:
        """The open instances whose time is over, the longest due first. They are half-open from now on."""
        due = [
            (record.due_at, name)
            for name, record in self._out.items()
            if record.circuit is Circuit.OPEN and record.due_at <= now
        ]
        due.sort()
        for _, name in due:
            self._out[name].circuit = Circuit.HALF_OPEN
        return [name for _, name in due]

    def next_due_at(self) -> float:
        """When `due` next has something to return; +inf if no instance is open."""
        return min((record.due_at for record in self._out.values() if record.circuit is Circuit.OPEN), default=inf)

    def state(self, instance: str) -> Circuit:
        return self._records[instance].circuit

    def available(self, instance: str) -> bool:
        """It may get a batch: it is closed, or half-open with no probe under way."""
        record = self._records[instance]
        return record.circuit is Circuit.CLOSED or (record.circuit is Circuit.HALF_OPEN and not record.probing)

    def dispatched(self, instance: str) -> None:
        """It got a batch; if it is half-open, that is its probe."""
        record = self._records[instance]
        assert record.circuit is not Circuit.OPEN, f"instance {instance} is ejected"
        record.probing = record.circuit is Circuit.HALF_OPEN

    # What a batch's end changes

    def _succeeded(self, instance: str, record: _Record, now: float) -> bool:
        if record.circuit is Circuit.OPEN:  # it began before the ejection
            return False
        closes = record.circuit is Circuit.HALF_OPEN
        if closes:
            del self._out[instance]
            record.circuit, record.probing, record.closed_at = Circuit.CLOSED, False, now
        record.suspect, record.streak = False, 0
        return closes

    def _failed(self, instance: str, record: _Record, now: float) -> bool:
        record.failed += 1
        self._roll_window(now)
        record.streak += 1
        record.suspect = True
        if record.circuit is Circuit.HALF_OPEN:
            self._open(instance, record, now)
            return True
        asked = record.circuit is Circuit.CLOSED and (record.outlier or 0 < self._after <= record.streak)
        if not asked or len(self._out) >= self._most_out():
            return False
        healthy = max(int((now - record.closed_at) / RECOVERY_S), 0)  # closed_at lies ahead if it came back early
        record.doublings = max(record.doublings - healthy, 0)
        self._open(instance, record, now)
        return True

    def _open(self, instance: str, record: _Record, now: float) -> None:
        away_s = min(BASE_S * 2.0**record.doublings, LONGEST_S)
        if away_s < LONGEST_S:
            record.doublings += 1
        record.circuit, record.due_at = Circuit.OPEN, now + away_s
        record.probing = False
        self._out[instance] = record

    def _most_out(self) -> int:
        return int(MOST_OUT * len(self._records)) if self._after else 0

    def _close_beyond(self, most: int) -> list[str]:
        """Those first that are due first. Their streak stands: another error ejects as soon as the limit lets it."""
        surplus = len(self._out) - most
        if surplus <= 0:
            return []
        closing = sorted(self._out, key=lambda name: self._out[name].due_at)[:surplus]
        for name in closing:
            record = self._out.pop(name)
            record.circuit, record.probing, record.closed_at = Circuit.CLOSED, False, record.due_at
        return closing

    # Success rates

    def _roll_window(self, now: float) -> None:
        """A window ends with the first error after WINDOW_S, so that a success never has to look at the time.

        One that lasted twice as long had no error in its second half, and says nothing of now.
        """
        if now < self._window_at + WINDOW_S:
            return
        busy = [record for record in self._records.values() if record.ran >= LEAST_BATCHES]
        limit = -inf
        if len(busy) >= LEAST_INSTANCES and now < self._window_at + 2.0 * WINDOW_S:
            limit = _outlier_below([1.0 - record.failed / record.ran for record in busy])
        for record in self._records.values():
            rated = record.ran >= LEAST_BATCHES
            record.outlier = rated and record.circuit is Circuit.CLOSED and 1.0 - record.failed / record.ran < limit
            record.ran = record.failed = 0
        self._window_at = now


def _outlier_below(rates: list[float]) -> float:
    mean = sum(rates) / len(rates)
    deviation = sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
    return mean - SIGMAS * max(deviation, LEAST_DEVIATION)
