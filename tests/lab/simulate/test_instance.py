"""A simulated instance: what it draws, what faults do to it, and the same instance behind a live driver."""

import asyncio
from functools import partial
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult
from dlproxy.instance.runtime import Runtime
from dlproxy.lab.simulate.engine import Call
from dlproxy.lab.simulate.faults import parse, plan_fault
from dlproxy.lab.simulate.instance import SimulatedInstance
from dlproxy.lab.simulate.service_times import Fitted, Measured, Sample
from dlproxy.message import Request
from dlproxy.policy.balancing import LeastPeakEwma
from dlproxy.policy.events import BatchDone
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.serve.driver import Driver
from dlproxy.testing import FakeRuntime
from tests.serve.rig import SIGNATURE, double

from .fixtures import (
    NotedSimulation,
    NotedTally,
    Outcome,
    Planned,
    Scene,
    live,
    make_model,
    noted,
    random_scene,
    request,
    simulated,
)
from .test_exactness import assert_same

FAILS = "the simulated instance fails"


def with_runtime(name: str, runtime: Runtime, times: Planned) -> Instance:
    return SimulatedInstance(name, times, runtime=runtime)


def answering(capacity: int = 1) -> SimulatedInstance:
    """One whose batches of b rows take 1 + b / 8 seconds."""
    return SimulatedInstance("m-0", Fitted(1.0, 0.125), capacity=capacity, runtime=FakeRuntime(SIGNATURE, double))


# In virtual time


def test_a_batch_takes_what_was_drawn_and_is_counted() -> None:
    instance = SimulatedInstance("m-0", Measured([Sample(1, 0.5, 0.25), Sample(2, 1.0, 0.25)]))
    assert instance.begin(1, 10.0) == (0.5, 10.75, None)
    assert instance.begin(2, 20.0) == (1.0, 21.25, None)
    assert instance.begin(2, 30.0) == (1.0, 31.25, None)
    assert instance.batch_sizes == {1: 1, 2: 2}
    assert (instance.busy_s, instance.busy_until) == (2.5, 31.0)


def test_it_draws_for_how_long_it_has_rested() -> None:
    asked: list[float] = []

    class Asking(Fitted):
        def draw(self, rows: int, idle_s: float = 0.0, length: int = 1) -> tuple[float, float]:
            asked.append(idle_s)
            return 1.0, 0.5

    instance = SimulatedInstance("m-0", Asking(1.0, 0.0))
    for now in (2.0, 4.0, 5.5):
        instance.begin(1, now)
    assert asked == [2.0, 0.5, 0.0]


def test_what_begins_after_the_measured_time_is_no_work() -> None:
    instance = SimulatedInstance("m-0", Fitted(1.0, 0.0))
    instance.measured_until = 5.0
    for now in (4.5, 6.0):
        instance.begin(1, now)
    assert (instance.busy_s, instance.busy_until, instance.batch_sizes) == (1.0, 5.5, {1: 2})


def test_faults_last_until_they_are_taken_back() -> None:
    instance = SimulatedInstance("m-0", Fitted(1.0, 0.0))
    instance.slowed_by = 3.0
    assert instance.begin(1, 0.0) == (3.0, 3.0, None)
    instance.fails_after_s = 0.25
    assert instance.begin(1, 4.0) == (0.25, 4.25, FAILS), "a failure takes no longer on a slow instance"
    instance.slowed_by, instance.fails_after_s = 1.0, None
    assert instance.begin(1, 5.0) == (1.0, 6.0, None)


# Behind a driver


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    instances=st.integers(1, 3),
    max_batch=st.sampled_from([1, 4, 100]),
    load=st.sampled_from([0.3, 0.9, 2.0]),
)
def test_a_driver_with_simulated_instances_does_what_a_simulated_node_does(
    seed: int, instances: int, max_batch: int, load: float
) -> None:
    scene = random_scene(seed, instances=instances, max_batch=max_batch, load=load, deadlines=True, max_wait_s=0.0)
    assert_same(live(scene, with_runtime), simulated(scene))


