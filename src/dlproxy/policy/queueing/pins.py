"""Which waiting tickets may start now, where some are pinned to an instance: nobody waits behind one whose instance is busy.

Asked by the disciplines (ranked.py, classed.py) once a lane has had a pinned ticket. Not aware of: order, batches.
"""

from collections.abc import Container

from dlproxy.message import Ticket


class Pins:
    """`ready`: the instances that may get a batch, as the lane's pool keeps them. `passed`: those whose tickets do not start in
    this turn of the lane although they are ready; "" stands for the tickets that are not pinned.
    """

    def __init__(self, ready: Container[str]) -> None:
        self.passed: set[str] = set()
        self._ready = ready

    def may_start(self, ticket: Ticket) -> bool:
        pinned = ticket.pinned
        return pinned not in self.passed and (not pinned or pinned in self._ready)
