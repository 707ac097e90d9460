"""A plain model of what a lane should be doing: it follows events and commands, and says which rule a command breaks.

Used by machine.py. Knows the lane by its events, commands, public counters, and what its predictions and its queue's order are.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf

import msgspec

from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.ejection import MOST_OUT, Circuit
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Closing,
    Command,
    Complete,
    Dispatch,
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
    WantTurn,
)
from dlproxy.policy.hedging import HEDGE_SIGMAS
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.overload import SHED_TARGETS
from dlproxy.policy.pool import LATENCY_AWARE
from dlproxy.policy.queueing import DEFAULT_LEVEL, level
from dlproxy.policy.slowness import PAUSE_S, SLOW

FREE_SECOND_RUNS = 30  # the retry budget's floor, 3 a second over 10 s: until then no error goes without its retry
ROUNDING_S = 1e-9


class Where(Enum):
    """Where a ticket is, as far as an observer can tell."""

    QUEUED = auto()
    RUNS = auto()
    COMES_BACK = auto()  # what it ran in has ended: with an answer to be sent, or it waits for another run
    ANSWERED = auto()  # also if it runs on, after its client has gone


@dataclass
class Run:
    """A batch that runs. `hedge_at`: when it is late, if it may be hedged. `first_s`: when it began to answer in parts."""

    batch: Dispatch
    hedge_at: float = inf
    first_s: float | None = None

    @property
    def rows(self) -> int:
        return sum(ticket.rows for ticket in self.batch.tickets)


@dataclass
class Seen:
    """What was seen of an instance. `probe`: the batch that it got while half-open."""

    capacity: int
    in_flight: int = 0
    errors_in_a_row: int = 0
    last_factor: float = 1.0  # service time by predicted time of the latest batch
    slowness: float = 1.0
    probe: int | None = None


@dataclass
class Failed:
    """The last error that a ticket met: in a batch of so many, on this instance, before its one other try or after it."""

    size: int
    instance: str
    before: bool


@dataclass
class Observer:
    """`tell` passes an event on to the lane and checks the answer. Every broken rule is an AssertionError."""

    lane: Lane
    knobs: LaneKnobs
    now: float = 0.0
    wake_at: float = inf
    wanted: WantTurn | None = None  # as the lane believes
    at_arbiter: bool = False  # a want that no grant has answered yet
    tickets: dict[int, Ticket] = field(default_factory=dict)
    where: dict[int, Where] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    losses: dict[int, list[tuple[int, bool]]] = field(default_factory=dict)  # of each: the batch's size, whether it crashed
    expected_until: float = -inf  # until when an instance that is being started is waited for
    closing: str = ""
    failed: dict[int, Failed] = field(default_factory=dict)
    second_tries: set[int] = field(default_factory=set)  # had their one other try of the whole batch, or a hedge
    running: dict[int, Run] = field(default_factory=dict)
    instances: dict[str, Seen] = field(default_factory=dict)
    batches: int = 0
    ended_on: str = ""  # where the batch ran that ended last
    log: list[tuple[Event, float, bytes]] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        """Send an event, follow each command in the model, and check the rules that always hold."""
        lane = self.lane
        rows_before = lane.queue.rows
        expected = self.foresee(event)
        commands = lane.on(event, self.now)
        self.log.append((event, self.now, msgspec.msgpack.encode(commands)))
        completed: list[int] = []
        for command in commands:
            completed += self.follow(command, event)
        assert completed == expected, f"{event} should complete {expected}"
        if isinstance(event, TimerFired):
            broken = [number for number in self.unanswered() if self.tickets[number].answer_by <= self.now]
            assert not broken, f"{broken} were to be answered by now"
            late = [number for number in self.waiting() if self.tickets[number].deadline_at <= self.now]
            assert not late, f"{late} wait on although their deadline has passed"
        if isinstance(event, Arrived) and self.closing:
            taken = [ticket.id for ticket in event.tickets if self.where[ticket.id] is not Where.ANSWERED]
            assert not taken, f"{taken} are taken although the model goes"
        assert lane.queue.rows <= max(self.knobs.max_queue_rows, rows_before), "the queue is over its bound"
        self.check_turns(event, commands)
        self.check_counts()
        self.check_circuits(event, [command for command in commands if isinstance(command, Dispatch)])
        self.check_work_goes_on()
        self.check_wake_ups()

    # What an event does by itself

    def foresee(self, event: Event) -> list[int]:
        """Returns the tickets that it must complete."""
        if isinstance(event, TimerFired):
            self.wake_at = inf
        elif isinstance(event, Arrived):
            self.tickets.update({ticket.id: ticket for ticket in event.tickets})
            self.where.update({ticket.id: Where.QUEUED for ticket in event.tickets})
        elif isinstance(event, InstanceUp):
            self.instances[event.instance] = Seen(event.capacity)
            self.expected_until = -inf
        elif isinstance(event, InstanceExpected):
            self.expected_until = event.until
        elif isinstance(event, Closing):
            self.closing = event.reason
        elif isinstance(event, KnobsChanged):
            if event.knobs.arbitrated != self.knobs.arbitrated:
                self.wanted = None
            self.knobs = event.knobs
        elif isinstance(event, TurnGranted):
            self.wanted, self.at_arbiter = None, False
        elif isinstance(event, InstanceRetired):
            self.instances.pop(event.instance, None)
        elif isinstance(event, InstanceLost):
            self.instances.pop(event.instance, None)
            for batch_id in [number for number, run in self.running.items() if run.batch.instance == event.instance]:
                run = self.running.pop(batch_id)
                for number in self.come_back(run):
                    self.losses.setdefault(number, []).append((len(run.batch.tickets), event.crashed))
        elif isinstance(event, BatchDone) and event.batch_id in self.running:
            return self.batch_ends(self.running.pop(event.batch_id), event)
        elif isinstance(event, FirstPart) and event.batch_id in self.running:
            run = self.running[event.batch_id]
            run.first_s, run.hedge_at = event.service_s, inf
            return self.answered_by(run)
        return []

    def names_in_use(self) -> set[str]:
        """Those that are up, and those that were retired and still run a batch."""
        return {*self.instances, *(run.batch.instance for run in self.running.values())}

    def batch_ends(self, run: Run, event: BatchDone) -> list[int]:
        self.ended_on = run.batch.instance
        seen = self.instances.get(self.ended_on, Seen(1))  # it may have been retired meanwhile
        seen.in_flight -= 1
        if len(self.instances) > 1:
            seen.errors_in_a_row = 0 if event.error is None else seen.errors_in_a_row + 1
            if event.error is None:
                predicted_s = self.lane.model.mean(run.rows)
                service_s = event.service_s if run.first_s is None else run.first_s
                factor = service_s / predicted_s
                seen.slowness = factor if service_s - predicted_s > PAUSE_S else min(seen.last_factor, factor)
                seen.last_factor = factor
        if event.error is not None:
            for number in self.come_back(run):
                self.failed[number] = Failed(len(run.batch.tickets), self.ended_on, number not in self.second_tries)
            return []
        return self.answered_by(run)

    def answered_by(self, run: Run) -> list[int]:
        wanted = [ticket.id for ticket in run.batch.tickets if self.where[ticket.id] is Where.RUNS]
        self.where.update(dict.fromkeys(wanted, Where.COMES_BACK))
        return wanted

    def come_back(self, run: Run) -> list[int]:
        """It runs no longer. Returns those of its tickets that somebody waits for and that run nowhere else."""
        elsewhere = {ticket.id for other in self.running.values() for ticket in other.batch.tickets}
        numbers = [ticket.id for ticket in run.batch.tickets]
        back = [number for number in numbers if self.where[number] is Where.RUNS and number not in elsewhere]
        self.where.update(dict.fromkeys(back, Where.COMES_BACK))
        return back

    # What a command does

    def follow(self, command: Command, event: Event) -> list[int]:
        """Check one command and carry it out in the model. Returns the tickets that it completes."""
        if isinstance(command, WakeAt):
            assert command.at >= self.now, "a wake-up in the past"
            self.wake_at = command.at
        elif isinstance(command, Dispatch):
            self.follow_dispatch(command)
        elif isinstance(command, Reject):
            self.follow_reject(command, event)
        elif isinstance(command, Complete):
            return self.follow_complete(command, event)
        elif isinstance(command, WantTurn):
            before = self.wanted
            urgent = before is None or command.deadline_at < before.deadline_at or command.priority < before.priority
            other = before is not None and command.instances != before.instances
            assert urgent or other, "it wants what the arbiter knows already"
            self.wanted, self.at_arbiter = command, True
        return []

    def follow_complete(self, command: Complete, event: Event) -> list[int]:
        assert isinstance(event, BatchDone | FirstPart)
        assert command.batch_id == event.batch_id
        completed = [ticket.id for ticket in command.tickets]
        for number in completed:
            assert self.where[number] is Where.COMES_BACK, f"{number} is completed, but is {self.where[number]}"
            self.where[number] = Where.ANSWERED
        return completed

    def follow_dispatch(self, batch: Dispatch) -> None:
        self.batches += 1
        assert batch.batch_id == self.batches, "batches are numbered from 1"
        assert batch.tickets, "an empty batch"
        assert batch.instance in self.instances, f"{batch.instance} is not up"
        seen = self.instances[batch.instance]
        seen.in_flight += 1
        assert seen.in_flight <= seen.capacity, f"{batch.instance} is over its capacity"
        run = Run(batch)
        assert run.rows <= self.knobs.max_batch or len(batch.tickets) == 1, f"{run.rows} rows in a batch"
        assert len({ticket.shape_key for ticket in batch.tickets}) == 1, "shapes are mixed"
        numbers = [ticket.id for ticket in batch.tickets]
        {"retry": self.check_retry, "hedge": self.check_hedge}.get(batch.reason, self.check_first_run)(batch, numbers)
        for ticket in batch.tickets:
            assert ticket is self.tickets[ticket.id]
            assert ticket.deadline_at > self.now, f"{ticket.id} is dispatched past its deadline"
            self.runs[ticket.id] = self.runs.get(ticket.id, 0) + 1
            self.where[ticket.id] = Where.RUNS
            assert self.runs[ticket.id] == 1 or self.knobs.retry_budget, f"{ticket.id} runs again, which nothing may"
        if self.knobs.hedge and batch.reason in ("idle", "probe"):
            run.hedge_at = self.now + self.lane.model.quantile(run.rows, HEDGE_SIGMAS)
        self.running[batch.batch_id] = run

    def check_first_run(self, batch: Dispatch, numbers: list[int]) -> None:
        for number in numbers:
            assert self.where[number] is Where.QUEUED, f"{number} is dispatched, but is {self.where[number]}"

    def check_retry(self, batch: Dispatch, numbers: list[int]) -> None:
        """One more try of the whole batch, as many as it takes of smaller and smaller parts after errors, one alone after
        two crashes.
        """
        for number in numbers:
            assert self.where[number] is Where.COMES_BACK, f"{number} is retried, but is {self.where[number]}"
            failed = self.failed.pop(number, None)
            if failed is None and self.crashes(number) == 2 and self.losses[number][-1][0] > 1:
                assert len(numbers) == 1, f"{number} is run in company after two crashes"
            elif failed is None or len(numbers) >= failed.size:
                assert number not in self.second_tries, f"a third run of {number}"
                self.second_tries.add(number)

    def check_hedge(self, batch: Dispatch, numbers: list[int]) -> None:
        assert self.knobs.hedge, "a hedge, although that is off"
        assert not self.knobs.arbitrated, "a hedge out of turn"
        others = [run for run in self.running.values() if {ticket.id for ticket in run.batch.tickets} & set(numbers)]
        assert len(others) == 1, "a hedge of what does not run, or runs twice already"
        first = others[0]
        assert first.batch.instance != batch.instance, "a hedge on the same instance"
        assert first.hedge_at <= self.now, "a hedge of what is not late"
        assert numbers == [ticket.id for ticket in first.batch.tickets if self.where[ticket.id] is Where.RUNS]
        first.hedge_at = inf
        assert not self.second_tries.intersection(numbers), "a third run"
        self.second_tries.update(numbers)

    # Rejects

    def follow_reject(self, command: Reject, event: Event) -> None:
        ticket, kind = command.ticket, command.failure.kind
        was = self.where[ticket.id]
        assert was is not Where.ANSWERED, f"{ticket.id} is rejected, but is {was}"
        may_run_on = kind in (FailureKind.CANCELLED, FailureKind.LATE)
        assert was is not Where.RUNS or may_run_on, f"{ticket.id} is rejected as {kind} while it runs"
        assert command.failure.message
        if kind is FailureKind.CANCELLED:
            assert isinstance(event, Cancelled)
            assert event.ticket_id == ticket.id
        elif kind is FailureKind.MODEL_FAILED:
            self.check_model_failed(command, event)
        elif kind is FailureKind.UNAVAILABLE:
            self.check_unavailable(command, event)
        elif kind is FailureKind.QUEUE_FULL:
            self.check_queue_full(ticket, command.failure.message, event)
        elif kind is FailureKind.OVERLOADED:
            self.check_overloaded(ticket, event)
        elif kind is FailureKind.LATE:
            assert ticket.answer_by <= self.now, "its client still waits"
        else:
            assert kind is FailureKind.DEADLINE
            assert ticket.answer_by > self.now, "its client waits no longer, which is another kind"
            assert ticket.deadline_at < inf
            assert was is Where.QUEUED or ticket.deadline_at <= self.now, "a prediction is no reason to drop a retry"
        self.where[ticket.id] = Where.ANSWERED

    def check_model_failed(self, command: Reject, event: Event) -> None:
        ticket = command.ticket
        assert self.where[ticket.id] is Where.COMES_BACK
        if isinstance(event, InstanceLost):
            assert command.reason == "to_blame"
            assert self.crashes(ticket.id) >= 2, f"{ticket.id} is blamed for one crash"
            assert self.losses[ticket.id][-1] == (1, True), "it may have been another one's fault"
            return
        assert isinstance(event, BatchDone)
        failed = self.failed[ticket.id]
        assert event.error is not None
        assert command.failure.message.endswith(event.error)
        assert (command.failure.message == event.error) == (failed.size == 1), "it may have been another one's fault"
        assert failed.size == 1 or not self.knobs.retry_budget or not self.instances, "it may have been another one's fault"
        retried = self.knobs.retry_budget and self.runs[ticket.id] == 1 and len(self.second_tries) < FREE_SECOND_RUNS
        assert not (retried and self.trusted(failed.instance)), f"{ticket.id} fails without a second try"

    def check_unavailable(self, command: Reject, event: Event) -> None:
        ticket = command.ticket
        if self.closing and (isinstance(event, Arrived) or self.where[ticket.id] is Where.QUEUED):
            assert command.failure.message == self.closing
        elif not self.instances and not self.outage_is_borne():
            ends_it = InstanceLost | InstanceRetired | InstanceExpected | TimerFired | KnobsChanged | Arrived
            assert isinstance(event, ends_it)
        elif isinstance(event, InstanceLost):
            assert self.where[ticket.id] is Where.COMES_BACK
            size, _ = self.losses[ticket.id][-1]
            twice = self.runs[ticket.id] > 1 and (self.crashes(ticket.id) < 2 or size == 1)
            assert twice or not self.knobs.retry_budget, f"{ticket.id} fails without another try"
        else:
            assert isinstance(event, KnobsChanged)
            assert self.where[ticket.id] is Where.COMES_BACK
            assert not self.knobs.retry_budget

    def check_queue_full(self, ticket: Ticket, message: str, event: Event) -> None:
        assert isinstance(event, Arrived)
        if "displaced" in message:
            taken = [other for other in event.tickets if self.where[other.id] is Where.QUEUED]
            assert any(level(other) < level(ticket) for other in taken), f"{ticket.id} gave way to nobody"
        else:
            assert ticket in event.tickets

    def check_overloaded(self, ticket: Ticket, event: Event) -> None:
        if isinstance(event, Arrived) and ticket in event.tickets:
            assert self.knobs.adaptive_limit
            assert ticket.deadline_at == inf, "the limit is for those without a deadline"
            return
        assert self.where[ticket.id] is Where.QUEUED
        assert self.knobs.codel_target_s, "CoDel is off"
        assert self.now - ticket.arrived_at > SHED_TARGETS * self.knobs.codel_target_s, "it has not stood for long"
        assert level(ticket) >= DEFAULT_LEVEL, "urgent tickets are spared"

    # Rules that hold after every event

    def check_turns(self, event: Event, commands: list[Command]) -> None:
        starts = sum(isinstance(command, Dispatch) for command in commands)
        passes = sum(isinstance(command, PassTurn) for command in commands)
        arbitrated = self.knobs.arbitrated
        if isinstance(event, TurnGranted):
            on = {command.instance for command in commands if isinstance(command, Dispatch)}
            assert not event.instance or on <= {event.instance}, f"a turn on {event.instance} starts a batch on {on}"
            used = passes + starts if arbitrated else passes
            assert used == 1, f"a turn led to {starts} batches and was passed on {passes} times"
        else:
            assert not passes, "passes on a turn that it does not have"
            assert not (starts and arbitrated), "starts a batch out of turn"
        wants = [command for command in commands if isinstance(command, WantTurn)]
        if wants:
            assert arbitrated
            assert wants[-1].deadline_at == self.next_deadline(), "it wants a turn for somebody else"
            assert wants[-1].cost_s > 0.0

    def check_counts(self) -> None:
        view, queued = self.lane.view(), self.among(Where.QUEUED)
        assert view.running_batches == len(self.running), f"{view.running_batches} batches run, not {len(self.running)}"
        states = {state.name: state for state in view.instances}
        assert set(states) == set(self.instances)
        for name, seen in self.instances.items():
            assert states[name].in_flight == seen.in_flight, f"{name} runs {seen.in_flight} batches"
            assert states[name].capacity == seen.capacity, f"{name} has a capacity of {seen.capacity}"
        assert view.queued_requests == len(queued), f"{view.queued_requests} are queued, not {queued}"
        assert view.queued_rows == sum(self.tickets[number].rows for number in queued)

    def check_circuits(self, event: Event, dispatched: Iterable[Dispatch]) -> None:
        circuits = self.circuits()
        for batch in dispatched:
            assert circuits[batch.instance] is not Circuit.OPEN, f"{batch.instance} is ejected, but gets a batch"
            seen = self.instances[batch.instance]
            if circuits[batch.instance] is Circuit.HALF_OPEN:
                assert seen.probe not in self.running, f"{batch.instance} is half-open, but gets a second batch"
                seen.probe = batch.batch_id
        for name, circuit in circuits.items():
            if circuit is not Circuit.HALF_OPEN:
                self.instances[name].probe = None
        out = [name for name, circuit in circuits.items() if circuit is not Circuit.CLOSED]
        most = int(MOST_OUT * len(circuits)) if self.knobs.eject_after else 0
        assert len(out) <= most, f"{out} are out"
        if isinstance(event, BatchDone) and event.error is not None and len(out) < most and self.ended_on in self.instances:
            in_a_row = self.instances[self.ended_on].errors_in_a_row
            assert in_a_row < self.knobs.eject_after or self.ended_on in out, f"{self.ended_on} is not ejected"

    def check_work_goes_on(self) -> None:
        """Nothing waits while an instance is ready, unless one of four reasons explains it."""
        ready, waiting = self.ready(), self.waiting()
        assert set(self.lane.pool.ready) == ready, f"{set(self.lane.pool.ready)} are ready, not {ready}"
        borne = self.wake_at <= self.expected_until  # or its end is late
        assert self.instances or not waiting or borne, f"{waiting} wait for nobody"
        if not ready or not waiting or (self.knobs.arbitrated and self.wanted is not None) or self.holds_back(ready):
            return
        for number in self.among(Where.COMES_BACK):
            failed = self.failed.get(number)
            avoids = failed is not None and failed.before and ready == {failed.instance} and self.trusted(failed.instance)
            assert avoids, f"{number} waits for its second run while an instance idles"
        head = self.lane.queue.head(self.now)
        if head is not None:
            assert self.knobs.max_wait_s > 0.0, f"{waiting} wait while an instance idles"
            assert self.wake_at <= head.arrived_at + self.knobs.max_wait_s, "nothing ends the wait for a full batch"

    def holds_back(self, ready: Collection[str]) -> bool:
        """Only slow instances are ready, a better one is busy, and the oldest request has not waited for too long."""
        slowest = min(self.instances[name].slowness for name in ready)
        if slowest <= SLOW or self.knobs.balancer not in LATENCY_AWARE:
            return False
        if not any(name not in ready and self.available(name) for name in self.instances):
            return False
        head = self.lane.queue.head(self.now)
        oldest = [self.tickets[number] for number in self.among(Where.COMES_BACK)] + ([] if head is None else [head])
        until = min(ticket.arrived_at for ticket in oldest) + slowest * self.lane.model.mean(self.lane.batching.limit)
        return self.wake_at <= until + ROUNDING_S

    def check_wake_ups(self) -> None:
        deadline_at = self.next_deadline()
        assert deadline_at == inf or self.wake_at <= max(deadline_at, self.now), f"no wake-up for {deadline_at}"
        promised_at = min((self.tickets[number].answer_by for number in self.unanswered()), default=inf)
        assert promised_at == inf or self.wake_at <= max(promised_at, self.now), f"no wake-up for the promise of {promised_at}"
        if not self.instances and self.outage_is_borne():
            assert self.wake_at <= self.expected_until, "no wake-up for the end of the outage"
        ready = self.ready()
        if self.waiting() and Circuit.OPEN in self.circuits().values():
            assert self.wake_at <= max(self.lane.pool.probe_at, self.now), "no wake-up for a probe"
        for run in self.running.values():
            if (
                self.knobs.hedge
                and not self.knobs.arbitrated
                and self.now < run.hedge_at < inf
                and ready - {run.batch.instance}
                and len(self.instances) > 1
            ):
                assert self.wake_at <= run.hedge_at, "no wake-up for a hedge"

    # Who is where

    def among(self, where: Where) -> list[int]:
        return [number for number, is_where in self.where.items() if is_where is where]

    def waiting(self) -> list[int]:
        return [number for number, where in self.where.items() if where in (Where.QUEUED, Where.COMES_BACK)]

    def unanswered(self) -> list[int]:
        return [number for number, where in self.where.items() if where is not Where.ANSWERED]

    def crashes(self, number: int) -> int:
        """Instances that crashed while they ran this ticket."""
        return sum(crashed for _, crashed in self.losses.get(number, ()))

    def outage_is_borne(self) -> bool:
        """No instance is up, but one is on its way, and not for too long yet."""
        return self.expected_until > self.now

    def next_deadline(self) -> float:
        return min((self.tickets[number].deadline_at for number in self.waiting()), default=inf)

    def circuits(self) -> dict[str, Circuit]:
        return {state.name: state.circuit for state in self.lane.view().instances}

    def available(self, name: str) -> bool:
        """It is trusted with a batch, or with one as a probe, if it has room."""
        circuit = self.circuits()[name]
        probes = self.instances[name].probe in self.running
        return circuit is Circuit.CLOSED or (circuit is Circuit.HALF_OPEN and not probes)

    def trusted(self, other_than: str) -> list[str]:
        return [name for name in self.instances if name != other_than and self.available(name)]

    def ready(self) -> set[str]:
        return {name for name, seen in self.instances.items() if seen.in_flight < seen.capacity and self.available(name)}
