"""A request that comes in parts is taken in as a whole or not at all; then each part is a ticket like others."""

from itertools import count
from math import inf

import pytest

from dlproxy.message import Ticket
from dlproxy.policy.events import Arrived, Reject
from dlproxy.policy.partition import split
from tests.policy.lane.fixtures import Script, knobs


def arrive(lane: Script, number: int, rows: int, *, part_rows: int = 4, left_s: float = inf, **terms: int) -> list[str]:
    """The parts have the ids number, number + 1 and so on."""
    whole = Ticket(number, 0.0, left_s, rows, **terms)
    return lane.tell(Arrived(split(whole, part_rows, count(number + 1))))


def test_parts_run_on_all_instances_and_share_batches_with_others() -> None:
    lane = Script(instances="ab")
    assert arrive(lane, 10, 6, part_rows=2) == ["run #1 on a: 10", "run #2 on b: 11 12"]
    lane.arrive(1)
    assert arrive(lane, 20, 3, part_rows=2) == []
    assert lane.done(1) == ["done #1: 10", "run #3 on a: 1 20 21"]


def test_a_request_waits_with_all_its_parts_or_with_none() -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=20))
    lane.arrive(1)
    lane.arrive(2)
    rejected = arrive(lane, 10, 20)
    assert rejected == [f"reject {number}: queue_full" for number in range(10, 15)]
    reasons = {(command.reason, command.failure) for command in lane.commands if isinstance(command, Reject)}
    assert len(reasons) == 1, "every part is told the same"
    assert arrive(lane, 30, 19) == []
    assert lane.lane.view().queued_rows == 20


def test_an_empty_queue_takes_a_request_of_any_size() -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=10))
    assert arrive(lane, 10, 30) == ["run #1 on a: 10"]
    assert lane.lane.view().queued_rows == 26


def test_a_request_is_in_time_if_its_last_part_is() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2)
    # 11 ms for ticket 1, then batches of 4 rows at 14 ms: ticket 2 with 3 rows of the request, and so on
    late = arrive(lane, 10, 12, part_rows=3, left_s=0.050)
    assert late == [f"reject {number}: deadline" for number in range(10, 14)]
    assert not [line for line in arrive(lane, 20, 12, part_rows=3, left_s=0.080) if line.startswith("reject")]


def test_an_idle_instance_takes_a_request_whatever_is_predicted() -> None:
    lane = Script()
    taken = arrive(lane, 10, 12, left_s=0.030)
    assert taken[0] == "run #1 on a: 10"
    assert lane.lane.view().queued_rows == 8


def test_less_urgent_requests_give_way_to_all_of_it() -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=8))
    lane.arrive(*range(1, 9), priority=5)
    assert lane.lane.view().queued_rows == 4, "as many run"
    assert arrive(lane, 20, 6, part_rows=3, priority=1) == ["reject 8: queue_full", "reject 7: queue_full"]
    assert lane.lane.view().queued_rows == 8
    refused = arrive(lane, 30, 9, part_rows=3, priority=1)
    assert refused == [f"reject {number}: queue_full" for number in (30, 31, 32)], "those who gave way for nothing wait on"
    assert lane.lane.view().queued_rows == 8


def test_the_adaptive_limit_asks_the_first_part_only() -> None:
    lane = Script(lane_knobs=knobs(adaptive_limit=True, max_batch=1))
    lane.arrive(1)
    assert arrive(lane, 10, 9, part_rows=1) == [], "two are let in at least, and one runs"
    refused = arrive(lane, 30, 3, part_rows=1)
    assert refused == [f"reject {number}: overloaded" for number in (30, 31, 32)]


@pytest.mark.parametrize("gone", [10, 11, 13])
def test_each_part_can_leave_by_itself(gone: int) -> None:
    lane = Script()
    lane.arrive(1)
    arrive(lane, 10, 13)
    assert lane.cancel(gone) == [f"reject {gone}: cancelled"]


def test_verdicts_on_several_requests_in_one_turn_are_their_own() -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=10))
    lane.arrive(1)
    lane.arrive(2)
    wholes = [Ticket(10, 0.0, rows=6), Ticket(20, 0.0, rows=6), Ticket(30, 0.0, rows=3)]
    tickets = [part for whole in wholes for part in split(whole, 2, count(whole.id + 1))]
    assert lane.tell(Arrived(tickets)) == [f"reject {number}: queue_full" for number in (20, 21, 22)]


def test_parts_run_side_by_side_even_if_one_batch_could_hold_them() -> None:
    lane = Script(instances="abc", lane_knobs=knobs(max_batch=64))
    assert arrive(lane, 10, 9, part_rows=2) == ["run #1 on a: 10", "run #2 on b: 11 12", "run #3 on c: 13 14"]
    lane.arrive(*range(1, 4))
    assert lane.commands == [], "others are not spread"
    assert lane.done(1) == ["done #1: 10", "run #4 on a: 1 2 3"]
