"""Events in, exact commands out: batches that wait for the arbiter's turn, and what another discipline or balancer changes."""

from itertools import pairwise

import pytest

from dlproxy.policy.balancing import BALANCERS
from dlproxy.policy.queueing import DISCIPLINES

from .fixtures import Script, knobs, remembered

ARBITRATED = knobs(arbitrated=True)


def test_a_turn_is_wanted_once_and_anew_by_what_is_more_urgent() -> None:
    lane = Script(lane_knobs=knobs(arbitrated=True, discipline="priority"))
    assert lane.arrive(1) == ["want a turn: 11 ms, due inf, level 4"]
    assert lane.arrive(2) == [], "the arbiter knows"
    assert lane.arrive(3, left_s=0.5) == ["want a turn: 13 ms, due 0.5, level 4", "wake at 0.5"]
    assert lane.arrive(4, priority=1) == ["want a turn: 14 ms, due 0.5, level 1"]
    assert lane.arrive(5, priority=2, left_s=0.6) == []
    assert lane.grant(0.01) == ["run #1 on a: 4 5 1 2"]


def test_one_batch_starts_in_a_turn() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(arbitrated=True, max_batch=2))
    assert lane.arrive(1, 2, 3, 4, 5) == ["want a turn: 12 ms, due inf, level 4"]
    assert lane.grant() == ["run #1 on a: 1 2", "want a turn: 12 ms, due inf, level 4"]
    assert lane.grant() == ["run #2 on b: 3 4"]
    assert lane.done(1, service_s=0.012) == ["done #1: 1 2", "want a turn: 11 ms, due inf, level 4"]
    assert lane.grant() == ["run #3 on a: 5"]
    assert lane.done(2) == ["done #2: 3 4"]


@pytest.mark.parametrize("emptied", ["expired", "cancelled", "lost"])
def test_a_turn_is_passed_on_when_nothing_waits_any_more(emptied: str) -> None:
    lane = Script(lane_knobs=ARBITRATED)
    lane.arrive(1, left_s=0.05)
    {"expired": lambda: lane.timer(0.05), "cancelled": lambda: lane.cancel(1), "lost": lambda: lane.lose("a")}[emptied]()
    assert lane.grant() == ["pass"]
    lane.lose("a")
    lane.up("a")
    assert lane.arrive(2) == ["want a turn: 11 ms, due inf, level 4"], "and wanted anew"


def test_a_turn_is_passed_on_when_the_idle_instance_is_lost() -> None:
    lane = Script(instances="ab", lane_knobs=ARBITRATED)
    lane.arrive(1)
    lane.grant()
    lane.arrive(2)
    assert lane.lose("b") == []
    assert lane.grant() == ["pass"]
    assert lane.done(1) == ["done #1: 1", "want a turn: 11 ms, due inf, level 4"]


def test_a_turn_is_passed_on_while_a_batch_fills() -> None:
    lane = Script(lane_knobs=ARBITRATED)
    lane.arrive(1)
    assert lane.turn(knobs(arbitrated=True, max_wait_s=1.0)) == ["wake at 1"]
    assert lane.grant() == ["pass"]
    assert lane.timer(1.0) == ["want a turn: 11 ms, due inf, level 4"]


def test_a_retry_waits_for_a_turn_too() -> None:
    lane = Script(instances="ab", lane_knobs=ARBITRATED)
    lane.arrive(1, priority=2)
    lane.grant()
    assert lane.fail(1) == ["want a turn: 11 ms, due inf, level 2"]
    assert lane.arrive(2) == []
    assert lane.grant() == ["run #2 on b: 1", "want a turn: 11 ms, due inf, level 4"]


def test_nothing_is_hedged_out_of_turn() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(arbitrated=True, hedge=True))
    lane.arrive(1)
    lane.grant()
    assert lane.timer(1.0) == []


def test_a_turn_that_comes_when_nothing_waits_for_turns_any_more_is_passed_on() -> None:
    lane = Script(lane_knobs=ARBITRATED)
    lane.arrive(1)
    assert lane.turn(knobs()) == ["run #1 on a: 1"]
    assert lane.arrive(2) == []
    assert lane.grant() == ["pass"], "its lease must not wait for the next batch"
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2"]


def test_from_now_on_batches_wait_for_turns() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2)
    assert lane.turn(ARBITRATED) == []
    assert lane.done(1) == ["done #1: 1", "want a turn: 11 ms, due inf, level 4"]
    assert lane.turn(knobs()) == ["run #2 on a: 2"]
    assert lane.turn(ARBITRATED) == []
    assert lane.grant() == ["pass"], "the one that was wanted before"


# Another discipline or balancer


@pytest.mark.parametrize("before", DISCIPLINES)
@pytest.mark.parametrize("after", DISCIPLINES)
def test_another_discipline_loses_nothing_and_forgets_no_deadline(before: str, after: str) -> None:
    lane = Script(lane_knobs=knobs(discipline=before, max_batch=1))
    lane.arrive(0)
    for number in range(1, 7):
        left_s = 0.5 if number == 3 else 60.0 + number
        lane.arrive(number, rows=1 + number % 2, priority=number, tenant="xy"[number % 2], shape=(number % 3,), left_s=left_s)
    assert lane.turn(knobs(discipline=after, max_batch=1)) == []
    assert lane.timer(0.5)[0] == "reject 3: deadline"
    served = []
    for batch_id in range(1, 7):
        served += [line.split(": ")[1] for line in lane.done(batch_id) if line.startswith("done")]
    assert sorted(served) == ["0", "1", "2", "4", "5", "6"]
    assert remembered(lane.lane) == 0


def test_another_discipline_reorders_what_waits() -> None:
    lane = Script(lane_knobs=knobs(discipline="fcfs", max_batch=1))
    lane.arrive(0)
    lane.arrive(1, rows=4)
    lane.arrive(2)
    lane.turn(knobs(discipline="sjf", max_batch=1))
    assert lane.done(1) == ["done #1: 0", "run #2 on a: 2"]
    lane.turn(knobs(discipline="fcfs", max_batch=1))
    assert lane.done(2) == ["done #2: 2", "run #3 on a: 1"]


def test_another_balancer_takes_over_what_is_in_flight() -> None:
    lane = Script(instances="ab", capacity=2, lane_knobs=knobs(max_batch=1, balancer=BALANCERS[0]))
    batch_ids = iter(range(1, 100))
    lane.arrive(0)
    for before, after in pairwise([*BALANCERS, BALANCERS[0]]):
        assert lane.turn(knobs(max_batch=1, balancer=before)) == []
        lane.arrive(1, 2, 3, affinity="k")
        assert sorted(state.in_flight for state in lane.lane.view().instances) == [2, 2], before
        assert lane.turn(knobs(max_batch=1, balancer=after)) == []
        for _ in range(3):
            lane.done(next(batch_ids))
    lane.done(next(batch_ids))
    assert remembered(lane.lane) == 0
