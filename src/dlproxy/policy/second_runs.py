"""What runs again: batches of lost or failing instances, parts of batches that fail; and who no longer waits for one.

Called by policy/lane.py and policy/hedging.py. Not aware of: when and where what runs again is started.
"""

from collections import deque
from collections.abc import Container, Iterable, Sequence
from math import inf
from typing import Protocol

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy import refusals
from dlproxy.policy.queueing import LOWEST_LEVEL, level
from dlproxy.policy.refusals import Refusal
from dlproxy.policy.retry_budget import RetryBudget
from dlproxy.policy.running import Run

REQUESTS_FAULT = (FailureKind.INVALID_ARGUMENT, FailureKind.TOO_LARGE, FailureKind.UNSUPPORTED)


def requests_fault(failure: Failure | None) -> bool:
    """A request of the batch can never succeed as it is, wherever it runs."""
    return failure is not None and failure.kind in REQUESTS_FAULT


class Instances(Protocol):
    """What must be known of the instances."""

    ready: dict[str, None]

    def __len__(self) -> int: ...

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
    """Batches that run again, before anything queued: `waiting`, in the order in which they will.

    `retry_budget`: the share of requests that may run twice after errors or because they are late; with 0 nothing ever does.
    """

    def __init__(self, retry_budget: float) -> None:
        self.waiting: deque[Batch] = deque()
        self.budget = RetryBudget(retry_budget)
        self._allowed = retry_budget > 0.0
        self._ran_twice: set[int] = set()  # tickets whose instance failed or was lost once; they get no third try
        self._crashes: dict[int, int] = {}  # tickets that ran in instances which crashed, and how many did
        self._abandoned: set[int] = set()  # tickets whose client left while they ran

    @property
    def notes(self) -> int:
        """Kept of any ticket: batches that wait and tickets remembered."""
        return len(self.waiting) + len(self._ran_twice) + len(self._crashes) + len(self._abandoned)

    def configure(self, retry_budget: float) -> list[tuple[Ticket, Refusal]]:
        """A new budget; what waits although it may not run again any more."""
        self.budget.configure(retry_budget)
        self._allowed = retry_budget > 0.0
        if self._allowed:
            return []
        why = "the instance failed while it ran the request, which may not run again now"
        return [(ticket, refusals.unavailable("no_second_run", why)) for ticket in self.drain()]

    # After a batch that gave no answers

    def after_error(
        self, run: Run, tickets: list[Ticket], failure: Failure, pool: Instances, now: float
    ) -> list[tuple[Ticket, Refusal]]:
        """The instance or one of the items is bad: try another instance once; then halve until a bad item stands alone.

        Not elsewhere what another server refused as it is; not in halves what it had no capacity for. Returns those that fail:
        all that are pinned, as a run may have changed the state that it failed with.
        """
        divisible = failure.kind is FailureKind.MODEL_FAILED or requests_fault(failure)
        once = [ticket for ticket in tickets if ticket.once]
        if once and len(once) < len(tickets) and not divisible:
            others = [ticket for ticket in tickets if not ticket.once]
            return [(ticket, refusals.failed(failure)) for ticket in once] + self.after_error(run, others, failure, pool, now)
        fresh = self._allowed and not once and not any(self.ran_twice(ticket) for ticket in tickets)
        elsewhere = fresh and not run.pinned and not requests_fault(failure) and pool.has_other(run.instance)
        if elsewhere and self.budget.spend(len(tickets), now):
            self.add(tickets, avoided=run.instance)
        elif run.size == 1 or not divisible or not self._allowed or not len(pool) or run.pinned:
            of_all = run.size > 1 and divisible
            refusal = refusals.of_a_shared_batch(failure, run.size) if of_all else refusals.failed(failure)
            return [(ticket, refusal) for ticket in tickets]
        else:
            self.halve(tickets)
        return []

    def after_loss(self, run: Run, tickets: list[Ticket], reason: str, *, crashed: bool) -> list[tuple[Ticket, Refusal]]:
        """Tickets of a lost instance run again, once; not under the budget, as instances are not lost by the dozen.

        If instances crash, one of the tickets may be the reason: after the second crash each runs alone, and one that was
        alone in a crash after another is not run any more. Returns those that fail; so do all that are pinned.
        """
        if run.pinned:
            return [(ticket, refusals.state_gone(run.instance, reason)) for ticket in tickets]
        fresh: list[Ticket] = []
        failed: list[tuple[Ticket, Refusal]] = []
        for ticket in tickets:
            crashes = self.crashed(ticket) if crashed else 0
            if not self._allowed or (ticket.once and not crashed):
                failed.append((ticket, refusals.lost(reason, ", which may not run again" + " here" * self._allowed)))
            elif not self.ran_twice(ticket):
                fresh.append(ticket)
            elif crashes < 2:
                failed.append((ticket, refusals.lost(reason, " a second time")))
            elif run.size > 1:
                self.isolate(ticket)
            else:
                failed.append((ticket, refusals.to_blame(crashes, reason)))
        if fresh:
            self.add(fresh)
        return failed

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
