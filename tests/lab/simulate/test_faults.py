"""Faults: understood or refused with a remedy, and felt by the instances they name for as long as they last."""

from math import inf

import pytest

from dlproxy.lab.simulate.engine import Call, LoopCosts, SimulatedModel, Simulation
from dlproxy.lab.simulate.faults import Fault, FaultError, parse, plan_fault
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.message import FailureKind
from dlproxy.policy.balancing import RoundRobin
from dlproxy.policy.events import InstanceLost, InstanceUp
from dlproxy.policy.knobs import LaneKnobs

from .fixtures import NotedSimulation, NotedTally, make_model, noted

KNOBS = LaneKnobs(max_batch=1, max_queue_rows=100, outage_wait_s=0.0)


class Fleet:
    """`nodes` nodes with one model of so many instances, whose batches take a second."""

    def __init__(
        self,
        *faults: str,
        nodes: int = 1,
        instances: int = 1,
        knobs: LaneKnobs = KNOBS,
        inline: bool = False,
        costs: LoopCosts = LoopCosts(),  # noqa: B008  frozen
    ) -> None:
        self.simulation = NotedSimulation(NotedTally(inf), balancer=RoundRobin())
        self.models: list[SimulatedModel] = []
        for number in range(nodes):
            self.models.append(make_model("m", Fitted(1.0, 0.0), knobs=knobs, instances=instances, inline=inline))
            self.simulation.add(f"node-{number}", [self.models[-1]], costs)
        for text in faults:
            plan_fault(self.simulation, parse(text))

    def run(self, *due_at: float) -> list[tuple[FailureKind | None, float]]:
        """How and when the requests that were due then ended."""
        self.simulation.run([Call("m", 1, inf, at) for at in due_at])
        return [self.simulation.ends[number + 1] for number in range(len(due_at))]


# Parsing


def test_a_fault_is_read_with_its_defaults() -> None:
    assert parse("slow:node=node-0") == Fault(text="slow:node=node-0", kind="slow", node="node-0")
    text = "fail:node=n,instance=m-1,at=10,for=30,after=0.5"
    assert parse(text) == Fault(text=text, kind="fail", node="n", instance="m-1", at_s=10.0, for_s=30.0, after_s=0.5)
    assert parse("slow:node=n,factor=12").factor == 12.0
    assert parse("die:node=n,for=inf").for_s == inf


@pytest.mark.parametrize(
    ("text", "clues"),
    [
        ("", ["no kind ''", "slow, die or fail", "slow:node=node-0,at=10"]),
        ("explode:node=node-0", ["no kind 'explode'", "slow, die or fail"]),
        ("slow", ["must name a node", "node=node-0"]),
        ("slow:node=", ["must name a node"]),
        ("slow:node=node-0,speed=3", ["no option 'speed'", "node, instance, at, for, factor, after"]),
        ("slow:node=node-0,at=soon", ["at takes a number, not 'soon'"]),
        ("slow:node=node-0,at", ["at takes a number, not ''"]),
        ("slow:node=node-0,at=-1", ["at must be 0 or more", "'-1'"]),
        ("slow:node=node-0,at=nan", ["at must be 0 or more"]),
        ("slow:node=node-0,at=inf", ["at must be 0 or more"]),
        ("slow:node=node-0,factor=inf", ["factor must be 0 or more"]),
        ("fail:node=node-0,after=inf", ["after must be 0 or more"]),
        ("die:node=node-0,for=-5", ["for must be 0 or more"]),
    ],
)
def test_what_is_not_understood_is_refused_with_a_remedy(text: str, clues: list[str]) -> None:
    with pytest.raises(FaultError) as caught:
        parse(text)
    assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)


def test_a_node_or_instance_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(FaultError, match=r"there is no node .node-3.; the nodes are node-0 to node-2$"):
        Fleet("die:node=node-3", nodes=3)
    with pytest.raises(FaultError, match=r"there is no node 'node-1'; the nodes are node-0$"):
        Fleet("die:node=node-1")
    with pytest.raises(FaultError, match=r"there is no instance 'x' on node-0; its instances are m-0, m-1$"):
        Fleet("die:node=node-0,instance=x", instances=2)


@pytest.mark.parametrize("second", ["at=3,for=9", "at=5,for=1", "at=0,for=1", "at=0", "at=0,for=100", "at=6,for=1"])
@pytest.mark.parametrize("kind", ["slow", "die", "fail"])
def test_two_of_a_kind_at_a_time_are_refused(kind: str, second: str) -> None:
    with pytest.raises(FaultError, match=f"another '{kind}' on m-0 lasts from 1 to 6 s; let one end"):
        Fleet(f"{kind}:node=node-0,at=1,for=5", f"{kind}:node=node-0,instance=m-0,{second}")


def test_one_after_the_other_on_others_or_of_other_kinds_are_fine() -> None:
    Fleet(
        "die:node=node-0,instance=m-0,at=10,for=5",
        "die:node=node-0,instance=m-0,at=1,for=5",
        "die:node=node-0,instance=m-1,at=1,for=5",
        "slow:node=node-0,at=1,for=50",
        "die:node=node-1,at=1",
        nodes=2,
        instances=2,
    )


