"""A pinned ticket runs on its instance alone, and once; nobody waits behind it for an instance that they do not need."""

from math import inf
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from msgspec import structs

from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Command,
    Dispatch,
    Event,
    InstanceLost,
    InstanceRetired,
    InstanceUp,
    Reject,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.pool import InstancePool
from dlproxy.policy.queueing import DISCIPLINES, Pins
from dlproxy.telemetry.event_log import Header, Recorder, Replay, read, replay

from .fixtures import LINE, Script, knobs
from .machine import ARRIVALS, NAMES, PLAIN, Change
from .observer import Observer, Run, Where
from .test_invariants import quick
from .test_retired_instances import RetiringMachine


class PinObserver(Observer):
    """Pinned tickets follow rules of their own, which are simpler."""

    def follow_dispatch(self, batch: Dispatch) -> None:
        super().follow_dispatch(batch)
        pins = {ticket.pinned for ticket in batch.tickets}
        assert pins in ({""}, {batch.instance}), f"a batch for {pins} on {batch.instance}"
        if pins != {""}:
            assert batch.reason in ("idle", "turn"), "a second run, or one of several choices"
            self.running[batch.batch_id].hedge_at = inf

    def batch_ends(self, run: Run, event: BatchDone) -> list[int]:
        completed = super().batch_ends(run, event)
        seen = self.instances.get(run.batch.instance)
        if seen is not None and run.batch.tickets[0].pinned and len(self.instances) > 1:
            seen.errors_in_a_row = 0  # no reason to eject it
        return completed

    def check_unavailable(self, command: Reject, event: Event) -> None:
        ticket = command.ticket
        if not ticket.pinned or command.failure.message == self.closing:
            super().check_unavailable(command, event)
        else:
            assert ticket.pinned not in self.instances
            assert f"was on instance {ticket.pinned}, which is gone" in command.failure.message

    def check_model_failed(self, command: Reject, event: Event) -> None:
        ticket = command.ticket
        if not ticket.pinned:
            super().check_model_failed(command, event)
        else:
            assert isinstance(event, BatchDone)
            assert self.runs[ticket.id] == 1

    def check_work_goes_on(self) -> None:
        ready = self.ready()
        if self.knobs.arbitrated and self.wanted is not None:
            return
        waiting = [self.tickets[number] for number in self.among(Where.QUEUED)]
        for name in ready:
            mine = [ticket for ticket in waiting if ticket.pinned == name]
            if mine:
                assert self.knobs.max_wait_s > 0.0, f"{mine} wait while {name} idles"
                shapes = {ticket.shape_key: 0 for ticket in mine}
                for ticket in mine:
                    shapes[ticket.shape_key] += ticket.rows
                assert min(shapes.values()) < self.lane.batching.goal, "a full batch waits"
                oldest = min(ticket.arrived_at for ticket in mine)
                assert self.wake_at <= max(oldest, self.now) + self.knobs.max_wait_s, "nothing ends the wait for a full batch"
        homeless = [ticket for ticket in waiting if ticket.pinned and ticket.pinned not in self.instances]
        assert not homeless, f"{homeless} wait for what is gone"
        if not any(ticket.pinned for ticket in waiting):
            super().check_work_goes_on()
        elif ready and self.knobs.max_wait_s == 0.0 and not all(ticket.pinned for ticket in waiting):
            assert self.holds_back(ready), "one that may run anywhere waits while an instance idles"


class PinMachine(RetiringMachine):
    """Among the others come tickets that may run on one instance only, whether it is up or not."""

    observer_class = PinObserver

    def knobs_with(self, changes: list[Change], before: LaneKnobs = PLAIN) -> LaneKnobs:
        """Sequences, which pin tickets, are refused where several gateways lease workers."""
        return structs.replace(super().knobs_with(changes, before), leased=False)

    @rule(arrivals=ARRIVALS, names=st.lists(st.sampled_from(["", *NAMES]), min_size=6, max_size=6))
    def arrive_pinned(self, arrivals: list[Any], names: list[str]) -> None:
        now, first, new = self.observer.now, len(self.observer.tickets), []
        for number, ((left_s, own_s), shape, rows, (priority, tenant, affinity)) in enumerate(arrivals, start=first):
            ticket = Ticket(number, now, now + left_s, rows, priority, tenant, shape, affinity=affinity, answer_by=now + own_s)
            if name := names[number - first]:
                ticket.pin(name)
            new.append(ticket)
        up = set(self.observer.instances)
        self.tell(Arrived(new))
        answered = self.observer.where
        refused = [ticket for ticket in new if ticket.pinned and ticket.pinned not in up]
        assert all(answered[ticket.id] is Where.ANSWERED for ticket in refused)


