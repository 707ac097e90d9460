"""Whether a place that others answer from is asked at all, and how long that is waited for.

Called by shared.py. Time is an argument. Not aware of: what is asked, and of whom.
"""

from collections import deque
from math import inf
from random import Random

FAILURES = 5  # in a row: one alone is a hiccup
BACK_OFF_S = (0.1, 10.0)  # doubled from the first to the second
STEADY = 100  # answers in a row take the doublings back
WAIT_S = 0.002  # Redis answers in 0.1 to 0.5 ms in one data centre
WAIT_SHARE = 0.25  # of what computing takes: a cache that costs more saves too little
LEASE_S = (0.1, 30.0)
LEASE_TIMES = 3.0  # of what computing takes: who has not answered by then is taken to be gone
UNKNOWN_LEASE_S = 1.0
KEPT = 256  # durations, of which the largest three are beyond the 99th percentile
RECKONED = 16  # a new percentile after so many


class Circuit:
    """Open: nothing is asked. After a time that grows one probe may show that it can be closed."""

    def __init__(self, random: Random) -> None:
        self.is_open = False
        self.opened = 0  # times
        self._random = random
        self._failures = 0
        self._answers = 0
        self._doublings = 0
        self._due_at = inf

    def answered(self) -> None:
        self._failures = 0
        self._answers += 1
        if self._answers >= STEADY:
            self._doublings = 0

    def failed(self, now: float) -> bool:
        """Whether this opens it."""
        self._answers = 0
        self._failures += 1
        if self.is_open or self._failures < FAILURES:
            return False
        self.is_open = True
        self.opened += 1
        self._put_off(now)
        return True

    def takes_probe(self, now: float) -> bool:
        """Whether it is to be probed now; `probed` says what came of it."""
        if now < self._due_at:
            return False
        self._due_at = inf
        return True

    def probed(self, now: float, *, well: bool) -> None:
        if well:
            self.is_open = False
            self._failures = 0
        else:
            self._put_off(now)

    def _put_off(self, now: float) -> None:
        """Jitter: nodes that lost it together do not come back together."""
        first_s, most_s = BACK_OFF_S
        self._due_at = now + min(first_s * 2.0**self._doublings, most_s) * self._random.uniform(0.5, 1.0)
        self._doublings = min(self._doublings + 1, 16)


class Pace:
    """What computing an answer takes, and so what waiting for one is worth."""

    def __init__(self, wait_s: float = 0.0) -> None:
        """`wait_s`: 0 for what suits the model."""
        self._stated_s = wait_s
        self._durations: deque[float] = deque(maxlen=KEPT)
        self._new = 0
        self.p99_s: float | None = None
        self.wait_s = wait_s or WAIT_S
        self.lease_s = UNKNOWN_LEASE_S

    def took(self, seconds: float) -> None:
        self._durations.append(seconds)
        self._new += 1
        if self.p99_s is not None and self._new < RECKONED:
            return
        self._new = 0
        ordered = sorted(self._durations)
        self.p99_s = p99_s = ordered[int(len(ordered) * 0.99)]
        self.wait_s = self._stated_s or min(WAIT_S, p99_s * WAIT_SHARE)
        self.lease_s = min(max(p99_s * LEASE_TIMES, LEASE_S[0]), LEASE_S[1])
