"""Events in, exact commands out: one script per rule of the lane."""

from math import inf

import pytest

from dlproxy.message import Ticket
from dlproxy.policy.events import Arrived, BatchDone, Complete, Dispatch, InstanceUp, Reject
from dlproxy.policy.lane import Lane

from .fixtures import LINE, Script, knobs, remembered


def test_runs_at_once_when_an_instance_idles() -> None:
    lane = Script()
    assert lane.arrive(1) == ["run #1 on a: 1"]
    assert lane.done(1) == ["done #1: 1"]


def test_requests_of_one_turn_make_one_batch() -> None:
    assert Script().arrive(1, 2, 3) == ["run #1 on a: 1 2 3"]


def test_a_batch_forms_while_the_instance_is_busy() -> None:
    lane = Script()
    assert lane.arrive(1) == ["run #1 on a: 1"]
    for number in (2, 3, 4, 5, 6):
        assert lane.arrive(number) == []
    assert lane.done(1, 0.011) == ["done #1: 1", "run #2 on a: 2 3 4 5"]
    assert lane.done(2, 0.025) == ["done #2: 2 3 4 5", "run #3 on a: 6"]
    assert lane.done(3, 0.036) == ["done #3: 6"]
    assert remembered(lane.lane) == 0


def test_more_than_a_batch_at_once_waits_its_turn() -> None:
    lane = Script()
    assert lane.arrive(1, 2, 3, 4, 5) == ["run #1 on a: 1 2 3 4"]
    assert lane.done(1) == ["done #1: 1 2 3 4", "run #2 on a: 5"]


def test_a_ticket_larger_than_a_batch_runs_alone() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, rows=6)
    lane.arrive(3)
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2"]
    assert lane.done(2) == ["done #2: 2", "run #3 on a: 3"]


def test_shapes_are_never_mixed() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, shape=(224,))
    lane.arrive(3, shape=(192,))
    lane.arrive(4, shape=(224,))
    lane.arrive(5)
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2 4"]
    assert lane.done(2) == ["done #2: 2 4", "run #3 on a: 3"]
    assert lane.done(3) == ["done #3: 3", "run #4 on a: 5"]


def test_no_live_instance_rejects_at_once() -> None:
    lane = Script(instances="")
    assert lane.arrive(1, 2) == ["reject 1: unavailable", "reject 2: unavailable"]
    assert lane.up("a") == []
    assert lane.arrive(3) == ["run #1 on a: 3"]


def test_a_full_queue_rejects_the_newest() -> None:
    lane = Script(lane_knobs=knobs(max_queue_rows=2))
    lane.arrive(1)
    assert lane.arrive(2, 3, 4) == ["reject 4: queue_full"]
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2 3"]


# Deadlines


def test_a_deadline_that_has_passed_rejects_at_arrival() -> None:
    assert Script().arrive(1, left_s=0.0) == ["reject 1: deadline"]


def test_time_to_a_free_instance_counts_at_arrival() -> None:
    lane = Script()
    lane.arrive(1)  # runs until 11 ms
    assert lane.arrive(2, at=0.002, left_s=0.019) == ["reject 2: deadline"], "9 ms to wait and 11 ms to run"
    assert lane.arrive(3, at=0.002, left_s=0.021) == ["wake at 0.023"]
    assert lane.arrive(4, at=0.002, left_s=0.0205) == ["reject 4: deadline"], "9 ms to wait and 12 ms to run with the other"
    assert lane.arrive(5, at=0.002, left_s=0.0215) == []


def test_expires_at_its_deadline_while_the_instance_is_busy() -> None:
    lane = Script()
    lane.arrive(1)
    assert lane.arrive(2, left_s=0.050) == ["wake at 0.05"]
    assert lane.arrive(3, left_s=0.200, at=0.001) == [], "the earlier wake-up is armed already"
    assert lane.timer(0.050) == ["reject 2: deadline", "wake at 0.201"]
    assert lane.reasons() == ["Request timeout expired: it had waited 50.0 ms"]
    assert lane.done(1, 0.060) == ["done #1: 1", "run #2 on a: 3"]