def test_faults_are_felt_alike_behind_a_driver_and_on_a_node() -> None:
    """m-0 is slow from 2 to 5 s and dead from 7.3 to 8.6 s, m-1 fails from 3.1 to 4.7 s; none of that when a batch ends."""
    factors = [1.0 + number / 8 for number in range(7)]
    scene = Scene(
        knobs=LaneKnobs(max_batch=4, max_queue_rows=1000, slo_s=30.0),
        instances=2,
        base_s=0.100,
        row_s=0.010,
        factors=factors,
        calls=[Call("m", 1, inf, round(number * 0.0237, 9)) for number in range(420)],
    )
    model = make_model("m", scene.times(), knobs=scene.knobs, instances=2)
    simulation = NotedSimulation(NotedTally(inf), balancer=LeastPeakEwma())
    simulation.add("node-0", [model])
    for text in (
        "slow:node=node-0,instance=m-0,at=2.0005,for=3,factor=4",
        "fail:node=node-0,instance=m-1,at=3.1005,for=1.6,after=0.03",
        "die:node=node-0,instance=m-0,at=7.3005,for=1.3",
    ):
        plan_fault(simulation, parse(text))
    simulation.run(scene.calls)

    made: dict[str, SimulatedInstance] = {}

    def make(name: str, runtime: Runtime, times: Planned) -> Instance:
        made[name] = SimulatedInstance(name, times, runtime=runtime)
        return made[name]

    def plan(driver: Driver) -> None:
        loop = asyncio.get_running_loop()

        def lose() -> None:
            made["m-0"].lose(loop.time())
            driver.lose_instance("m-0", "the simulated instance died")

        effects: list[tuple[float, Any]] = [
            (2.0005, partial(setattr, made["m-0"], "slowed_by", 4.0)),
            (5.0005, partial(setattr, made["m-0"], "slowed_by", 1.0)),
            (3.1005, partial(setattr, made["m-1"], "fails_after_s", 0.03)),
            (4.7005, partial(setattr, made["m-1"], "fails_after_s", None)),
            (7.3005, lose),
            (8.6005, partial(driver.add_instance, made["m-0"])),
        ]
        for at, effect in effects:
            loop.call_at(at, effect)

    assert_same(live(scene, make, plan), Outcome(simulation.ends, noted(model).said))
    assert {event.error for _, event in noted(model).told if isinstance(event, BatchDone)} == {None, FAILS}
    for name, instance in made.items():
        assert instance.batch_sizes == model.instances[name].batch_sizes
        assert instance.busy_s == pytest.approx(model.instances[name].busy_s)


# On its own on an event loop


class Ends:
    """A `done` that keeps what it was told, and when."""

    def __init__(self) -> None:
        self.results: list[tuple[float, BatchResult]] = []

    def __call__(self, result: BatchResult) -> None:
        self.results.append((asyncio.get_running_loop().time(), result))


def of_rows(rows: int) -> Request:
    return request(1, Call("m", rows, inf, 0.0), 0.0)


@pytest.mark.looptime
async def test_the_runtimes_answer_comes_when_the_drawn_time_is_over() -> None:
    instance, ends = answering(), Ends()
    instance.run([of_rows(3), of_rows(1)], ends)
    assert not ends.results
    await instance.stop()
    ((ended_at, result),) = ends.results
    assert ended_at == pytest.approx(1.5)
    assert (result.batch_s, result.compute_s, result.error) == (0.0, 1.5, None)
    assert result.outputs[0].tolist() == [[2.0]] * 4
    assert instance.batch_sizes == {4: 1}


@pytest.mark.looptime
async def test_a_batch_that_fails_is_not_computed() -> None:
    runtime, ends = FakeRuntime(SIGNATURE, double), Ends()
    instance = SimulatedInstance("m-0", Fitted(1.0, 0.0), runtime=runtime)
    instance.fails_after_s = 0.25
    instance.run([of_rows(1)], ends)
    await instance.stop()
    assert ends.results == [(pytest.approx(0.25), BatchResult([], 0.25, 0.0, FAILS))]
    assert runtime.rows == []


@pytest.mark.looptime
async def test_a_stop_waits_for_every_batch_and_for_those_that_begin_meanwhile() -> None:
    instance, ends = answering(capacity=2), Ends()

    def again(result: BatchResult) -> None:
        ends(result)
        instance.run([of_rows(8)], ends)

    instance.run([of_rows(8)], ends)
    instance.run([of_rows(4)], again)
    with pytest.raises(AssertionError, match="m-0 got a batch while it runs 2"):
        instance.run([of_rows(1)], ends)
    await instance.stop()
    assert [ended_at for ended_at, _ in ends.results] == [pytest.approx(at) for at in (1.5, 2.0, 3.5)]


@pytest.mark.looptime
async def test_the_batch_of_an_instance_that_dies_is_never_reported() -> None:
    instance, ends = answering(), Ends()
    loop = asyncio.get_running_loop()
    instance.run([of_rows(8)], ends)
    loop.call_later(0.5, lambda: instance.lose(loop.time()))
    await instance.stop()
    assert loop.time() == pytest.approx(0.5)
    assert instance.busy_s == pytest.approx(0.5)
    instance.run([of_rows(8)], ends)
    await instance.stop()
    assert [ended_at for ended_at, _ in ends.results] == [pytest.approx(2.5)], "only the batch after its death"


async def test_without_a_runtime_it_takes_no_requests() -> None:
    with pytest.raises(AssertionError, match="m-0 has no runtime"):
        SimulatedInstance("m-0", Fitted(1.0, 0.0)).run([of_rows(1)], Ends())
