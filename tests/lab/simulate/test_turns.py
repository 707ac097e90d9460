"""A simulated node whose models share cores grants the turns that two drivers on one event loop get, and never too many."""

import asyncio
from math import inf
from random import Random

import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from dlproxy.lab.simulate.engine import Call, LoopCosts, SimulatedModel
from dlproxy.message import FailureKind
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.balancing import LeastPeakEwma
from dlproxy.policy.events import BatchDone, InstanceLost
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import DISCIPLINES
from dlproxy.serve.driver import Driver
from dlproxy.serve.turns import Turns
from dlproxy.telemetry.stats import ModelStats
from dlproxy.testing import FakeInstance, FakeRuntime
from tests.serve.rig import SIGNATURE, double

from .fixtures import NANO, NotedLane, NotedSimulation, NotedTally, Outcome, Planned, noted, replies_to
from .test_exactness import assert_same

EPSILON = 1e-9


class Sharer(Struct, kw_only=True):
    """One of the models that share the cores. Names begin alike in the simulator and the driver."""

    name: str
    knobs: LaneKnobs
    needs: int
    instances: int
    base_s: float
    factors: list[float]

    def times(self) -> Planned:
        return Planned(self.base_s, 0.001, self.factors)

    def lane(self) -> NotedLane:
        return NotedLane(self.knobs, [(rows, self.base_s + 0.001 * rows) for rows in (1, 2, 4, 8)])


class Scene(Struct, kw_only=True):
    cores: int
    reserved: int
    discipline: str
    sharers: list[Sharer]
    calls: list[Call]

    def arbiter(self) -> Arbiter:
        return Arbiter({"cores": self.cores}, discipline=self.discipline, reserved={"cores": self.reserved})


def random_scene(seed: int, *, models: int, cores: int, discipline: str, load: float, deadlines: bool) -> Scene:
    """Models of different weight. No two things happen at one instant, but for requests of a burst of one model."""
    random = Random(seed)
    sharers = []
    for name in "abc"[:models]:
        max_batch = random.choice([1, 4, 16])
        knobs = LaneKnobs(max_batch=max_batch, max_queue_rows=100, slo_s=1.0, arbitrated=True)
        sharers.append(
            Sharer(
                name=name,
                knobs=knobs,
                needs=random.randint(1, cores),
                instances=random.randint(1, 3),
                base_s=random.choice([0.005, 0.010, 0.040]),
                factors=[random.uniform(0.5, 2.0) for _ in range(97)],
            )
        )
    gap_s = 0.010 / load
    made, at = [], 0.0
    while len(made) < 90:
        at = round(at + random.expovariate(1.0) * gap_s, 9)
        sharer = random.choice(sharers)
        timeout_s = random.choice([inf, round(random.uniform(0.01, 0.3), 9)]) if deadlines else inf
        made += [Call(sharer.name, 1, timeout_s, at)] * random.choice([1, 1, 1, 5])
    spare = cores - max(sharer.needs for sharer in sharers)
    return Scene(cores=cores, reserved=random.randint(0, spare), discipline=discipline, sharers=sharers, calls=made)


Outcomes = dict[str, Outcome]


def simulated(scene: Scene) -> tuple[Outcomes, dict[str, SimulatedModel], NotedSimulation]:
    """What one node does."""
    models = {
        sharer.name: SimulatedModel(
            sharer.name,
            sharer.lane(),
            sharer.times(),
            [f"{sharer.name}-{number}" for number in range(sharer.instances)],
            needs={"cores": sharer.needs},
        )
        for sharer in scene.sharers
    }
    simulation = NotedSimulation(NotedTally(inf), balancer=LeastPeakEwma())
    simulation.add("node-0", models.values(), arbiter=scene.arbiter())
    simulation.run(scene.calls)
    asked = {number: call.model for number, call in enumerate(scene.calls, start=1)}
    outcomes = {}
    for name, model in models.items():
        ends = {number: end for number, end in simulation.ends.items() if asked[number] == name}
        outcomes[name] = Outcome(ends, noted(model).said)
    return outcomes, models, simulation


def live(scene: Scene) -> Outcomes:
    """What drivers do on one loop of virtual time."""
    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(resolution=NANO, noop_cycles=3)) as runner:
        return runner.run(_live(scene))


async def _live(scene: Scene) -> Outcomes:
    loop = asyncio.get_running_loop()
    turns = Turns(scene.arbiter(), loop.time)
    lanes = {sharer.name: sharer.lane() for sharer in scene.sharers}
    drivers = {}
    for sharer in scene.sharers:
        name, times = sharer.name, sharer.times()
        driver = drivers[name] = Driver(
            model=name, version="1", signature=SIGNATURE, lane_on=lanes[name].on, stats=ModelStats(), clock=loop.time
        )
        driver.take_turns(turns, {"cores": sharer.needs})
        runtime = FakeRuntime(SIGNATURE, double)
        for number in range(sharer.instances):
            driver.add_instance(FakeInstance(f"{name}-{number}", runtime, service_s=times))
    replies = await replies_to(scene.calls, drivers)
    ends: dict[str, dict[int, tuple[FailureKind | None, float]]] = {name: {} for name in drivers}
    for call, reply in zip(scene.calls, replies, strict=True):
        ends[call.model][reply.request.ticket.id] = (reply.kind, reply.at)
    return {name: Outcome(ends[name], lanes[name].said) for name in drivers}


