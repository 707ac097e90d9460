"""Polls for the next request instead of sleeping, for the moment in which callers that wait for each answer send it.

Called by serve/driver.py, made by serve/models.py. Not aware of: sockets, lanes, what a request is.
"""

from collections.abc import Callable
from math import inf

from dlproxy.cores import quota_cores

STREAK = 16  # requests in a row that must have come soon; random arrivals seldom do unless they fill the core anyway
QUOTA_CORES = 2.0  # a group of processes that may use less would be held up later for what was spent on polling


class IdlePoll:
    """One per process. A core that sleeps wakes late (on virtual machines by tens of microseconds); one that polls does not.

    While the loop has nothing to do, but each of the last 16 requests came within `most_s` seconds of the answers before, and
    was answered in as short a time, it turns on without sleeping for so long. If none comes in that time it sleeps, and the
    count starts anew. So it does where answers take longer (many clients, slow models): waking late is little beside that.
    The rule is that of Linux' cpuidle-haltpoll (Documentation/virt/guest-halt-polling.rst), whose limit is 200 us,
    but for the count, which keeps a server that is half idle from looking busy.
    """

    def __init__(self, most_s: float, *, clock: Callable[[], float], call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._most_s = most_s
        self._clock = clock
        self._call_soon = call_soon
        self._busy: set[object] = set()
        self._busy_since = self._idle_since = -inf
        self._streak = 0
        self._polling = False

    def busy(self, who: object) -> None:
        """It has requests to answer again."""
        if not self._busy:
            self._busy_since = now = self._clock()
            self._streak = self._streak + 1 if now - self._idle_since <= self._most_s else 0
        self._busy.add(who)

    def idle(self, who: object) -> None:
        """It has answered everything. May be said again."""
        if not self._busy:
            return
        self._busy.discard(who)
        if not self._busy:
            self._idle_since = now = self._clock()
            if now - self._busy_since > self._most_s:
                self._streak = 0
            if self._streak >= STREAK and not self._polling:
                self._polling = True
                self._call_soon(self._turn)

    def _turn(self) -> None:
        """One turn of the loop, which looks at every socket."""
        if self._busy:
            self._polling = False
        elif self._clock() - self._idle_since > self._most_s:
            self._polling = False
            self._streak = 0
        else:
            self._call_soon(self._turn)


def may_poll() -> bool:
    """False where the kernel allots this process less than two cores' time."""
    return quota_cores() >= QUOTA_CORES
