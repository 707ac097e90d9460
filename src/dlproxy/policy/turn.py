"""Whether a lane may start a batch now, and what the arbiter knows of its wish to. Called by policy/lane.py.

Not aware of: other lanes, who grants turns (policy/arbiter.py does).
"""

from collections.abc import Iterable
from typing import Literal

from dlproxy.policy.events import WantTurn


class Turn:
    """`mine`: a batch may start now, which is always so where lanes take no turns; on `instance`, where that is named.
    `wanted`: as the arbiter knows it.
    """

    def __init__(self, *, arbitrated: bool) -> None:
        self.configure(arbitrated=arbitrated)

    def configure(self, *, arbitrated: bool) -> None:
        """From now on lanes take turns, or do not."""
        self.arbitrated = arbitrated
        self.mine = not arbitrated
        self.instance = ""
        self.wanted: WantTurn | None = None

    def grant(self, instance: str = "") -> None:
        """The answer to what was wanted, also if nothing waits for turns any more."""
        self.wanted, self.mine, self.instance = None, True, instance

    def use(self) -> None:
        """A batch has started, or none will."""
        self.mine, self.instance = False, ""

    def want(self, cost_s: float, deadline_at: float, priority: int, instances: Iterable[str]) -> WantTurn | None:
        """What to tell the arbiter; None if it knows of something as urgent, for the same instances."""
        known, ready = self.wanted, tuple(instances)
        reason: Literal["first", "more_urgent", "other_instances"] = "first"
        if known is not None:
            urgent = deadline_at < known.deadline_at or priority < known.priority
            if not urgent and ready == known.instances:
                return None
            reason = "more_urgent" if urgent else "other_instances"
        self.wanted = WantTurn(cost_s, deadline_at, priority, reason, ready)
        return self.wanted