def test_an_earlier_deadline_arms_an_earlier_wake_up() -> None:
    lane = Script()
    lane.arrive(1)
    assert lane.arrive(2, left_s=0.500) == ["wake at 0.5"]
    assert lane.arrive(3, left_s=0.100) == ["wake at 0.1"]


def test_a_timer_that_fires_early_is_armed_again() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, left_s=0.050)
    assert lane.timer(0.049) == ["wake at 0.05"]
    assert lane.timer(0.050) == ["reject 2: deadline"]


def test_a_timer_without_anything_waiting_does_nothing() -> None:
    lane = Script()
    assert lane.timer(1.0) == []
    lane.arrive(1)
    lane.arrive(2, left_s=0.5)
    lane.done(1)
    assert lane.timer(1.5) == []


def test_an_expired_ticket_is_not_run_even_if_the_timer_is_late() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, left_s=0.050)
    lane.arrive(3)
    assert lane.done(1, 0.050) == ["done #1: 1", "reject 2: deadline", "run #2 on a: 3"]


def test_early_drop_sheds_the_head_and_does_not_shrink_the_batch() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, left_s=0.040)  # when the instance frees itself, 10 ms are left and a batch of 4 takes 14 ms
    lane.arrive(3, left_s=0.040)
    lane.arrive(4, 5, 6, 7, 8, left_s=0.200)
    assert lane.done(1, 0.030) == [
        "done #1: 1",
        "reject 2: deadline",
        "reject 3: deadline",
        "run #2 on a: 4 5 6 7",  # not 4 5: those next in line took the places of the shed
    ]
    assert lane.done(2, 0.044) == ["done #2: 4 5 6 7", "run #3 on a: 8"]


def test_early_drop_fills_up_from_the_same_shape_only() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, left_s=0.035, shape=(9,))
    lane.arrive(3, 4, 5, shape=(9,))
    lane.arrive(6, 7)
    assert lane.done(1, 0.030) == ["done #1: 1", "reject 2: deadline", "run #2 on a: 3 4 5"]


def test_early_drop_fills_up_but_not_beyond_the_batch_that_it_judged() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, left_s=0.035)
    lane.arrive(3)
    lane.arrive(4, rows=3)
    lane.arrive(5)
    assert lane.done(1, 0.030) == ["done #1: 1", "reject 2: deadline", "run #2 on a: 3"]


def test_the_last_ticket_is_not_dropped_on_a_prediction() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, left_s=0.040)
    assert lane.done(1, 0.035) == ["done #1: 1", "run #2 on a: 2"], "5 ms left, 11 ms predicted: only running it can tell"


def test_of_tickets_that_are_all_late_one_is_run() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, 3, 4, left_s=0.040)
    assert lane.done(1, 0.035) == ["done #1: 1", "reject 2: deadline", "reject 3: deadline", "run #2 on a: 4"]


def test_a_prior_a_hundred_times_too_slow_is_no_death_spiral() -> None:
    """The true line is 1 ms + 0.1 ms per row, the prior says 100 times that, clients give 20 ms."""
    slo_s = 0.020
    lane = Lane(knobs(max_batch=32, slo_s=slo_s), [(rows, 100 * (0.001 + 0.0001 * rows)) for rows in (1, 2, 4, 8)])
    lane.on(InstanceUp("a"), 0.0)
    ends: list[tuple[float, Dispatch]] = []
    outcomes: list[bool] = []
    for number in range(4000):  # 2,000 requests a second: 40 % of what the instance can serve
        now = number * 0.0005
        commands = []
        while ends and ends[0][0] <= now:
            end_at, batch = ends.pop(0)
            commands += lane.on(BatchDone(batch.batch_id, 0.001 + 0.0001 * len(batch.tickets)), end_at)
            ends += [(end_at + 0.001 + 0.0001 * len(c.tickets), c) for c in commands if isinstance(c, Dispatch)]
            outcomes += [True for c in commands if isinstance(c, Complete) for _ in c.tickets]
            outcomes += [False for c in commands if isinstance(c, Reject)]
            commands = []
        commands = lane.on(Arrived([Ticket(number, now, now + slo_s)]), now)
        ends += [(now + 0.001 + 0.0001 * len(c.tickets), c) for c in commands if isinstance(c, Dispatch)]
        outcomes += [False for c in commands if isinstance(c, Reject)]
    assert any(outcomes[:10]), "something is served from the start"
    assert all(outcomes[-2000:]), "and everything once the line is learned"
    assert lane.batching.limit > 1


