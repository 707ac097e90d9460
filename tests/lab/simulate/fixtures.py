"""What the simulator's tests share: lanes that note what they decide, one scene run live on virtual loop time and simulated."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from math import inf
from random import Random

import looptime
import msgspec
import numpy as np
from msgspec import Struct, field

from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult, run_batch
from dlproxy.instance.runtime import Runtime
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.engine import Call, LoopCosts, SimulatedModel, Simulation
from dlproxy.lab.simulate.service_times import ServiceTimes
from dlproxy.message import DType, FailureKind, Request, Tensor, Ticket
from dlproxy.policy.balancing import Balancer, LeastPeakEwma
from dlproxy.policy.events import Command, Dispatch, Event, TimerFired, WakeAt
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.serve.partition import PartitionLayer
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats
from dlproxy.tensors import to_bytes
from dlproxy.testing import FakeInstance, FakeRuntime
from tests.policy.lane.fixtures import warmed, write
from tests.serve.rig import SIGNATURE, Reply, double

from .uv_loop import UvLoop

LINE = [(rows, 0.010 + 0.001 * rows) for rows in (1, 2, 4, 8)]  # L(b) = 10 ms + 1 ms per row
NANO = 1e-9  # the virtual loop's resolution; instants and durations of scenes are whole nanoseconds


class NotedLane(Lane):
    """A lane past its first batches that keeps what it was told and what it answered."""

    def __init__(self, knobs: LaneKnobs, prior: Sequence[tuple[int, float]] = LINE) -> None:
        super().__init__(knobs, prior)
        warmed(self)
        self.told: list[tuple[float, Event]] = []
        self.said: list[tuple[float, str]] = []
        self.dispatched: list[Dispatch] = []
        self.wakes = 0
        self.timers = 0

    def on(self, event: Event, now: float) -> list[Command]:
        commands = super().on(event, now)
        self.told.append((now, event))
        self.timers += isinstance(event, TimerFired)
        for command in commands:
            self.said.append((now, write(command)))
            self.wakes += isinstance(command, WakeAt)
            if isinstance(command, Dispatch):
                self.dispatched.append(command)
        return commands


class Planned:
    """Service times from a list of factors, one after the other: the same for the nth batch, live or simulated."""

    def __init__(self, base_s: float, row_s: float, factors: Sequence[float]) -> None:
        self.base_s = base_s
        self.row_s = row_s
        self._factors = self._again(factors)

    def __call__(self, rows: int) -> float:
        return round((self.base_s + self.row_s * rows) * next(self._factors), 9)

    def draw(self, rows: int, idle_s: float = 0.0, length: int = 1) -> tuple[float, float]:
        return self(rows), 0.0

    def mean(self, rows: int) -> float:
        return self.base_s + self.row_s * rows

    @staticmethod
    def _again(factors: Sequence[float]) -> Iterator[float]:
        while True:
            yield from factors


class Scene(Struct, kw_only=True):
    """A lane, its instances and the requests to come: to be run live and simulated."""

    knobs: LaneKnobs
    instances: int = 1
    part_rows: int | None = None
    base_s: float = 0.010
    row_s: float = 0.001
    factors: list[float] = field(default_factory=lambda: [1.0])
    calls: list[Call] = field(default_factory=list)

    def times(self) -> Planned:
        return Planned(self.base_s, self.row_s, self.factors)


class Outcome(Struct):
    """What became of a scene: how and when each request ended, and every command of the lane with its instant."""

    ends: dict[int, tuple[FailureKind | None, float]]
    said: list[tuple[float, str]]


def random_scene(
    seed: int, *, instances: int, max_batch: int, load: float, deadlines: bool, max_wait_s: float, largest_burst: int = 80
) -> Scene:
    """Arrivals at `load` times the capacity, alone and in bursts. No two things but those of a burst happen at one instant."""
    random = Random(seed)
    base_s, row_s = 0.010, 0.001
    knobs = LaneKnobs(max_batch=max_batch, max_queue_rows=200, slo_s=0.150, max_wait_s=max_wait_s)
    gap_s = (base_s + row_s * max_batch) / max_batch / instances * 2.0 / load  # a request is 2 rows on average
    made, at = [], 0.0
    while len(made) < 120:
        at = round(at + random.expovariate(1.0) * gap_s, 9)
        burst = random.choice([1, 1, 1, 1, 2, 5, largest_burst if random.random() < 0.1 else 1])
        for _ in range(burst):
            timeout_s = random.choice([inf, round(random.uniform(0.0, 0.2), 9)]) if deadlines else inf
            made.append(Call("m", random.randint(1, min(3, max_batch)), timeout_s, at))
    factors = [random.uniform(0.5, 3.0) for _ in range(97)]
    return Scene(knobs=knobs, instances=instances, base_s=base_s, row_s=row_s, factors=factors, calls=made)


def simulated(scene: Scene, *, costs: LoopCosts = LoopCosts(), inline: bool = False) -> Outcome:  # noqa: B008  frozen
    """The scene on one simulated node."""
    model = make_model("m", scene.times(), knobs=scene.knobs, instances=scene.instances, inline=inline)
    model.part_rows = inf if scene.part_rows is None else scene.part_rows
    simulation = NotedSimulation(NotedTally(inf), balancer=LeastPeakEwma())
    simulation.add("node-0", [model], costs)
    simulation.run(scene.calls)
    return Outcome(simulation.ends, noted(model).said)


class NotedSimulation(Simulation):
    """A simulation that keeps how and when each request ended."""

    def __init__(self, tally: Tally, *, balancer: Balancer) -> None:
        super().__init__(tally, balancer=balancer)
        self.ends: dict[int, tuple[FailureKind | None, float]] = {}

    def _finished(self, number: int, failure: FailureKind | None, now: float) -> None:
        assert number not in self.ends, f"{number} ended twice"
        self.ends[number] = (failure, now)
        super()._finished(number, failure, now)


MakeInstance = Callable[[str, Runtime, Planned], Instance]


def fake_instance(name: str, runtime: Runtime, times: Planned) -> Instance:
    return FakeInstance(name, runtime, service_s=times)


def live(
    scene: Scene, make: MakeInstance = fake_instance, meanwhile: Callable[[Driver], None] = lambda driver: None
) -> Outcome:
    """The scene through serve/driver.py on an event loop whose time is virtual. `meanwhile` is called at its beginning."""
    with asyncio.Runner(loop_factory=lambda: looptime.new_event_loop(resolution=NANO, noop_cycles=3)) as runner:
        return runner.run(_live(scene, make, meanwhile))


async def _live(scene: Scene, make: MakeInstance, meanwhile: Callable[[Driver], None]) -> Outcome:
    loop = asyncio.get_running_loop()
    lane, times, ids = NotedLane(scene.knobs), scene.times(), count(1)
    driver = Driver(model="m", version="1", signature=SIGNATURE, lane_on=lane.on, stats=ModelStats(), clock=loop.time)
    runtime = FakeRuntime(SIGNATURE, double)
    for number in range(scene.instances):
        driver.add_instance(make(f"m-{number}", runtime, times))
    meanwhile(driver)
    service: Service = driver
    if scene.part_rows is not None:
        knobs = msgspec.structs.replace(scene.knobs, part_rows=scene.part_rows)
        service = PartitionLayer(
            driver, SIGNATURE, ModelStats(), ids=ids, clock=loop.time, knobs=knobs, most_whole=knobs.max_batch
        )
    replies = await replies_to(scene.calls, {"m": service}, ids)
    return Outcome({reply.request.ticket.id: (reply.kind, reply.at) for reply in replies}, lane.said)


async def replies_to(calls: Sequence[Call], services: Mapping[str, Service], ids: Iterator[int] | None = None) -> list[Reply]:
    """To each call, numbered in their order, from 1 unless `ids` are given. Those that are due at one instant come in one turn
    of the loop.
    """
    loop, ids = asyncio.get_running_loop(), ids or count(1)
    replies: list[Reply] = []
    bursts: dict[float, list[Call]] = {}
    for call in calls:
        bursts.setdefault(call.due_at, []).append(call)

    def send(burst: list[Call]) -> None:
        for call in burst:
            reply = Reply(request(next(ids), call, loop.time()))
            replies.append(reply)
            services[call.model].submit(reply.request, reply)

    start = loop.time()
    for due_at, burst in bursts.items():
        loop.call_at(start + due_at, send, burst)
    sent = asyncio.Event()
    loop.call_at(start + calls[-1].due_at, loop.call_soon, sent.set)
    await sent.wait()
    for reply in replies:
        await reply.wait()
    return replies


def live_on_a_busy_loop(scene: Scene, costs: LoopCosts, *, inline: bool) -> Outcome:
    """The scene through serve/driver.py on a loop whose reading, writing and inline batches take virtual time."""
    lane, times = NotedLane(scene.knobs), scene.times()
    replies: list[Reply] = []

    class BusyReply(Reply):
        def _note(self) -> None:
            loop.now += costs.write_s
            super()._note()

    def read(call: Call) -> None:
        loop.now += costs.read_s
        replies.append(BusyReply(request(len(replies) + 1, call, loop.now)))
        driver.submit(replies[-1].request, replies[-1])

    loop = UvLoop(read)
    asyncio._set_running_loop(loop)  # type: ignore[arg-type]
    try:
        driver = Driver(model="m", version="1", signature=SIGNATURE, lane_on=lane.on, stats=ModelStats(), clock=loop.time)
        runtime = FakeRuntime(SIGNATURE, double)
        for number in range(scene.instances):
            fake: Instance = FakeInstance(f"m-{number}", runtime, service_s=times)
            driver.add_instance(BlockingInstance(f"m-{number}", runtime, times, loop) if inline else fake)
        for call in scene.calls:
            loop.comes(call.due_at, call)
        loop.run()
    finally:
        asyncio._set_running_loop(None)
    return Outcome({reply.request.ticket.id: (reply.kind, reply.at) for reply in replies}, lane.said)


class BlockingInstance:
    """Holds the loop up for as long as its batch takes."""

    inline = True
    capacity = 1

    def __init__(self, name: str, runtime: FakeRuntime, service_s: Planned, loop: UvLoop) -> None:
        self.name = name
        self._runtime = runtime
        self._service_s = service_s
        self._loop = loop

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        seconds = self._service_s(sum(request.ticket.rows for request in requests))
        result = run_batch(self._runtime, requests)
        self._loop.now += seconds
        done(msgspec.structs.replace(result, batch_s=0.0, compute_s=seconds))

    async def stop(self) -> None:
        """Nothing can be running."""


def request(number: int, call: Call, now: float) -> Request:
    """The request that a call stands for."""
    array = np.full((call.rows, 1), number, np.float32)
    ticket = Ticket(number, now, now + call.timeout_s, call.rows)
    return Request(ticket, "m", [Tensor("x", DType.FP32, array.shape, to_bytes(DType.FP32, array))], (0,))


class NotedTally(Tally):
    """A tally of everything up to `end_at` that checks that its time does not go back."""

    def __init__(self, end_at: float, objective_s: float | None = None) -> None:
        super().__init__(0.0, end_at, objective_s)
        self.latest = 0.0
        self.answers: list[tuple[float, float]] = []

    def sent_one(self, due_at: float, now: float) -> None:
        self._check(now)
        super().sent_one(due_at, now)

    def answered(self, due_at: float, now: float) -> None:
        self._check(now)
        self.answers.append((due_at, now))
        super().answered(due_at, now)

    def failed(self, kind: str, due_at: float, now: float) -> None:
        self._check(now)
        super().failed(kind, due_at, now)

    def _check(self, now: float) -> None:
        assert now >= self.latest, f"time went back from {self.latest} to {now}"
        self.latest = now


def make_model(name: str, times: ServiceTimes, *, knobs: LaneKnobs, instances: int = 1, inline: bool = False) -> SimulatedModel:
    """A simulated model whose lane notes what it does."""
    return SimulatedModel(name, NotedLane(knobs), times, [f"{name}-{number}" for number in range(instances)], inline=inline)


def noted(model: SimulatedModel) -> NotedLane:
    """The lane of such a model."""
    assert isinstance(model.lane, NotedLane)
    return model.lane


def run_calls(
    models: Sequence[SimulatedModel],
    calls: Iterable[Call],
    *,
    costs: LoopCosts = LoopCosts(),  # noqa: B008  frozen
    end_at: float = inf,
) -> tuple[NotedSimulation, NotedTally]:
    """One node with these models gets these calls; returns when everything has ended."""
    tally = NotedTally(end_at)
    simulation = NotedSimulation(tally, balancer=LeastPeakEwma())
    simulation.add("node-0", models, costs)
    simulation.run(calls)
    return simulation, tally
