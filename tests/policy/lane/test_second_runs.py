"""Events in, exact commands out: what runs a second time, after an error or because it is late, and what never does."""

import pytest

from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.events import Arrived, Dispatch

from .fixtures import Script, knobs, remembered

HEDGED = knobs(hedge=True)
LATE_S = 0.0125  # a batch of two is expected to take 12 ms


def late(lane: Script) -> list[str]:
    """Two requests run on `a` and are late."""
    lane.arrive(1, 2)
    return lane.timer(LATE_S)


# After an error


def test_an_error_is_tried_again_elsewhere_then_halved_until_the_bad_request_stands_alone() -> None:
    lane = Script(instances="ab")
    assert lane.arrive(1, 2) == ["run #1 on a: 1 2"]
    assert lane.fail(1) == ["run #2 on b: 1 2"]
    assert lane.fail(2) == ["run #3 on a: 1", "run #4 on b: 2"]
    assert lane.fail(3) == ["reject 1: model_failed"]
    assert lane.done(4) == ["done #4: 2"]
    assert remembered(lane.lane) == 0


def test_one_request_on_a_bad_instance_is_answered_by_another() -> None:
    lane = Script(instances="ab")
    assert lane.arrive(1) == ["run #1 on a: 1"]
    assert lane.fail(1) == ["run #2 on b: 1"]
    assert lane.done(2) == ["done #2: 1"]


def test_what_another_server_had_no_room_for_runs_elsewhere_and_is_not_halved() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, 2)
    assert lane.fail(1, kind=FailureKind.UNAVAILABLE) == ["run #2 on b: 1 2"]
    assert lane.fail(2, kind=FailureKind.OVERLOADED) == ["reject 1: overloaded", "reject 2: overloaded"]
    assert remembered(lane.lane) == 0


@pytest.mark.parametrize("kind", [FailureKind.INVALID_ARGUMENT, FailureKind.TOO_LARGE, FailureKind.UNSUPPORTED])
def test_what_another_server_refused_is_halved_and_not_tried_elsewhere(kind: FailureKind) -> None:
    lane = Script(instances="ab", lane_knobs=knobs(eject_after=1))
    lane.arrive(1, 2)
    assert lane.fail(1, kind=kind) == ["run #2 on a: 1", "run #3 on b: 2"]
    assert lane.fail(2, kind=kind) == [f"reject 1: {kind.value}"]
    assert lane.done(3) == ["done #3: 2"]
    assert lane.circuits() == {"a": "closed", "b": "closed"}, "the server is well: it was the request"


def test_one_bad_request_fails_after_its_second_try() -> None:
    lane = Script(instances="abc")
    lane.arrive(1)
    assert lane.fail(1) == ["run #2 on b: 1"]
    assert lane.fail(2) == ["reject 1: model_failed"]
    assert remembered(lane.lane) == 0


def test_a_second_try_waits_for_another_instance_while_others_go_on() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.arrive(2)
    assert lane.fail(1) == []
    assert lane.arrive(3) == ["run #3 on a: 3"], "the instance that failed is not idle for its sake"
    assert lane.done(2) == ["done #2: 2", "run #4 on b: 1"]


def test_a_second_try_takes_the_same_instance_if_no_other_is_left() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.arrive(2)
    assert lane.fail(1) == []
    assert lane.lose("b") == ["run #3 on a: 1"], "b's own request waits behind it"
    assert lane.done(3) == ["done #3: 1", "run #4 on a: 2"]


def test_a_second_try_takes_the_same_instance_if_the_other_is_ejected() -> None:
    lane = Script(instances="ab", capacity=2, lane_knobs=knobs(max_batch=1, eject_after=2))
    assert lane.arrive(1, 2, 3, 4) == ["run #1 on a: 1", "run #2 on b: 2", "run #3 on a: 3", "run #4 on b: 4"]
    assert lane.fail(2) == []
    assert lane.fail(4) == ["wake at 10"], "a is full, and b is to be probed then"
    assert lane.circuits() == {"a": "closed", "b": "open"}
    assert lane.fail(1) == ["reject 1: model_failed", "run #5 on a: 2"], "nobody else can try the first one"