# Effects


def test_a_slow_instance_is_slow_from_its_beginning_to_its_end() -> None:
    fleet = Fleet("slow:node=node-0,at=10,for=20,factor=5")
    assert fleet.run(8.5, 10.0, 29.0, 50.0) == [(None, 9.5), (None, 15.0), (None, 34.0), (None, 51.0)]


def test_a_fault_that_does_not_end_does_not_end() -> None:
    assert Fleet("slow:node=node-0,factor=3").run(1000.0) == [(None, 1003.0)]


def test_a_failing_instance_fails_as_quickly_as_it_is_told_to() -> None:
    fleet = Fleet("fail:node=node-0,at=10,for=20,after=0.25")
    assert fleet.run(5.0, 15.0, 30.5) == [(None, 6.0), (FailureKind.MODEL_FAILED, 15.25), (None, 31.5)]


def test_a_batch_whose_instance_dies_is_run_again_once() -> None:
    fleet = Fleet("die:node=node-0,instance=m-0,at=0.5,for=5", instances=2)
    assert fleet.run(0.0) == [(None, 1.5)]
    lane = noted(fleet.models[0])
    assert [batch.instance for batch in lane.dispatched] == ["m-0", "m-1"]
    assert [(at, type(event)) for at, event in lane.told if isinstance(event, InstanceLost | InstanceUp)][2:] == [
        (0.5, InstanceLost),
        (5.5, InstanceUp),
    ]


def test_a_request_that_loses_two_instances_fails() -> None:
    fleet = Fleet("die:node=node-0,instance=m-0,at=0.5", "die:node=node-0,instance=m-1,at=1.0", instances=3)
    assert fleet.run(0.0) == [(FailureKind.UNAVAILABLE, 1.0)]
    assert len(noted(fleet.models[0]).dispatched) == 2


def test_requests_wait_for_an_instance_that_comes_back_in_time_and_not_for_one_that_does_not() -> None:
    waiting = LaneKnobs(max_batch=1, max_queue_rows=100)
    assert Fleet("die:node=node-0,at=0.5,for=1", knobs=waiting).run(0.0, 1.0) == [(None, 2.5), (None, 3.5)]
    for fault in ("die:node=node-0,at=0.5,for=4", "die:node=node-0,at=0.5"):
        at = 2.5 if "for" in fault else 0.5
        assert Fleet(fault, knobs=waiting).run(0.0, 3.0) == [(FailureKind.UNAVAILABLE, at), (FailureKind.UNAVAILABLE, 3.0)]


def test_without_an_instance_requests_are_refused_until_it_is_back() -> None:
    fleet = Fleet("die:node=node-0,at=0.5,for=10")
    unavailable = FailureKind.UNAVAILABLE
    assert fleet.run(0.0, 0.25, 5.0, 10.5) == [(unavailable, 0.5), (unavailable, 0.5), (unavailable, 5.0), (None, 11.5)]


def test_a_fault_hits_its_node_and_no_other() -> None:
    fleet = Fleet("fail:node=node-1,after=0.125", nodes=2)
    ok, failed = (None, 1.0), (FailureKind.MODEL_FAILED, 0.125)
    assert fleet.run(0.0, 0.0) == [ok, failed]


def test_a_fault_at_the_instant_of_an_arrival_comes_first() -> None:
    assert Fleet("fail:node=node-0,after=0.5").run(0.0) == [(FailureKind.MODEL_FAILED, 0.5)]


def test_the_lost_batch_is_not_counted_as_work_after_the_death() -> None:
    fleet = Fleet("die:node=node-0,at=0.25,for=0.25")
    fleet.run(0.0)
    assert fleet.models[0].instances["m-0"].busy_s == pytest.approx(0.25)


def test_what_the_loop_does_after_the_death_holds_up_no_batch_that_is_gone() -> None:
    fleet = Fleet("die:node=node-0,at=0.75", costs=LoopCosts(0.125, shares_core=True))
    fleet.run(0.0, 0.25, 0.875)  # the first begins at 0.125; reading the others would have held it up
    assert fleet.models[0].instances["m-0"].busy_s == pytest.approx(0.625)


def test_an_inline_model_dies_and_comes_back_too() -> None:
    fleet = Fleet("die:node=node-0,at=0.5,for=10", inline=True)
    assert fleet.run(0.0, 5.0, 20.0) == [(None, 1.0), (FailureKind.UNAVAILABLE, 5.0), (None, 21.0)]


def test_what_is_under_way_when_a_drain_ends_got_no_answer() -> None:
    tally = NotedTally(inf)
    simulation = Simulation(tally, balancer=RoundRobin())
    simulation.add("node-0", [make_model("m", Fitted(1.0, 0.0), knobs=KNOBS)])
    simulation.run([Call("m", 1, inf, 0.0), Call("m", 1, inf, 0.0), Call("m", 1, inf, 0.5)], drain_s=0.75)
    assert (tally.sent, tally.ok, tally.errors) == (3, 1, {"no answer": 2})
