"""Puts the parts of a served model together; the only file that knows the concrete classes. Read it from top to bottom.

Called by serve/server.py (sockets) and serve/proxy.py (library). Not aware of: protocols.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from types import MappingProxyType

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig, ServerConfig, TenantConfig
from dlproxy.cores import usable_cores
from dlproxy.instance.inline import HOLD_S
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Failure, Request
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.quota import Quota, Quotas
from dlproxy.serve.control import LaneControl
from dlproxy.serve.driver import Driver
from dlproxy.serve.hosting import Hosting, start_hosting
from dlproxy.serve.layers import QuotaLayer
from dlproxy.serve.local import LocalHosting
from dlproxy.serve.recheck import Recheck
from dlproxy.serve.remembered import Memory
from dlproxy.serve.reservoir import Reservoir
from dlproxy.serve.roster import Roster
from dlproxy.serve.turns import Turns
from dlproxy.service import Service
from dlproxy.telemetry.event_log import Header, Recorder
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.catalog import ServedModel

log = logging.getLogger(__name__)

MAX_PADDING = 0.5  # of a batch: less makes p99 a third longer, more gains nothing (docs/internals/batching.md)
EMPTY: Mapping[str, TenantConfig] = MappingProxyType({})


class LoadedModel(Struct):
    """A model that is up, with what its warm-up found, for the start-up report."""

    served: ServedModel
    driver: Driver
    lane: Lane
    hosting: Hosting
    recorder: Recorder | None
    control: LaneControl


class LanePlan(Struct, frozen=True):
    """How a model's lane is made from its configuration and calibration, served or simulated."""

    knobs: LaneKnobs
    prior: list[tuple[int | float, ...]]
    inline: bool
    instances: list[str]


def plan_lane(
    name: str,
    config: ModelConfig,
    calibration: Calibration,
    *,
    batched: bool,
    pads: bool = False,
    way: Way,
    tenants: Mapping[str, TenantConfig] = EMPTY,
) -> LanePlan:
    """The lane's knobs, what it knows of latency at the start, and its instances' names."""
    knobs = LaneKnobs(
        max_batch=config.max_batch if batched else 1,
        max_queue_rows=config.max_queue_rows,
        slo_s=config.slo_s,
        max_wait_s=config.max_wait_s,
        max_batch_s=HOLD_S if way.inline else inf,
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
        outage_wait_s=config.outage_wait_s,
        max_padding=MAX_PADDING if pads else 0.0,
    )
    instances = [f"{name}-{number}" for number in range(way.instances)]
    return LanePlan(knobs, list(calibration.points), way.inline, instances)


async def load_model(
    name: str,
    config: ModelConfig,
    *,
    tenants: Mapping[str, TenantConfig] = EMPTY,
    quotas: Quotas | None = None,
    event_log: Path | None = None,
    memory: Memory | None = None,
    clock: Callable[[], float] = monotonic,
) -> LoadedModel:
    """Load, warm up and bring up one model. Raises ModelError if it cannot be loaded."""
    hosting = await start_hosting(name, config, memory)
    signature = hosting.signature
    if hosting.most_rows is not None:
        config = msgspec.structs.replace(config, max_batch=min(config.max_batch, hosting.most_rows))
    plan = plan_lane(
        name, config, hosting.calibration, batched=signature.batched, pads=signature.pads, way=hosting.way, tenants=tenants
    )
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
        quarantine_s=config.quarantine_s,
        outage_wait_s=config.outage_wait_s,
    )
    roster = Roster(driver, stats, clock, None if recorder is None else recorder.note)
    hosting.attach(roster)
    control = LaneControl(config, lane, driver, plan.knobs, hosting, roster)
    served = ServedModel(
        name=name,
        version=config.version,
        signature=signature,
        service=driver if quotas is None else _with_quotas(driver, quotas, stats, clock),
        stats=stats,
        max_batch=config.max_batch,
        slo_s=config.slo_s,
        is_ready=lambda: driver.ready,
        queued_rows=lambda: lane.view().queued_rows,
        batch_limit=lambda: lane.view().batch_goal,
        sticky=config.sticky,
        control=control,
    )
    loaded = LoadedModel(served=served, driver=driver, lane=lane, hosting=hosting, recorder=recorder, control=control)
    control.on_slo = partial(setattr, served, "slo_s")
    if signature.batched and (config.batching == "auto" or signature.pads):
        driver.compare_answers(_recheck(loaded, clock, padded_only=config.batching != "auto"))
    if isinstance(hosting, LocalHosting):
        hosting.on_moved = lambda way: control.turn_knobs(max_batch_s=HOLD_S if way.inline else inf)
        if hosting.may_move():  # what was tried on made-up inputs is tried on real ones
            driver.keep_requests(Reservoir(hosting.try_again))
    return loaded


def _recheck(model: LoadedModel, clock: Callable[[], float], *, padded_only: bool) -> Recheck:
    ends = partial(_stop_batching, model), partial(_stop_padding, model)
    return Recheck(model.driver.submit, model.served.stats, clock, *ends, padded_only=padded_only)


def _stop_batching(model: LoadedModel, reason: str) -> None:
    name = model.served.name
    log.error("model %s: %s: batching is off from now on (batching = 'off' turns it off from the start)", name, reason)
    asyncio.get_running_loop().call_soon(model.control.stop_batching, reason)  # not in the midst of a lane's commands
    if isinstance(model.hosting, LocalHosting):
        model.hosting.rows_are_not_independent(reason)


def _stop_padding(model: LoadedModel, reason: str) -> None:
    name = model.served.name
    log.error("model %s: %s: padding is off from now on (padding = 'off' turns it off from the start)", name, reason)
    asyncio.get_running_loop().call_soon(model.control.stop_padding, reason)
    if isinstance(model.hosting, LocalHosting):
        model.hosting.padding_changes_answers(reason)


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
    cores = server.cores or usable_cores()
    ways = [(model, model.hosting.way) for model in models]
    sharing = [(model, min(way.threads, cores)) for model, way in ways if way.threads and not way.inline]
    busiest = sum(need * len(model.lane.view().instances) for model, need in sharing)
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


async def unload_model(model: LoadedModel, drain_s: float, reason: str = "the model is being unloaded") -> None:
    """Finish what is under way, stop the instances, close the recording. Who comes too late or waits for too long hears why."""
    await model.driver.stop(drain_s, reason)
    await model.hosting.stop()
    if model.recorder is not None:
        model.recorder.close()