# Waiting to fill (off by default)


def test_holds_a_batch_until_it_is_full_or_its_head_has_waited() -> None:
    lane = Script(lane_knobs=knobs(max_wait_s=0.5))
    assert lane.arrive(1, at=1.0) == ["wake at 1.5"]
    assert lane.arrive(2, at=1.2) == []
    assert lane.timer(1.5) == ["run #1 on a: 1 2"]
    assert lane.arrive(3, 4, 5, 6, at=1.6) == []
    assert lane.done(1, 1.7) == ["done #1: 1 2", "run #2 on a: 3 4 5 6"]


def test_a_held_batch_still_expires() -> None:
    lane = Script(lane_knobs=knobs(max_wait_s=0.5))
    assert lane.arrive(1, at=1.0, left_s=0.2) == ["wake at 1.5", "wake at 1.2"]
    assert lane.arrive(2, at=1.1) == []
    assert lane.timer(1.2) == ["reject 1: deadline", "wake at 1.6"], "held anew for the next head"
    assert lane.timer(1.6) == ["run #1 on a: 2"]


# Cancelling


def test_a_cancelled_ticket_in_the_queue_is_never_run() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, 3)
    assert lane.cancel(2) == ["reject 2: cancelled"]
    assert lane.cancel(2) == []
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 3"]


def test_a_cancelled_ticket_that_runs_gets_no_second_answer() -> None:
    lane = Script()
    lane.arrive(1, 2)
    assert lane.cancel(1) == ["reject 1: cancelled"]
    assert lane.cancel(1) == []
    assert lane.done(1) == ["done #1: 2"]
    assert lane.cancel(2) == []
    assert remembered(lane.lane) == 0


def test_a_batch_whose_clients_have_all_gone_still_frees_its_instance() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2)
    lane.cancel(1)
    assert lane.done(1) == ["run #2 on a: 2"]


def test_a_cancelled_ticket_that_awaits_its_retry_is_not_retried() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, 2)
    lane.arrive(3)
    assert lane.lose("a") == []
    assert lane.cancel(1) == ["reject 1: cancelled"]
    assert lane.cancel(1) == []
    assert lane.done(2) == ["done #2: 3", "run #3 on b: 2"]
    assert lane.done(3) == ["done #3: 2"]
    assert remembered(lane.lane) == 0


def test_a_retry_whose_clients_have_all_gone_is_not_run() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.arrive(2)
    lane.lose("a")
    lane.cancel(1)
    assert lane.done(2) == ["done #2: 2"]
    assert remembered(lane.lane) == 0


def test_cancelling_an_unknown_ticket_does_nothing() -> None:
    assert Script().cancel(99) == []


# A batch that fails


def test_a_failed_batch_of_one_fails_its_request() -> None:
    lane = Script()
    lane.arrive(1)
    assert lane.fail(1) == ["reject 1: model_failed"]
    assert lane.reasons() == ["the model raised ValueError"]
    assert lane.arrive(2) == ["run #2 on a: 2"], "the instance itself is fine"