@pytest.mark.parametrize(
    "always",
    [
        {},
        {"hedge": True},
        {"arbitrated": True},
        {"max_wait_s": 0.020},
        {"retry_budget": 1.0, "eject_after": 1},
        {"slo_s": 0.040},
    ],
    ids=str,
)
def test_the_lane_keeps_its_invariants(always: dict[str, Any]) -> None:
    class Machine(PinMachine):
        begins_with: ClassVar[dict[str, Any]] = always

    thorough = settings(
        max_examples=10, stateful_step_count=30, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Machine, settings=thorough)


class AnyInstance(InstancePool):
    def take(self, now: float, *, affinity: str, avoided: str, pinned: str = "") -> str:
        return super().take(now, affinity=affinity, avoided=avoided)


class RunsThemAnywhere(Lane):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.pool = AnyInstance(self._knobs)
        self._pins = Pins(self.pool.ready)


class WaitsBehindTheBusy(Lane):
    """The lane looks at the first ticket and no further."""

    def _decide(self, now: float, commands: list[Command]) -> Any:
        pins, self.queue.pins = self.queue.pins, None
        head, self.queue.pins = self.queue.head(now), pins
        return None if head is not None and pins is not None and not pins.may_start(head) else super()._decide(now, commands)


class KeepsThoseOfTheDead(Lane):
    def _refuse_pinned(self, *_: Any) -> None: ...


class TriesAgain(Lane):
    def _start(self, *args: Any) -> int:
        number = super()._start(*args)
        self._running.runs[number].pinned = ""
        return number


@pytest.mark.parametrize(
    ("lane", "found_with"), [(RunsThemAnywhere, 1), (WaitsBehindTheBusy, 2), (KeepsThoseOfTheDead, 3), (TriesAgain, 2)]
)
def test_a_lane_with_a_seeded_bug_is_found(lane: type[Lane], found_with: int) -> None:
    class Machine(PinMachine):
        lane_class = lane

    with pytest.raises(AssertionError):
        run_state_machine_as_test(seed(found_with)(Machine), settings=quick(25))


# By hand


def pinned(name: str, *ids: int, at: float = 0.0, left_s: float = inf, rows: int = 1) -> list[Ticket]:
    tickets = [Ticket(number, at, at + left_s, rows) for number in ids]
    for ticket in tickets:
        ticket.pin(name)
    return tickets


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_an_idle_instance_takes_the_first_that_may_run_there(discipline: str) -> None:
    script = Script(instances="ab", lane_knobs=knobs(discipline=discipline))
    tickets = [*pinned("a", 1), *pinned("a", 2, 3), *pinned("b", 4), Ticket(5, 0.0)]
    script.tell(Arrived(tickets[:1]))
    assert script.tell(Arrived(tickets[1:])) == ["run #2 on b: 4"]
    assert script.done(2, 0.012) == ["done #2: 4", "run #3 on b: 5"]
    assert script.done(1, 0.013) == ["done #1: 1", "run #4 on a: 2 3"]


def test_what_may_run_there_goes_by_deadline() -> None:
    script = Script(instances="ab")
    script.tell(Arrived([*pinned("a", 1), *pinned("b", 2)]))
    late, soon, other = (
        pinned("a", 3, left_s=5.0),
        pinned("a", 4, left_s=1.0),
        pinned("b", 5, left_s=0.5),
    )
    script.tell(Arrived([*late, Ticket(6, 0.0, 2.0), *soon, *other]))
    assert script.done(1, 0.012) == ["done #1: 1", "run #3 on a: 4 3"]
    assert script.done(2, 0.013) == ["done #2: 2", "run #4 on b: 5"]
    assert script.done(3, 0.024) == ["done #3: 4 3", "run #5 on a: 6"]


