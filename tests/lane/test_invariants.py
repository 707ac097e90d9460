"""The invariants hold whatever happens, and the machine that says so does find lanes that break them."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.events import (
    Cancelled,
    Command,
    Complete,
    Dispatch,
    Event,
    InstanceLost,
    InstanceUp,
    KnobsChanged,
    Reject,
    WakeAt,
)
from dlproxy.policy.lane import Lane

from .machine import LaneMachine

EXAMPLES = 2000
LENGTH = 30


class TestLaneKeepsItsInvariants(LaneMachine.TestCase):
    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=LENGTH,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


class CompletesCancelled(Lane):
    """Forgets that a client left while its request ran."""

    def on(self, event: Event, now: float) -> list[Command]:
        self.batches: dict[int, list[Ticket]] = getattr(self, "batches", {})
        commands = super().on(event, now)
        self.batches.update({command.batch_id: command.tickets for command in commands if isinstance(command, Dispatch)})
        return [
            Complete(command.batch_id, self.batches[command.batch_id]) if isinstance(command, Complete) else command
            for command in commands
        ]


class NeverWakes(Lane):
    """Leaves expired tickets in the queue until something else happens."""

    def on(self, event: Event, now: float) -> list[Command]:
        return [command for command in super().on(event, now) if not isinstance(command, WakeAt)]


class OverCapacity(Lane):
    """Gives each instance one batch more than it takes."""

    def on(self, event: Event, now: float) -> list[Command]:
        if isinstance(event, InstanceUp):
            event = InstanceUp(event.instance, event.capacity + 1)
        return super().on(event, now)


class DeafToKnobs(Lane):
    """Keeps the values that it was made with."""

    def on(self, event: Event, now: float) -> list[Command]:
        return [] if isinstance(event, KnobsChanged) else super().on(event, now)


class LosesWithTheInstance(Lane):
    """Drops what a lost instance ran, instead of running it elsewhere."""

    def on(self, event: Event, now: float) -> list[Command]:
        commands = super().on(event, now)
        if isinstance(event, InstanceLost):
            return [command for command in commands if not isinstance(command, Dispatch)]
        return commands


class CancelsTwice(Lane):
    """Answers every cancellation, whether or not the ticket still waits for an answer."""

    def on(self, event: Event, now: float) -> list[Command]:
        commands = super().on(event, now)
        self.cancelled: dict[int, Reject] = getattr(self, "cancelled", {})
        if isinstance(event, Cancelled):
            if not commands and event.ticket_id in self.cancelled:
                return [self.cancelled[event.ticket_id]]
            rejects = [command for command in commands if isinstance(command, Reject)]
            self.cancelled.update(
                {command.ticket.id: command for command in rejects if command.failure.kind is FailureKind.CANCELLED}
            )
        return commands


@dataclass
class Caught:
    lane: type[Lane]
    says: str


@pytest.mark.parametrize(
    "caught",
    [
        Caught(CompletesCancelled, "should complete|is completed, but is"),
        Caught(NeverWakes, "no wake-up for|nothing ends the wait"),
        Caught(OverCapacity, "over its capacity"),
        Caught(DeafToKnobs, "rows in a batch of|wait while an instance idles|over its bound|nothing ends the wait"),
        Caught(LosesWithTheInstance, "in_flight is|wait while"),
        Caught(CancelsTwice, "is rejected, but is"),
    ],
    ids=lambda caught: caught.lane.__name__,
)
def test_a_lane_with_a_seeded_bug_is_found(caught: Caught) -> None:
    class Machine(LaneMachine):
        lane_class = caught.lane

    quick = settings(
        max_examples=500,
        stateful_step_count=LENGTH,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with pytest.raises(AssertionError, match=caught.says):
        run_state_machine_as_test(Machine, settings=quick)
