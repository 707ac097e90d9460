"""The Lane: every decision about the requests of one model, without I/O. Events with their time go in, commands come out.

Driven by serve/driver.py from the event loop, by a simulator from a heap, by telemetry/event_log.py from a recording.
Not aware of: clocks, tensors, threads, sockets. Invariant: every ticket ends in exactly one of Complete or Reject.
"""

from collections.abc import Callable, Sequence
from math import inf

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy import refusals
from dlproxy.policy.admission import Admission, Backlog
from dlproxy.policy.batching import FittedBatching, Take, Wait
from dlproxy.policy.cost import LatencyModel, Point
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Closing,
    Command,
    Complete,
    Dispatch,
    Event,
    InstanceExpected,
    InstanceLost,
    InstanceRetired,
    InstanceUp,
    KnobsChanged,
    PassTurn,
    Reject,
    TimerFired,
    TurnGranted,
    WakeAt,
    WantTurn,
)
from dlproxy.policy.expiry import Deadlines, Promises
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.overload import CoDel, Gradient2
from dlproxy.policy.padding import Padding
from dlproxy.policy.pool import InstancePool, InstanceState
from dlproxy.policy.queueing import DEFAULT_LEVEL, level, make_queue, refill, same_order
from dlproxy.policy.retry_budget import RetryBudget
from dlproxy.policy.second_runs import SecondRuns, requests_fault
from dlproxy.policy.view import LaneView, WaitsFor

LIMIT_BATCHES = 2  # the adaptive limit never falls below two batches per instance: one runs, one is ready (Triton's rule)
HEDGE_SIGMAS = 1.645  # a batch longer than 95 % of its like gets a second run (Dean and Barroso, "The tail at scale", 2013)


class _Running(Struct, eq=False):
    """A batch that runs. `size`: tickets that it began with. `hedge_at`: when it is late enough for a second run. `twin`: the
    other run of the same tickets.
    """

    instance: str
    tickets: list[Ticket]
    rows: int
    length: int
    size: int
    started_at: float
    hedge_at: float = inf
    twin: int = 0


