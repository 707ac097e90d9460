"""When a call may be sent again, and how long to wait before: within a budget, by exponential steps with jitter.

Called by awaited.py. Not aware of: why a call failed, clocks.
"""

from collections.abc import Callable

from dlproxy.policy.retry_budget import RetryBudget

FIRST_S = 0.05  # before the second try, twice that before the third and so on; each is up to half shorter by chance
MOST_TRIES = 5  # of one call, the most that gRPC's own retries allow


class Retries:
    """Of one client. `draw`: a number from 0 to 1."""

    def __init__(self, share: float, draw: Callable[[], float]) -> None:
        self._budget = RetryBudget(share)
        self._draw = draw

    def first(self, now: float) -> None:
        """A call is sent for the first time."""
        self._budget.earn(1, now)

    def pause_s(self, tries: int, again_after_s: float | None, left_s: float, now: float) -> float | None:
        """How long to wait after `tries` tries; None if the call must not be sent again.

        `again_after_s`: the least that it takes, None if it is not safe to send it again. `left_s`: until its deadline.
        """
        if again_after_s is None or tries >= MOST_TRIES:
            return None
        step_s = FIRST_S * 2.0 ** (tries - 1) * (0.5 + 0.5 * self._draw())
        pause_s = again_after_s + step_s if again_after_s else step_s  # all who were told the same must not come together
        if pause_s >= left_s or not self._budget.spend(1, now):
            return None
        return pause_s
