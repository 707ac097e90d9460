"""Why was this slow? Each command says why it was given, and a view of the lane says what is waited for."""

from math import inf

from dlproxy.policy.events import Complete

from .fixtures import Script, knobs


def reasons(lane: Script) -> list[str]:
    """Those of the commands of the last event."""
    return [command.reason for command in lane.commands if not isinstance(command, Complete)]


def test_batches_say_why_they_start_now() -> None:
    lane = Script(instances="ab", lane_knobs=knobs(hedge=True))
    lane.arrive(1)
    assert reasons(lane) == ["idle", "hedge"]
    lane.timer(1.0)
    assert reasons(lane) == ["hedge"]
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.fail(1)
    assert reasons(lane) == ["retry"]
    lane = Script(lane_knobs=knobs(arbitrated=True))
    lane.arrive(1)
    assert reasons(lane) == ["first"]
    lane.arrive(2, left_s=0.1)
    assert reasons(lane) == ["more_urgent", "deadline"]
    lane.grant()
    assert reasons(lane) == ["turn"]
    lane.grant()
    assert reasons(lane) == ["nothing_to_run"]


def test_refusals_on_arrival_name_the_rule() -> None:
    lane = Script(instances="")
    lane.arrive(1)
    assert reasons(lane) == ["no_instance"]
    lane = Script(lane_knobs=knobs(max_queue_rows=1, max_batch=1))
    lane.arrive(1, 2, 3, left_s=inf)
    assert reasons(lane) == ["queue_full", "queue_full", "idle"]
    lane.arrive(4, priority=1)
    assert reasons(lane) == []
    lane.arrive(5, priority=2)
    assert reasons(lane) == ["queue_full"]
    lane.arrive(6, left_s=0.001)
    lane.close()
    lane.arrive(7)
    assert reasons(lane) == ["closing"]


def test_what_is_given_up_names_the_rule() -> None:
    lane = Script(lane_knobs=knobs(max_batch=1))
    lane.arrive(1)
    lane.arrive(2, left_s=0.050)
    lane.arrive(3, left_s=0.050, answer_by=0.050)
    lane.arrive(4, left_s=0.012)
    assert reasons(lane) == ["predicted_late"]
    lane.timer(0.050)
    assert reasons(lane) == ["expired", "client_deadline"]
    lane.arrive(5)
    lane.cancel(5)
    assert reasons(lane) == ["cancelled"]
    lane.fail(1)
    assert reasons(lane) == ["failed"]


def test_the_end_of_an_instance_and_an_outage_are_told_apart() -> None:
    lane = Script(lane_knobs=knobs(retry_budget=0.0))
    lane.arrive(1)
    lane.arrive(2)
    lane.crash("a", at=1.0)
    assert reasons(lane) == ["instance_lost", "instance_expected"]
    lane.timer(3.0)
    assert reasons(lane) == ["no_instance"]


def test_a_view_says_what_is_waited_for() -> None:
    lane = Script(lane_knobs=knobs(max_wait_s=0.005))
    assert lane.lane.view().waits_for == "nothing"
    lane.arrive(1)
    assert reasons(lane) == ["fill"]
    assert lane.lane.view().waits_for == "fill"
    lane.timer(0.005)
    lane.arrive(2, rows=3)
    view = lane.lane.view()
    assert (view.waits_for, view.queued_requests, view.queued_rows) == ("instance", 1, 3)
    assert (view.running_batches, view.running_requests, view.second_runs) == (1, 1, 0)
    assert (view.batch_limit, view.batch_goal, view.request_limit, view.knobs.max_wait_s) == (4, 4, None, 0.005)
    lane.crash("a")
    view = lane.lane.view()
    assert (view.waits_for, view.second_runs, view.instances) == ("start", 1, [])
    lane.close()
    assert lane.lane.view().closing == "the model is being unloaded"
    lane = Script(lane_knobs=knobs(arbitrated=True, adaptive_limit=True))
    lane.arrive(1)
    assert (lane.lane.view().waits_for, lane.lane.view().request_limit) == ("turn", 8)
    lane = Script(instances="ab")
    lane.arrive(1)
    lane.arrive(2)
    lane.fail(1)
    assert lane.lane.view().waits_for == "other_instance", "only the one that failed it is idle"
