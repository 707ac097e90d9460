"""Queue disciplines: in which order the requests of a lane are served. Called by policy/lane.py.

Not aware of: batching limits, deadlines' feasibility (admission and batching judge that), instances.
"""

from collections import OrderedDict
from heapq import heapify, heappop, heappush
from math import inf
from typing import Protocol

from dlproxy.message import Ticket


class QueueDiscipline(Protocol):
    """Holds the waiting tickets of one lane. Every method is O(log n) or better, amortised."""

    rows: int
    """Rows that wait now."""

    def push(self, ticket: Ticket) -> None: ...

    def head(self) -> Ticket | None:
        """The ticket that the next pop begins with."""
        ...

    def pop(self, rows: int) -> list[Ticket]:
        """Take the next tickets, all of one shape_key, of at most `rows` rows in sum; a larger first ticket comes alone."""
        ...

    def remove(self, ticket_id: int) -> Ticket | None:
        """Take out one ticket; None if it is not here."""
        ...

    def expire(self, now: float) -> list[Ticket]:
        """Take out every ticket whose deadline is not after `now`, earliest deadline first."""
        ...


class Fcfs:
    """First come, first served. A batch takes the oldest ticket and then the oldest others of its shape."""

    def __init__(self) -> None:
        self.rows = 0
        self._shapes: dict[tuple[int, ...], OrderedDict[int, Ticket]] = {}
        self._shape_of: dict[int, tuple[int, ...]] = {}
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._shape_of)

    def push(self, ticket: Ticket) -> None:
        line = self._shapes.get(ticket.shape_key)
        if line is None:
            if not self.rows:
                self._shapes.clear()  # the emptied line that pop and remove left for the next of its shape
            line = self._shapes[ticket.shape_key] = OrderedDict()
        line[ticket.id] = ticket
        self._shape_of[ticket.id] = ticket.shape_key
        self.rows += ticket.rows
        if ticket.deadline_at != inf:
            heappush(self._deadlines, (ticket.deadline_at, ticket.id))
            if len(self._deadlines) > 2 * len(self._shape_of) + 64:
                self._forget_departed()

    def head(self) -> Ticket | None:
        """The oldest waiting ticket."""
        line = self._oldest_line()
        return None if line is None else next(iter(line.values()))

    def pop(self, rows: int) -> list[Ticket]:
        line = self._oldest_line()
        if line is None:
            return []
        taken: list[Ticket] = []
        room = rows
        while line:
            ticket_id, ticket = line.popitem(last=False)
            if ticket.rows > room and taken:
                line[ticket_id] = ticket
                line.move_to_end(ticket_id, last=False)
                break
            taken.append(ticket)
            del self._shape_of[ticket_id]
            room -= ticket.rows
            if room <= 0:
                break
        self.rows -= sum([ticket.rows for ticket in taken])
        if not line and self.rows:
            del self._shapes[taken[0].shape_key]
        return taken

    def remove(self, ticket_id: int) -> Ticket | None:
        shape_key = self._shape_of.pop(ticket_id, None)
        if shape_key is None:
            return None
        line = self._shapes[shape_key]
        ticket = line.pop(ticket_id)
        self.rows -= ticket.rows
        if not line and self.rows:
            del self._shapes[shape_key]
        return ticket

    @property
    def may_expire(self) -> bool:
        """False if no waiting ticket has a deadline; True if one may have."""
        return bool(self._deadlines)

    def next_deadline(self) -> float:
        """The earliest deadline of a waiting ticket, +inf if none has one."""
        deadlines = self._deadlines
        while deadlines and deadlines[0][1] not in self._shape_of:
            heappop(deadlines)
        return deadlines[0][0] if deadlines else inf

    def expire(self, now: float) -> list[Ticket]:
        expired = []
        while self.next_deadline() <= now:
            ticket = self.remove(heappop(self._deadlines)[1])
            assert ticket is not None
            expired.append(ticket)
        return expired

    def _oldest_line(self) -> OrderedDict[int, Ticket] | None:
        lines = self._shapes
        if not self.rows:
            return None
        if len(lines) == 1:
            return next(iter(lines.values()))
        return min(lines.values(), key=lambda line: next(iter(line)))

    def _forget_departed(self) -> None:
        self._deadlines = [entry for entry in self._deadlines if entry[1] in self._shape_of]
        heapify(self._deadlines)
