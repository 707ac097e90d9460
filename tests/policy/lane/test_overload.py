"""Events in, exact commands out: who gives way in a full queue, what is shed from one that does not drain, who is limited."""

from itertools import count

import pytest

from dlproxy.policy.events import Reject
from dlproxy.policy.queueing import DISCIPLINES

from .fixtures import Script, knobs, remembered

# A full queue


def test_the_last_and_least_urgent_gives_way_to_a_more_urgent_request() -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=3))
    lane.arrive(1)
    lane.arrive(2)
    lane.arrive(3, priority=8)
    lane.arrive(4, priority=6)
    assert lane.arrive(5, priority=1) == ["reject 3: queue_full"]
    assert lane.reasons() == ["displaced from a full queue by a more urgent request"]
    assert lane.arrive(6, priority=6) == ["reject 6: queue_full"], "an equal does not"
    assert lane.arrive(7) == ["reject 4: queue_full"], "the default is more urgent than 6"
    assert lane.arrive(8) == ["reject 8: queue_full"]
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 5 2 7"]


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_as_many_give_way_as_make_room(discipline: str) -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=4, discipline=discipline))
    lane.arrive(1)
    lane.arrive(2, rows=2, priority=8, tenant="x")
    lane.arrive(3, priority=8, tenant="x")
    assert sorted(lane.arrive(4, rows=4, priority=1, tenant="y")) == ["reject 2: queue_full", "reject 3: queue_full"]
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 4"]
    lane.done(2)
    assert remembered(lane.lane) == 0


@pytest.mark.parametrize("discipline", ["edf", "priority"])
def test_nobody_gives_way_unless_that_makes_enough_room(discipline: str) -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=4, discipline=discipline))
    lane.arrive(1)
    lane.arrive(2, rows=2, priority=1)
    lane.arrive(3, priority=8)
    assert lane.arrive(4, rows=3, priority=2) == ["reject 4: queue_full"], "2 is more urgent, without it there are 3 rows"
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2 3"]


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_nobody_gives_way_to_what_would_be_late_all_the_same(discipline: str) -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=2, discipline=discipline))
    lane.arrive(1)
    lane.arrive(2, 3, priority=8, left_s=5.0)
    assert lane.arrive(4, priority=1, left_s=0.012) == ["reject 4: deadline"]
    assert lane.arrive(5, priority=1, left_s=-1.0) == ["reject 5: deadline"]
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2 3"]
    lane.done(2)
    assert remembered(lane.lane) == 0


# A queue that does not drain


def overloaded(target_s: float = 0.010) -> Script:
    """40 requests, and an urgent one of another tenant, wait for an instance that takes 11 ms for each of them."""
    lane = Script(lane_knobs=knobs(max_batch=1, discipline="fcfs", codel_target_s=target_s))
    lane.arrive(*range(40))
    lane.arrive(40, priority=1)
    return lane


def run_on(lane: Script) -> tuple[int, list[int]]:
    """Batches finish until something is shed. Returns after how many, and what."""
    for batch_id in count(1):
        lane.done(batch_id, 0.011 * batch_id)
        shed = [command.ticket.id for command in lane.commands if isinstance(command, Reject)]
        if shed or batch_id == 40:
            return batch_id, shed
    raise AssertionError


def test_a_burst_is_borne_and_a_queue_that_stands_is_shed() -> None:
    lane = overloaded()
    batches, shed = run_on(lane)
    assert batches * 0.011 > 0.2, "the first interval saw a request that had not waited; the second makes sure"
    assert shed == list(range(batches, 40)), "all of them have waited for more than 20 ms"
    assert lane.reasons()[0] == f"shed after {batches * 11:.1f} ms, because the queue does not drain"
    assert lane.done(batches + 1) == [f"done #{batches + 1}: 40"], "the urgent one was spared"
    assert remembered(lane.lane) == 0


def test_what_has_just_come_is_not_shed() -> None:
    lane = overloaded()
    lane.arrive(50, 51, at=0.001)
    batches, shed = run_on(lane)
    assert not {50, 51} & set(shed), "they come behind the urgent one, which runs"
    now = 0.011 * (batches + 1)
    lane.arrive(60, 61)
    next_batch = f"run #{batches + 2} on a: 60"
    assert lane.done(batches + 1, now)[1:] == ["reject 50: overloaded", "reject 51: overloaded", next_batch]


def test_without_a_target_nothing_is_shed() -> None:
    assert run_on(overloaded(target_s=0.0)) == (40, [])


def test_the_last_one_is_not_shed() -> None:
    lane = overloaded()
    lane.cancel(40)
    batches, shed = run_on(lane)
    assert shed == list(range(batches, 39)), "running it costs nobody anything"


# The adaptive limit


def test_the_limit_refuses_only_those_without_a_deadline() -> None:
    lane = Script(lane_knobs=knobs(max_batch=1, adaptive_limit=True))
    lane.arrive(1)
    lane.arrive(2)
    assert lane.arrive(3) == ["reject 3: overloaded"]
    assert lane.reasons() == ["2 requests are under way, the model answers 2 in good time"]
    assert lane.arrive(4, left_s=9.0) == ["wake at 9"]
    lane.done(1)
    lane.done(2)
    assert lane.arrive(5) == [], "one under way, since the others were answered"


def test_the_limit_leaves_room_for_two_batches_of_each_instance() -> None:
    lane = Script(instances="abc", lane_knobs=knobs(max_batch=2, adaptive_limit=True))
    assert [line for line in lane.arrive(*range(13)) if "reject" in line] == ["reject 12: overloaded"]


def test_a_request_that_runs_twice_counts_once() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(max_batch=1, adaptive_limit=True, hedge=True))
    lane.arrive(1)
    assert lane.timer(0.0115) == ["run #2 on b: 1"]
    assert lane.arrive(2, 3, 4) == []
    assert lane.arrive(5) == ["reject 5: overloaded"]


def test_the_limit_can_be_lifted() -> None:
    lane = Script(lane_knobs=knobs(max_batch=1, adaptive_limit=True))
    assert lane.arrive(1, 2, 3) == ["reject 3: overloaded", "run #1 on a: 1"]
    lane.turn(knobs(max_batch=1))
    assert lane.arrive(4, 5) == []
