"""What the lane's tests share: a lane told events at given times, its commands written as short lines."""

from collections.abc import Sequence
from math import inf

from dlproxy.message import Ticket
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
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

# An exact line, so that p99(b) = L(b) = 10 ms + 1 ms per row
LINE = [(rows, 0.010 + 0.001 * rows) for rows in (1, 2, 4, 8)]


def knobs(*, max_batch: int = 4, max_queue_rows: int = 100, slo_s: float | None = None, max_wait_s: float = 0.0) -> LaneKnobs:
    return LaneKnobs(max_batch=max_batch, max_queue_rows=max_queue_rows, slo_s=slo_s, max_wait_s=max_wait_s)


def write(command: Command) -> str:
    """One line per command: `run #1 on a: 1 2`, `done #1: 1 2`, `reject 3: deadline`, `wake at 0.05`."""
    if isinstance(command, Dispatch):
        return f"run #{command.batch_id} on {command.instance}: {_ids(command.tickets)}"
    if isinstance(command, Complete):
        return f"done #{command.batch_id}: {_ids(command.tickets)}"
    if isinstance(command, Reject):
        return f"reject {command.ticket.id}: {command.failure.kind.value}"
    return f"wake at {command.at:.6g}"


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
        self.lane = Lane(lane_knobs or knobs(), prior)
        self.commands: list[Command] = []
        self._now = 0.0
        for instance in instances:
            self.up(instance, capacity=capacity)

    def tell(self, event: Event, at: float | None = None) -> list[str]:
        self._now = self._now if at is None else at
        self.commands = self.lane.on(event, self._now)
        return [write(command) for command in self.commands]

    def arrive(
        self, *ids: int, at: float | None = None, left_s: float = inf, rows: int = 1, shape: tuple[int, ...] = ()
    ) -> list[str]:
        now = self._now if at is None else at
        return self.tell(Arrived([Ticket(number, now, now + left_s, rows, shape_key=shape) for number in ids]), now)

    def done(self, batch_id: int, at: float | None = None, *, service_s: float = 0.011) -> list[str]:
        return self.tell(BatchDone(batch_id, service_s), at)

    def fail(self, batch_id: int, at: float | None = None) -> list[str]:
        return self.tell(BatchDone(batch_id, 0.011, "the model raised ValueError"), at)

    def cancel(self, ticket_id: int, at: float | None = None) -> list[str]:
        return self.tell(Cancelled(ticket_id), at)

    def up(self, instance: str, at: float | None = None, *, capacity: int = 1) -> list[str]:
        return self.tell(InstanceUp(instance, capacity), at)

    def lose(self, instance: str, at: float | None = None) -> list[str]:
        return self.tell(InstanceLost(instance, "killed"), at)

    def timer(self, at: float | None = None) -> list[str]:
        return self.tell(TimerFired(), at)

    def turn(self, new: LaneKnobs, at: float | None = None) -> list[str]:
        return self.tell(KnobsChanged(new), at)

    def reasons(self) -> list[str]:
        """The clients' messages of the last event's rejects."""
        return [command.failure.message for command in self.commands if isinstance(command, Reject)]


def remembered(lane: Lane) -> int:
    """Tickets that the lane still keeps a note of, wherever; 0 once all are answered."""
    return lane.in_flight + len(lane.queue) + len(lane._retries) + len(lane._retried) + len(lane._abandoned)
