"""Admission: is a request taken into the queue at all? Called by policy/lane.py for every arrival.

Not aware of: what happens to those refused, protocols' status codes.
"""

from math import inf
from typing import Protocol

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.knobs import LaneKnobs


class Backlog(Struct):
    """What stands before a new request: rows queued, instances up, whether one idles, seconds until the first is free."""

    queued_rows: int
    batch_limit: int
    instances: int
    idle: bool
    busy_s: float


class Admission(Protocol):
    def admit(self, ticket: Ticket, backlog: Backlog, now: float) -> Failure | None:
        """None to take the ticket, else the failure to send."""
        ...


class DeadlineAdmission:
    """Refuses at once what the queue cannot hold or what would be late: better now than after it cost a place.

    A ticket is late if (time of the full batches before its own) / instances + time to a free instance + p99(its own batch)
    exceeds its time left. Its own batch is the last one: the queued rows that are left over, and its own.
    With an idle instance and an empty queue only a deadline that has passed counts: a prediction may be wrong, and only
    running can correct it.
    """

    def __init__(self, knobs: LaneKnobs, model: LatencyModel) -> None:
        self._model = model
        self.configure(knobs)

    def configure(self, knobs: LaneKnobs) -> None:
        self._max_queue_rows = knobs.max_queue_rows

    def admit(self, ticket: Ticket, backlog: Backlog, now: float) -> Failure | None:
        if not backlog.instances:
            return Failure(FailureKind.UNAVAILABLE, "the model has no live instance", retry_after_s=1.0)
        if backlog.queued_rows + ticket.rows > self._max_queue_rows and backlog.queued_rows:
            return Failure(
                FailureKind.QUEUE_FULL,
                f"Exceeds maximum queue size: {backlog.queued_rows} rows wait, the limit is {self._max_queue_rows}",
                retry_after_s=self._wait(backlog, ticket.rows)[0],
            )
        if ticket.deadline_at == inf:
            return None
        left_s = ticket.deadline_at - now
        if left_s <= 0.0:
            return Failure(FailureKind.DEADLINE, "Request timeout expired before the request could be queued")
        if backlog.idle and not backlog.queued_rows:
            return None
        wait_s, own_rows = self._wait(backlog, ticket.rows)
        run_s = self._model.p99(own_rows)
        if wait_s + run_s > left_s:
            return Failure(
                FailureKind.DEADLINE,
                f"Request timeout expired: {left_s * 1e3:.1f} ms are left, "
                f"it would wait about {wait_s * 1e3:.1f} ms and run up to {run_s * 1e3:.1f} ms",
                retry_after_s=wait_s,
            )
        return None

    def _wait(self, backlog: Backlog, rows: int) -> tuple[float, int]:
        """Seconds until the batch of a ticket of so many rows begins, and how many rows that batch has."""
        before, left_over = divmod(backlog.queued_rows, backlog.batch_limit)
        wait_s = before * self._model.mean(backlog.batch_limit)
        if left_over + rows > backlog.batch_limit and left_over:
            wait_s += self._model.mean(left_over)
            left_over = 0
        return wait_s / max(backlog.instances, 1) + backlog.busy_s, left_over + rows
