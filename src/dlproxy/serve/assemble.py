"""Puts the parts of a served model together; the only file that knows the concrete classes. Read it from top to bottom.

Called by serve/server.py (sockets) and serve/proxy.py (library). Not aware of: protocols.
"""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from types import MappingProxyType

import msgspec
from msgspec import Struct

from dlproxy.config import SLEEP, ConfigError, ModelConfig, ServerConfig, TenantConfig
from dlproxy.instance import Instance
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.instance.runtime.sleep import SleepRuntime
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.warmup import Calibration, calibrate
from dlproxy.message import Failure, Request
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.quota import Quota, Quotas
from dlproxy.serve.control import LaneControl
from dlproxy.serve.driver import Driver
from dlproxy.serve.layers import QuotaLayer
from dlproxy.serve.turns import Turns
from dlproxy.service import Service
from dlproxy.telemetry.event_log import Header, Recorder
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.catalog import ServedModel

INLINE_BELOW_S = 200e-6  # a batch of one quicker than this runs on the loop: a hand-over to a thread costs 50 to 75 us
INLINE_HOLD_S = 1e-3  # the loop may stand still this long at most: every other connection and model waits meanwhile
MANY_THREADS_ABOVE_S = 2e-3  # quicker models stay at one thread and are not loaded twice to find out
EMPTY: Mapping[str, TenantConfig] = MappingProxyType({})
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
    control: "LaneControl"


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


def plan_lane(
    name: str,
    config: ModelConfig,
    calibration: Calibration,
    *,
    batched: bool,
    tenants: Mapping[str, TenantConfig] = EMPTY,
) -> LanePlan:
    """The lane's knobs, what it knows of latency at the start, and its instances' names."""
    inline = _runs_inline(config, calibration)
    knobs = LaneKnobs(
        max_batch=config.max_batch if batched else 1,
        max_queue_rows=config.max_queue_rows,
        slo_s=config.slo_s,
        max_wait_s=config.max_wait_s,
        max_batch_s=INLINE_HOLD_S if inline else inf,
        discipline=config.discipline,
        starvation_s=config.starvation_s,
        ageing_s=config.ageing_s,
        tenant_weights={tenant: settings.weight for tenant, settings in tenants.items()},
        balancer=config.balancer,
        slow_start_s=config.slow_start_s,
        codel_target_s=config.codel_target_s,
        adaptive_limit=config.adaptive_limit,
        retry_budget=config.retry_budget,
        hedge=config.hedge,
        eject_after=config.eject_after,
    )
    instances = [f"{name}-{number}" for number in range(1 if inline else config.instances)]
    return LanePlan(knobs, list(calibration.points), inline, instances)


async def load_model(
    name: str,
    config: ModelConfig,
    *,
    tenants: Mapping[str, TenantConfig] = EMPTY,
    quotas: Quotas | None = None,
    event_log: Path | None = None,
    clock: Callable[[], float] = monotonic,
) -> LoadedModel:
    """Load, warm up and bring up one model. Raises ModelError if it cannot be loaded."""
    warm = await asyncio.to_thread(warm_up, config)
    runtime, calibration, signature = warm.runtime, warm.calibration, warm.runtime.signature
    plan = plan_lane(name, config, calibration, batched=signature.batched, tenants=tenants)
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

    control = LaneControl(config, lane, driver, plan.knobs)
    served = ServedModel(
        name=name,
        version=config.version,
        signature=signature,
        service=driver if quotas is None else _with_quotas(driver, quotas, stats, clock),
        stats=stats,
        max_batch=config.max_batch,
        slo_s=config.slo_s,
        is_ready=lambda: driver.ready,
        queued_rows=lambda: lane.queue.rows,
        batch_limit=lambda: lane.batching.limit,
        sticky=config.sticky,
        control=control,
    )
    control.on_slo = partial(setattr, served, "slo_s")
    return LoadedModel(
        served=served,
        driver=driver,
        lane=lane,
        calibration=calibration,
        inline=plan.inline,
        threads=warm.threads,
        instances=len(plan.instances),
        recorder=recorder,
        control=control,
    )


def _with_quotas(inner: Service, quotas: Quotas, stats: ModelStats, clock: Callable[[], float]) -> Service:
    def count(failure: Failure, request: Request) -> None:
        stats.failed(failure.kind, 0.0)

    return QuotaLayer(inner, quotas, clock=clock, on_refused=count)


def make_quotas(tenants: Mapping[str, TenantConfig]) -> Quotas | None:
    """The tenants' quotas over all models; None where nobody has one. Raises ConfigError for one that never admits."""
    quotas = {}
    for name, tenant in tenants.items():
        if tenant.requests_per_s or tenant.rows_per_s:
            try:
                quotas[name] = Quota(tenant.requests_per_s or inf, tenant.rows_per_s or inf, tenant.burst_s)
            except ValueError as error:
                raise ConfigError(f"tenants.{name}: {error}, or 0 for no limit") from None
    return Quotas(quotas) if quotas else None


def share_cores(models: Sequence[LoadedModel], server: ServerConfig, *, clock: Callable[[], float] = monotonic) -> bool:
    """Let the models' batches take turns on the cores; True if they do. Raises ConfigError for cores that do not suffice.

    A batch takes as many cores as it has threads, or all of them. Batches that run on the event loop take no turns: the
    loop runs one at a time as it is.
    """
    cores = server.cores or _usable_cores()
    sharing = [(model, min(model.threads, cores)) for model in models if not model.inline]
    busiest = sum(need * model.instances for model, need in sharing)
    if not sharing or server.arbiter == "off" or (server.arbiter == "auto" and (len(sharing) < 2 or busiest <= cores)):
        return False
    for model, need in sharing:
        if need > cores - server.reserved_cores:
            raise ConfigError(
                f"a batch of model {model.served.name} takes {need} cores, but of {cores} cores "
                f"{server.reserved_cores} are reserved: lower reserved_cores or the model's threads"
            )
    arbiter = Arbiter({"cores": cores}, discipline=server.arbiter_discipline, reserved={"cores": server.reserved_cores})
    turns = Turns(arbiter, clock)
    for model, need in sharing:
        model.driver.take_turns(turns, {"cores": need})
        model.control.turn_knobs(arbitrated=True)
    return True


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