class Lane:
    """One model's scheduler. `prior` are (rows, seconds) or (rows, length, seconds) that warm-up measured."""

    def __init__(self, knobs: LaneKnobs, prior: Sequence[Point] = ()) -> None:
        self.model = LatencyModel(prior)
        self.batching = FittedBatching(knobs, self.model)
        self.queue = make_queue(knobs, self.model.mean, self._line_s)
        self.pool = InstancePool(knobs)
        self._knobs = knobs
        self._admission = Admission(knobs, self.model, self._goal_at)
        self._padding = Padding(self.model, self._line_s, lambda length: self.batching.limit_at(length))
        self._deadlines = Deadlines()
        self._promises = Promises()
        self._promised = self._promises.open
        self._codel = CoDel(knobs.codel_target_s) if knobs.codel_target_s else None
        self._limit = Gradient2(least=LIMIT_BATCHES * knobs.max_batch) if knobs.adaptive_limit else None
        self._budget = RetryBudget(knobs.retry_budget)
        self._again = SecondRuns()
        self._running: dict[int, _Running] = {}
        self._next_batch_id = 1
        self._wake_at = inf
        self._turn = not knobs.arbitrated  # whether a batch may start now
        self._wanted: WantTurn | None = None
        self._expected_until = -inf  # how long an instance that is being started is waited for
        self._down_because = "the model has no live instance"
        self._closed_because = ""
        self._now = -inf
        self._rules: dict[type, Callable[..., None]] = {
            Arrived: self._arrived,
            Cancelled: self._cancelled,
            BatchDone: self._batch_done,
            InstanceUp: self._instance_up,
            InstanceLost: self._instance_lost,
            InstanceRetired: self._instance_retired,
            InstanceExpected: self._instance_expected,
            Closing: self._closing,
            TimerFired: self._timer_fired,
            TurnGranted: self._turn_granted,
            KnobsChanged: self._knobs_changed,
        }

    def on(self, event: Event, now: float) -> list[Command]:
        """Take one event, return what is to be done, in order. `now` (monotonic seconds) never decreases."""
        assert now >= self._now, f"time went back from {self._now} to {now}"
        self._now = now
        commands: list[Command] = []
        pool = self.pool
        if pool.probe_at <= now:
            pool.probe(now)
        self._rules[type(event)](event, now, commands)
        if pool.ready and (self.queue.rows or self._again.waiting):
            self._dispatch(now, commands)
        if pool.several:
            if self._knobs.hedge and not self._knobs.arbitrated:
                self._hedge(now, commands)
            if pool.probe_at < inf and (self.queue.rows or self._again.waiting):
                self._arm(pool.probe_at, commands)
        if self._again.waiting or (self.queue.rows and self._deadlines.pending):
            self._arm_expiry(now, commands)
        if self._promised:
            self._arm(max(self._promises.next_at(), now), commands)
        if self._turn and self._knobs.arbitrated:
            self._turn = False
            commands.append(PassTurn())
        return commands

    @property
    def in_flight(self) -> int:
        """Batches that run now."""
        return len(self._running)

    @property
    def instances(self) -> list[InstanceState]:
        """Every instance that is up."""
        return self.pool.states()

    def view(self) -> LaneView:
        """How everything is now; for whoever looks now and then, not for every request."""
        running = list(self._running.values())
        return LaneView(
            queued_requests=len(self.queue),
            queued_rows=self.queue.rows,
            second_runs=sum([len(batch.tickets) for batch in self._again.waiting]),
            running_batches=len(running),
            running_requests=sum([len(batch.tickets) for batch in running]),
            batch_limit=self.batching.limit,
            batch_goal=self.batching.goal,
            request_limit=None if self._limit is None else self._limit.limit,
            instances=self.pool.states(),
            waits_for=self._waits_for(),
            closing=self._closed_because,
            knobs=self._knobs,
        )

    def _waits_for(self) -> WaitsFor:
        if not self.queue.rows and not self._again.waiting:
            return "nothing"
        if not len(self.pool):
            return "start"
        if not self.pool.ready:
            return "instance"
        if self._wanted is not None:
            return "turn"
        fills = self.queue.rows < self.batching.limit and self._knobs.max_wait_s > 0.0
        return "fill" if fills else "other instance"

    # What happens

    def _arrived(self, event: Arrived, now: float, commands: list[Command]) -> None:
        queue, admission, limit = self.queue, self._admission, self._limit
        backlog = self._backlog(now)
        for ticket in event.tickets:
            failure = admission.admit(ticket, queue, backlog, now)
            if failure is None and limit is not None:
                failure = self._above_limit(ticket, limit)
            elif failure is not None and failure.kind is FailureKind.QUEUE_FULL:
                failure = self._displace(ticket, failure, backlog, now, commands)
            if failure is None:
                queue.push(ticket, now)
                if ticket.deadline_at < inf:
                    self._deadlines.add(ticket, queue)
                    if ticket.answer_by < inf:
                        self._promises.add(ticket)
            else:
                commands.append(Reject(ticket, failure))
        if self.pool.several:
            self._budget.earn(len(event.tickets), now)

    def _cancelled(self, event: Cancelled, now: float, commands: list[Command]) -> None:
        ticket = self._withdraw(event.ticket_id)
        if ticket is not None:
            self._reject(ticket, Failure(FailureKind.CANCELLED, "the client disconnected"), commands)

    def _batch_done(self, event: BatchDone, now: float, commands: list[Command]) -> None:
        batch = self._running.pop(event.batch_id, None)
        if batch is None:  # its instance was declared lost before; the tickets have gone elsewhere
            return
        predicted_s = self.model.mean(batch.rows, batch.length) if self.pool.several else 0.0
        if batch.instance in self.pool:  # else it was retired while it ran
            ok = event.error is None or requests_fault(event.failure)
            self.pool.release(batch.instance, event.service_s, predicted_s=predicted_s, ok=ok, now=now)
        if event.error is None:
            self.batching.observe(batch.rows, event.service_s, now, batch.length)
        if batch.twin:
            twin = self._running[batch.twin]
            twin.twin = 0
            if event.error is not None:  # the other run may yet succeed
                return
            twin.tickets = []
        if event.error is None:
            tickets = self._again.answered(batch.tickets)
            if tickets:
                if self._limit is not None:
                    self._observe_limit(self._limit, tickets, now)
                if self._promised:
                    for ticket in tickets:
                        self._promised.pop(ticket.id, None)
                commands.append(Complete(event.batch_id, tickets))
        elif tickets := self._again.still_wanted(batch.tickets):
            self._failed(batch, tickets, event.failure or Failure(FailureKind.MODEL_FAILED, event.error), now, commands)

    def _instance_up(self, event: InstanceUp, now: float, commands: list[Command]) -> None:
        self.pool.add(event.instance, event.capacity, event.weight, now)
        self._expected_until = -inf
        self._size_limit()

    def _instance_lost(self, event: InstanceLost, now: float, commands: list[Command]) -> None:
        if event.instance in self.pool:  # else it was retired, and may have run a batch still
            self.pool.remove(event.instance)
            self._size_limit()
        lost = [batch_id for batch_id, batch in self._running.items() if batch.instance == event.instance]
        for batch_id in lost:
            batch = self._running.pop(batch_id)
            if batch.twin:
                self._running[batch.twin].twin = 0
            else:
                self._run_elsewhere(batch, self._again.still_wanted(batch.tickets), event, commands)
        self._down_because = f"the model has no live instance: {event.instance} was lost ({event.reason})"
        if not len(self.pool):
            self._wait_for_instance(now, commands)

    def _instance_retired(self, event: InstanceRetired, now: float, commands: list[Command]) -> None:
        if event.instance in self.pool:
            self.pool.remove(event.instance)
            self._size_limit()
            self._down_because = "the model has no instance any more: it was scaled to none"
            if not len(self.pool):
                self._wait_for_instance(now, commands)

    def _instance_expected(self, event: InstanceExpected, now: float, commands: list[Command]) -> None:
        self._expected_until = event.until
        if not len(self.pool):
            self._wait_for_instance(now, commands)

    def _closing(self, event: Closing, now: float, commands: list[Command]) -> None:
        self._closed_because = event.reason
        self._rules[Arrived] = self._refused

    def _refused(self, event: Arrived, now: float, commands: list[Command]) -> None:
        """In place of `_arrived`, once the model goes."""
        failure = refusals.unavailable(self._closed_because)
        commands += [Reject(ticket, failure) for ticket in event.tickets]

    def _timer_fired(self, event: TimerFired, now: float, commands: list[Command]) -> None:
        self._wake_at = inf
        for ticket in self._deadlines.expired(self.queue, now):
            self._reject(ticket, refusals.expired(ticket, now), commands)
        for ticket in self._again.expired(now):
            self._reject(ticket, refusals.expired(ticket, now), commands)
        for ticket in self._promises.due(now):  # the model still runs these, but nobody waits for them any more
            if self._withdraw(ticket.id) is not None:
                self._reject(ticket, refusals.overran(ticket, now), commands)
        if not len(self.pool):
            self._wait_for_instance(now, commands)

    def _turn_granted(self, event: TurnGranted, now: float, commands: list[Command]) -> None:
        self._wanted = None
        if self._knobs.arbitrated:
            self._turn = True
        else:  # the knobs have changed since it was wanted; nothing waits for turns any more
            commands.append(PassTurn())

    def _knobs_changed(self, event: KnobsChanged, now: float, commands: list[Command]) -> None:
        before, knobs = self._knobs, event.knobs
        self._knobs = knobs
        self.batching.configure(knobs)
        self._admission.configure(knobs)
        self.pool.configure(knobs, now)
        self._budget.configure(knobs.retry_budget)
        if not same_order(before, knobs):
            self.queue = refill(self.queue, make_queue(knobs, self.model.mean, self._line_s), now)
        if before.codel_target_s != knobs.codel_target_s:
            self._codel = CoDel(knobs.codel_target_s) if knobs.codel_target_s else None
        if before.adaptive_limit != knobs.adaptive_limit:
            self._limit = Gradient2(least=LIMIT_BATCHES * knobs.max_batch) if knobs.adaptive_limit else None
        self._size_limit()
        if before.arbitrated != knobs.arbitrated:
            self._turn, self._wanted = not knobs.arbitrated, None
        if not knobs.retry_budget:
            failure = refusals.unavailable("the instance failed while it ran the request, which may not run again now")
            for ticket in self._again.drain():
                self._reject(ticket, failure, commands)

    # What is to be done

    def _dispatch(self, now: float, commands: list[Command]) -> None:
        pool = self.pool
        while pool.ready:
            retry = self._again.runnable(pool) if self._again.waiting else None
            take = None if retry is not None else self._decide(now, commands)
            if retry is None and take is None:
                return
            if pool.several and self._holds_back("" if retry is None else retry.avoided, now, commands):
                return
            if not self._turn:
                self._want_turn(now, commands)
                return
            if take is None:
                assert retry is not None
                tickets, avoided, reason = self._again.take(retry, self._knobs.max_batch), retry.avoided, "retry"
                tickets = self._unexpired(tickets, now, commands)
            else:
                alone = pool.several and pool.only_suspects
                tickets, avoided, reason = self.queue.pop(1 if alone else take.rows, now), "", "instance idle"
                if self._knobs.max_padding and tickets[0].family and not alone:
                    tickets = self._padding.join(tickets, self.queue, now, most=self._knobs.max_padding)
                if self._deadlines.pending or self._codel is not None:
                    tickets = self._feasible(tickets, now, commands)
            if tickets:
                self._start(tickets, reason, avoided, now, commands)

    def _decide(self, now: float, commands: list[Command]) -> Take | None:
        """What to take from the queue now; None if nothing is there, or a batch still waits to fill."""
        if not self.queue.rows:
            return None
        decision = self.batching.decide(self.queue, now)
        if isinstance(decision, Wait):
            self._arm(decision.until, commands)
            return None
        return decision

    def _holds_back(self, avoided: str, now: float, commands: list[Command]) -> bool:
        """Only slow instances are idle, and the oldest request gains by waiting for another than `avoided`."""
        head = self.queue.head(now)
        length = 1 if head is None else head.length
        wait_s = self.pool.worth_waiting_s(self.model.mean(self.batching.limit, length), now, avoided=avoided)
        if not wait_s:
            return False
        arrived_at = [batch.arrived_at for batch in self._again.waiting]
        if head is not None:
            arrived_at.append(head.arrived_at)
        until = min(arrived_at) + wait_s
        if until <= now:
            return False
        self._arm(until, commands)
        return True

    def _start(self, tickets: list[Ticket], reason: str, avoided: str, now: float, commands: list[Command]) -> int:
        instance = self.pool.take(now, affinity=tickets[0].affinity, avoided=avoided)
        batch_id = self._next_batch_id
        self._next_batch_id += 1
        rows, length = sum([ticket.rows for ticket in tickets]), _longest(tickets)
        batch = self._running[batch_id] = _Running(instance, tickets, rows, length, len(tickets), now)
        if self._knobs.hedge and reason == "instance idle":
            batch.hedge_at = now + self.model.quantile(rows, HEDGE_SIGMAS, length)
        if self._knobs.arbitrated:
            self._turn = False
        commands.append(Dispatch(batch_id, instance, tickets, reason))
        return batch_id

    def _feasible(self, tickets: list[Ticket], now: float, commands: list[Command]) -> list[Ticket]:
        """Early drop: shed what would be late even if it started now, rather than shrink the batch for it (Nexus).

        The last ticket at hand is shed only if its deadline has passed: it makes nobody late, and running it is what
        corrects a prediction that was wrong. CoDel sheds what waited too long in a queue that does not drain.
        """
        room = sum([ticket.rows for ticket in tickets])
        finish_at = now + self.model.p99(room, _longest(tickets))
        came_after = -inf
        if self._codel is not None:
            self._codel.observe(now - max(ticket.arrived_at for ticket in tickets), now)
            came_after = now - self._codel.shed_above_s(now)
        kept: list[Ticket] = []
        while True:
            left = len(kept) + len(tickets) + len(self.queue)
            for ticket in tickets:
                failure = None
                if ticket.deadline_at <= now or (ticket.deadline_at < finish_at and left > 1):
                    failure = refusals.expired(ticket, now)
                elif ticket.arrived_at < came_after and left > 1 and level(ticket) >= DEFAULT_LEVEL:
                    failure = refusals.stood_too_long(ticket, now)
                if failure is None:
                    kept.append(ticket)
                    room -= ticket.rows
                else:
                    self._reject(ticket, failure, commands)
                    left -= 1
            head = self.queue.head(now) if kept and room else None
            if head is None or head.rows > room or head.shape_key != kept[0].shape_key:
                return kept
            tickets = self.queue.pop(room, now)  # those next in line take the places of those shed

    def _unexpired(self, tickets: list[Ticket], now: float, commands: list[Command]) -> list[Ticket]:
        for ticket in tickets:
            if ticket.deadline_at <= now:
                self._reject(ticket, refusals.expired(ticket, now), commands)
        return [ticket for ticket in tickets if ticket.deadline_at > now]

    def _displace(self, ticket: Ticket, full: Failure, backlog: Backlog, now: float, commands: list[Command]) -> Failure | None:
        """A full queue has room for an urgent ticket if less urgent ones give way, and they do if nothing else refuses it."""
        displaced = self._make_room(ticket, now)
        if not displaced:
            return full
        failure = self._admission.admit(ticket, self.queue, backlog, now)
        if failure is None and self._limit is not None:
            failure = self._above_limit(ticket, self._limit)
        for other in displaced:
            if failure is None:
                self._reject(other, refusals.displaced(), commands)
            else:
                self.queue.push(other, now)
        return failure

    def _make_room(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Take out those that would be served last, as far as they are less urgent and as long as it takes."""
        taken_out: list[Ticket] = []
        while self.queue.rows + ticket.rows > self._knobs.max_queue_rows:
            last = self.queue.last(now)
            if last is None or level(last) <= level(ticket):
                break
            self.queue.remove(last.id)
            taken_out.append(last)
        return taken_out

    # Second runs

    def _failed(self, batch: _Running, tickets: list[Ticket], failure: Failure, now: float, commands: list[Command]) -> None:
        """The instance or one of the items is bad: try another instance once; then halve until a bad item stands alone.

        Not elsewhere what another server refused as it is; not in halves what it had no capacity for.
        """
        again, may_retry = self._again, self._knobs.retry_budget > 0.0
        fresh = may_retry and not any(again.ran_twice(ticket) for ticket in tickets)
        elsewhere = fresh and not requests_fault(failure) and self.pool.has_other(batch.instance)
        divisible = failure.kind is FailureKind.MODEL_FAILED or requests_fault(failure)
        if elsewhere and self._budget.spend(len(tickets), now):
            again.add(tickets, avoided=batch.instance)
        elif batch.size == 1 or not divisible or not may_retry or not len(self.pool):
            told = failure if batch.size == 1 or not divisible else refusals.of_a_shared_batch(failure, batch.size)
            for ticket in tickets:
                self._reject(ticket, told, commands)
        else:
            again.halve(tickets)

    def _run_elsewhere(self, batch: _Running, tickets: list[Ticket], event: InstanceLost, commands: list[Command]) -> None:
        """Tickets of a lost instance run again, once; not under the budget, as instances are not lost by the dozen.

        If instances crash, one of the tickets may be the reason: after the second crash each runs alone, and one that was
        alone in a crash after another is not run any more.
        """
        again, fresh = self._again, []
        for ticket in tickets:
            crashes = again.crashed(ticket) if event.crashed else 0
            if not self._knobs.retry_budget:
                self._reject(ticket, refusals.lost(event.reason, ", which may not run again"), commands)
            elif not again.ran_twice(ticket):
                fresh.append(ticket)
            elif crashes < 2:
                self._reject(ticket, refusals.lost(event.reason, " a second time"), commands)
            elif batch.size > 1:
                again.isolate(ticket)
            else:
                self._reject(ticket, refusals.to_blame(crashes, event.reason), commands, quarantine=True)
        if fresh:
            again.add(fresh)

    def _hedge(self, now: float, commands: list[Command]) -> None:
        """A batch that is late runs again where an instance would idle."""
        for batch_id, batch in list(self._running.items()):
            if batch.hedge_at == inf or all(name == batch.instance for name in self.pool.ready):
                continue
            if batch.hedge_at > now:
                self._arm(batch.hedge_at, commands)
                continue
            batch.hedge_at = inf
            tickets = self._again.not_abandoned(batch.tickets)
            if self._may_run_twice(tickets, now) and self._budget.spend(len(tickets), now):
                self._again.mark(tickets)
                batch.tickets = self._again.still_wanted(batch.tickets)  # both runs are of the same ones from now on
                batch.twin = self._start(tickets, "hedge", batch.instance, now, commands)
                self._running[batch.twin].twin = batch_id

    def _may_run_twice(self, tickets: list[Ticket], now: float) -> bool:
        """Someone waits for it, no deadline has passed meanwhile, and max_batch has not become too small for it."""
        fits = sum([ticket.rows for ticket in tickets]) <= self._knobs.max_batch or len(tickets) == 1
        return bool(tickets) and fits and min([ticket.deadline_at for ticket in tickets]) > now

    def _wait_for_instance(self, now: float, commands: list[Command]) -> None:
        """No instance is up: requests wait for one that is being started, as long as it is expected."""
        if self._expected_until > now:
            self._arm(self._expected_until, commands)
            return
        waiting = self._again.drain()
        while self.queue.rows:
            waiting += self.queue.pop(self.queue.rows, now)
        failure = refusals.unavailable(self._closed_because or self._down_because)
        for ticket in waiting:
            self._reject(ticket, failure, commands)

    def _withdraw(self, ticket_id: int) -> Ticket | None:
        """Nobody waits for this ticket any more, wherever it is; None if it was answered before."""
        ticket = self.queue.remove(ticket_id) or self._again.remove(ticket_id)
        if ticket is None:
            running = [ticket for batch in self._running.values() for ticket in batch.tickets]
            ticket = self._again.abandon(ticket_id, running)
        return ticket

    def _reject(self, ticket: Ticket, failure: Failure, commands: list[Command], *, quarantine: bool = False) -> None:
        self._again.finished((ticket,))
        self._promised.pop(ticket.id, None)
        commands.append(Reject(ticket, failure, quarantine))

    # Bookkeeping

    def _backlog(self, now: float) -> Backlog:
        busy_s = 0.0
        if not self.pool.ready and self._running:
            ends = [run.started_at + self.model.mean(run.rows, run.length) for run in self._running.values()]
            busy_s = max(min(ends) - now, 0.0)
        instances = len(self.pool) or int(self._expected_until > now)
        share = self._padding.share if self._knobs.max_padding else 1.0
        return Backlog(
            batch_limit=self.batching.goal, instances=instances, idle=bool(self.pool.ready), busy_s=busy_s, share=share
        )

    def _goal_at(self, length: int) -> int:
        return self.batching.goal_at(length)

    def _line_s(self, rows: int, length: int) -> float:
        """Seconds that so many rows of one shape take, in the batches that they make."""
        full, left_over = divmod(rows, self.batching.goal_at(length))
        seconds = full * self.model.mean(self.batching.goal_at(length), length) if full else 0.0
        return seconds + self.model.mean(left_over, length) if left_over else seconds

    def _want_turn(self, now: float, commands: list[Command]) -> None:
        """Tell the arbiter, unless it knows already."""
        again, head = self._again.waiting, self.queue.head(now)
        length, waiting = (1 if head is None else head.length), self.queue.rows
        if head is not None and self.queue.uneven:
            waiting = self.queue.rows_like(head)
        rows = min(waiting + sum([batch.rows for batch in again]), self.batching.limit)
        deadline_at = min(self._deadlines.next_at(self.queue), self._again.next_deadline())
        levels = [batch.level for batch in again]
        if head is not None:
            levels.append(level(head))
        want = WantTurn(self.model.mean(rows, length), deadline_at, min(levels))
        known = self._wanted
        if known is None or want.deadline_at < known.deadline_at or want.priority < known.priority:
            self._wanted = want
            commands.append(want)

    def _above_limit(self, ticket: Ticket, limit: Gradient2) -> Failure | None:
        under_way = self._under_way() if ticket.deadline_at == inf else 0
        return refusals.above_limit(under_way, limit.limit) if under_way >= limit.limit else None

    def _observe_limit(self, limit: Gradient2, tickets: list[Ticket], now: float) -> None:
        self._size_limit()  # batches may have grown
        latency_s = now - sum([ticket.arrived_at for ticket in tickets]) / len(tickets)
        limit.observe(latency_s, len(tickets) + self._under_way(), now)

    def _under_way(self) -> int:
        """Requests that wait or run; one that runs twice counts once."""
        running = sum([len(batch.tickets) for number, batch in self._running.items() if batch.twin < number])
        return len(self.queue) + running + sum([len(batch.tickets) for batch in self._again.waiting])

    def _size_limit(self) -> None:
        if self._limit is not None:
            self._limit.configure(least=LIMIT_BATCHES * self.batching.goal * max(len(self.pool), 1))

    def _arm_expiry(self, now: float, commands: list[Command]) -> None:
        deadline_at = min(self._deadlines.next_at(self.queue), self._again.next_deadline())
        if deadline_at < self._wake_at:
            self._arm(max(deadline_at, now), commands)

    def _arm(self, at: float, commands: list[Command]) -> None:
        if at < self._wake_at:  # an earlier wake-up looks again anyway
            self._wake_at = at
            commands.append(WakeAt(at))


def _longest(tickets: Sequence[Ticket]) -> int:
    """All are of the length of the first, but in a padded batch."""
    return max([ticket.length for ticket in tickets]) if tickets[0].family else tickets[0].length
