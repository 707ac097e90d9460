"""The Lane: every decision about the requests of one model, without I/O. Events with their time go in, commands come out.

Driven by serve/driver.py from the event loop, by a simulator from a heap, by telemetry/event_log.py from a recording.
Not aware of: clocks, tensors, threads, sockets. Invariant: every ticket ends in exactly one of Complete or Reject.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import inf

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.admission import Backlog, DeadlineAdmission
from dlproxy.policy.balancing import LeastPeakEwma
from dlproxy.policy.batching import FittedBatching, Wait
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Command,
    Complete,
    Dispatch,
    Event,
    InstanceLost,
    InstanceUp,
    KnobsChanged,
    Reject,
    TimerFired,
    WakeAt,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import Fcfs


class _Running(Struct):
    instance: str
    tickets: list[Ticket]
    rows: int
    started_at: float


class Lane:
    """One model's scheduler. `prior` are (rows, seconds) pairs that warm-up measured."""

    def __init__(self, knobs: LaneKnobs, prior: Sequence[tuple[int, float]] = ()) -> None:
        self.model = LatencyModel(prior)
        self.queue = Fcfs()
        self.batching = FittedBatching(knobs, self.model)
        self._admission = DeadlineAdmission(knobs, self.model)
        self._balancer = LeastPeakEwma()
        self._max_batch = knobs.max_batch
        self._capacity: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._idle: dict[str, None] = {}  # instances with capacity left, in the order in which they came up
        self._running: dict[int, _Running] = {}
        self._retries: deque[list[Ticket]] = deque()  # batches to run again as they are, before anything queued
        self._retried: set[int] = set()  # tickets that lost an instance once; they get no third try
        self._abandoned: set[int] = set()  # tickets whose client left while they ran
        self._next_batch_id = 1
        self._wake_at = inf
        self._now = -inf
        self._rules: dict[type, Callable[..., None]] = {
            Arrived: self._arrived,
            Cancelled: self._cancelled,
            BatchDone: self._batch_done,
            InstanceUp: self._instance_up,
            InstanceLost: self._instance_lost,
            TimerFired: self._timer_fired,
            KnobsChanged: self._knobs_changed,
        }

    def on(self, event: Event, now: float) -> list[Command]:
        """Take one event, return what is to be done, in order. `now` (monotonic seconds) never decreases."""
        assert now >= self._now, f"time went back from {self._now} to {now}"
        self._now = now
        commands: list[Command] = []
        self._rules[type(event)](event, now, commands)
        if self._idle and (self.queue.rows or self._retries):
            self._dispatch(now, commands)
        if self._retries or (self.queue.rows and self.queue.may_expire):
            self._arm_expiry(now, commands)
        return commands

    @property
    def in_flight(self) -> int:
        """Batches that run now."""
        return len(self._running)

    @property
    def instances(self) -> int:
        """Instances that are up."""
        return len(self._capacity)

    # What happens

    def _arrived(self, event: Arrived, now: float, commands: list[Command]) -> None:
        queue, admission = self.queue, self._admission
        backlog = self._backlog(now)
        for ticket in event.tickets:
            failure = admission.admit(ticket, backlog, now)
            if failure is None:
                queue.push(ticket)
                backlog.queued_rows += ticket.rows
            else:
                commands.append(Reject(ticket, failure))

    def _cancelled(self, event: Cancelled, now: float, commands: list[Command]) -> None:
        ticket = self.queue.remove(event.ticket_id) or self._remove_unqueued(event.ticket_id)
        if ticket is not None:
            commands.append(Reject(ticket, Failure(FailureKind.CANCELLED, "the client has gone")))

    def _batch_done(self, event: BatchDone, now: float, commands: list[Command]) -> None:
        batch = self._running.pop(event.batch_id, None)
        if batch is None:  # its instance was declared lost before; the tickets have gone elsewhere
            return
        self._release(batch.instance)
        tickets = self._still_wanted(batch.tickets)
        if len(self._capacity) > 1:
            self._balancer.observe(batch.instance, event.service_s, ok=event.error is None, now=now)
        if event.error is None:
            self.batching.observe(batch.rows, event.service_s, now)
            if self._retried:
                self._retried.difference_update(ticket.id for ticket in tickets)
            if tickets:
                commands.append(Complete(event.batch_id, tickets))
        elif len(batch.tickets) == 1:
            for ticket in tickets:
                self._reject(ticket, Failure(FailureKind.MODEL_FAILED, event.error), commands)
        else:  # one bad item must not fail its neighbours: halve until it stands alone
            middle = (len(tickets) + 1) // 2
            self._retries.extendleft(half for half in (tickets[middle:], tickets[:middle]) if half)

    def _instance_up(self, event: InstanceUp, now: float, commands: list[Command]) -> None:
        assert event.instance not in self._capacity, f"instance {event.instance} is up already"
        assert event.capacity >= 1
        self._capacity[event.instance] = event.capacity
        self._in_flight[event.instance] = 0
        self._idle[event.instance] = None

    def _instance_lost(self, event: InstanceLost, now: float, commands: list[Command]) -> None:
        if self._capacity.pop(event.instance, None) is None:
            return
        self._in_flight.pop(event.instance)
        self._idle.pop(event.instance, None)
        self._balancer.forget(event.instance)
        lost = [batch_id for batch_id, batch in self._running.items() if batch.instance == event.instance]
        for batch_id in lost:
            self._retry_elsewhere(self._still_wanted(self._running.pop(batch_id).tickets), event.reason, commands)
        if not self._capacity:
            self._reject_all(f"the model has no live instance: {event.instance} was lost ({event.reason})", commands)

    def _timer_fired(self, event: TimerFired, now: float, commands: list[Command]) -> None:
        self._wake_at = inf
        for ticket in self.queue.expire(now):
            self._reject(ticket, _expired(ticket, now), commands)
        if self._retries:
            self._retries = deque([self._unexpired(batch, now, commands) for batch in self._retries])

    def _knobs_changed(self, event: KnobsChanged, now: float, commands: list[Command]) -> None:
        self.batching.configure(event.knobs)
        self._admission.configure(event.knobs)
        self._max_batch = event.knobs.max_batch

    # What is to be done

    def _dispatch(self, now: float, commands: list[Command]) -> None:
        while self._idle:
            if self._retries:
                tickets, reason = self._unexpired(self._next_retry(), now, commands), "retry"
            elif self.queue.rows:
                decision = self.batching.decide(self.queue, now)
                if isinstance(decision, Wait):
                    self._arm(decision.until, commands)
                    return
                tickets, reason = self.queue.pop(decision.rows), "instance idle"
                if self.queue.may_expire:
                    tickets = self._feasible(tickets, now, commands)
            else:
                return
            if tickets:
                self._start(tickets, reason, now, commands)

    def _start(self, tickets: list[Ticket], reason: str, now: float, commands: list[Command]) -> None:
        alone = len(self._idle) == 1
        instance = next(iter(self._idle)) if alone else self._balancer.choose(self._idle, self._in_flight, now)
        self._in_flight[instance] += 1
        if self._in_flight[instance] >= self._capacity[instance]:
            del self._idle[instance]
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        self._running[batch_id] = _Running(instance, tickets, sum([ticket.rows for ticket in tickets]), now)
        commands.append(Dispatch(batch_id, instance, tickets, reason))

    def _feasible(self, tickets: list[Ticket], now: float, commands: list[Command]) -> list[Ticket]:
        """Early drop: shed what would be late even if it started now, rather than shrink the batch for it (Nexus).

        The last ticket at hand is shed only if its deadline has passed: it makes nobody late, and running it is what
        corrects a prediction that was wrong.
        """
        room = sum([ticket.rows for ticket in tickets])
        finish_at = now + self.model.p99(room)
        kept: list[Ticket] = []
        while True:
            left = len(kept) + len(tickets) + len(self.queue)
            for ticket in tickets:
                if ticket.deadline_at <= now or (ticket.deadline_at < finish_at and left > 1):
                    self._reject(ticket, _expired(ticket, now), commands)
                    left -= 1
                else:
                    kept.append(ticket)
                    room -= ticket.rows
            head = self.queue.head() if kept and room else None
            if head is None or head.rows > room or head.shape_key != kept[0].shape_key:
                return kept
            tickets = self.queue.pop(room)  # those next in line take the places of those shed

    def _next_retry(self) -> list[Ticket]:
        """The next batch to run again: as it was, unless max_batch has shrunk since."""
        tickets = self._retries.popleft()
        rows = 0
        for index, ticket in enumerate(tickets):
            rows += ticket.rows
            if rows > self._max_batch and index:
                self._retries.appendleft(tickets[index:])
                return tickets[:index]
        return tickets

    def _unexpired(self, tickets: list[Ticket], now: float, commands: list[Command]) -> list[Ticket]:
        kept = []
        for ticket in tickets:
            if ticket.deadline_at <= now:
                self._reject(ticket, _expired(ticket, now), commands)
            else:
                kept.append(ticket)
        return kept

    def _retry_elsewhere(self, tickets: list[Ticket], reason: str, commands: list[Command]) -> None:
        again = []
        for ticket in tickets:
            if ticket.id in self._retried:
                message = f"the instance was lost while it ran the request, twice: {reason}"
                self._reject(ticket, Failure(FailureKind.UNAVAILABLE, message, retry_after_s=1.0), commands)
            else:
                self._retried.add(ticket.id)
                again.append(ticket)
        if again:
            self._retries.append(again)

    def _reject_all(self, message: str, commands: list[Command]) -> None:
        waiting = [ticket for batch in self._retries for ticket in batch]
        self._retries.clear()
        while self.queue.rows:
            waiting += self.queue.pop(self.queue.rows)
        for ticket in waiting:
            self._reject(ticket, Failure(FailureKind.UNAVAILABLE, message, retry_after_s=1.0), commands)

    def _reject(self, ticket: Ticket, failure: Failure, commands: list[Command]) -> None:
        self._retried.discard(ticket.id)
        commands.append(Reject(ticket, failure))

    # Bookkeeping

    def _backlog(self, now: float) -> Backlog:
        busy_s = 0.0
        if not self._idle and self._running:
            ends = [run.started_at + self.model.mean(run.rows) for run in self._running.values()]
            busy_s = max(min(ends) - now, 0.0)
        return Backlog(
            queued_rows=self.queue.rows,
            batch_limit=self.batching.limit,
            instances=len(self._capacity),
            idle=bool(self._idle),
            busy_s=busy_s,
        )

    def _release(self, instance: str) -> None:
        self._in_flight[instance] -= 1
        self._idle[instance] = None

    def _still_wanted(self, tickets: list[Ticket]) -> list[Ticket]:
        if not self._abandoned:
            return tickets
        gone = self._abandoned.intersection(ticket.id for ticket in tickets)
        self._abandoned -= gone
        return [ticket for ticket in tickets if ticket.id not in gone]

    def _remove_unqueued(self, ticket_id: int) -> Ticket | None:
        """Find a ticket that runs or waits for its retry, and see to it that it is answered no more."""
        self._retried.discard(ticket_id)
        for batch in self._retries:
            for ticket in batch:
                if ticket.id == ticket_id:
                    batch.remove(ticket)
                    return ticket
        for running in self._running.values():
            for ticket in running.tickets:
                if ticket.id == ticket_id and ticket_id not in self._abandoned:
                    self._abandoned.add(ticket_id)
                    return ticket
        return None

    def _arm_expiry(self, now: float, commands: list[Command]) -> None:
        deadline_at = self.queue.next_deadline()
        for batch in self._retries:
            for ticket in batch:
                deadline_at = min(deadline_at, ticket.deadline_at)
        if deadline_at < self._wake_at:
            self._arm(max(deadline_at, now), commands)

    def _arm(self, at: float, commands: list[Command]) -> None:
        if at < self._wake_at:  # an earlier wake-up looks again anyway
            self._wake_at = at
            commands.append(WakeAt(at))


def _expired(ticket: Ticket, now: float) -> Failure:
    waited_ms = (now - ticket.arrived_at) * 1e3
    message = f"Request timeout expired: it had waited {waited_ms:.1f} ms"
    return Failure(FailureKind.DEADLINE, message, retry_after_s=waited_ms / 1e3)
