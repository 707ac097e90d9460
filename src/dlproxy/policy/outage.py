"""While no instance is up: is one worth waiting for, and what is said to those who need not wait? Called by policy/lane.py.

Not aware of: which requests wait, who starts instances.
"""

from math import inf

from dlproxy.policy.refusals import NO_INSTANCE, Refusal, unavailable


class Outage:
    """Requests may wait `until` an instance that is being started is up, -inf if none is. `closing`: why the model goes."""

    def __init__(self) -> None:
        self.until = -inf
        self.closing = ""
        self._refusal = NO_INSTANCE

    def lost(self, instance: str, reason: str) -> None:
        """An instance is gone, perhaps the last one."""
        self._refusal = unavailable("no_instance", f"the model has no live instance: {instance} was lost ({reason})")

    def retired(self, reason: str) -> None:
        """The same, for a reason or (empty) at somebody's wish."""
        why = (
            f"the model cannot answer now: {reason}" if reason else "the model has no instance any more: it was scaled to none"
        )
        self._refusal = unavailable("no_instance", why)

    def refusal(self) -> Refusal:
        """For those who come or wait while nobody is there to run them."""
        return unavailable("closing", self.closing) if self.closing else self._refusal