def test_a_failed_batch_is_halved_until_the_bad_request_stands_alone() -> None:
    lane = Script()
    lane.arrive(1, 2, 3, 4)
    lane.arrive(5)
    assert lane.fail(1) == ["run #2 on a: 1 2"]
    assert lane.done(2) == ["done #2: 1 2", "run #3 on a: 3 4"], "what is under way goes before what waits"
    assert lane.fail(3) == ["run #4 on a: 3"]
    assert lane.fail(4) == ["reject 3: model_failed", "run #5 on a: 4"]
    assert lane.done(5) == ["done #5: 4", "run #6 on a: 5"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_bad_request_costs_a_logarithm_of_runs(size: int, where: str) -> None:
    bad = {"first": 1, "middle": (size + 1) // 2, "last": size}[where]
    lane = Script(lane_knobs=knobs(max_batch=64), prior=[(1, 1e-6), (2, 2e-6)])
    lane.arrive(*range(1, size + 1))
    answers: dict[int, str] = {}
    runs = 0
    pending = lane.commands
    while batches := [command for command in pending if isinstance(command, Dispatch)]:
        assert len(batches) == 1
        runs += 1
        ids = [ticket.id for ticket in batches[0].tickets]
        assert ids == sorted(ids)
        lane.fail(batches[0].batch_id) if bad in ids else lane.done(batches[0].batch_id)
        pending = lane.commands
        answers |= {ticket.id: "ok" for c in pending if isinstance(c, Complete) for ticket in c.tickets}
        answers |= {c.ticket.id: c.failure.kind.value for c in pending if isinstance(c, Reject)}
    assert answers == {number: "model_failed" if number == bad else "ok" for number in range(1, size + 1)}
    assert runs <= 1 + 2 * (size - 1).bit_length()


def test_when_every_request_is_bad_each_fails_once() -> None:
    lane = Script(lane_knobs=knobs(max_batch=8))
    lane.arrive(*range(1, 9))
    failed = []
    for batch_id in range(1, 16):  # 8 + 4 + 2 + 1 runs
        failed += [line for line in lane.fail(batch_id) if line.startswith("reject")]
    assert failed == [f"reject {number}: model_failed" for number in range(1, 9)]
    assert remembered(lane.lane) == 0


def test_halves_are_not_run_past_their_deadline() -> None:
    lane = Script()
    lane.arrive(1, 2, left_s=0.030)
    lane.arrive(3)
    assert lane.fail(1, 0.031) == ["reject 1: deadline", "reject 2: deadline", "run #2 on a: 3"]


def test_a_failed_batch_whose_other_client_has_gone_is_run_again_alone() -> None:
    lane = Script()
    lane.arrive(1, 2)
    lane.cancel(1)
    assert lane.fail(1) == ["run #2 on a: 2"], "it may have been the other one's fault"
    assert lane.done(2) == ["done #2: 2"]


# Instances that come and go


def test_a_batch_of_a_lost_instance_is_run_again_elsewhere() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, 2)
    assert lane.lose("a", 0.005) == ["run #2 on b: 1 2"]
    assert lane.done(2) == ["done #2: 1 2"]
    assert remembered(lane.lane) == 0


def test_a_retry_goes_before_what_waits() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.arrive(2)
    lane.arrive(3)
    assert lane.lose("a") == []
    assert lane.done(2) == ["done #2: 2", "run #3 on b: 1"]
    assert lane.done(3) == ["done #3: 1", "run #4 on b: 3"]


def test_a_second_loss_rejects() -> None:
    lane = Script(instances="abc")
    lane.arrive(1)
    assert lane.lose("a") == ["run #2 on b: 1"]
    assert lane.lose("b") == ["reject 1: unavailable"]
    assert lane.reasons() == ["the instance was lost while it ran the request a second time: killed"]
    assert remembered(lane.lane) == 0


def test_a_retry_that_is_late_is_rejected_at_its_deadline() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, left_s=0.100)
    lane.arrive(2)
    assert lane.lose("a", 0.010) == ["wake at 0.1"]
    assert lane.timer(0.100) == ["reject 1: deadline"]
    assert lane.done(2, 0.200) == ["done #2: 2"]
    assert remembered(lane.lane) == 0


def test_a_retry_whose_deadline_has_passed_asks_to_be_woken_now_not_in_the_past() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, left_s=0.100)
    lane.arrive(2)
    assert lane.lose("a", 0.150) == ["wake at 0.15"]
    assert lane.timer() == ["reject 1: deadline"]


def test_losing_the_last_instance_rejects_everything() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2)
    lane.arrive(3, shape=(9,))
    assert sorted(lane.lose("a")) == ["reject 1: unavailable", "reject 2: unavailable", "reject 3: unavailable"]
    assert lane.reasons()[0] == "the model has no live instance: a was lost (killed)"
    assert remembered(lane.lane) == 0
    assert lane.up("a") == []
    assert lane.arrive(4) == ["run #2 on a: 4"]


def test_a_lost_instances_late_answer_is_ignored() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    assert lane.lose("a") == ["run #2 on b: 1"]
    assert lane.done(1) == []
    assert lane.up("a") == []
    assert lane.done(1) == []
    assert lane.done(2) == ["done #2: 1"]


