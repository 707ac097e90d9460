"""The Lane: every decision about the requests of one model, without I/O. Events with their time go in, commands come out.

Driven by serve/driver.py from the event loop, by a simulator from a heap, by telemetry/event_log.py from a recording.
Not aware of: clocks, tensors, threads, sockets. Invariant: every ticket ends in exactly one of Complete or Reject.
"""

from collections.abc import Callable, Sequence
from math import inf

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.adaptive_limit import AdaptiveLimit
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
    DispatchReason,
    Event,
    FirstPart,
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
    WakeReason,
)
from dlproxy.policy.expiry import Deadlines, Promises
from dlproxy.policy.hedging import Hedging
from dlproxy.policy.hops import Load
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.outage import Outage
from dlproxy.policy.padding import Padding
from dlproxy.policy.pipelines import Stage
from dlproxy.policy.pool import InstancePool
from dlproxy.policy.queueing import Pins, level, make_queue, refill, same_order
from dlproxy.policy.refusals import CANCELLED, DISPLACED, Refusal, expired, overran, state_gone
from dlproxy.policy.running import Run, Running
from dlproxy.policy.second_runs import Batch, SecondRuns, requests_fault
from dlproxy.policy.shedding import Shedding, longest, unexpired
from dlproxy.policy.turn import Turn
from dlproxy.policy.view import LaneView, why_waiting


