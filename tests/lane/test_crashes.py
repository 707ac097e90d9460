"""Events in, exact commands out: instances that crash and come back, requests that wait meanwhile, and the one to blame."""

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


def test_the_end_of_the_lane_ends_the_waiting() -> None:
    lane = Script(instances="a")
    lane.arrive(1, at=1.0)
    lane.crash("a")
    assert lane.lose("whoever") == ["reject 1: unavailable"]


def test_the_knob_holds_for_those_that_wait_already() -> None:
    lane = Script(instances="a")
    lane.arrive(1, at=1.0)
    lane.crash("a")
    assert lane.turn(knobs(outage_wait_s=0.5)) == ["wake at 1.5"]
    assert lane.turn(knobs(outage_wait_s=0.0)) == ["reject 1: unavailable"]


def test_an_instance_scaled_away_is_not_waited_for_although_it_crashes_in_its_last_batch() -> None:
    lane = Script(instances="a")
    lane.arrive(1)
    lane.tell(InstanceRetired("a"))
    assert lane.crash("a") == ["reject 1: unavailable"]


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
