"""Whether a lane may start a batch now, and what the arbiter knows of its wish to. Called by policy/lane.py.

Not aware of: other lanes, who grants turns (policy/arbiter.py does).
"""

from dlproxy.policy.events import WantTurn


class Turn:
    """`mine`: a batch may start now, which is always so where lanes take no turns. `wanted`: as the arbiter knows it."""

    def __init__(self, *, arbitrated: bool) -> None:
        self.configure(arbitrated=arbitrated)

    def configure(self, *, arbitrated: bool) -> None:
        """From now on lanes take turns, or do not."""
        self.arbitrated = arbitrated
        self.mine = not arbitrated
        self.wanted: WantTurn | None = None

    def grant(self) -> None:
        """The answer to what was wanted, also if nothing waits for turns any more."""
        self.wanted, self.mine = None, True

    def want(self, cost_s: float, deadline_at: float, priority: int) -> WantTurn | None:
        """What to tell the arbiter; None if it knows of something as urgent."""
        known = self.wanted
        if known is not None and deadline_at >= known.deadline_at and priority >= known.priority:
            return None
        self.wanted = WantTurn(cost_s, deadline_at, priority, "first" if known is None else "more_urgent")
        return self.wanted