def test_retries_are_a_small_share_once_the_first_thirty_are_spent() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(eject_after=0, retry_budget=0.01))
    refused = []
    for number in range(40):
        lane.arrive(number)
        batch_id = lane.commands[0].batch_id  # type: ignore[union-attr]
        if "reject" in " ".join(lane.fail(batch_id)):
            refused.append(number)
        else:
            lane.done(batch_id + 1)
    assert refused == list(range(30, 40))


def test_when_the_budget_is_spent_a_failed_batch_is_still_halved() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(eject_after=0, retry_budget=0.01, max_batch=64, slo_s=10.0))
    lane.arrive(*range(1, 32))
    halves = lane.fail(1)
    assert [line.split(":")[0] for line in halves] == ["run #2 on b", "run #3 on a"]
    assert halves[0].endswith(" 14 15 16")


def test_without_a_budget_nothing_runs_twice() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(retry_budget=0.0, hedge=True))
    lane.arrive(1, 2)
    assert lane.timer(1.0) == [], "no hedge"
    assert lane.fail(1) == ["reject 1: model_failed", "reject 2: model_failed"], "neither a retry nor halves"
    lane.arrive(3)
    assert lane.lose("b") == ["reject 3: unavailable"]
    assert lane.reasons() == ["the instance was lost while it ran the request, which may not run again: killed"]


def test_when_the_budget_is_taken_away_what_waits_for_its_second_run_fails() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.arrive(2)
    lane.fail(1)
    assert lane.turn(knobs(retry_budget=0.0)) == ["reject 1: unavailable"]
    assert lane.done(2) == ["done #2: 2"]
    assert remembered(lane.lane) == 0


# Because it is late


def test_a_late_batch_runs_again_and_the_first_answer_wins() -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    assert lane.arrive(1, 2) == ["run #1 on a: 1 2", "wake at 0.012"]
    assert lane.timer(LATE_S) == ["run #2 on b: 1 2"]
    assert lane.done(2, 0.020) == ["done #2: 1 2"]
    assert lane.done(1, 0.030) == [], "nobody waits for it any more"
    assert remembered(lane.lane) == 0


def test_the_first_run_may_win_too_and_an_error_of_the_loser_means_nothing() -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    late(lane)
    assert lane.done(1, 0.013) == ["done #1: 1 2"]
    assert lane.fail(2, 0.020) == []
    assert remembered(lane.lane) == 0


@pytest.mark.parametrize("first", ["fails", "is lost"])
def test_when_one_run_comes_to_nothing_the_other_answers(first: str) -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    late(lane)
    assert (lane.fail(1, 0.013) if first == "fails" else lane.lose("a", 0.013)) == []
    assert lane.done(2, 0.020) == ["done #2: 1 2"]
    assert remembered(lane.lane) == 0


@pytest.mark.parametrize("first", ["fails", "is lost"])
def test_when_both_runs_fail_there_is_no_third_of_the_whole_batch(first: str) -> None:
    lane = Script(instances="abc", lane_knobs=HEDGED)
    late(lane)
    assert (lane.fail(1, 0.013) if first == "fails" else lane.lose("a", 0.013)) == []
    again = lane.fail(2, 0.020)
    assert sorted(line.split(": ")[1] for line in again) == ["1", "2"], "halves"
    assert lane.done(3) + lane.done(4) == ["done #3: 1", "done #4: 2"]
    assert remembered(lane.lane) == 0


