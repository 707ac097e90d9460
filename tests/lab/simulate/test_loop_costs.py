"""A node's event loop: what reading and writing cost bounds its capacity, and an inline batch holds it up."""

from math import inf

import pytest

from dlproxy.lab.simulate.engine import Call, LoopCosts
from dlproxy.lab.simulate.service_times import Fitted, Measured, Sample
from dlproxy.message import FailureKind
from dlproxy.policy.events import Arrived, BatchDone
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.serve.driver import GATHER_MOST

from .fixtures import make_model, noted, run_calls

KNOBS = LaneKnobs(max_batch=256, max_queue_rows=100_000, slo_s=10.0)
INSTANT = Fitted(1e-12, 0.0)


def calls(count: int, every_s: float, *, name: str = "m", start: float = 0.0, timeout_s: float = inf) -> list[Call]:
    return [Call(name, 1, timeout_s, start + number * every_s) for number in range(count)]


@pytest.mark.parametrize(("read_s", "write_s"), [(20e-6, 15e-6), (100e-6, 0.0), (0.0, 50e-6)])
@pytest.mark.parametrize("inline", [False, True])
def test_with_an_instant_model_the_capacity_is_one_by_the_cost_of_a_request(
    read_s: float, write_s: float, inline: bool
) -> None:
    count, costs = 5000, LoopCosts(read_s, write_s)
    model = make_model("m", INSTANT, knobs=KNOBS, inline=inline)
    simulation, _ = run_calls([model], calls(count, (read_s + write_s) / 3), costs=costs)
    last = max(at for _, at in simulation.ends.values())
    assert count / last == pytest.approx(1.0 / (read_s + write_s), rel=0.01)


def test_below_its_capacity_a_request_takes_what_it_costs() -> None:
    model = make_model("m", Fitted(0.001, 0.0), knobs=KNOBS)
    _, tally = run_calls([model], calls(10, 0.01), costs=LoopCosts(20e-6, 15e-6, 100e-6))
    assert [answered - due for due, answered in tally.answers] == pytest.approx([0.001 + 20e-6 + 15e-6 + 100e-6] * 10)


def test_a_refusal_is_written_too() -> None:
    model = make_model("m", Fitted(1.0, 0.0), knobs=LaneKnobs(max_batch=1, max_queue_rows=1))
    simulation, _ = run_calls([model], [Call("m", 1, inf, 0.0), *calls(2, 0.0, start=0.1)], costs=LoopCosts(0.0, 0.001, 0.010))
    assert simulation.ends[3] == (FailureKind.QUEUE_FULL, pytest.approx(0.111))


@pytest.mark.parametrize("inline", [False, True])
def test_the_lane_is_told_of_no_more_than_one_turn_gathers(inline: bool) -> None:
    model = make_model("m", Fitted(0.001, 0.0), knobs=KNOBS, inline=inline)
    run_calls([model], [*calls(1, 0.0), *calls(200, 0.0, start=1.0)], costs=LoopCosts(1e-6, 1e-6))
    told = [len(event.tickets) for _, event in noted(model).told if isinstance(event, Arrived)]
    assert told == [1, GATHER_MOST, GATHER_MOST, GATHER_MOST, 200 - 3 * GATHER_MOST]


def test_what_comes_while_the_loop_is_busy_is_read_in_its_next_turn_and_not_before() -> None:
    model = make_model("m", INSTANT, knobs=KNOBS)
    run_calls([model], calls(4, 0.4), costs=LoopCosts(1.0, 0.0))
    arrived = [
        (at, [ticket.arrived_at for ticket in event.tickets]) for at, event in noted(model).told if isinstance(event, Arrived)
    ]
    assert arrived == [(1.0, [1.0]), (3.0, [2.0, 3.0]), (4.0, [4.0])]


def test_an_inline_batch_holds_up_the_other_models_of_its_node_and_a_thread_does_not() -> None:
    for inline, answered_at in ((True, 1.0), (False, 0.501)):
        slow = make_model("slow", Fitted(1.0, 0.0), knobs=KNOBS, inline=inline)
        quick = make_model("quick", Fitted(0.001, 0.0), knobs=KNOBS)
        simulation, _ = run_calls([slow, quick], [Call("slow", 1, inf, 0.0), Call("quick", 1, inf, 0.5)])
        assert simulation.ends[2] == (None, pytest.approx(answered_at, abs=0.0015))


