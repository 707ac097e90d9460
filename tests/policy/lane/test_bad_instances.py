"""Events in, exact commands out: instances that fail are ejected and probed, slow ones get a batch only if it pays."""

import pytest

from dlproxy.message import Failure, FailureKind
from dlproxy.policy.events import Reject
from dlproxy.policy.knobs import LaneKnobs

from .fixtures import Script, knobs, remembered

KEY = "k0"  # belongs to b
STICKY = knobs(balancer="consistent-hash", retry_budget=0.0)  # whatever it does, the key stays where it is
AWARE = "fastest-response"


def failing(after: int = 5) -> Script:
    """Of the instances `ab` the one that serves the key has failed so often, a second apart."""
    lane = Script(instances="ab", lane_knobs=STICKY)
    for number in range(1, after + 1):
        assert lane.arrive(number, affinity=KEY) == [f"run #{number} on b: {number}"]
        assert lane.fail(number, float(number)) == [f"reject {number}: model_failed"]
    return lane


def test_five_errors_in_a_row_eject() -> None:
    assert failing(4).circuits() == {"a": "closed", "b": "closed"}
    lane = failing(5)
    assert lane.circuits() == {"a": "closed", "b": "open"}
    assert lane.arrive(6, affinity=KEY) == ["run #6 on a: 6"]


def test_an_ejected_instance_is_tried_after_ten_seconds_and_comes_back() -> None:
    lane = failing()
    lane.arrive(6)
    assert lane.arrive(7, at=6.0, affinity=KEY) == ["wake at 15"], "the only idle instance is ejected"
    assert lane.timer(15.0) == ["run #7 on b: 7"]
    assert lane.circuits() == {"a": "closed", "b": "half-open"}
    assert lane.arrive(8, affinity=KEY) == [], "one batch is enough of a probe"
    assert lane.done(7) == ["done #7: 7", "run #8 on b: 8"]
    assert lane.circuits() == {"a": "closed", "b": "closed"}


def test_a_probe_that_fails_ejects_for_twice_as_long() -> None:
    lane = failing()
    lane.arrive(6)
    lane.arrive(7, at=15.0, affinity=KEY)
    assert lane.fail(7, 16.0) == ["reject 7: model_failed"]
    assert lane.circuits()["b"] == "open"
    assert lane.arrive(8, at=17.0) == ["wake at 36"]


def test_an_instance_that_is_lost_during_its_probe_comes_back_trusted() -> None:
    lane = failing()
    lane.arrive(6)
    assert lane.arrive(7, at=15.0) == ["run #7 on b: 7"]
    assert lane.lose("b") == ["reject 7: unavailable"]
    lane.up("b")
    assert lane.circuits() == {"a": "closed", "b": "closed"}
    assert lane.done(7) == []
    assert lane.arrive(8) == ["run #8 on b: 8"]


def test_of_two_instances_one_stays_whatever_it_does() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(retry_budget=0.0, eject_after=1))
    lane.arrive(1)
    lane.arrive(2)
    lane.fail(1)
    lane.fail(2)
    assert lane.circuits() == {"a": "open", "b": "closed"}
    assert lane.arrive(3) == ["run #3 on b: 3"]
    lane.arrive(4)
    assert lane.lose("b") == ["reject 3: unavailable", "run #4 on a: 4"], "the last one is trusted, come what may"
    assert lane.circuits() == {"a": "closed"}


def test_without_ejection_all_are_trusted_at_once() -> None:
    lane = failing()
    lane.arrive(6)
    lane.arrive(7)
    assert lane.turn(knobs(eject_after=0)) == ["run #7 on b: 7"]
    assert lane.circuits() == {"a": "closed", "b": "closed"}


def test_round_robin_gives_each_instance_its_turn() -> None:
    lane = Script(instances="abc", lane_knobs=knobs(balancer="round-robin"))
    ran_on = []
    for number in range(6):
        ran_on.append(lane.arrive(number)[0][len("run #1 on ")])
        lane.done(number + 1)
    assert ran_on == [*"abcabc"]


# Slow ones


def with_a_slow_one(lane_knobs: LaneKnobs | None = None) -> Script:
    """Instance `b` took 200 ms for each of its last two batches of one, `a` 11 ms; it is 2.2 s now."""
    lane = Script(instances="ab", lane_knobs=knobs(max_batch=1, balancer=AWARE))
    for number, end_at in ((1, 1.1), (3, 2.2)):
        assert lane.arrive(number, number + 1) == [f"run #{number} on a: {number}", f"run #{number + 1} on b: {number + 1}"]
        lane.done(number, end_at - 1.0)
        lane.done(number + 1, end_at, service_s=0.2)
    if lane_knobs is not None:
        assert lane.turn(lane_knobs) == []
    return lane