def test_a_batch_that_waits_to_fill_holds_up_no_other_instance() -> None:
    script = Script(instances="ab", lane_knobs=knobs(max_wait_s=0.020))
    tickets = [*pinned("a", 1), *pinned("b", 2, 3, 4, 5)]
    assert script.tell(Arrived(tickets)) == ["wake at 0.02", "run #1 on b: 2 3 4 5"]
    assert script.timer(0.020) == ["run #2 on a: 1"]


@pytest.mark.parametrize("leaves", ["lost", "retired"])
def test_when_their_instance_goes_they_are_told_so(leaves: str) -> None:
    script = Script(instances="ab")
    script.tell(Arrived([*pinned("a", 1), *pinned("b", 2)]))
    script.tell(Arrived([*pinned("a", 3), *pinned("b", 4)]))
    if leaves == "lost":
        assert script.lose("a") == ["reject 3: unavailable", "reject 1: unavailable"]
        why = "killed"
    else:
        assert script.tell(InstanceRetired("a")) == ["reject 3: unavailable"]
        why = "it was retired"
    said = f"the state of its sequence was on instance a, which is gone ({why}); begin the sequence again"
    assert set(script.reasons()) == {said}
    assert script.tell(Arrived(pinned("a", 5))) == ["reject 5: unavailable"]
    assert script.reasons() == ["the state of its sequence was on instance a, which is gone; begin the sequence again"]
    if leaves == "retired":
        assert script.done(1, 0.012) == ["done #1: 1"]
    assert script.done(2, 0.012) == ["done #2: 2", "run #3 on b: 4"]


def test_a_batch_that_fails_runs_neither_elsewhere_nor_in_halves() -> None:
    script = Script(instances="ab", lane_knobs=knobs(retry_budget=1.0, eject_after=1))
    script.tell(Arrived(pinned("a", 1, 2)))
    assert script.fail(1) == ["reject 1: model_failed", "reject 2: model_failed"]
    assert script.circuits() == {"a": "closed", "b": "closed"}
    script.tell(Arrived(pinned("a", 3)))
    assert script.fail(2, kind=FailureKind.INVALID_ARGUMENT) == ["reject 3: invalid_argument"]


def test_admission_counts_what_waits_for_the_same_instance() -> None:
    script = Script(instances="ab", lane_knobs=knobs(discipline="fcfs"))
    script.tell(Arrived([*pinned("a", 1), *pinned("b", 2)]))
    script.tell(Arrived(pinned("a", *range(10, 26))))
    asked = [*pinned("a", 30, left_s=0.060), *pinned("b", 31, left_s=0.060)]
    assert script.tell(Arrived(asked))[0] == "reject 30: deadline"
    assert [ticket.id for ticket in script.lane.queue.pinned_to("b")] == [31]


def test_a_recording_with_pins_replays(tmp_path: Path) -> None:
    path = tmp_path / "log"
    recorder = Recorder(path, Header("m", knobs(), [*LINE]), Lane(knobs(), LINE))
    for event in (
        InstanceUp("a"),
        InstanceUp("b"),
        Arrived(pinned("a", 1, 2)),
        Arrived(pinned("a", 3)),
        InstanceLost("a", "-"),
    ):
        recorder.on(event, 0.0)
    recorder.close()
    assert replay(path) == Replay(5, None)
    assert [ticket.pinned for entry in read(path)[1] if isinstance(entry.event, Arrived) for ticket in entry.event.tickets] == [
        "a"
    ] * 3


def test_a_pin_tells_tickets_apart_that_else_share_batches() -> None:
    plain, one, other = (Ticket(number, 0.0, shape_key=(7,), family=(8,)) for number in range(3))
    one.pin("a")
    other.pin("b")
    assert len({plain.shape_key, one.shape_key, other.shape_key}) == len({plain.family, one.family, other.family}) == 3
    lone = Ticket(4, 0.0)
    lone.pin("a")
    assert lone.family == ()  # it must not be padded still
