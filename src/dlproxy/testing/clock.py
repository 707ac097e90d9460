"""A clock that stands still until it is told to move. Not aware of: event loops (looptime moves those)."""


class ManualClock:
    """Call it for the time in seconds, as one calls time.monotonic."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move on and return the new time. Raises ValueError for a negative step: a monotonic clock never goes back."""
        if seconds < 0.0:
            raise ValueError(f"a monotonic clock cannot advance by {seconds} s; give 0 or more")
        self._now += seconds
        return self._now