def test_the_loop_turns_between_two_batches_that_run_inline() -> None:
    model = make_model("m", Fitted(1.0, 0.0), knobs=LaneKnobs(max_batch=1, max_queue_rows=100), inline=True)
    run_calls([model], [*calls(2, 0.0), *calls(1, 0.0, start=0.5)])
    happened = [line for _, line in noted(model).said]
    arrived_at = [at for at, event in noted(model).told if isinstance(event, Arrived)]
    assert happened == ["run #1 on m-0: 1", "done #1: 1", "run #2 on m-0: 2", "done #2: 2", "run #3 on m-0: 3", "done #3: 3"]
    assert arrived_at == [0.0, 2.0], "read after the first batch, told after the second"


def test_a_deadline_counts_from_when_the_request_was_read() -> None:
    model = make_model("m", Fitted(1.0, 0.0), knobs=KNOBS)
    run_calls([model], calls(2, 0.0, timeout_s=5.0), costs=LoopCosts(0.25, 0.0))
    (event,) = [event for _, event in noted(model).told if isinstance(event, Arrived)]
    assert [(ticket.arrived_at, ticket.deadline_at) for ticket in event.tickets] == [(0.25, 5.25), (0.5, 5.5)]


@pytest.mark.parametrize("inline", [False, True])
def test_the_lane_hears_of_a_batch_after_its_hand_over_which_is_no_part_of_its_service(inline: bool) -> None:
    model = make_model("m", Measured([Sample(1, 0.5, 0.25)]), knobs=LaneKnobs(max_batch=1, max_queue_rows=9), inline=inline)
    simulation, _ = run_calls([model], calls(2, 0.0))
    assert simulation.ends == {1: (None, 0.75), 2: (None, 1.5)}
    assert [event.service_s for _, event in noted(model).told if isinstance(event, BatchDone)] == [0.5, 0.5]
    assert model.instances["m-0"].busy_s == 1.0


def test_on_a_shared_core_a_batch_lasts_longer_by_what_the_loop_did_meanwhile() -> None:
    model = make_model("m", Fitted(1.0, 0.0), knobs=KNOBS)
    due = [Call("m", 1, inf, at) for at in (0.0, 0.5, 0.75, 1.1)]  # the last comes in the time that the others took
    simulation, _ = run_calls([model], due, costs=LoopCosts(0.125, 0.0, shares_core=True))
    assert simulation.ends[1] == (None, pytest.approx(0.125 + 1.0 + 3 * 0.125))
    (first, second) = [event.service_s for _, event in noted(model).told if isinstance(event, BatchDone)]
    assert (first, second) == (pytest.approx(1.375), pytest.approx(1.0))
    assert model.instances["m-0"].usage(2.5)["utilisation"] == pytest.approx((1.375 + 1.0) / 2.5)


@pytest.mark.parametrize(("shares_core", "per_second"), [(False, 1 / 0.010), (True, 1 / (0.010 + 0.003))])
def test_on_a_shared_core_batches_and_loop_share_its_capacity(shares_core: bool, per_second: float) -> None:
    model = make_model("m", Fitted(0.010, 0.0), knobs=LaneKnobs(max_batch=1, max_queue_rows=100_000))
    costs = LoopCosts(0.002, 0.001, shares_core=shares_core)
    simulation, _ = run_calls([model], calls(2000, 0.012), costs=costs)  # each is read while another one runs
    last = max(at for _, at in simulation.ends.values())
    assert 2000 / last == pytest.approx(min(per_second, 1 / 0.012), rel=0.01)


def test_on_a_shared_core_a_batch_waits_for_one_on_the_loop() -> None:
    thread = make_model("thread", Fitted(1.0, 0.0), knobs=KNOBS)
    inline = make_model("inline", Fitted(0.5, 0.0), knobs=KNOBS, inline=True)
    due = [Call("thread", 1, inf, 0.0), Call("inline", 1, inf, 0.25)]
    simulation, _ = run_calls([thread, inline], due, costs=LoopCosts(shares_core=True))
    assert simulation.ends == {1: (None, pytest.approx(1.5)), 2: (None, pytest.approx(0.75))}


def test_after_a_batch_that_was_held_up_the_instance_has_not_rested() -> None:
    samples = [*[Sample(1, 0.5, idle_s=0.0)] * 20, *[Sample(1, 5.0, idle_s=1.0)] * 20]
    model = make_model("m", Measured(samples), knobs=LaneKnobs(max_batch=1, max_queue_rows=9))
    simulation, _ = run_calls([model], calls(3, 0.1), costs=LoopCosts(0.1, 0.0, shares_core=True))
    assert simulation.ends[3] == (None, pytest.approx(0.1 + (5.0 + 2 * 0.1) + 0.5 + 0.5)), "only the first came after a rest"
