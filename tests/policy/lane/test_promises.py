"""The client's own deadline: whatever happens, an answer or a failure by then; a batch that runs goes on without it."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.simulate.engine import Call
from dlproxy.lab.simulate.faults import parse, plan_fault
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.message import FailureKind
from dlproxy.policy.balancing import LeastPeakEwma
from dlproxy.policy.knobs import LaneKnobs
from tests.lab.simulate.fixtures import NotedSimulation, NotedTally, make_model

from .fixtures import Script, knobs, remembered

TIMER_S = 1e-3  # timers fire on whole milliseconds


def test_while_it_runs_it_is_answered_in_time_and_its_neighbours_when_they_are_done() -> None:
    lane = Script()
    assert lane.arrive(1, left_s=0.020, answer_by=0.020) == ["run #1 on a: 1", "wake at 0.02"]
    assert lane.timer(0.020) == ["reject 1: late"]
    assert lane.reasons() == ["Request timeout expired while the model ran, 20.0 ms after the request had arrived"]
    assert lane.done(1, at=0.030) == []
    assert remembered(lane.lane) == 0


def test_its_neighbours_get_their_answers() -> None:
    lane = Script()
    lane.arrive(1, left_s=0.020, answer_by=0.020, at=0.0)
    lane.arrive(2, left_s=0.040, answer_by=0.040)
    lane.arrive(3)
    lane.done(1, at=0.011)
    assert lane.timer(0.020) == ["wake at 0.04"], "ticket 1 has its answer"
    assert lane.timer(0.040) == ["reject 2: late"]
    assert lane.done(2, at=0.050) == ["done #2: 3"]
    assert remembered(lane.lane) == 0


def test_in_the_queue_it_fails_for_its_own_deadline_and_others_for_the_objective() -> None:
    lane = Script(lane_knobs=knobs(max_batch=1))
    lane.arrive(1)
    lane.arrive(2, left_s=0.050, answer_by=0.050)
    lane.arrive(3, left_s=0.050, answer_by=0.080)
    assert lane.timer(0.050) == ["reject 2: late", "reject 3: deadline"]


def test_whose_deadline_has_passed_on_arrival_is_late() -> None:
    lane = Script()
    assert lane.arrive(1, left_s=0.0, answer_by=1.0, at=1.0) == ["reject 1: late"]
    assert lane.arrive(2, left_s=0.0, answer_by=2.0) == ["reject 2: deadline"]


def test_the_objective_alone_lets_a_running_batch_answer_late() -> None:
    lane = Script()
    assert lane.arrive(1, left_s=0.020) == ["run #1 on a: 1"]
    assert lane.done(1, at=0.5) == ["done #1: 1"]


def test_the_model_s_failure_after_it_was_answered_is_nobody_s() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, 2, left_s=0.020, answer_by=0.020)
    lane.timer(0.020)
    assert lane.fail(1) == [], "it is not tried again either"
    assert remembered(lane.lane) == 0


def test_a_second_run_is_no_excuse() -> None:
    lane = Script(instances="ab")
    lane.arrive(1, left_s=0.020, answer_by=0.020)
    assert lane.lose("a", at=0.010) == ["run #2 on b: 1"]
    assert lane.timer(0.020) == ["reject 1: late"]
    assert lane.done(2, at=0.030) == []
    assert remembered(lane.lane) == 0


def test_a_client_that_leaves_is_answered_once() -> None:
    lane = Script()
    lane.arrive(1, left_s=0.020, answer_by=0.020)
    assert lane.cancel(1) == ["reject 1: cancelled"]
    assert lane.timer(0.020) == []
    assert lane.cancel(1, at=0.021) == []


@settings(max_examples=30, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from([0.003, 0.040, 0.3, inf]),
            st.sampled_from([0.02, 0.25, 4.0]),
            st.integers(1, 4),
        ),
        min_size=1,
        max_size=40,
    ),
    faults=st.sets(
        st.sampled_from(
            [
                "slow:node=node-0,instance=m-0,at=0.1,for=0.2,factor=20",
                "die:node=node-0,instance=m-0,at=0.15,for=0.2",
                "die:node=node-0,instance=m-1,at=0.2,for=5",
                "fail:node=node-0,instance=m-1,at=0.05,for=0.1",
            ]
        )
    ),
    hedge=st.booleans(),
    instances=st.integers(1, 2),
)
def test_everybody_is_answered_by_the_time_they_named(
    calls: list[tuple[int, float, float, int]], faults: set[str], hedge: bool, instances: int
) -> None:
    lane_knobs = LaneKnobs(max_batch=4, max_queue_rows=30, hedge=hedge, outage_wait_s=10.0)
    simulation = NotedSimulation(NotedTally(inf), balancer=LeastPeakEwma())
    model = make_model("m", Fitted(0.020, 0.002, cv=0.5, seed=1), knobs=lane_knobs, instances=instances)
    simulation.add("node-0", [model])
    for text in sorted(faults):
        if instances == 2 or "m-1" not in text:
            plan_fault(simulation, parse(text))
    sent = [Call("m", rows, min(slo_s, own_s), at_ms / 1e3, patience_s=own_s) for at_ms, own_s, slo_s, rows in sorted(calls)]
    simulation.run(sent)
    for number, call in enumerate(sent, start=1):
        kind, at = simulation.ends[number]
        assert at <= call.due_at + call.patience_s + TIMER_S, f"{number} ends as {kind}"
        if kind is FailureKind.LATE:
            assert at >= call.due_at + call.patience_s, f"{number} is given up too early"


def test_no_timer_is_set_where_nobody_has_named_a_time() -> None:
    lane = Script()
    assert lane.arrive(1, 2) == ["run #1 on a: 1 2"]
    assert lane.arrive(3, left_s=1.0) == ["wake at 1"], "only while it waits"
    assert lane.done(1, at=0.011) == ["done #1: 1 2", "run #2 on a: 3"]
    assert lane.timer(1.0) == []
