"""Batch times of one layout, measured on instances started as the server would: one busy, then all at the same time.

Called by tune.py, before anything is searched. Not aware of: lanes, the simulator.
"""

import asyncio
import logging
from collections.abc import Sequence
from math import inf
from pathlib import Path
from time import monotonic, perf_counter

import msgspec
import numpy as np

from dlproxy.fleet import Fleet
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.start import start_fleet
from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult
from dlproxy.lab.load.payload import OPEN_SIZES, samples
from dlproxy.lab.load.settings import LoadError, Settings
from dlproxy.lab.load.target import Model
from dlproxy.lab.simulate.service_times import Sample
from dlproxy.lab.tune.search.problem import Layout, Point, Problem, TuneError
from dlproxy.lab.tune.search.times import Times, from_calibration
from dlproxy.message import Request, Signature, Ticket
from dlproxy.serve.event_loop import loop_factory
from dlproxy.telemetry.stats import ModelStats

SIZES = (1, 2, 4, 8, 16, 32, 64)
LEAST_BATCHES = 3  # of each size, however long they take
MOST_BATCHES = 400
TURNS = 3  # of all sizes; the best of each size counts
TOO_LONG = 1.5  # objectives: no batch that takes longer is of use


def calibrate(problem: Problem, layout: Layout, seconds: float) -> Times:
    """Takes about so long, and the start of the instances. Raises ConfigError, ModelError, TuneError."""
    own = logging.getLogger("dlproxy")
    level = own.level
    own.setLevel(logging.ERROR)  # what a fleet would warn of, the server says again
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_calibrate(problem, layout, seconds))
    finally:
        own.setLevel(level)


class _Instances:
    """A Scheduler that only keeps what is up."""

    def __init__(self) -> None:
        self.up: list[Instance] = []

    def add_instance(self, instance: Instance) -> None:
        self.up.append(instance)

    def lose_instance(self, name: str, reason: str, *, crashed: bool = False) -> None:
        self.up = [instance for instance in self.up if instance.name != name]

    def retire_instance(self, name: str, reason: str = "") -> None:
        self.lose_instance(name, "retired")

    def kept(self, name: str) -> int:
        return 0


class _Best:
    """Of each size the turn that others on the machine disturbed least: else the layout of a quiet minute would win."""

    def __init__(self) -> None:
        self._turns: dict[int, tuple[float, list[Sample]]] = {}

    def offer(self, size: int, samples: list[Sample]) -> float:
        """Seconds of a batch in the best turn so far."""
        took = float(np.mean([sample.service_s for sample in samples]))
        before = self._turns.get(size)
        if before is None or took < before[0]:
            self._turns[size] = took, samples
        return self._turns[size][0]

    def samples(self) -> list[Sample]:
        return [sample for _, samples in self._turns.values() for sample in samples]


async def _calibrate(problem: Problem, layout: Layout, seconds: float) -> Times:
    config = Point(layout, problem.config.max_batch).on(problem.config)
    fleet = await start_fleet(problem.name, config)
    scheduler = _Instances()
    try:
        fleet.attach(Roster(scheduler, ModelStats(), monotonic))
        signature = fleet.signature
        if signature.streams:
            raise TuneError(f"{config.path} answers in parts, which the simulator knows nothing of: it cannot be tuned")
        requests = await _requests(problem, fleet, scheduler.up[0])
        sizes = [size for size in SIZES if size <= config.max_batch] if signature.batched else [1]
        alone, together = _Best(), _Best()
        for _ in range(TURNS):
            for size in sizes:
                left = seconds / TURNS / len(sizes) / (2 if layout.instances > 1 else 1)
                took = alone.offer(size, await _busy(scheduler.up[:1], requests, size, left))
                if layout.instances > 1:
                    together.offer(size, await _busy(scheduler.up, requests, size, left))
                if took > TOO_LONG * problem.objective_s:
                    break
        return from_calibration(alone.samples(), together.samples(), batched=signature.batched)
    finally:
        await fleet.stop()


async def _requests(problem: Problem, fleet: Fleet, instance: Instance) -> list[Request]:
    """As the load generator makes them, of the first size for open dimensions that the model takes. Raises TuneError."""
    complaint = ""
    for size in OPEN_SIZES:
        try:
            made = made_requests(problem, fleet.signature, size)
        except LoadError as error:
            raise TuneError(f"no requests can be made for {problem.config.path}: {error}") from None
        result, _, _ = await _run(instance, made[:1])
        if result.error is None:
            return made
        complaint = complaint or result.error
    raise TuneError(f"made-up inputs do not suit the model ({complaint}); give real ones: samples = 'FILE.npz' in --config")


def made_requests(problem: Problem, signature: Signature, open_size: int) -> list[Request]:
    """Raises LoadError."""
    model = Model(problem.name, signature.inputs, signature.outputs)
    wanted = range(len(signature.outputs))
    made = samples(model, request_settings(problem, ""), open_size)
    return [Request(Ticket(number, 0.0, inf), problem.name, list(sample), wanted) for number, sample in enumerate(made)]


def request_settings(problem: Problem, url: str) -> Settings:
    """What the load generator sends."""
    given = Path(problem.config.samples) if problem.config.samples else None
    return Settings(url=url, model=problem.name, input=given, objective_s=problem.objective_s)


async def _busy(instances: Sequence[Instance], requests: Sequence[Request], size: int, seconds: float) -> list[Sample]:
    """Batches of this size on all of them for so long, each instance with the next as soon as one has ended."""
    began_at = perf_counter()
    found = await asyncio.gather(
        *(_keep(instance, requests, size, number, began_at, seconds) for number, instance in enumerate(instances))
    )
    return [sample for samples_ in found for sample in samples_]


async def _keep(
    instance: Instance, requests: Sequence[Request], size: int, number: int, began_at: float, seconds: float
) -> list[Sample]:
    found: list[Sample] = []
    for turn in range(MOST_BATCHES):
        first = (number * 31 + turn * size) % len(requests)
        batch = [requests[(first + offset) % len(requests)] for offset in range(size)]
        result, batch_at, heard_at = await _run(instance, batch)
        if result.error is not None:
            raise TuneError(f"a batch of {size} failed: {result.error}")
        service_s = result.batch_s + result.compute_s
        if turn:  # the first of a size allocates what the others use
            hand_over_s = max(heard_at - batch_at - service_s, 0.0)
            found.append(Sample(size, service_s, hand_over_s, 0.0, batch_at - began_at))
        if perf_counter() - began_at > seconds and len(found) >= LEAST_BATCHES:
            break
        if instance.inline:
            await asyncio.sleep(0)
    return found


async def _run(instance: Instance, batch: Sequence[Request]) -> tuple[BatchResult, float, float]:
    """Its result, when it began and when its end was heard of."""
    done: asyncio.Future[tuple[BatchResult, float]] = asyncio.get_running_loop().create_future()

    def heard(result: BatchResult) -> None:
        if not done.done():
            done.set_result((msgspec.structs.replace(result, outputs=[]), perf_counter()))

    batch_at = perf_counter()
    instance.run(batch, heard)
    result, heard_at = await done
    return result, batch_at, heard_at
