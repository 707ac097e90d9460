"""Which lengths wait of the tickets that differ in nothing else, and may therefore be padded to share a batch.

Kept by the disciplines (ranked.py, classed.py). Not aware of: order, what padding costs.
"""

from bisect import bisect_left, insort

from dlproxy.message import Ticket

Relative = tuple[int, tuple[int, ...]]
"""The length and the shape_key of a line that is not empty."""


class Families:
    """Tickets without a family are not for it."""

    def __init__(self) -> None:
        self._lines: dict[tuple[int, ...], list[Relative]] = {}
        self._rows: dict[tuple[int, ...], int] = {}  # by shape_key

    def add(self, ticket: Ticket) -> None:
        rows = self._rows.get(ticket.shape_key, 0)
        if not rows:
            insort(self._lines.setdefault(ticket.family, []), (ticket.length, ticket.shape_key))
        self._rows[ticket.shape_key] = rows + ticket.rows

    def take(self, ticket: Ticket, rows: int) -> None:
        """So many rows like this ticket wait no more."""
        key = ticket.shape_key
        self._rows[key] -= rows
        if not self._rows[key]:
            del self._rows[key]
            lines = self._lines[ticket.family]
            del lines[bisect_left(lines, (ticket.length, key))]
            if not lines:
                del self._lines[ticket.family]

    def of(self, ticket: Ticket) -> list[Relative]:
        """The lines of the ticket's family, shortest first."""
        return self._lines.get(ticket.family, [])

    def rows_of(self, shape_key: tuple[int, ...]) -> int:
        """Rows that wait in this line."""
        return self._rows.get(shape_key, 0)
