"""What a queue discipline is: it holds the tickets of one lane that wait and says in which order they are served.

Called by policy/lane.py and policy/batching.py. Not aware of: how many rows a batch should have, deadlines that pass
(policy/expiry.py keeps those), instances.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from dlproxy.message import Ticket
from dlproxy.policy.queueing.families import Relative
from dlproxy.policy.queueing.pins import Pins

Cost = Callable[[int, int], float]
"""Seconds that a batch of this many rows of this length takes, as predicted; above 0, and no less for more of either."""

DEFAULT_LEVEL = 4  # of a request that names no priority: there is room above and below it
LOWEST_LEVEL = 8  # what is less urgent than this is treated as this, so that ageing always gets there
SAMPLED_LINES = 16  # rows_before looks into as many and scales up: an arrival must not pay for every shape that waits


def level(ticket: Ticket) -> int:
    """The urgency of a ticket: 1 is the most urgent, LOWEST_LEVEL the least."""
    return min(ticket.priority, LOWEST_LEVEL) if ticket.priority > 0 else DEFAULT_LEVEL


class Ahead(NamedTuple):
    """What goes before a ticket: `others_s`, seconds of the batches of other shapes; `rows` of its own, of `like` that wait."""

    others_s: float
    rows: int
    like: int


class QueueDiscipline(Protocol):
    """The waiting tickets of one lane. Every `now` is in monotonic seconds and never decreases."""

    rows: int
    """Rows that wait now."""

    uneven: bool
    """Whether rows alone do not say how much work waits: one of another length than 1 was pushed, or pins tell them apart."""

    pins: Pins | None
    """Which tickets may be the head; None until `tell_apart`: all may."""

    def __len__(self) -> int:
        """Tickets that wait now."""
        ...

    def __contains__(self, ticket_id: int) -> bool: ...

    def push(self, ticket: Ticket, now: float) -> None:
        """Let a ticket wait. Its id is not among those that wait already."""
        ...

    def head(self, now: float) -> Ticket | None:
        """The ticket that the next pop begins with: the first that may start."""
        ...

    def pop(self, rows: int, now: float) -> list[Ticket]:
        """Take the next tickets of the head's shape_key, of at most `rows` rows in sum; a larger head comes alone.

        Stops at the first one of the shape that does not fit: nobody overtakes it by being smaller.
        """
        ...

    def pop_line(self, shape_key: tuple[int, ...], rows: int, now: float) -> list[Ticket]:
        """Take the next tickets of a shape that waits, as pop does; none if its first has more than so many rows."""
        ...

    def relatives(self, ticket: Ticket) -> list[Relative]:
        """What waits of the ticket's family: lengths and their shape_keys, shortest first. Changes with the queue."""
        ...

    def rows_of(self, shape_key: tuple[int, ...]) -> int:
        """Rows that wait of a shape with a family."""
        ...

    def tell_apart(self, pins: Pins) -> None:
        """Pinned tickets come from now on: the head is the first that may start, and work is counted by shape."""
        ...

    def pinned_to(self, instance: str) -> list[Ticket]:
        """The tickets that wait for this instance alone."""
        ...

    def remove(self, ticket_id: int) -> Ticket | None:
        """Take out one ticket; None if it is not here."""
        ...

    def rows_before(self, ticket: Ticket, now: float) -> int:
        """Rows that would be served before `ticket`, which does not wait here, if nothing else came.

        By the discipline's order alone: that it may ride along with an earlier ticket of its shape is not counted.
        """
        ...

    def work_before(self, ticket: Ticket, now: float) -> Ahead:
        """The same in time, of an uneven queue. Before a pinned ticket: what is pinned like it."""
        ...

    def rows_like(self, ticket: Ticket) -> int:
        """Rows of the ticket's shape that wait in an uneven queue."""
        ...

    def last(self, now: float) -> Ticket | None:
        """The ticket that would be served last, so the first to be displaced when there is no room."""
        ...