def wake_up(lane: Script) -> float:
    """When the last event's commands ask to be woken."""
    return lane.commands[-1].at  # type: ignore[union-attr]


def test_a_quick_instance_that_is_busy_is_waited_for() -> None:
    lane = with_a_slow_one()
    assert lane.arrive(5, 6, at=2.3)[0] == "run #5 on a: 5"
    assert lane.done(5, 2.311) == ["done #5: 5", "run #6 on a: 6"]


def test_it_is_waited_for_no_longer_than_the_slow_one_would_take() -> None:
    lane = with_a_slow_one()
    lane.arrive(5, 6, at=2.3)
    until = wake_up(lane)
    assert 2.3 + 0.1 < until < 2.3 + 0.5, "about as long as the slow one takes"
    assert lane.timer(until) == ["run #6 on b: 6"]


def test_it_is_not_waited_for_by_requests_in_front_of_which_nothing_gets_slower() -> None:
    lane = with_a_slow_one(knobs(max_batch=1, balancer="least-connections"))
    assert lane.arrive(5, 6, at=2.3) == ["run #5 on a: 5", "run #6 on b: 6"], "this balancer does not look at latency"


def test_when_the_quick_one_dies_the_slow_one_serves_at_once() -> None:
    lane = with_a_slow_one()
    lane.arrive(5, 6, at=2.3)
    assert lane.lose("a", 2.301) == ["run #6 on b: 5"]
    assert lane.done(6) == ["done #6: 5", "run #7 on b: 6"]
    lane.done(7)
    assert remembered(lane.lane) == 0


def test_a_slow_instance_is_tried_again_later() -> None:
    lane = with_a_slow_one()
    assert lane.arrive(5, 6, at=40.0) == ["run #5 on a: 5", "run #6 on b: 6"], "slowness is forgotten with time"
    lane.done(5, 40.011)
    lane.done(6, 40.011)
    assert lane.arrive(7, 8) == ["run #7 on a: 7", "run #8 on b: 8"], "and at once by a quick batch"


def test_a_quick_instance_is_not_waited_for_by_what_failed_there() -> None:
    lane = with_a_slow_one()
    lane.arrive(5, 6, at=2.3)
    assert lane.timer(wake_up(lane)) == ["run #6 on b: 6"]
    assert lane.fail(5) == [], "b is to try it"
    assert lane.arrive(7) == ["run #7 on a: 7"]
    assert lane.done(6, service_s=1.1) == ["done #6: 6", "run #8 on b: 5"]


@pytest.mark.parametrize("arbitrated", [False, True])
def test_a_hold_back_ends_also_if_the_quick_one_hangs(arbitrated: bool) -> None:
    lane = with_a_slow_one(knobs(max_batch=1, balancer=AWARE, arbitrated=arbitrated))
    lane.arrive(5, 6, at=2.3)
    if arbitrated:
        assert lane.grant()[0] == "run #5 on a: 5"
    lines = lane.timer(wake_up(lane))
    if arbitrated:
        assert [line[:11] for line in lines] == ["want a turn"]
        lines = lane.grant()
    assert lines == ["run #6 on b: 6"]


@pytest.mark.parametrize("kind", [FailureKind.MODEL_FAILED, FailureKind.INVALID_ARGUMENT])
def test_where_nothing_may_run_again_nobody_is_told_that_the_failure_is_its_own(kind: FailureKind) -> None:
    lane = Script(instances="a", lane_knobs=knobs(retry_budget=0.0))
    lane.arrive(1)
    for number in (2, 3, 4):
        lane.arrive(number)
    lane.done(1)
    lane.fail(2, kind=kind)
    told = {command.ticket.id: command.failure for command in lane.commands if isinstance(command, Reject)}
    why = "a batch of 3 requests, this one among them, failed and was not run again in parts: the model raised ValueError"
    assert told == dict.fromkeys((2, 3, 4), Failure(FailureKind.MODEL_FAILED, why))
    lane.arrive(5)
    assert lane.fail(3, kind=kind) == [f"reject 5: {kind.value}"], "it was alone"
