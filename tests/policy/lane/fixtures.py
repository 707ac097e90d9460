"""What the lane's tests share: a lane told events at given times, its commands written as short lines."""

from collections.abc import Sequence
from math import inf
from typing import Any, TypeVar

import msgspec

from dlproxy.message import Failure, FailureKind, Ticket
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
    InstanceUp,
    KnobsChanged,
    PassTurn,
    Reject,
    TimerFired,
    TurnGranted,
    WantTurn,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

# An exact line, so that p99(b) = L(b) = 10 ms + 1 ms per row
LINE = [(rows, 0.010 + 0.001 * rows) for rows in (1, 2, 4, 8)]
PLAIN = LaneKnobs(max_batch=4, max_queue_rows=100)
L = TypeVar("L", bound=Lane)


def knobs(**changes: Any) -> LaneKnobs:
    """Batches of 4 and 100 rows in the queue, unless changed; else the defaults."""
    return msgspec.structs.replace(PLAIN, **changes)


def warmed(lane: L) -> L:
    """The lane after batches of 1, 2, 4 ... 64 rows that ran just as it expects: its limit is no longer that of the start."""
    for rows in (1, 2, 4, 8, 16, 32, 64):
        if (seconds := lane.model.mean(rows)) <= lane.batching.budget_s():
            lane.batching.observe(rows, seconds, 0.0)
    return lane


def write(command: Command) -> str:
    """One line per command, as `run #1 on a: 1 2` or `want a turn: 14 ms, due 0.05, level 4`."""
    if isinstance(command, Dispatch):
        return f"run #{command.batch_id} on {command.instance}: {_ids(command.tickets)}"
    if isinstance(command, Complete):
        return f"done #{command.batch_id}: {_ids(command.tickets)}"
    if isinstance(command, Reject):
        return f"reject {command.ticket.id}: {command.failure.kind.value}"
    if isinstance(command, WantTurn):
        return f"want a turn: {command.cost_s * 1e3:.6g} ms, due {command.deadline_at:.6g}, level {command.priority}"
    return "pass" if isinstance(command, PassTurn) else f"wake at {command.at:.6g}"


def _ids(tickets: Sequence[Ticket]) -> str:
    return " ".join(str(ticket.id) for ticket in tickets)


class Script:
    """A lane with instance `a` up (or those given), each event a method that returns the commands as lines."""

    def __init__(
        self,
        *,
        instances: str = "a",
        capacity: int = 1,
        lane_knobs: LaneKnobs | None = None,
        prior: Sequence[tuple[int, float]] = LINE,
    ) -> None:
        self.lane = warmed(Lane(lane_knobs or knobs(), prior))
        self.commands: list[Command] = []
        self._now = 0.0
        for instance in instances:
            self.up(instance, capacity=capacity)

    def tell(self, event: Event, at: float | None = None) -> list[str]:
        self._now = self._now if at is None else at
        self.commands = self.lane.on(event, self._now)
        return [write(command) for command in self.commands]

    def arrive(self, *ids: int, at: float | None = None, left_s: float = inf, **rest: Any) -> list[str]:
        """Tickets with these ids; `rest`: other fields of Ticket, `shape` for short."""
        now = self._now if at is None else at
        shape = rest.pop("shape", ())
        return self.tell(Arrived([Ticket(number, now, now + left_s, shape_key=shape, **rest) for number in ids]), now)

    def done(self, batch_id: int, at: float | None = None, *, service_s: float = 0.011) -> list[str]:
        return self.tell(BatchDone(batch_id, service_s), at)

    def fail(self, batch_id: int, at: float | None = None, kind: FailureKind | None = None) -> list[str]:
        """The model's own failure, or one that another server classed as `kind`."""
        error = "the model raised ValueError"
        return self.tell(BatchDone(batch_id, 0.011, error, None if kind is None else Failure(kind, error)), at)

    def cancel(self, ticket_id: int, at: float | None = None) -> list[str]:
        return self.tell(Cancelled(ticket_id), at)

    def up(self, instance: str, at: float | None = None, *, capacity: int = 1) -> list[str]:
        return self.tell(InstanceUp(instance, capacity), at)

    def lose(self, instance: str, at: float | None = None) -> list[str]:
        return self.tell(InstanceLost(instance, "killed"), at)

    def crash(self, instance: str, at: float | None = None, *, wait_s: float = 2.0) -> list[str]:
        """And another is expected in its place within `wait_s`."""
        now = self._now if at is None else at
        return self.expect(now + wait_s, now) + self.tell(InstanceLost(instance, "killed", crashed=True))

    def expect(self, until: float, at: float | None = None) -> list[str]:
        return self.tell(InstanceExpected(until), at)

    def close(self, at: float | None = None) -> list[str]:
        return self.tell(Closing("the model is being unloaded"), at)

    @property
    def quarantined(self) -> list[int]:
        """Tickets that the last event's rejects blame."""
        return [command.ticket.id for command in self.commands if isinstance(command, Reject) and command.reason == "to_blame"]

    def timer(self, at: float | None = None) -> list[str]:
        return self.tell(TimerFired(), at)

    def grant(self, at: float | None = None) -> list[str]:
        return self.tell(TurnGranted(), at)

    def turn(self, new: LaneKnobs, at: float | None = None) -> list[str]:
        return self.tell(KnobsChanged(new), at)

    def reasons(self) -> list[str]:
        """The clients' messages of the last event's rejects."""
        return [command.failure.message for command in self.commands if isinstance(command, Reject)]

    def circuits(self) -> dict[str, str]:
        """How far each instance is trusted."""
        return {state.name: state.circuit.value for state in self.lane.view().instances}


def remembered(lane: Lane) -> int:
    """Tickets that the lane still keeps a note of, wherever; 0 once all are answered."""
    view = lane.view()
    taken = sum(state.in_flight for state in view.instances)
    overdue = lane._deadlines.next_at(lane.queue) < inf  # looking clears it
    overdue += lane._promises.next_at() < inf or len(lane._promises.open)
    return view.running_batches + taken + view.queued_requests + view.queued_rows + lane._again.notes + overdue