class Lane:
    """One model's scheduler. `prior` are (rows, seconds) or (rows, length, seconds) that warm-up measured."""

    def __init__(self, knobs: LaneKnobs, prior: Sequence[Point] = ()) -> None:
        self.model = LatencyModel(prior)
        self.batching = FittedBatching(knobs, self.model)
        self.queue = make_queue(knobs, self.model.mean, self.batching.line_s)
        self.pool = InstancePool(knobs)
        self._pins = Pins(self.pool.ready)
        self._knobs = knobs
        self._admission = Admission(knobs, self.model, self.batching.goal_at)
        self._limit = self._make_limit(knobs)
        self._padding = Padding(self.model, self.batching.line_s, self.batching.limit_at)
        self._shedding = Shedding(knobs.codel_target_s)
        self._deadlines = Deadlines()
        self._promises = Promises()
        self._promised = self._promises.open
        self._running = Running()
        self._again = SecondRuns(knobs.retry_budget)
        self._hedging = Hedging(self.model, self._running, self._again)
        self._turn = Turn(arbitrated=knobs.arbitrated)
        self._outage = Outage()
        self._in_parts = False  # whether a request ever came so
        self._wake_at = inf
        self._now = -inf
        self._rules: dict[type, Callable[..., None]] = {
            Arrived: self._arrived,
            Cancelled: self._cancelled,
            BatchDone: self._batch_done,
            FirstPart: self._first_part,
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
            if self._pins.passed:
                self._pins.passed.clear()
        if pool.several:
            if self._knobs.hedge and not self._knobs.arbitrated:
                self._hedge(now, commands)
            if pool.probe_at < inf and (self.queue.rows or self._again.waiting):
                self._arm(pool.probe_at, "probe", commands)
        if self._again.waiting or (self.queue.rows and self._deadlines.pending):
            self._arm(max(self._next_deadline(), now), "deadline", commands)
        if self._promised:
            self._arm(max(self._promises.next_at(), now), "client_deadline", commands)
        if self._turn.arbitrated and self._turn.mine:
            self._turn.use()
            commands.append(PassTurn("nothing_to_run"))
        return commands

    def view(self) -> LaneView:
        """How everything is now; for whoever looks now and then, not for every request."""
        queue, again = self.queue, self._again
        return LaneView(
            queued_requests=len(queue),
            queued_rows=queue.rows,
            second_runs=sum([len(batch.tickets) for batch in again.waiting]),
            running_batches=len(self._running.runs),
            running_requests=self._running.requests,
            batch_limit=self.batching.limit,
            batch_goal=self.batching.goal,
            request_limit=None if self._limit is None else self._limit.limit,
            instances=self.pool.states(),
            waits_for=why_waiting(
                waiting=bool(queue.rows or again.waiting),
                up=bool(len(self.pool)),
                ready=bool(self.pool.ready) and (queue.pins is None or queue.head(self._now) is not None),
                wants_turn=self._turn.wanted is not None,
                fills=0 < queue.rows < self.batching.limit and self._knobs.max_wait_s > 0.0,
            ),
            asleep=self._outage.until == inf and not len(self.pool),
            closing=self._outage.closing,
            knobs=self._knobs,
        )

    def rows_under_way(self) -> int:
        """That wait or run, for whoever looks often."""
        again, runs = self._again.waiting, self._running.runs
        return self.queue.rows + sum([batch.rows for batch in again]) + sum([run.rows for run in runs.values()])

    def would_wait_s(self, ticket: Ticket, now: float) -> float:
        """How long it would wait for an instance if it came now, as predicted; 0 where nothing is known."""
        return self._admission.would_wait_s(ticket, self.queue, self._backlog(now), now)

    def load(self, now: float, zone: str = "") -> Load:
        """How a request of one row would find it, for the node that asks."""
        wait_s = self.would_wait_s(Ticket(0, now), now) + self.model.mean(1, self.batching.length)
        return Load(self.rows_under_way(), wait_s, zone)

    def stage(self) -> Stage:
        """How it batches, for a pipeline of which it is a stage."""
        model, batching = self.model, self.batching
        length = batching.length
        one, two = model.mean(1, length), model.mean(2, length)
        spread = model.p99(1, length) / one if one > 0.0 else 1.0
        return Stage(max(2.0 * one - two, 0.0), two - one, self._knobs.max_batch, max(len(self.pool), 1), spread)

    @property
    def capacity(self) -> float:
        """Rows per second of one instance with batches of the size that is aimed at."""
        batch_s = self.model.mean(self.batching.goal, self.batching.length)
        return self.batching.goal / batch_s if batch_s > 0.0 else 0.0

    # What happens

    def _arrived(self, event: Arrived, now: float, commands: list[Command]) -> None:
        queue, admission, limit = self.queue, self._admission, self._limit
        of_all = self._backlog(now)
        refused: dict[int, Refusal | None] = {}  # requests that came in parts: the first one decides for all
        for ticket in event.tickets:
            if ticket.part_of and ticket.follows:
                refusal = refused.get(ticket.part_of)
            else:
                backlog = of_all if not ticket.pinned else self._backlog_of(ticket, now)
                refusal = admission.admit(ticket, queue, backlog, now)
                if refusal is None and limit is not None:
                    refusal = limit.refuse(ticket, self._under_way())
                elif refusal is not None and refusal.reason == "queue_full":
                    refusal = self._displace(ticket, refusal, backlog, now, commands)
                if ticket.part_of:
                    refused[ticket.id] = refusal
                    self._in_parts = True
            if refusal is None:
                queue.push(ticket, now)
                if ticket.deadline_at < inf:
                    self._deadlines.add(ticket, queue)
                    if ticket.answer_by < inf:
                        self._promises.add(ticket)
            else:
                commands.append(Reject(ticket, refusal.failure, refusal.reason))
        if self.pool.several:
            self._again.budget.earn(len(event.tickets), now)

    def _cancelled(self, event: Cancelled, now: float, commands: list[Command]) -> None:
        ticket = self._withdraw(event.ticket_id)
        if ticket is not None:
            self._reject(ticket, CANCELLED, commands)

    def _batch_done(self, event: BatchDone, now: float, commands: list[Command]) -> None:
        ok = event.error is None
        run = self._running.end(event.batch_id, ok=ok)
        if run is None:  # its instance was declared lost before; the tickets have gone elsewhere
            return
        predicted_s = self.model.mean(run.rows, run.length) if self.pool.several else 0.0
        if run.instance in self.pool:  # else it was retired while it ran
            well = (
                ok or requests_fault(event.failure) or bool(run.pinned)
            )  # those of one sequence must not keep others from theirs
            service_s = event.service_s if run.first_s is None else run.first_s  # the rest is the time of whoever reads it
            self.pool.release(run.instance, service_s, predicted_s=predicted_s, ok=well, now=now)
            if event.load is not None and self.pool.told is not None:
                self.pool.told(run.instance, event.load, now)
        if run.first_s is not None:
            return
        if event.error is None:
            self._answer(event.batch_id, run, event.service_s, now, commands)
        elif tickets := self._again.still_wanted(run.tickets):
            failure = event.failure or Failure(FailureKind.MODEL_FAILED, event.error)
            self._reject_all(self._again.after_error(run, tickets, failure, self.pool, now), commands)

    def _first_part(self, event: FirstPart, now: float, commands: list[Command]) -> None:
        """For its tickets that is the answer; the batch goes on without any."""
        run = self._running.begin_to_answer(event.batch_id, event.service_s)
        if run is not None:
            self._answer(event.batch_id, run, event.service_s, now, commands)
            run.tickets = []

    def _answer(self, batch_id: int, run: Run, service_s: float, now: float, commands: list[Command]) -> None:
        self.batching.observe(run.rows, service_s, now, run.length)
        tickets = self._again.answered(run.tickets)
        if tickets:
            if self._limit is not None:
                self._size_limit()  # batches may have grown
                self._limit.observe(tickets, self._under_way(), now)
            if self._promised:
                for ticket in tickets:
                    self._promised.pop(ticket.id, None)
            commands.append(Complete(batch_id, tickets, "done" if run.first_s is None else "first_part"))

    def _instance_up(self, event: InstanceUp, now: float, commands: list[Command]) -> None:
        self.pool.add(event.instance, event.capacity, event.weight, now)
        self._outage.until = -inf
        self._size_limit()

    def _instance_lost(self, event: InstanceLost, now: float, commands: list[Command]) -> None:
        if event.instance in self.pool:  # else it was retired, and may have run a batch still
            self.pool.remove(event.instance)
            self._size_limit()
        self._refuse_pinned(event.instance, event.reason, commands)
        for run in self._running.lose(event.instance):
            tickets = self._again.still_wanted(run.tickets)
            self._reject_all(self._again.after_loss(run, tickets, event.reason, crashed=event.crashed), commands)
        self._outage.lost(event.instance, event.reason)
        self._handle_outage(now, commands)

    def _instance_retired(self, event: InstanceRetired, now: float, commands: list[Command]) -> None:
        if event.instance in self.pool:
            self.pool.remove(event.instance)
            self._size_limit()
            self._refuse_pinned(event.instance, event.reason or "it was retired", commands)
            self._outage.retired(event.reason)
            self._handle_outage(now, commands)

    def _instance_expected(self, event: InstanceExpected, now: float, commands: list[Command]) -> None:
        self._outage.until = event.until
        self._handle_outage(now, commands)

    def _closing(self, event: Closing, now: float, commands: list[Command]) -> None:
        self._outage.closing = event.reason
        self._rules[Arrived] = self._refuse_all

    def _refuse_all(self, event: Arrived, now: float, commands: list[Command]) -> None:
        """In place of `_arrived`, once the model goes."""
        refusal = self._outage.refusal()
        commands += [Reject(ticket, refusal.failure, refusal.reason) for ticket in event.tickets]

    def _timer_fired(self, event: TimerFired, now: float, commands: list[Command]) -> None:
        self._wake_at = inf
        for ticket in self._deadlines.expired(self.queue, now) + self._again.expired(now):
            self._reject(ticket, expired(ticket, now), commands)
        for ticket in self._promises.due(now):  # the model still runs these, but nobody waits for them any more
            if self._withdraw(ticket.id) is not None:
                self._reject(ticket, overran(ticket, now), commands)
        self._handle_outage(now, commands)

    def _turn_granted(self, event: TurnGranted, now: float, commands: list[Command]) -> None:
        self._turn.grant(event.instance)
        if not self._turn.arbitrated:  # the knobs have changed since it was wanted; nothing waits for turns any more
            commands.append(PassTurn("not_arbitrated"))

    def _knobs_changed(self, event: KnobsChanged, now: float, commands: list[Command]) -> None:
        before, knobs = self._knobs, event.knobs
        self._knobs = knobs
        self.batching.configure(knobs)
        self._admission.configure(knobs)
        self.pool.configure(knobs, now)
        if not same_order(before, knobs):
            self.queue = refill(self.queue, make_queue(knobs, self.model.mean, self.batching.line_s), now)
        if before.codel_target_s != knobs.codel_target_s:
            self._shedding.configure(knobs.codel_target_s)
        if before.adaptive_limit != knobs.adaptive_limit:
            self._limit = self._make_limit(knobs)
        self._size_limit()
        if before.arbitrated != knobs.arbitrated:
            self._turn.configure(arbitrated=knobs.arbitrated)
        self._reject_all(self._again.configure(knobs.retry_budget), commands)

    # What is to be done

    def _dispatch(self, now: float, commands: list[Command]) -> None:
        pool = self.pool
        passed = self._pins.passed
        while pool.ready:
            retry = self._again.runnable(pool) if self._again.waiting and "" not in passed else None
            take = None if retry is not None else self._decide(now, commands)
            if retry is None and take is None:
                return
            if pool.several and self._holds_back(retry, now, commands):
                if self.queue.pins is None:
                    return
                passed.add("")
                continue
            if self._turn.instance and self._turn.instance not in pool.ready:
                self._turn.use()
                commands.append(PassTurn("not_ready"))
            if not self._turn.mine:
                self._want_turn(now, commands)
                return
            reason: DispatchReason
            if take is None:
                assert retry is not None
                tickets, avoided, reason = self._again.take(retry, self._knobs.max_batch), retry.avoided, "retry"
                tickets, shed = unexpired(tickets, now)
                self._reject_all(shed, commands)
            else:
                alone = pool.several and pool.only_suspects and not self._pinned_head(now)
                rows = self._share(take.rows, now) if self._in_parts and len(pool.ready) > 1 else take.rows
                tickets, avoided = self.queue.pop(1 if alone else rows, now), ""
                reason = "probe" if alone else "turn" if self._turn.arbitrated else "idle"
                if self._knobs.max_padding and tickets[0].family and not alone:
                    tickets = self._padding.join(tickets, self.queue, now, most=self._knobs.max_padding)
                if self._deadlines.pending or self._shedding.codel is not None:
                    tickets, shed = self._shedding.sift(tickets, self.queue, self.model, now)
                    if shed:
                        self._reject_all(shed, commands)
            if tickets:
                self._start(tickets, reason, avoided, now, commands)

    def _decide(self, now: float, commands: list[Command]) -> Take | None:
        """What to take from the queue now; None if nothing is there, or a batch still waits to fill."""
        queue = self.queue
        if not queue.rows:
            return None
        if queue.pins is not None and queue.head(now) is None:
            return None
        decision = self.batching.decide(queue, now)
        if not isinstance(decision, Wait):
            return decision
        self._arm(decision.until, "fill", commands)
        head = None if queue.pins is None else queue.head(now)
        if head is None:
            return None
        self._pins.passed.add(head.pinned)  # others may have a batch that need not wait
        return self._decide(now, commands)

    def _pinned_head(self, now: float) -> bool:
        """The ticket to be served next has no choice of instances."""
        head = None if self.queue.pins is None else self.queue.head(now)
        return head is not None and bool(head.pinned)

    def _share(self, rows: int, now: float) -> int:
        """Parts of a request are made to run side by side: every idle instance gets as much of what waits."""
        queue, head = self.queue, self.queue.head(now)
        if head is None or not head.part_of or head.pinned:
            return rows
        waiting = queue.rows_like(head) if queue.uneven else queue.rows
        return min(rows, -(-waiting // len(self.pool.ready)))

    def _holds_back(self, retry: Batch | None, now: float, commands: list[Command]) -> bool:
        """Only slow instances are idle, and the oldest request gains by waiting for another than what `retry` avoids."""
        head, avoided = self.queue.head(now), "" if retry is None else retry.avoided
        if retry is None and head is not None and head.pinned:
            return False
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
        self._arm(until, "other_instance", commands)
        return True

    def _start(self, tickets: list[Ticket], reason: DispatchReason, avoided: str, now: float, commands: list[Command]) -> int:
        pinned = tickets[0].pinned
        instance = self.pool.take(now, affinity=tickets[0].affinity, avoided=avoided, pinned=pinned or self._turn.instance)
        rows, length = sum([ticket.rows for ticket in tickets]), longest(tickets)
        run = Run(instance, tickets, rows, length, len(tickets), now, pinned=pinned)
        number = self._running.add(run)
        if self._knobs.hedge and not pinned and reason in ("idle", "probe"):
            self._hedging.watch(run)
        if self._turn.arbitrated:
            self._turn.use()
        commands.append(Dispatch(number, instance, tickets, reason))
        return number

    def _hedge(self, now: float, commands: list[Command]) -> None:
        """A batch that is late runs again where an instance would idle."""
        for number, run in self._hedging.late(self.pool.ready, self._knobs.max_batch, now):
            self._running.pair(number, self._start(run.tickets, "hedge", run.instance, now, commands))
        self._arm(self._hedging.look_again_at, "hedge", commands)

    def _displace(self, ticket: Ticket, full: Refusal, backlog: Backlog, now: float, commands: list[Command]) -> Refusal | None:
        """A full queue has room for an urgent ticket if less urgent ones give way, and they do if nothing else refuses it."""
        displaced = self._admission.make_room(ticket, self.queue, now)
        if not displaced:
            return full
        refusal = self._admission.admit(ticket, self.queue, backlog, now)
        if refusal is None and self._limit is not None:
            refusal = self._limit.refuse(ticket, self._under_way())
        for other in displaced:
            if refusal is None:
                self._reject(other, DISPLACED, commands)
            else:
                self.queue.push(other, now)
        return refusal

    def _handle_outage(self, now: float, commands: list[Command]) -> None:
        """If no instance is up, requests wait for one that is being started, as long as it is expected."""
        if len(self.pool):
            return
        if self._outage.until > now:
            self._arm(self._outage.until, "instance_expected", commands)
            return
        waiting, refusal = self._again.drain(), self._outage.refusal()
        while self.queue.rows:
            waiting += self.queue.pop(self.queue.rows, now)
        for ticket in waiting:
            self._reject(ticket, refusal, commands)

    def _refuse_pinned(self, instance: str, reason: str, commands: list[Command]) -> None:
        """Those that wait for an instance that is gone."""
        if self.queue.pins is not None:
            for ticket in self.queue.pinned_to(instance):
                self.queue.remove(ticket.id)
                self._reject(ticket, state_gone(instance, reason), commands)

    def _withdraw(self, ticket_id: int) -> Ticket | None:
        """Nobody waits for this ticket any more, wherever it is; None if it was answered before."""
        waited = self.queue.remove(ticket_id) or self._again.remove(ticket_id)
        return waited or self._again.abandon(ticket_id, self._running.tickets)

    def _reject_all(self, shed: Sequence[tuple[Ticket, Refusal]], commands: list[Command]) -> None:
        for ticket, refusal in shed:
            self._reject(ticket, refusal, commands)

    def _reject(self, ticket: Ticket, refusal: Refusal, commands: list[Command]) -> None:
        self._again.finished((ticket,))
        self._promised.pop(ticket.id, None)
        commands.append(Reject(ticket, refusal.failure, refusal.reason))

    # Bookkeeping

    def _backlog(self, now: float) -> Backlog:
        return Backlog(
            batch_limit=self.batching.goal,
            instances=len(self.pool) or int(self._outage.until > now),
            idle=bool(self.pool.ready),
            busy_s=0.0 if self.pool.ready else self._running.next_end_s(self.model, now),
            share=self._padding.share if self._knobs.max_padding else 1.0,
        )

    def _backlog_of(self, ticket: Ticket, now: float) -> Backlog:
        """As a pinned ticket finds it; from the first one on the queue looks at who may start."""
        if self.queue.pins is None:
            self.queue.tell_apart(self._pins)
        ready = ticket.pinned in self.pool.ready
        return Backlog(
            batch_limit=self.batching.goal,
            instances=int(ticket.pinned in self.pool),
            idle=ready and not self.queue.rows_like(ticket),
            busy_s=0.0 if ready else self._running.next_end_s(self.model, now, ticket.pinned),
            share=self._padding.share if self._knobs.max_padding else 1.0,
        )

    def _want_turn(self, now: float, commands: list[Command]) -> None:
        """Tell the arbiter, unless it knows already."""
        again, head = self._again.waiting, self.queue.head(now)
        length, waiting = (1 if head is None else head.length), self.queue.rows
        if head is not None and self.queue.uneven:
            waiting = self.queue.rows_like(head)
        rows = min(waiting + sum([batch.rows for batch in again]), self.batching.limit)
        levels = [batch.level for batch in again]
        if head is not None:
            levels.append(level(head))
        want = self._turn.want(
            self.model.mean(rows, length), self._next_deadline(), min(levels), self.pool.ready if self._knobs.leased else ()
        )
        if want is not None:
            commands.append(want)

    def _under_way(self) -> int:
        """Requests that wait or run."""
        return len(self.queue) + self._running.requests + sum([len(batch.tickets) for batch in self._again.waiting])

    def _make_limit(self, knobs: LaneKnobs) -> AdaptiveLimit | None:
        return AdaptiveLimit(goal=knobs.max_batch, instances=1) if knobs.adaptive_limit else None

    def _size_limit(self) -> None:
        if self._limit is not None:
            self._limit.size(goal=self.batching.goal, instances=len(self.pool))

    def _next_deadline(self) -> float:
        """Of those that wait."""
        return min(self._deadlines.next_at(self.queue), self._again.next_deadline())

    def _arm(self, at: float, reason: WakeReason, commands: list[Command]) -> None:
        if at < self._wake_at:  # an earlier wake-up looks again anyway
            self._wake_at = at
            commands.append(WakeAt(at, reason))