def test_losing_an_unknown_instance_or_one_twice_does_nothing() -> None:
    lane = Script(instances="ab")
    assert lane.lose("z") == []
    assert lane.lose("a") == []
    assert lane.lose("a") == []
    assert lane.arrive(1) == ["run #1 on b: 1"]


def test_a_new_instance_takes_what_waits() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2)
    assert lane.up("b") == ["run #2 on b: 2"]


def test_capacity_two_runs_two_batches_at_a_time() -> None:
    lane = Script(capacity=2)
    assert lane.arrive(1) == ["run #1 on a: 1"]
    assert lane.arrive(2) == ["run #2 on a: 2"]
    assert lane.arrive(3) == []
    assert lane.done(2) == ["done #2: 2", "run #3 on a: 3"]
    assert lane.arrive(4) == []
    assert lane.lose("a").count("reject 4: unavailable") == 1


def test_two_instances_share_the_work_and_the_quicker_is_preferred() -> None:
    lane = Script(instances="ab")
    assert lane.arrive(1) == ["run #1 on a: 1"]
    assert lane.arrive(2) == ["run #2 on b: 2"]
    lane.done(1, 0.050, service_s=0.050)
    lane.done(2, 0.050, service_s=0.005)
    assert lane.arrive(3) == ["run #3 on b: 3"]
    assert lane.arrive(4) == ["run #4 on a: 4"], "the slower one rather than nobody"


def test_an_instance_that_comes_back_starts_anew() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.arrive(2)
    lane.done(1, 1.0, service_s=1.0)
    lane.done(2, 1.0, service_s=0.1)
    lane.lose("a")
    lane.up("a")
    assert lane.arrive(3) == ["run #3 on a: 3"], "30 ms are assumed of it, its second is forgotten"


def test_with_two_instances_each_gets_a_batch_at_once() -> None:
    lane = Script(instances="ab")
    assert lane.arrive(*range(1, 7)) == ["run #1 on a: 1 2 3 4", "run #2 on b: 5 6"]


# Knobs at run time


def test_a_smaller_max_batch_holds_for_what_waits() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, 3, 4, 5)
    assert lane.turn(knobs(max_batch=2)) == []
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2 3"]


def test_a_smaller_max_batch_holds_for_a_batch_to_be_retried() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, 2, 3, 4)
    lane.arrive(5)
    lane.lose("a")
    assert lane.turn(knobs(max_batch=3)) == []
    assert lane.done(2) == ["done #2: 5", "run #3 on b: 1 2 3"]
    assert lane.done(3) == ["done #3: 1 2 3", "run #4 on b: 4"]


def test_no_more_waiting_releases_a_held_batch() -> None:
    lane = Script(lane_knobs=knobs(max_wait_s=10.0))
    lane.arrive(1)
    assert lane.turn(knobs(max_wait_s=0.0)) == ["run #1 on a: 1"]


def test_a_tighter_objective_means_smaller_batches_at_once() -> None:
    lane = Script(lane_knobs=knobs(max_batch=8))
    lane.arrive(1)
    lane.arrive(2, 3, 4, 5)
    lane.turn(knobs(max_batch=8, slo_s=0.0262))  # 12.05 ms for a batch: two rows
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2 3"]


def test_a_smaller_queue_keeps_what_it_holds_and_takes_no_more() -> None:
    lane = Script()
    lane.arrive(1)
    lane.arrive(2, 3, 4)
    assert lane.turn(knobs(max_queue_rows=2)) == []
    assert lane.arrive(5) == ["reject 5: queue_full"]
    assert lane.done(1) == ["done #1: 1", "run #2 on a: 2 3 4"]


def test_time_never_goes_back() -> None:
    lane = Lane(knobs(), LINE)
    lane.on(InstanceUp("a"), 5.0)
    with pytest.raises(AssertionError, match="time went back"):
        lane.on(Arrived([Ticket(1, 4.0, inf)]), 4.0)


def test_a_dispatch_says_why() -> None:
    lane = Script(instances="ab")
    lane.arrive(1)
    assert [command.reason for command in lane.commands if isinstance(command, Dispatch)] == ["idle"]
    lane.lose("a")
    assert [command.reason for command in lane.commands if isinstance(command, Dispatch)] == ["retry"]
