"""What a balancer is: which instance of a lane gets the next batch, which simulated node the next request.

Called by policy/lane.py and lab/simulate, through make_balancer. Not aware of: what the instances are, where they run.
"""

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Protocol


class Balancer(Protocol):
    """Never blocks and never draws a clock: `now` is in monotonic seconds and does not decrease."""

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        """It came up (again): slow start begins. Raises ValueError unless 0 < weight < inf."""
        ...

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        """One of `ready`, which is never empty and all of which `in_flight` knows. Equal affinities belong together."""
        ...

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """A batch (or request) ended, well or not, after so many seconds."""
        ...

    def forget(self, instance: str) -> None:
        """It is gone; one of the same name that comes up later is another."""
        ...


def nth(ready: Collection[str], index: int) -> str:
    """The one at this place; of a list at once, of a dict or set after a walk in C (3 us at the 500th)."""
    return ready[index] if isinstance(ready, list) else next(islice(ready, index, None))
