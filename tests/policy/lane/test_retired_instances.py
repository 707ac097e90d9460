"""An instance that is retired gets no further batch, and the one that it runs ends as if nothing had happened."""

from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from dlproxy.policy.events import Command, InstanceRetired
from dlproxy.policy.lane import Lane

from .fixtures import Script, knobs
from .machine import NAMES, LaneMachine
from .test_invariants import quick


class RetiringMachine(LaneMachine):
    """Instances leave in peace, too."""

    @precondition(lambda self: self.observer.instances)
    @rule(name=st.sampled_from(NAMES))
    def instance_is_retired(self, name: str) -> None:
        self.tell(InstanceRetired(name))  # which may be down, or leaving, already


@pytest.mark.parametrize("always", [{}, {"hedge": True}, {"arbitrated": True}, {"retry_budget": 1.0}], ids=str)
def test_the_lane_keeps_its_invariants(always: dict[str, Any]) -> None:
    class Machine(RetiringMachine):
        begins_with: ClassVar[dict[str, Any]] = always

    thorough = settings(
        max_examples=15, stateful_step_count=30, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(Machine, settings=thorough)


class ForgetsItsBatches(Lane):
    def _instance_retired(self, event: InstanceRetired, now: float, commands: list[Command]) -> None:
        super()._instance_retired(event, now, commands)
        for batch_id in [number for number, run in self._running.runs.items() if run.instance == event.instance]:
            del self._running.runs[batch_id]


class KeepsItInThePool(Lane):
    def _instance_retired(self, event: InstanceRetired, now: float, commands: list[Command]) -> None: ...


@pytest.mark.parametrize("lane", [ForgetsItsBatches, KeepsItInThePool])
def test_a_lane_with_a_seeded_bug_is_found(lane: type[Lane]) -> None:
    class Machine(RetiringMachine):
        lane_class = lane

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=quick(100))


def two_batches_run() -> Script:
    """Batch 1 on `a`, batch 2 on `b`, and ticket 3 in the queue."""
    script = Script(instances="ab", lane_knobs=knobs(max_batch=1, balancer="round-robin"))
    script.arrive(1, 2, 3)
    return script


def test_its_batch_completes_and_the_next_goes_elsewhere() -> None:
    script = two_batches_run()
    assert script.tell(InstanceRetired("b")) == []
    assert script.done(2) == ["done #2: 2"]
    assert script.done(1) == ["done #1: 1", "run #3 on a: 3"]


def test_if_it_is_lost_all_the_same_its_batch_runs_elsewhere() -> None:
    script = two_batches_run()
    script.tell(InstanceRetired("b"))
    assert script.lose("b") == []
    assert script.done(1) == ["done #1: 1", "run #3 on a: 2"]


def test_when_the_last_one_leaves_the_queue_is_refused_and_its_batch_completes() -> None:
    script = Script(lane_knobs=knobs(max_batch=1))
    script.arrive(1, 2)
    assert script.tell(InstanceRetired("a")) == ["reject 2: unavailable"]
    assert script.reasons() == ["the model has no instance any more: it was scaled to none"]
    assert script.done(1) == ["done #1: 1"]


def test_a_batch_that_fails_when_nobody_else_is_left_fails_as_a_whole() -> None:
    script = Script()
    script.arrive(1, 2)
    script.tell(InstanceRetired("a"))
    assert script.fail(1) == ["reject 1: model_failed", "reject 2: model_failed"]


def test_who_is_not_there_is_retired_without_effect() -> None:
    script = Script()
    assert script.tell(InstanceRetired("z")) == []
    assert script.arrive(1) == ["run #1 on a: 1"]
