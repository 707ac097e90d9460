"""Whatever is simulated: each request ends once, time goes on, no instance does more than fits in, and faults pass."""

from collections import Counter
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlproxy.config import ModelConfig
from dlproxy.fleet.names import instance_names
from dlproxy.fleet.warm_model import stated_way
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate import run
from dlproxy.lab.simulate.engine import Call, LoopCosts, SimulatedModel, Simulation, utilisation
from dlproxy.lab.simulate.faults import Fault
from dlproxy.lab.simulate.run import ModelPlan, Scenario, build, make_calls
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import BALANCERS, RoundRobin
from dlproxy.policy.events import BatchDone
from dlproxy.policy.plan import plan_lane

from .fixtures import NotedLane, NotedTally, noted

DURATION_S = 2.0
NAMES = "abc"
EPSILON = 1e-9


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Small fleets under any load; batches take 2 ms and more, unless an instance slows or fails."""
    models = {}
    for name in NAMES[: draw(st.integers(1, 3))]:
        models[name] = draw(model_plans(name))
    nodes = draw(st.integers(1, 5))
    instances = [
        (f"node-{node}", instance) for node in range(nodes) for plan in models.values() for instance in plan.plan.instances
    ]
    hit = draw(
        st.lists(st.tuples(st.sampled_from(["slow", "die", "fail"]), st.sampled_from(instances)), max_size=6, unique=True)
    )
    faults = [
        Fault(
            kind=kind,  # type: ignore[arg-type]
            node=node,
            instance=instance,
            at_s=draw(st.sampled_from([0.0, 0.5, 1.0, 1.9, 2.5])),
            for_s=draw(st.sampled_from([0.0, 0.001, 0.3, 3.0])),
            factor=draw(st.sampled_from([1.0, 7.0])),
            after_s=draw(st.sampled_from([0.0, 0.001])),
        )
        for kind, (node, instance) in hit
    ]
    return Scenario(
        models=models,
        arrivals=make_arrivals(
            draw(st.sampled_from(["poisson", "constant", "gamma:cv=4"])),
            rate=draw(st.sampled_from([20.0, 150.0, 500.0])),
            seed=draw(st.integers(0, 1000)),
        ),
        duration_s=DURATION_S,
        nodes=nodes,
        balancer=draw(st.sampled_from(sorted(BALANCERS))),
        costs=draw(st.sampled_from([LoopCosts(), LoopCosts(100e-6, 50e-6, 200e-6), LoopCosts(0.0, 0.0, 0.010)])),
        rows=draw(st.sampled_from([1, 1, 2])),
        timeout_s=draw(st.sampled_from([inf, 0.030])),
        faults=faults,
        seed=draw(st.integers(0, 1000)),
    )


@st.composite
def model_plans(draw: st.DrawFn, name: str) -> ModelPlan:
    base_s, row_s = draw(st.sampled_from([(0.002, 0.0), (0.002, 0.001), (0.020, 0.0005)]))
    cv = draw(st.sampled_from([0.0, 0.0, 0.5]))
    config = ModelConfig(
        path=name,
        slo=draw(st.sampled_from(["", "p99=100ms"])),
        max_batch=draw(st.sampled_from([2, 8, 64])),
        max_queue_rows=draw(st.sampled_from([5, 1000])),
        max_wait_s=draw(st.sampled_from([0.0, 0.004])),
        instances=draw(st.integers(1, 3)),
        run=draw(st.sampled_from(["thread", "thread", "inline"])),
    )
    points = tuple((rows, base_s + row_s * rows) for rows in (1, 64))
    way = stated_way(config, base_s + row_s)
    plan = plan_lane(config, points, instances=instance_names(name, way.instances), inline=way.inline, batched=True)
    return ModelPlan(
        plan, lambda seed: Fitted(base_s, row_s, cv=cv, seed=seed), f"{base_s} {row_s} {cv}", share=draw(st.integers(1, 3))
    )


def is_exact(scenario: Scenario) -> bool:
    """Batches take no less than the line says."""
    return all(plan.service.endswith(" 0.0") for plan in scenario.models.values())


def built(scenario: Scenario, tally: NotedTally) -> Simulation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Lane", NotedLane)
        return build(scenario, tally)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenario=scenarios())
def test_every_simulation_is_sound(scenario: Scenario) -> None:
    tally = NotedTally(DURATION_S, objective_s=0.050)
    simulation = built(scenario, tally)
    calls = list(make_calls(scenario))
    simulation.run(calls)

    assert tally.sent == len(calls) == tally.ok + sum(tally.errors.values())
    assert simulation._open == {}
    assert set(simulation._in_flight.values()) <= {0}
    check_answers(scenario, tally)
    check_lanes(scenario, simulation)
    for instances in utilisation(simulation.nodes, DURATION_S).values():
        for name, usage in instances.items():
            assert 0.0 <= usage["utilisation"] <= 1.0 + EPSILON, f"{name} was busy for longer than there was"
    check_that_all_is_well_again(simulation, tally, scenario)


def check_answers(scenario: Scenario, tally: NotedTally) -> None:
    """Nobody is answered before the quickest of batches can have run for it."""
    costs = scenario.costs
    least_s = costs.read_s + costs.write_s + costs.path_s
    if is_exact(scenario):
        least_s += min(plan.times(0).mean(scenario.rows) for plan in scenario.models.values())
    for due_at, answered_at in tally.answers:
        assert answered_at - due_at >= least_s - EPSILON


def check_lanes(scenario: Scenario, simulation: Simulation) -> None:
    """Batches are within their bound, one at a time per instance; each wake-up that was asked for comes at most once."""
    for node in simulation.nodes.values():
        for name, model in node.models.items():
            lane = noted(model)
            knobs = scenario.models[name].plan.knobs
            sizes = [sum(ticket.rows for ticket in batch.tickets) for batch in lane.dispatched]
            assert max(sizes, default=0) <= knobs.max_batch
            assert sum((Counter(instance.batch_sizes) for instance in model.instances.values()), Counter()) == Counter(sizes)
            assert lane.timers <= lane.wakes
            assert (lane.view().running_batches, lane.view().queued_requests) == (0, 0)
            done = [event.batch_id for _, event in lane.told if isinstance(event, BatchDone)]
            assert sorted(done) == [batch.batch_id for batch in lane.dispatched], "each batch ends once"


def check_that_all_is_well_again(simulation: Simulation, tally: NotedTally, scenario: Scenario) -> None:
    """Long after the last fault each model of each node answers."""
    for node in simulation.nodes.values():
        for name, model in node.models.items():
            for instance in model.instances.values():
                assert (instance.slowed_by, instance.fails_after_s) == (1.0, None)
            assert len(noted(model).view().instances) == len(scenario.models[name].plan.instances)
    answered = len(tally.answers)
    for number, name in enumerate(scenario.models):
        simulation.run(Call(name, scenario.rows, inf, 1000.0 + 100.0 * number + node) for node in range(scenario.nodes))
    assert len(tally.answers) == answered + scenario.nodes * len(scenario.models)


def test_the_share_of_time_that_an_instance_was_busy_ends_with_the_run() -> None:
    """A second of load that takes a minute to work off, and one instance that dies in the middle of its batch."""
    config = ModelConfig(path="m", max_batch=1)
    plan = plan_lane(config, ((1, 0.1), (2, 0.2)), instances=["m-0"], inline=False, batched=True)
    scenario = Scenario(
        models={"m": ModelPlan(plan, lambda seed: Fitted(0.1, 0.0), "")},
        arrivals=make_arrivals("constant", rate=500.0, seed=0),
        duration_s=1.0,
    )
    result = run.simulate(scenario)
    assert result.ok == 500
    assert result.instances["node-0"]["m-0"]["utilisation"] == pytest.approx(1.0)

    scenario.faults = [Fault(kind="die", node="node-0", at_s=0.45, for_s=0.5)]
    result = run.simulate(scenario)
    assert result.instances["node-0"]["m-0"]["utilisation"] == pytest.approx(0.5)


def test_what_runs_after_the_end_is_no_part_of_the_share() -> None:
    tally = NotedTally(1.0)
    simulation = Simulation(tally, balancer=RoundRobin())
    plan = plan_lane(ModelConfig(path="m"), ((1, 0.25), (2, 0.5)), instances=["m-0"], inline=False, batched=True)
    simulation.add("node-0", [SimulatedModel("m", NotedLane(plan.knobs), Fitted(0.25, 0.0), ["m-0"])])
    simulation.run(Call("m", 1, inf, at) for at in (0.0, 0.875, 5.0, 9.0))
    assert len(tally.answers) == 4
    assert utilisation(simulation.nodes, 1.0)["node-0"]["m-0"]["utilisation"] == pytest.approx(0.375)
