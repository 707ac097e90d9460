"""Puts the parts of a served model together; the only file that knows the concrete classes. Read it from top to bottom.

Called by serve/server.py (sockets) and serve/proxy.py (library). Not aware of: protocols.
"""

import asyncio
import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic

import msgspec
from msgspec import Struct

from dlproxy.config import SLEEP, ModelConfig
from dlproxy.instance import Instance
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.instance.runtime.sleep import SleepRuntime
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.warmup import Calibration, calibrate
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.telemetry.event_log import Header, Recorder
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.catalog import ServedModel

INLINE_BELOW_S = 200e-6  # a batch of one quicker than this runs on the loop: a hand-over to a thread costs 50 to 75 us
INLINE_HOLD_S = 1e-3  # the loop may stand still this long at most: every other connection and model waits meanwhile
MANY_THREADS_ABOVE_S = 2e-3  # quicker models stay at one thread and are not loaded twice to find out
MANY_THREADS_GAIN = 1.2  # further threads must make a batch of one this much quicker to be kept


class LoadedModel(Struct):
    """A model that is up, with what its warm-up found, for the start-up report."""

    served: ServedModel
    driver: Driver
    lane: Lane
    calibration: Calibration
    inline: bool
    threads: int
    instances: int
    recorder: Recorder | None


class WarmModel(Struct):
    """A model that is loaded and calibrated. `threads`: those of ONNX Runtime."""

    runtime: Runtime
    calibration: Calibration
    threads: int


class LanePlan(Struct, frozen=True):
    """How a model's lane is made from its configuration and calibration, served or simulated."""

    knobs: LaneKnobs
    prior: list[tuple[int, float]]
    inline: bool
    instances: list[str]


def plan_lane(name: str, config: ModelConfig, calibration: Calibration, *, batched: bool) -> LanePlan:
    """The lane's knobs, what it knows of latency at the start, and its instances' names."""
    inline = _runs_inline(config, calibration)
    knobs = LaneKnobs(
        max_batch=config.max_batch if batched else 1,
        max_queue_rows=config.max_queue_rows,
        slo_s=config.slo_s,
        max_wait_s=config.max_wait_s,
        max_batch_s=INLINE_HOLD_S if inline else inf,
    )
    instances = [f"{name}-{number}" for number in range(1 if inline else config.instances)]
    return LanePlan(knobs, list(calibration.points), inline, instances)


async def load_model(
    name: str, config: ModelConfig, *, event_log: Path | None = None, clock: Callable[[], float] = monotonic
) -> LoadedModel:
    """Load, warm up and bring up one model. Raises ModelError if it cannot be loaded."""
    warm = await asyncio.to_thread(warm_up, config)
    runtime, calibration, signature = warm.runtime, warm.calibration, warm.runtime.signature
    plan = plan_lane(name, config, calibration, batched=signature.batched)
    lane = Lane(plan.knobs, plan.prior)
    recorder = None
    if event_log is not None:
        recorder = Recorder(event_log / f"{name}-{config.version}.dlog", Header(name, plan.knobs, plan.prior), lane)

    stats = ModelStats()
    driver = Driver(
        model=name,
        version=config.version,
        signature=signature,
        lane_on=lane.on if recorder is None else recorder.on,
        stats=stats,
        clock=clock,
    )
    for instance in plan.instances:
        driver.add_instance(_instance(instance, runtime, inline=plan.inline))

    served = ServedModel(
        name=name,
        version=config.version,
        signature=signature,
        service=driver,
        stats=stats,
        max_batch=config.max_batch,
        slo_s=config.slo_s,
        is_ready=lambda: driver.ready,
        queued_rows=lambda: lane.queue.rows,
        batch_limit=lambda: lane.batching.limit,
    )
    return LoadedModel(
        served=served,
        driver=driver,
        lane=lane,
        calibration=calibration,
        inline=plan.inline,
        threads=warm.threads,
        instances=lane.instances,
        recorder=recorder,
    )


async def unload_model(model: LoadedModel, drain_s: float) -> None:
    """Finish what is under way, stop the instances, close the recording."""
    await model.driver.stop(drain_s)
    if model.recorder is not None:
        model.recorder.close()


def warm_up(config: ModelConfig) -> WarmModel:
    """Load and calibrate. Blocks for as long as that takes. Raises ModelError."""
    warm = _calibrated(config)
    if not warm.calibration.independent_rows:
        warm.runtime.signature = msgspec.structs.replace(warm.runtime.signature, batched=False)
    return warm


def _calibrated(config: ModelConfig) -> WarmModel:
    """With `threads` 0, more than one thread is used only if that is measured to pay."""
    if config.path.startswith(SLEEP):
        sleeper = SleepRuntime(config.path)
        return WarmModel(sleeper, calibrate(sleeper), 1)
    path, threads = Path(config.path), config.threads
    runtime = OnnxRuntime(path, threads=threads or 1)
    warm = WarmModel(runtime, calibrate(runtime), threads or 1)
    cores = _usable_cores()
    single_s = warm.calibration.single_s
    if threads or cores == 1 or single_s is None or single_s < MANY_THREADS_ABOVE_S:
        return warm
    wide = OnnxRuntime(path, threads=cores)
    calibration = calibrate(wide)
    if calibration.single_s is not None and calibration.single_s * MANY_THREADS_GAIN < single_s:
        return WarmModel(wide, calibration, cores)
    return warm


def _runs_inline(config: ModelConfig, calibration: Calibration) -> bool:
    if config.run != "auto":
        return config.run == "inline"
    single_s = calibration.single_s
    return config.instances == 1 and single_s is not None and single_s < INLINE_BELOW_S


def _instance(name: str, runtime: Runtime, *, inline: bool) -> Instance:
    """Instances of one model share its session: ONNX Runtime sessions take concurrent calls, and the weights exist once."""
    return InlineInstance(name, runtime) if inline else ThreadInstance(name, runtime)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