scenes = st.builds(
    random_scene,
    seed=st.integers(0, 2**32),
    models=st.integers(1, 3),
    cores=st.integers(1, 4),
    discipline=st.sampled_from(DISCIPLINES),
    load=st.sampled_from([0.3, 0.8, 2.0]),
    deadlines=st.booleans(),
)


@settings(max_examples=12, deadline=None)
@given(scene=scenes)
def test_a_simulated_node_takes_the_turns_that_drivers_take(scene: Scene) -> None:
    outcomes, _, _ = simulated(scene)
    alive = live(scene)
    for name, outcome in alive.items():
        assert_same(outcome, outcomes[name])


@settings(max_examples=12, deadline=None)
@given(scene=scenes)
def test_batches_never_use_more_cores_than_there_are_and_all_is_answered(scene: Scene) -> None:
    outcomes, models, simulation = simulated(scene)
    assert sum(len(outcome.ends) for outcome in outcomes.values()) == len(scene.calls)
    changes: list[tuple[float, int]] = []
    for sharer in scene.sharers:
        model = models[sharer.name]
        lane = noted(model)
        assert (lane.view().running_batches, lane.view().queued_requests, model.running) == (0, 0, {})
        assert model.taker is not None
        assert model.taker.is_at_rest
        starts = [at for at, line in lane.said if line.startswith("run ")]
        ends = [at for at, event in lane.told if isinstance(event, BatchDone)]
        assert len(starts) == len(ends)
        changes += [(at, sharer.needs) for at in starts] + [(at, -sharer.needs) for at in ends]
    busy = 0
    for _, change in sorted(changes):  # what ends at an instant ends before what begins
        busy += change
        assert busy <= scene.cores
    (node,) = simulation.nodes.values()
    assert node._turns is not None
    assert node._turns.free == {"cores": scene.cores}


@pytest.mark.parametrize("costs", [LoopCosts(), LoopCosts(100e-6, 50e-6, 200e-6)])
def test_an_instance_that_dies_gives_its_cores_back(costs: LoopCosts) -> None:
    knobs = LaneKnobs(max_batch=1, max_queue_rows=100, arbitrated=True)
    models = {
        name: SimulatedModel(
            name, NotedLane(knobs), Planned(10.0 if name == "a" else 0.01, 0.0, [1.0]), [f"{name}-0"], needs={"cores": 1}
        )
        for name in "ab"
    }
    simulation = NotedSimulation(NotedTally(inf), balancer=LeastPeakEwma())
    node = simulation.add("node-0", models.values(), costs, Arbiter({"cores": 1}))
    simulation.heap.at(0.5, lambda _, now: node.lose(models["a"], models["a"].instances["a-0"], now), None)
    simulation.run([Call("a", 1, inf, 0.0), Call("b", 1, inf, 0.1), Call("b", 1, inf, 0.2)])
    assert simulation.ends[1] == (FailureKind.UNAVAILABLE, pytest.approx(0.5, abs=0.001))
    assert [simulation.ends[number][0] for number in (2, 3)] == [None, None]
    assert simulation.ends[3][1] == pytest.approx(0.52, abs=0.002)
    assert any(isinstance(event, InstanceLost) for _, event in noted(models["a"]).told)
    assert node._turns is not None
    assert node._turns.free == {"cores": 1}


def test_a_fair_node_gives_each_model_half_of_the_core() -> None:
    knobs = LaneKnobs(max_batch=1, max_queue_rows=1000, arbitrated=True)
    models = {
        name: SimulatedModel(name, NotedLane(knobs), Planned(base_s, 0.0, [1.0]), [f"{name}-0"], needs={"cores": 1})
        for name, base_s in (("heavy", 0.09), ("light", 0.03))
    }
    tally = NotedTally(inf)
    simulation = NotedSimulation(tally, balancer=LeastPeakEwma())
    simulation.add("node-0", models.values(), arbiter=Arbiter({"cores": 1}))
    calls = [Call(name, 1, inf, 0.0) for _ in range(100) for name in models]
    simulation.run(calls)
    until = {
        name: sum(1 for at, line in noted(model).said if line.startswith("run ") and at < 5.0) for name, model in models.items()
    }
    assert until["heavy"] * 0.09 == pytest.approx(until["light"] * 0.03, rel=0.15)
    assert tally.ok == len(calls)
