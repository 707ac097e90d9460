"""Events in, exact commands out: instances that crash and come back, requests that wait meanwhile, and the one to blame."""

from math import inf

from dlproxy.policy.events import InstanceRetired

from .fixtures import Script, knobs, remembered

# Waiting for the replacement


def test_what_ran_and_what_waits_is_run_by_the_replacement() -> None:
    lane = Script(instances="a")
    lane.arrive(1, 2, at=1.0)
    lane.arrive(3)
    assert lane.crash("a") == ["wake at 3"]
    assert lane.arrive(4, at=1.5) == []
    assert lane.up("a", at=2.0) == ["run #2 on a: 1 2"]
    assert lane.done(2) == ["done #2: 1 2", "run #3 on a: 3 4"]
    assert lane.done(3) == ["done #3: 3 4"]
    assert remembered(lane.lane) == 0


def test_an_outage_that_lasts_fails_what_waits_and_what_comes_later() -> None:
    lane = Script(instances="a")
    lane.arrive(1, at=1.0)
    lane.arrive(2)
    lane.crash("a")
    assert lane.timer(3.0) == ["reject 1: unavailable", "reject 2: unavailable"]
    assert lane.reasons()[0] == "the model has no live instance: a was lost (killed)"
    assert lane.arrive(3, at=3.5) == ["reject 3: unavailable"]
    assert lane.up("a", at=4.0) == []
    assert lane.arrive(4) == ["run #2 on a: 4"]


def test_deadlines_pass_during_an_outage_too() -> None:
    lane = Script(instances="a")
    lane.crash("a", at=1.0)
    assert lane.arrive(1, left_s=0.5) == ["wake at 1.5"]
    assert lane.timer(1.5) == ["reject 1: deadline", "wake at 3"]


def test_an_instance_that_is_lost_for_good_is_not_waited_for() -> None:
    lane = Script(instances="a")
    lane.arrive(1)
    assert lane.lose("a") == ["reject 1: unavailable"]


def test_what_is_said_last_of_the_expected_instance_holds_for_those_that_wait_already() -> None:
    lane = Script(instances="a")
    lane.arrive(1, at=1.0)
    lane.crash("a")
    assert lane.expect(1.5) == ["wake at 1.5"]
    assert lane.expect(9.0) == []
    assert lane.timer(1.5) == ["wake at 9"]
    assert lane.expect(-inf, at=2.0) == ["reject 1: unavailable"]


def test_the_first_instance_of_all_is_waited_for() -> None:
    lane = Script(instances="")
    assert lane.arrive(1) == ["reject 1: unavailable"]
    assert lane.expect(9.0, at=1.0) == ["wake at 9"]
    assert lane.arrive(2) == []
    assert lane.up("a", at=8.0) == ["run #1 on a: 2"]
    assert lane.done(1) == ["done #1: 2"]
    assert lane.timer(9.0) == []


def test_if_the_first_instance_of_all_does_not_come_up_those_that_wait_hear_so() -> None:
    lane = Script(instances="")
    lane.expect(9.0, at=1.0)
    lane.arrive(1)
    assert lane.timer(9.0) == ["reject 1: unavailable"]
    assert lane.reasons() == ["the model has no live instance"]


def test_an_instance_that_is_expected_outlasts_one_that_retires() -> None:
    lane = Script(instances="ab")
    lane.crash("a", at=1.0)
    assert lane.tell(InstanceRetired("b")) == ["wake at 3"]
    assert lane.arrive(1) == []
    assert lane.up("a", at=2.0) == ["run #1 on a: 1"]


# The end of the lane


def test_when_the_model_goes_the_new_are_refused_and_the_others_are_served() -> None:
    lane = Script(instances="a")
    lane.arrive(1)
    lane.arrive(2)
    assert lane.close() == []
    assert lane.arrive(3) == ["reject 3: unavailable"]
    assert lane.reasons() == ["the model is being unloaded"]
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2"]
    assert lane.done(2) == ["done #2: 2"]
    assert remembered(lane.lane) == 0


def test_what_waits_when_the_last_instance_is_stopped_hears_why() -> None:
    lane = Script(instances="a")
    lane.arrive(1)
    lane.arrive(2)
    lane.close()
    assert lane.lose("a") == ["reject 1: unavailable", "reject 2: unavailable"]
    assert lane.reasons() == ["the model is being unloaded"] * 2


def test_the_end_of_the_lane_ends_the_waiting_for_an_instance() -> None:
    lane = Script(instances="a")
    lane.arrive(1, at=1.0)
    lane.crash("a")
    assert lane.close() == [], "it may yet come"
    assert lane.expect(-inf) == ["reject 1: unavailable"]
    assert lane.reasons() == ["the model is being unloaded"]


# Who is to blame


def test_a_killer_is_found_among_its_neighbours_and_they_are_answered() -> None:
    lane = Script(instances="a")
    assert lane.arrive(1, 2, 3) == ["run #1 on a: 1 2 3"]
    lane.crash("a")
    assert lane.up("a") == ["run #2 on a: 1 2 3"], "one crash may be anybody's fault"
    lane.crash("a")
    assert lane.up("a") == ["run #3 on a: 1"], "after the second each runs alone"
    assert lane.done(3) == ["done #3: 1", "run #4 on a: 2"]
    assert lane.crash("a")[0] == "reject 2: model_failed"
    assert lane.quarantined == [2]
    assert lane.reasons() == ["3 instances crashed while they ran this request: killed"]
    assert lane.up("a") == ["run #5 on a: 3"]
    assert lane.done(5) == ["done #5: 3"]
    assert remembered(lane.lane) == 0


def test_a_lone_killer_is_blamed_after_two_crashes() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    assert lane.crash("a") == ["run #2 on b: 1"]
    assert lane.crash("b")[0] == "reject 1: model_failed"
    assert lane.quarantined == [1]
    assert remembered(lane.lane) == 0


def test_one_crash_after_an_error_blames_nobody() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    assert lane.fail(1) == ["run #2 on b: 1"]
    assert lane.crash("b")[0] == "reject 1: unavailable"
    assert lane.quarantined == []


def test_what_may_not_run_again_does_not_and_blames_nobody() -> None:
    lane = Script(instances="a", lane_knobs=knobs(retry_budget=0.0))
    lane.arrive(1)
    lane.arrive(2)
    assert lane.crash("a")[0] == "reject 1: unavailable"
    assert lane.quarantined == []
    assert lane.up("a") == ["run #2 on a: 2"]
