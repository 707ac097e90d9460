"""Admission: is a request taken into the queue at all? Called by policy/lane.py for every arrival.

Not aware of: what happens to those refused, protocols' status codes.
"""

from collections.abc import Callable
from math import inf

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import QueueDiscipline, level
from dlproxy.policy.refusals import NO_INSTANCE, Refusal, came_too_late, state_gone


class Backlog(Struct):
    """What a new request finds besides the queue: instances up (or one that is being replaced), whether one is idle, seconds
    until the first is free; which share of the time that each shape would take by itself they take where they are padded.

    For a pinned request, its instance is the only one, and idle if nothing that is like it waits for it.
    """

    batch_limit: int
    instances: int
    idle: bool
    busy_s: float
    share: float = 1.0


class Admission:
    """Refuses at once what the queue cannot hold or what would be late: better now than after it cost a place.

    `limit_at(length)`: rows that a batch takes of a length, where lengths differ; else the backlog says it.

    A ticket is late if (time of the full batches before its own) / instances + time to a free instance + p99(its own batch)
    exceeds its time left. Its own batch is the rows left over by those batches, its own, and what can ride along behind it.
    With an idle instance and an empty queue only a deadline that has passed counts: a prediction may be wrong, and only
    running can correct it.

    Asked of the first part of a request that is split, it answers for all of it: whether all its rows fit, and whether the last
    part is in time.
    """

    def __init__(self, knobs: LaneKnobs, model: LatencyModel, limit_at: Callable[[int], int] | None = None) -> None:
        self._model = model
        self._limit_at = limit_at
        self.configure(knobs)

    def configure(self, knobs: LaneKnobs) -> None:
        self._max_queue_rows = knobs.max_queue_rows

    def admit(self, ticket: Ticket, queue: QueueDiscipline, backlog: Backlog, now: float) -> Refusal | None:
        """None to take the ticket, else what to say."""
        if not backlog.instances:
            return state_gone(ticket.pinned) if ticket.pinned else NO_INSTANCE
        if queue.rows + (ticket.whole_rows or ticket.rows) > self._max_queue_rows and queue.rows:
            message = f"Exceeds maximum queue size: {queue.rows} rows wait, the limit is {self._max_queue_rows}"
            wait_s, _ = self._wait(ticket, queue, backlog, now)
            return Refusal("queue_full", Failure(FailureKind.QUEUE_FULL, message, retry_after_s=wait_s))
        if ticket.deadline_at == inf:
            return None
        left_s = ticket.deadline_at - now
        if left_s <= 0.0:
            return came_too_late(ticket, now)
        if backlog.idle and (ticket.pinned or not queue.rows):
            return None
        wait_s, own_rows = self._wait(ticket, queue, backlog, now)
        run_s = self._model.p99(own_rows, ticket.length)
        if wait_s + run_s > left_s:
            message = (
                f"Request timeout expired: {left_s * 1e3:.1f} ms are left, "
                f"it would wait about {wait_s * 1e3:.1f} ms and run up to {run_s * 1e3:.1f} ms"
            )
            return Refusal("predicted_late", Failure(FailureKind.DEADLINE, message, retry_after_s=wait_s))
        return None

    def would_wait_s(self, ticket: Ticket, queue: QueueDiscipline, backlog: Backlog, now: float) -> float:
        """What `admit` takes a ticket to wait for, which may be another model's: only its place in the order counts."""
        if not backlog.instances or (backlog.idle and not queue.rows):
            return 0.0
        return self._wait(ticket, queue, backlog, now)[0]

    def make_room(self, ticket: Ticket, queue: QueueDiscipline, now: float) -> list[Ticket]:
        """Take out those that would be served last, as far as they are less urgent and as long as it takes."""
        taken_out: list[Ticket] = []
        while queue.rows + (ticket.whole_rows or ticket.rows) > self._max_queue_rows:
            last = queue.last(now)
            if last is None or level(last) <= level(ticket):
                break
            queue.remove(last.id)
            taken_out.append(last)
        return taken_out

    def _wait(self, ticket: Ticket, queue: QueueDiscipline, backlog: Backlog, now: float) -> tuple[float, int]:
        """Seconds until the ticket's batch begins, and how many rows that batch has."""
        limit, length, wait_s = backlog.batch_limit, ticket.length, 0.0
        if queue.uneven:  # every shape runs alone
            wait_s, rows_before, rows = queue.work_before(ticket, now)
            wait_s *= backlog.share
            if self._limit_at is not None:
                limit = self._limit_at(length)
        else:
            rows_before, rows = queue.rows_before(ticket, now), queue.rows
        if ticket.whole_rows:  # of all its parts the last one counts
            rows_before += ticket.whole_rows - ticket.rows
            rows += ticket.whole_rows - ticket.rows
        before, left_over = divmod(rows_before, limit)
        if before:
            wait_s += before * self._model.mean(limit, length)
        if left_over + ticket.rows > limit and left_over:
            wait_s += self._model.mean(left_over, length)
            left_over = 0
        own_rows = max(min(left_over + ticket.rows + rows - rows_before, limit), ticket.rows)
        return wait_s / max(backlog.instances, 1) + backlog.busy_s, own_rows
