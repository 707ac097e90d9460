"""A batch that runs, as policy/lane.py keeps it from its Dispatch to its BatchDone.

Not aware of: instances beyond their names, time.
"""

from collections.abc import Sequence
from math import inf

from msgspec import Struct

from dlproxy.message import Ticket


class Running(Struct, eq=False):
    """`size`: tickets that it began with. `hedge_at`: when it is late enough for a second run. `twin`: the other run of the
    same tickets. `first_s`: after how many seconds it began to answer in parts, None where it answers at once, or has not yet.
    """

    instance: str
    tickets: list[Ticket]
    rows: int
    length: int
    size: int
    started_at: float
    hedge_at: float = inf
    twin: int = 0
    first_s: float | None = None


def longest(tickets: Sequence[Ticket]) -> int:
    """All are of the length of the first, but in a padded batch."""
    return max([ticket.length for ticket in tickets]) if tickets[0].family else tickets[0].length
