"""A state machine that throws everything at a lane and checks each answer against a plain model of what is where.

Used by test_invariants.py, on the real lane and on lanes with a seeded bug. Knows the lane by its events, commands and
public counters only.
"""

from enum import Enum, auto
from math import inf

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dlproxy.message import FailureKind, Ticket
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
from dlproxy.policy.lane import Lane

from .fixtures import LINE, knobs, remembered

NAMES = "abc"
MAX_TICKET_ROWS = 4  # no more than any queue bound below, so that the bound is strict
KNOBS = [
    knobs(),
    knobs(max_batch=8),
    knobs(max_batch=2),
    knobs(max_batch=1, max_queue_rows=4),
    knobs(max_batch=8, max_queue_rows=6, slo_s=0.040),
    knobs(max_batch=4, max_wait_s=0.020),
    knobs(max_batch=8, max_wait_s=0.005, slo_s=0.100),
]
# (rows, shape, seconds to the deadline), the plainest first
TICKETS = [
    (rows, shape, left_s) for left_s in (inf, 0.040, 0.015, 0.0) for shape in ((), (9,)) for rows in (1, 2, MAX_TICKET_ROWS)
]
ARRIVALS = st.lists(st.sampled_from(TICKETS), min_size=1, max_size=6)
STEPS_S = st.sampled_from([0.001, 0.010, 0.016, 0.100, 12.0])
PICK = st.integers(0, 11)  # taken modulo how many there are
NONE_TO_STEP = st.sampled_from([0.0, 0.0, 0.003, 0.020])


class Where(Enum):
    """Where a ticket is, as far as an observer can tell."""

    QUEUED = auto()
    RUNS = auto()
    AWAITS_RETRY = auto()
    ABANDONED = auto()  # runs, but its client has gone and has been told
    ANSWERED = auto()


