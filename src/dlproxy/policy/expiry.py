"""Deadlines that pass: of tickets that wait in a queue, and those that clients set, until they have their answers.

Called by policy/lane.py. Not aware of: the order of service, whether a deadline can still be met (admission and the lane judge
that).
"""

from bisect import bisect_right, insort
from heapq import heapify, heappop, heappush
from math import inf

from dlproxy.message import Ticket
from dlproxy.policy.queueing import QueueDiscipline

SLACK = 64  # entries of departed tickets that are never worth clearing away


class Deadlines:
    """`pending` is a list of (deadline, id), ascending, and empty if no waiting ticket has a deadline.

    Tickets leave the queue unnoticed; their entries go when they come up.

    A sorted list, not a heap: deadlines come nearly in order, so one is an append, and those that come up go as one slice.
    """

    def __init__(self) -> None:
        self.pending: list[tuple[float, int]] = []
        self._clear_above = SLACK

    def add(self, ticket: Ticket, queue: QueueDiscipline) -> None:
        """Remember the deadline of a ticket that was pushed on `queue` and has one."""
        entries = self.pending
        entry = (ticket.deadline_at, ticket.id)
        if not entries or entries[-1] < entry:
            entries.append(entry)
        else:
            insort(entries, entry)
        if len(entries) > self._clear_above:  # after timeouts of an hour nothing comes up for an hour
            entries[:] = [entry for entry in entries if entry[1] in queue]
            self._clear_above = 2 * len(entries) + SLACK

    def next_at(self, queue: QueueDiscipline) -> float:
        """The earliest deadline of a ticket that waits in `queue`, +inf if none has one."""
        for departed, (deadline_at, ticket_id) in enumerate(self.pending):
            if ticket_id in queue:
                del self.pending[:departed]
                return deadline_at
        self.pending.clear()
        return inf

    def expired(self, queue: QueueDiscipline, now: float) -> list[Ticket]:
        """Take out of `queue` every ticket whose deadline is not after `now`, earliest deadline first."""
        passed = bisect_right(self.pending, (now, inf))
        removed = [queue.remove(ticket_id) for _, ticket_id in self.pending[:passed]]
        del self.pending[:passed]
        return [ticket for ticket in removed if ticket is not None]


class Promises:
    """`open` are the tickets with a deadline of their client's own that have no answer yet, wherever they are, by id.

    Answered ones are taken out of `open` by whoever answers them; their entries on the heap go when they come up, or when they
    are more than half of it.
    """

    def __init__(self) -> None:
        self.open: dict[int, Ticket] = {}
        self._heap: list[tuple[float, int]] = []

    def add(self, ticket: Ticket) -> None:
        self.open[ticket.id] = ticket
        heappush(self._heap, (ticket.answer_by, ticket.id))
        if len(self._heap) > 2 * len(self.open) + SLACK:
            self._heap = [(ticket.answer_by, ticket.id) for ticket in self.open.values()]
            heapify(self._heap)

    def next_at(self) -> float:
        """When the next answer is due, +inf for none."""
        heap = self._heap
        while heap and heap[0][1] not in self.open:
            heappop(heap)
        return heap[0][0] if heap else inf

    def due(self, now: float) -> list[Ticket]:
        """Take out every ticket whose answer is due."""
        due: list[Ticket] = []
        while self.next_at() <= now:
            due.append(self.open.pop(heappop(self._heap)[1]))
        return due