@pytest.mark.parametrize("first", ["fails", "is lost"])
def test_when_the_second_run_is_lost_too_the_requests_fail(first: str) -> None:
    lane = Script(instances="abc", lane_knobs=HEDGED)
    late(lane)
    assert (lane.fail(1, 0.013) if first == "fails" else lane.lose("a", 0.013)) == []
    assert lane.lose("b", 0.020) == ["reject 1: unavailable", "reject 2: unavailable"]
    assert set(lane.reasons()) == {"the instance was lost while it ran the request a second time: killed"}
    assert remembered(lane.lane) == 0


@pytest.mark.parametrize("winner", [1, 2])
def test_clients_that_leave_before_and_after_the_hedge_are_answered_once(winner: int) -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    lane.arrive(1, 2, 3)
    assert lane.cancel(1) == ["reject 1: cancelled"]
    assert lane.timer(0.0135) == ["run #2 on b: 2 3"]
    assert lane.cancel(2) == ["reject 2: cancelled"]
    assert lane.cancel(2) == []
    assert lane.done(winner) == [f"done #{winner}: 3"]
    assert lane.cancel(3) == []
    assert lane.done(3 - winner) == []
    assert remembered(lane.lane) == 0


def test_what_nobody_waits_for_is_not_hedged() -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    lane.arrive(1)
    lane.cancel(1)
    assert lane.timer(0.020) == []


def test_what_is_past_its_deadline_is_not_hedged() -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    lane.arrive(1, left_s=0.0115)
    assert lane.timer(0.0115) == []


def test_a_batch_that_is_too_large_by_now_is_not_hedged() -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    lane.arrive(1, 2)
    lane.turn(knobs(hedge=True, max_batch=1))
    assert lane.timer(LATE_S) == []


def test_a_late_batch_runs_again_as_soon_as_an_instance_would_idle() -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    lane.arrive(1)
    lane.arrive(2)
    lane.arrive(3)
    assert lane.done(2, 0.020) == ["done #2: 2", "run #3 on b: 3"], "what waits goes first"
    assert lane.done(3, 0.031) == ["done #3: 3", "run #4 on b: 1"]


def test_a_retry_is_not_hedged() -> None:
    lane = Script(instances="abc", lane_knobs=HEDGED)
    lane.arrive(1)
    assert lane.lose("a", 0.001) == ["run #2 on b: 1"]
    assert lane.timer(1.0) == [], "that would be a third run"


# Where a node before this one has the budget


def test_what_runs_again_elsewhere_on_the_way_does_not_here() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, once=True)
    assert lane.fail(1) == ["reject 1: model_failed"]
    lane.arrive(2, 3, once=True)
    assert lane.fail(2, kind=FailureKind.UNAVAILABLE) == ["reject 2: unavailable", "reject 3: unavailable"]
    lane.arrive(4, once=True)
    run = lane.commands[0]
    assert isinstance(run, Dispatch)
    assert lane.lose(run.instance) == ["reject 4: unavailable"]
    assert remembered(lane.lane) == 0


def test_neighbours_that_may_run_again_do() -> None:
    lane = Script(instances="ab")
    lane.tell(Arrived([Ticket(1, 0.0, once=True), Ticket(2, 0.0)]))
    assert lane.fail(1, kind=FailureKind.UNAVAILABLE) == ["reject 1: unavailable", "run #2 on b: 2"]
    assert lane.done(2) == ["done #2: 2"]


def test_a_bad_request_still_harms_nobody_else() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, 2, once=True)
    assert lane.fail(1) == ["run #2 on b: 1", "run #3 on a: 2"]
    assert lane.crash("a") == [], "which of a worker's requests ends it is found out here"
    assert lane.done(2) == ["done #2: 1", "run #4 on b: 2"]


def test_a_batch_with_one_of_them_is_not_hedged() -> None:
    lane = Script(instances="ab", lane_knobs=HEDGED)
    lane.tell(Arrived([Ticket(1, 0.0, once=True), Ticket(2, 0.0)]))
    assert lane.timer(LATE_S) == []