class LaneMachine(RuleBasedStateMachine):
    """Each rule is an event; `tell` checks what the lane makes of it."""

    lane_class: type[Lane] = Lane

    def __init__(self) -> None:
        super().__init__()
        self.sound = False
        self.now = 0.0
        self.wake_at = inf
        self.tickets: dict[int, Ticket] = {}
        self.where: dict[int, Where] = {}
        self.losses: dict[int, int] = {}
        self.running: dict[int, Dispatch] = {}
        self.batches = 0
        self.capacity: dict[str, int] = {}
        self.busy: dict[str, int] = {}

    @initialize(chosen=st.sampled_from(KNOBS), capacity=st.integers(1, 2))
    def start(self, chosen: LaneKnobs, capacity: int) -> None:
        self.knobs = chosen
        self.lane = self.lane_class(chosen, LINE)
        self.bring_up("a", capacity)

    # Events

    @rule(arrivals=ARRIVALS)
    def arrive(self, arrivals: list[tuple[int, tuple[int, ...], float]]) -> None:
        new = []
        for rows, shape, left_s in arrivals:
            ticket = Ticket(len(self.tickets), self.now, self.now + left_s, rows, shape_key=shape)
            self.tickets[ticket.id] = ticket
            self.where[ticket.id] = Where.QUEUED
            new.append(ticket)
        self.tell(Arrived(new))

    @rule(pick=st.integers(0, 40))
    def cancel_anyone(self, pick: int) -> None:
        self.tell(Cancelled(pick))  # waiting, running, answered, or never seen

    @precondition(lambda self: self.unanswered())
    @rule(pick=PICK)
    def cancel_unanswered(self, pick: int) -> None:
        unanswered = self.unanswered()
        self.tell(Cancelled(unanswered[pick % len(unanswered)]))

    @precondition(lambda self: self.running)
    @rule(pick=PICK, step_s=NONE_TO_STEP, slowness=st.sampled_from([1.0, 0.3, 4.0]))
    def finish(self, pick: int, step_s: float, slowness: float) -> None:
        self.now += step_s
        self.end_batch(pick, slowness=slowness)

    @precondition(lambda self: self.running)
    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        self.end_batch(pick, error="the model raised ValueError")

    @rule(pick=PICK)
    def finish_what_does_not_run(self, pick: int) -> None:
        if pick not in self.running:
            self.tell(BatchDone(pick, 0.010))

    @precondition(lambda self: len(self.capacity) < len(NAMES))
    @rule(pick=PICK, capacity=st.integers(1, 2))
    def instance_comes_up(self, pick: int, capacity: int) -> None:
        down = [name for name in NAMES if name not in self.capacity]
        self.bring_up(down[pick % len(down)], capacity)

    @precondition(lambda self: self.capacity)
    @rule(name=st.sampled_from(NAMES))
    def instance_is_lost(self, name: str) -> None:
        self.tell(InstanceLost(name, "killed"))  # which may be down already

    @rule(chosen=st.sampled_from(KNOBS))
    def knobs_change(self, chosen: LaneKnobs) -> None:
        self.knobs = chosen
        self.tell(KnobsChanged(chosen))

    @precondition(lambda self: self.wake_at < inf)
    @rule()
    def timer_fires_on_time(self) -> None:
        self.now = max(self.now, self.wake_at)
        self.tell(TimerFired())

    @rule()
    def timer_fires_any_time(self) -> None:
        self.tell(TimerFired())

    @rule(step_s=STEPS_S)
    def time_passes(self, step_s: float) -> None:
        self.now += step_s  # also past a wake-up, which then is late

    def teardown(self) -> None:
        """Let everything finish: every ticket has had its one answer, and the lane remembers nothing."""
        if not self.sound:  # a step has failed already, which is the failure to report
            return
        for _ in range(400):
            if self.running:
                self.end_batch(0)
            elif self.wake_at < inf:
                self.now = max(self.now, self.wake_at)
                self.tell(TimerFired())
            else:
                break
        left = {ticket_id: where for ticket_id, where in self.where.items() if where is not Where.ANSWERED}
        assert not left, f"never answered: {left}"
        assert remembered(self.lane) == 0

    # What follows

    def unanswered(self) -> list[int]:
        return [number for number, where in self.where.items() if where not in (Where.ANSWERED, Where.ABANDONED)]

    def waiting(self) -> list[int]:
        return [number for number, where in self.where.items() if where in (Where.QUEUED, Where.AWAITS_RETRY)]

    def bring_up(self, name: str, capacity: int) -> None:
        self.capacity[name] = capacity
        self.busy[name] = 0
        self.tell(InstanceUp(name, capacity))

    def end_batch(self, pick: int, *, slowness: float = 1.0, error: str | None = None) -> None:
        batch_id = list(self.running)[pick % len(self.running)]
        rows = sum(ticket.rows for ticket in self.running[batch_id].tickets)
        self.tell(BatchDone(batch_id, slowness * (0.010 + 0.001 * rows), error))

    def tell(self, event: Event) -> None:
        """Send an event, follow each command in the model, and check the rules that always hold."""
        self.sound = False
        rows_before = self.lane.queue.rows
        expected = self.foresee(event)
        if isinstance(event, TimerFired):
            self.wake_at = inf
        completed: list[int] = []
        for command in self.lane.on(event, self.now):
            completed += self.follow(command, event)
        assert completed == expected, f"{event} should complete {expected}"
        if isinstance(event, TimerFired):
            late = [number for number in self.waiting() if self.tickets[number].deadline_at <= self.now]
            assert not late, f"{late} wait on although their deadline has passed"
        self.check(rows_before)
        self.sound = True

    def foresee(self, event: Event) -> list[int]:
        """What an event does by itself to the model. Returns the tickets that it must complete."""
        if isinstance(event, BatchDone) and event.batch_id in self.running:
            batch = self.running.pop(event.batch_id)
            self.busy[batch.instance] -= 1
            wanted = self.come_back(batch)
            return wanted if event.error is None else []
        if isinstance(event, InstanceLost) and event.instance in self.capacity:
            del self.capacity[event.instance], self.busy[event.instance]
            for batch_id in [number for number, batch in self.running.items() if batch.instance == event.instance]:
                for ticket_id in self.come_back(self.running.pop(batch_id)):
                    self.losses[ticket_id] = self.losses.get(ticket_id, 0) + 1
        return []

    def come_back(self, batch: Dispatch) -> list[int]:
        """The batch runs no longer: its abandoned tickets are done with, the others wait for what the lane says."""
        wanted = [ticket.id for ticket in batch.tickets if self.where[ticket.id] is not Where.ABANDONED]
        self.where.update({ticket.id: Where.ANSWERED for ticket in batch.tickets})
        self.where.update(dict.fromkeys(wanted, Where.AWAITS_RETRY))
        return wanted

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
            assert isinstance(event, BatchDone)
            assert command.batch_id == event.batch_id
            completed = [ticket.id for ticket in command.tickets]
            for ticket_id in completed:
                assert self.where[ticket_id] is Where.AWAITS_RETRY, f"{ticket_id} is completed, but is {self.where[ticket_id]}"
                self.where[ticket_id] = Where.ANSWERED
            return completed
        return []

    def follow_dispatch(self, batch: Dispatch) -> None:
        self.batches += 1
        assert batch.batch_id == self.batches, "batches are numbered from 1"
        assert batch.tickets, "an empty batch"
        assert batch.instance in self.capacity, f"{batch.instance} is not up"
        self.busy[batch.instance] += 1
        assert self.busy[batch.instance] <= self.capacity[batch.instance], f"{batch.instance} is over its capacity"
        rows = sum(ticket.rows for ticket in batch.tickets)
        assert rows <= self.knobs.max_batch or len(batch.tickets) == 1, f"{rows} rows in a batch of {self.knobs.max_batch}"
        assert len({ticket.shape_key for ticket in batch.tickets}) == 1, "shapes are mixed"
        for ticket in batch.tickets:
            assert self.where[ticket.id] in (Where.QUEUED, Where.AWAITS_RETRY), f"{ticket.id} is {self.where[ticket.id]}"
            assert ticket is self.tickets[ticket.id]
            assert ticket.deadline_at > self.now, f"{ticket.id} is dispatched past its deadline"
            self.where[ticket.id] = Where.RUNS
        self.running[batch.batch_id] = batch

    def follow_reject(self, command: Reject, event: Event) -> None:
        ticket, kind = command.ticket, command.failure.kind
        was = self.where[ticket.id]
        assert was not in (Where.ANSWERED, Where.ABANDONED), f"{ticket.id} is rejected, but is {was}"
        assert was is not Where.RUNS or kind is FailureKind.CANCELLED, f"{ticket.id} is rejected as {kind} while it runs"
        self.where[ticket.id] = Where.ABANDONED if was is Where.RUNS else Where.ANSWERED
        assert command.failure.message
        if kind is FailureKind.CANCELLED:
            assert isinstance(event, Cancelled)
            assert event.ticket_id == ticket.id
        elif kind is FailureKind.MODEL_FAILED:
            assert isinstance(event, BatchDone)
            assert event.error == command.failure.message
        elif kind is FailureKind.UNAVAILABLE:
            assert not self.capacity or self.losses.get(ticket.id, 0) == 2
        elif kind is FailureKind.QUEUE_FULL:
            assert isinstance(event, Arrived)
        else:
            assert kind is FailureKind.DEADLINE
            assert ticket.deadline_at < inf
            assert was is Where.QUEUED or ticket.deadline_at <= self.now, "a prediction is no reason to drop a retry"

    def check(self, rows_before: int) -> None:
        """The rules that hold after every event."""
        waiting = self.waiting()
        queued = [self.tickets[number] for number in waiting if self.where[number] is Where.QUEUED]
        assert self.lane.in_flight == len(self.running), f"in_flight is {self.lane.in_flight}, not {len(self.running)}"
        assert self.lane.instances == len(self.capacity)
        assert len(self.lane.queue) == len(queued)
        assert self.lane.queue.rows == sum(ticket.rows for ticket in queued)
        assert self.lane.queue.rows <= max(self.knobs.max_queue_rows, rows_before), "the queue is over its bound"
        assert all(self.losses.get(number, 0) <= 1 for number in waiting), "a third try"
        if not self.capacity:
            assert not waiting, f"{waiting} wait for nobody"
        elif waiting and any(self.busy[name] < self.capacity[name] for name in self.capacity):
            assert self.knobs.max_wait_s > 0.0, f"{waiting} wait while an instance idles"
            assert len(queued) == len(waiting), "a retry waits while an instance idles"
            assert self.wake_at <= queued[0].arrived_at + self.knobs.max_wait_s, "nothing ends the wait for a full batch"
        deadline_at = min((self.tickets[number].deadline_at for number in waiting), default=inf)
        assert deadline_at == inf or self.wake_at <= max(deadline_at, self.now), f"no wake-up for {deadline_at}"
