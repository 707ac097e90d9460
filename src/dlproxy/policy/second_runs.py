"""What runs again: batches of lost or failing instances, parts of batches that fail; and who no longer waits for one.

Called by policy/lane.py. Not aware of: why something failed, which instance is well.
"""

from collections import deque
from collections.abc import Container, Iterable, Sequence
from math import inf
from typing import Protocol

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.queueing import LOWEST_LEVEL, level

REQUESTS_FAULT = (FailureKind.INVALID_ARGUMENT, FailureKind.TOO_LARGE, FailureKind.UNSUPPORTED)


def requests_fault(failure: Failure | None) -> bool:
    """A request of the batch can never succeed as it is, wherever it runs."""
    return failure is not None and failure.kind in REQUESTS_FAULT


class Instances(Protocol):
    """What must be known of the instances."""

    ready: dict[str, None]

    def has_other(self, avoided: str) -> bool: ...


class Batch(Struct, eq=False):
    """Tickets to run again as one batch, not on `avoided` if another instance can take them.

    Rows, the earliest arrival and deadline and the most urgent level are noted, as the lane asks for them at every event.
    """

    tickets: list[Ticket]
    avoided: str = ""
    rows: int = 0
    arrived_at: float = inf
    deadline_at: float = inf
    level: int = LOWEST_LEVEL

    def __post_init__(self) -> None:
        self.keep(self.tickets)

    def keep(self, tickets: list[Ticket]) -> None:
        """It consists of these now."""
        self.tickets = tickets
        self.rows = sum([ticket.rows for ticket in tickets])
        self.arrived_at = min([ticket.arrived_at for ticket in tickets], default=inf)
        self.deadline_at = min([ticket.deadline_at for ticket in tickets], default=inf)
        self.level = min([level(ticket) for ticket in tickets], default=LOWEST_LEVEL)


class SecondRuns:
    """Batches that run again, before anything queued: `waiting`, in the order in which they will."""

    def __init__(self) -> None:
        self.waiting: deque[Batch] = deque()
        self._ran_twice: set[int] = set()  # tickets whose instance failed or was lost once; they get no third try
        self._crashes: dict[int, int] = {}  # tickets that ran in instances which crashed, and how many did
        self._abandoned: set[int] = set()  # tickets whose client left while they ran

    @property
    def notes(self) -> int:
        """Kept of any ticket: batches that wait and tickets remembered."""
        return len(self.waiting) + len(self._ran_twice) + len(self._crashes) + len(self._abandoned)

    def add(self, tickets: list[Ticket], *, avoided: str = "") -> None:
        """The one second try of these tickets."""
        self.mark(tickets)
        self.waiting.append(Batch(tickets, avoided))

    def isolate(self, ticket: Ticket) -> None:
        """It runs once more, alone: that tells whether it is what crashes instances."""
        self.waiting.append(Batch([ticket]))

    def crashed(self, ticket: Ticket) -> int:
        """Another instance crashed while it ran this ticket; how many have."""
        crashes = self._crashes[ticket.id] = self._crashes.get(ticket.id, 0) + 1
        return crashes

    def mark(self, tickets: Iterable[Ticket]) -> None:
        """They run, or ran, twice."""
        self._ran_twice.update([ticket.id for ticket in tickets])

    def halve(self, tickets: Sequence[Ticket]) -> None:
        """One bad item must not fail its neighbours: both halves run before anything else."""
        middle = (len(tickets) + 1) // 2
        self.waiting.extendleft(Batch(list(half)) for half in (tickets[middle:], tickets[:middle]) if half)

    def runnable(self, pool: Instances) -> Batch | None:
        """The first batch that an instance can take now."""
        for batch in self.waiting:
            if not batch.avoided or any(name != batch.avoided for name in pool.ready) or not pool.has_other(batch.avoided):
                return batch
        return None

    def take(self, batch: Batch, max_batch: int) -> list[Ticket]:
        """Its tickets, to run now: all of them, unless max_batch has shrunk since."""
        rows = 0
        for index, ticket in enumerate(batch.tickets):
            rows += ticket.rows
            if rows > max_batch and index:
                taken = batch.tickets[:index]
                batch.keep(batch.tickets[index:])
                return taken
        self.waiting.remove(batch)
        return batch.tickets

    def ran_twice(self, ticket: Ticket) -> bool:
        return ticket.id in self._ran_twice

    def answered(self, tickets: list[Ticket]) -> list[Ticket]:
        """Those of a batch that ran well whose clients wait; all of them are forgotten."""
        kept = self.still_wanted(tickets) if self._abandoned else tickets
        if self._ran_twice or self._crashes:
            self.finished(kept)
        return kept

    def finished(self, tickets: Iterable[Ticket]) -> None:
        """They have their answers: forget them."""
        if self._ran_twice:
            self._ran_twice.difference_update([ticket.id for ticket in tickets])
        if self._crashes:
            for ticket in tickets:
                self._crashes.pop(ticket.id, None)

    def remove(self, ticket_id: int) -> Ticket | None:
        """Take out a ticket that waits for its second run; None if it does not."""
        for batch in self.waiting:
            for ticket in batch.tickets:
                if ticket.id == ticket_id:
                    self._take_out(batch, [ticket])
                    return ticket
        return None

    def expired(self, now: float) -> list[Ticket]:
        """Take out the tickets whose deadline is not after `now`."""
        expired: list[Ticket] = []
        for batch in [batch for batch in self.waiting if batch.deadline_at <= now]:
            gone = [ticket for ticket in batch.tickets if ticket.deadline_at <= now]
            self._take_out(batch, gone)
            expired += gone
        return expired

    def drain(self) -> list[Ticket]:
        """Take out all that wait."""
        drained: list[Ticket] = []
        for batch in list(self.waiting):
            drained += batch.tickets
            self._take_out(batch, batch.tickets)
        return drained

    def next_deadline(self) -> float:
        """The earliest deadline of those that wait, +inf if none has one."""
        return min([batch.deadline_at for batch in self.waiting], default=inf)

    def _take_out(self, batch: Batch, gone: Sequence[Ticket]) -> None:
        self.finished(gone)
        gone_ids = {ticket.id for ticket in gone}
        batch.keep([ticket for ticket in batch.tickets if ticket.id not in gone_ids])
        if not batch.tickets:
            self.waiting.remove(batch)

    # Clients that left

    def abandon(self, ticket_id: int, running: Iterable[Ticket]) -> Ticket | None:
        """The client of a running ticket has gone; None if no such ticket runs, or it was known."""
        if ticket_id in self._abandoned:
            return None
        self._ran_twice.discard(ticket_id)
        self._crashes.pop(ticket_id, None)
        for ticket in running:
            if ticket.id == ticket_id:
                self._abandoned.add(ticket_id)
                return ticket
        return None

    def still_wanted(self, tickets: list[Ticket]) -> list[Ticket]:
        """Those of a batch that ended whose clients wait; the others are forgotten."""
        if not self._abandoned:
            return tickets
        kept = self.not_abandoned(tickets)
        if len(kept) < len(tickets):
            self._abandoned.difference_update([ticket.id for ticket in tickets])
        return kept

    def not_abandoned(self, tickets: list[Ticket]) -> list[Ticket]:
        """Those whose clients wait."""
        gone: Container[int] = self._abandoned
        return [ticket for ticket in tickets if ticket.id not in gone] if self._abandoned else tickets
