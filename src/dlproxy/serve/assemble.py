"""Puts the parts of a served model together, and takes them apart; the only file that knows the concrete classes.

Called by serve/models.py. Not aware of: other models, protocols.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import msgspec
from msgspec import Struct

from dlproxy.compress import record_path
from dlproxy.config import ConfigError, ModelConfig, TenantConfig, parse_goal
from dlproxy.config.effects import check_shared
from dlproxy.config.node import NodeConfig
from dlproxy.config.pipelines import PIPELINE
from dlproxy.cores import usable_cores
from dlproxy.fleet import Fleet
from dlproxy.fleet.autoscale import Autoscaler, Scaled, autoscaler, most_instances
from dlproxy.fleet.forecasts import forecast_of
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.names import instance_names
from dlproxy.fleet.remembered import Memory
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.start import ALONE, start_fleet
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.formats import ANY
from dlproxy.instance.trial import Way
from dlproxy.message import Failure, Request, Signature
from dlproxy.policy.forecast import Forecast
from dlproxy.policy.hops import VIA
from dlproxy.policy.lane import Lane
from dlproxy.policy.partition import most_rows
from dlproxy.policy.plan import LanePlan, longest_s, plan_lane
from dlproxy.policy.quota import Quotas
from dlproxy.policy.reachable import unmet
from dlproxy.policy.sequences_placement import SequencePlacement
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.control import LaneControl
from dlproxy.serve.degrading import Degrading
from dlproxy.serve.drift import DriftLayer
from dlproxy.serve.driver import Driver
from dlproxy.serve.failure_log import FailureLog
from dlproxy.serve.layers import QuotaLayer, WakeLayer
from dlproxy.serve.partition import PartitionLayer, can_split
from dlproxy.serve.pipelines import PipelineFleet, Pipelines
from dlproxy.serve.recheck import Recheck
from dlproxy.serve.reservoir import Reservoir
from dlproxy.serve.residence import Residence
from dlproxy.serve.sequences import SequenceLayer, SequenceStore
from dlproxy.serve.states import StatePlan
from dlproxy.serve.variants import VariantLayer, check_variants
from dlproxy.service import Service
from dlproxy.telemetry.event_log import Header, Recorder
from dlproxy.telemetry.exemplars import Exemplars, ExemplarStore, no_steps
from dlproxy.telemetry.journal import Journal
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.catalog import ServedModel
from dlproxy.wire.terms import by_level

if TYPE_CHECKING:
    from dlproxy.fleet.lent import Lender
    from dlproxy.fleet.upstreams import UpstreamFleet
    from dlproxy.serve.caching.layer import CacheLayer
    from dlproxy.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

EMPTY: Mapping[str, TenantConfig] = MappingProxyType({})


class LoadedModel(Struct, eq=False):
    """A model that is up. `service`: takes its requests, charges no quotas, remembers nothing and asks no variant.
    `turn_needs`: what a batch waits for its turn on, by name; empty: no turns. `size_bytes`: what it holds of the memory.
    """

    served: ServedModel
    service: Service
    driver: Driver
    lane: Lane
    fleet: Fleet
    recorder: Recorder | None
    control: LaneControl
    roster: Roster
    turn_needs: Mapping[str, float] = {}
    size_bytes: int = 0
    elsewhere_bytes: int = 0
    autoscaler: Autoscaler | None = None
    cache: "CacheLayer | None" = None
    degrading: Degrading | None = None
    forget: Callable[[], None] = lambda: None

    @property
    def sequences(self) -> SequenceLayer | None:
        return self.control.sequences

    @property
    def accuracy(self) -> float:
        """The share of its answers that are right, as measured; 0: not known."""
        return self.control.config.accuracy

    def unmet(self) -> list[str]:
        """What of its objectives cannot be met, as far as its calibration tells."""
        config, fleet, points = self.control.config, self.fleet, self.fleet.calibration.points
        instances = fleet.way.instances if self.autoscaler is None else most_instances(config, fleet)
        goal, most = config.goal, self.control.most_batch
        if fleet.run == "upstream":  # how many requests another server runs at a time is its own affair
            goal = msgspec.structs.replace(goal, least_rate=0.0)
        found = unmet(goal, points, instances, most, self.accuracy)
        for priority, text in config.slo_by_priority.items():
            found += [f"priority {priority}: {line}" for line in unmet(parse_goal(text), points, instances, most)]
        return found


async def load_model(
    name: str,
    config: ModelConfig,
    *,
    ticket_ids: Iterator[int],
    tenants: Mapping[str, TenantConfig] = EMPTY,
    quotas: Quotas | None = None,
    event_log: Path | None = None,
    memory: Memory | None = None,
    trust: Trust = ANY,
    on_ways: Callable[[], None] = lambda: None,
    caches: Caches | None = None,
    pipelines: Pipelines | None = None,
    sequences: SequenceStore | None = None,
    exemplars: ExemplarStore | None = None,
    tracer: "Tracer | None" = None,
    lender: "Lender | None" = None,
    node: NodeConfig = ALONE,
    clock: Callable[[], float] = monotonic,
) -> LoadedModel:
    """Load, warm up and bring up one model. Raises ConfigError, LogError, ModelError, and then nothing of it is left.

    `ticket_ids`: where requests get theirs. `event_log`: the file. `trust`: which models may be loaded. `on_ways`: called when
    its batches run in another way, or in another number side by side. `sequences`: of all of its versions. `pipelines`: for a
    model that is one. `exemplars`: where single requests of it are kept. `tracer`: None where no request is traced.
    `lender`: as start_fleet has it.
    """
    class_names = class_names_of(config)
    forecast = await asyncio.to_thread(forecast_of, name, config.forecast, trust)
    if not config.accuracy:
        config = msgspec.structs.replace(config, accuracy=await asyncio.to_thread(_measured_accuracy, config.path, trust))
    if caches is not None:
        await caches.read(name, config)
    fleet = await _fleet(name, config, memory, trust, pipelines, node, lender)
    try:
        if fleet.most_rows is not None:
            config = msgspec.structs.replace(config, max_batch=min(config.max_batch, fleet.most_rows))
        weights = {tenant: settings.weight for tenant, settings in tenants.items()}
        sequences = sequences or SequenceStore(name, clock)
        exemplars = exemplars or ExemplarStore(Journal(clock))
        loaded = _assembled(
            name, config, fleet, weights, ticket_ids, quotas, event_log, caches, sequences, forecast, exemplars, tracer, clock
        )
    except BaseException:
        await fleet.stop()
        raise
    loaded.served.class_names = class_names
    loaded.served.pipeline = config if config.steps else None
    if tracer is not None:
        _trace_batches(tracer, name, loaded.driver, fleet, clock)
    _as_a_node(loaded, node, clock)
    loaded.control.on_scaled = on_ways
    if lender is not None:
        _lease(loaded)
    _look_again(loaded, config, on_ways, clock)
    return loaded


def _look_again(model: LoadedModel, config: ModelConfig, on_ways: Callable[[], None], clock: Callable[[], float]) -> None:
    """What was tried on made-up inputs is tried on real ones, and what was shown once is compared while it serves."""
    fleet, signature = model.fleet, model.fleet.signature
    repeats = not signature.streams and not signature.told_sequences
    if signature.batched and repeats and (config.batching == "auto" or signature.pads):
        model.driver.compare_answers(_recheck(model, clock, padded_only=config.batching != "auto"))
    if isinstance(fleet, LocalFleet):
        fleet.on_moved = partial(_moved, model.control, on_ways, model.autoscaler)
        if fleet.may_move() and not signature.told_sequences:
            model.driver.keep_requests(Reservoir(fleet.try_again))


def _lease(model: LoadedModel) -> None:
    """Its batches, if its instances are shared with other gateways."""
    from dlproxy.fleet.lent import LentFleet  # most servers start without

    if isinstance(model.fleet, LentFleet):
        model.driver.lease(model.fleet.leases, model.fleet.instances)
        model.control.turn_knobs(arbitrated=True, leased=True)


async def _fleet(
    name: str,
    config: ModelConfig,
    memory: Memory | None,
    trust: Trust,
    pipelines: Pipelines | None,
    node: NodeConfig,
    lender: "Lender | None",
) -> Fleet:
    if lender is not None:
        check_shared(name, config)
    if config.path == PIPELINE and pipelines is not None:
        return await pipelines.start(name, config, trust)
    return await start_fleet(name, config, memory, trust, node, lender)


def _as_a_node(model: LoadedModel, node: NodeConfig, clock: Callable[[], float]) -> None:
    """What other nodes are told of it, and it tells those behind it."""
    fleet, control, lane = model.fleet, model.control, model.lane
    model.served.load = lambda: lane.load(clock(), node.zone)
    if fleet.run == "upstream":
        cast("UpstreamFleet", fleet).may_retry = lambda: bool(control.holds("retry_budget"))


def _assembled(
    name: str,
    config: ModelConfig,
    fleet: Fleet,
    tenant_weights: Mapping[str, float],
    ticket_ids: Iterator[int],
    quotas: Quotas | None,
    event_log: Path | None,
    caches: Caches | None,
    sequences: SequenceStore,
    forecast: str | Callable[[], Forecast],
    exemplars: ExemplarStore,
    tracer: "Tracer | None",
    clock: Callable[[], float],
) -> LoadedModel:
    signature = fleet.signature
    check_variants(name, config, signature)
    states = StatePlan(name, config, signature) if config.sequences != "off" else None
    plan = _plan(name, config, fleet, tenant_weights)
    lane = Lane(plan.knobs, plan.prior)
    recorder = None if event_log is None else _recorder(event_log, name, plan, lane, fleet)
    stats = ModelStats()
    driver = _driver(name, config, fleet, lane, recorder, stats, clock)
    residence = _residence(config, fleet, driver) if states is not None and signature.told_sequences else None
    roster = Roster(residence or driver, stats, clock, None if recorder is None else recorder.note, exemplars.journal, name)
    fleet.attach(roster)
    control = LaneControl(config, lane, driver, plan.knobs, fleet, roster, plan.most_batch)
    least = residence.least if residence is not None else lambda: 0
    scaled = Scaled(name, lane, stats, fleet, control.set_instances, driver.expect_instance, clock, least)
    scaler = control.autoscaler = autoscaler(scaled, config, forecast)
    service: Service = driver
    splits = can_split(signature) and states is None
    if splits:
        service = control.partition = _partition(driver, signature, stats, ticket_ids, clock, plan)
    if isinstance(fleet, PipelineFleet):
        service = control.partition = fleet.before(driver, stats, plan.knobs)
        control.steps = fleet.state
    if scaler is not None and config.scale_to_zero_s:
        service = WakeLayer(service, scaler)
    if states is not None:
        service = control.sequences = SequenceLayer(service, states, name, config, stats, sequences, residence)
    if config.drift == "on":
        service = control.drift = DriftLayer(service, name, signature, stats, clock)
    variants = VariantLayer(service, name, config, stats, driver, clock) if config.variants else None
    front: Service = service if variants is None else variants
    cache = None if caches is None else caches.before(front, name, config, signature, stats)
    front = front if cache is None else cache
    offered = front if quotas is None else _with_quotas(front, quotas, stats, clock)
    if tracer is not None:
        offered = _traced(offered, tracer, name, config.version, stats, clock)
    served = _served(name, config, fleet, lane, control, offered, stats, splits=splits)
    if states is not None:
        served.signature = states.signature
    loaded = LoadedModel(served, service, driver, lane, fleet, recorder, control, roster, autoscaler=scaler, cache=cache)
    if variants is not None:
        loaded.degrading = Degrading(variants, loaded)
    control.on_variants = partial(_stand_in, loaded, quotas, tracer, clock)
    _connect(loaded, splits=splits)
    _keep_exemplars(loaded, exemplars)
    return loaded


def _keep_exemplars(model: LoadedModel, store: ExemplarStore) -> None:
    served, lane = model.served, model.lane
    model.control.tell = partial(store.journal.add, "knobs", model=served.name)
    exemplars = Exemplars(
        store,
        served.name,
        served.version,
        served.stats,
        running=model.driver.running,
        max_wait_s=lambda: lane.view().knobs.max_wait_s,
        steps=model.fleet.steps_of if isinstance(model.fleet, PipelineFleet) else no_steps,
        upstream=model.fleet.run == "upstream",
    )
    store.add(exemplars)
    model.forget = partial(store.remove, exemplars)


def _residence(config: ModelConfig, fleet: Fleet, driver: Driver) -> Residence:
    """Of a model that keeps the state of sequences itself. Raises ConfigError."""
    if config.scale_to_zero_s:
        raise ConfigError(
            "scale_to_zero_s: the model keeps the state of sequences itself, which would be lost", "scale_to_zero_s"
        )
    slots = config.max_batch if config.sequences == "direct" else config.max_sequences
    return Residence(driver, SequencePlacement(slots, shared=isinstance(fleet, LocalFleet)))


def _served(
    name: str,
    config: ModelConfig,
    fleet: Fleet,
    lane: Lane,
    control: LaneControl,
    service: Service,
    stats: ModelStats,
    *,
    splits: bool,
) -> ServedModel:
    served = ServedModel(
        name=name,
        version=config.version,
        signature=fleet.signature,
        service=service,
        stats=stats,
        max_batch=most_rows(config, splits=splits),
        slo_s=config.slo_s,
        view=lane.view,
        sticky=config.sticky,
        control=control,
        headers=fleet.headers if isinstance(fleet, PipelineFleet) else (VIA,) if fleet.run == "upstream" else (),
        hop=getattr(fleet, "hop", ""),
    )
    served.would_wait_s, served.stage, served.aim = lane.would_wait_s, lane.stage, control.aim
    if isinstance(fleet, PipelineFleet):
        fleet.objective_s = partial(getattr, served, "slo_s")
    return served


def _driver(
    name: str,
    config: ModelConfig,
    fleet: Fleet,
    lane: Lane,
    recorder: Recorder | None,
    stats: ModelStats,
    clock: Callable[[], float],
) -> Driver:
    return Driver(
        model=name,
        version=config.version,
        signature=fleet.signature,
        lane_on=lane.on if recorder is None else recorder.on,
        stats=stats,
        clock=clock,
        quarantine_s=config.quarantine_s,
        outage_wait_s=config.outage_wait_s,
        failure_log=FailureLog(name, of_stages=isinstance(fleet, PipelineFleet)),
    )


def _plan(name: str, config: ModelConfig, fleet: Fleet, tenant_weights: Mapping[str, float]) -> LanePlan:
    return plan_lane(
        config,
        fleet.calibration.points,
        instances=instance_names(name, fleet.way.instances),
        inline=fleet.way.inline,
        batched=fleet.signature.batched,
        pads=fleet.signature.pads,
        tenant_weights=tenant_weights,
    )


def _connect(model: LoadedModel, *, splits: bool) -> None:
    control = model.control
    control.on_slo = partial(_aim, model)
    control.on_slo()
    control.on_rows = partial(_allow, model, splits=splits)
    control.check = partial(check_variants, model.served.name, signature=model.served.signature)
    model.served.last_event_at, model.served.places = lambda: model.driver.last_event_at, model.roster.places
    control.variants = lambda: None if model.degrading is None else model.degrading.state()
    if model.autoscaler is not None:
        model.autoscaler.start()


def _stand_in(model: LoadedModel, quotas: Quotas | None, tracer: "Tracer | None", clock: Callable[[], float]) -> None:
    """Variants are named. One that was loaded without any gets the layer that knows them, for requests that come from now on,
    once the catalog has told that it has.
    """
    served, cache = model.served, model.cache
    if model.degrading is not None:
        return
    layer = VariantLayer(model.service, served.name, model.control.config, served.stats, model.driver, clock)
    model.degrading = Degrading(layer, model)
    if cache is None:
        offered: Service = layer if quotas is None else _with_quotas(layer, quotas, served.stats, clock)
        if tracer is not None:
            offered = _traced(offered, tracer, served.name, served.version, served.stats, clock)
        served.service = offered
    else:
        cache.inner = layer
        if cache.rows is not None:
            cache.rows.inner = layer


def class_names_of(config: ModelConfig) -> list[str]:
    """Of its outputs. Raises ModelError."""
    try:
        return Path(config.class_names).read_text("utf-8").split("\n") if config.class_names else []
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"class_names = {config.class_names!r} cannot be read: {error}") from None


def _measured_accuracy(path: str, trust: Trust) -> float:
    """What the record of `dlproxy compress` beside this file says; 0 for nothing."""
    if not record_path(Path(path)).is_file():
        return 0.0
    from dlproxy.compress.manifest import declared_accuracy  # most models have no record

    return declared_accuracy(Path(path), trust.signers) or 0.0


def _partition(
    driver: Driver, signature: Signature, stats: ModelStats, ids: Iterator[int], clock: Callable[[], float], plan: LanePlan
) -> PartitionLayer:
    knobs, most = plan.knobs, plan.most_batch
    return PartitionLayer(driver, signature, stats, ids=ids, clock=clock, knobs=knobs, most_whole=most)


def _recorder(event_log: Path, name: str, plan: LanePlan, lane: Lane, fleet: Fleet) -> Recorder:
    return Recorder(event_log, Header(name, plan.knobs, plan.prior, threads=fleet.way.threads, cores=usable_cores()), lane)


def _aim(model: LoadedModel) -> None:
    """Requests get the deadlines of the objectives that hold now."""
    served, config = model.served, model.control.config
    served.slo_s, served.slo_s_by_level = config.slo_s, by_level(config.slo_s, config.slo_s_by_level)
    served.stats.aim(config.goal.latency_s, config.goal.quantile)
    for line in model.unmet():
        log.warning("model %s: %s", served.name, line)


def _allow(model: LoadedModel, *, splits: bool) -> None:
    """Requests may have as many rows as is configured now."""
    partition = model.control.partition
    rows = most_rows(model.control.config, splits=splits)
    ended = partition is not None and model.control.most_batch == 1
    model.served.max_batch = min(rows, partition.most_whole) if ended and partition is not None else rows


def _moved(control: LaneControl, on_ways: Callable[[], None], scaler: Autoscaler | None, way: Way) -> None:
    control.turn_knobs(max_batch_s=longest_s(inline=way.inline))
    if scaler is not None:
        scaler.moved(way.instances)
    on_ways()
    control.on_changed()


def _recheck(model: LoadedModel, clock: Callable[[], float], *, padded_only: bool) -> Recheck:
    ends = partial(_stop_batching, model), partial(_stop_padding, model)
    return Recheck(model.driver.submit, model.served.stats, clock, *ends, padded_only=padded_only)


def _stop_batching(model: LoadedModel, reason: str) -> None:
    name = model.served.name
    log.error("model %s: %s: batching is off from now on (batching = 'off' turns it off from the start)", name, reason)
    asyncio.get_running_loop().call_soon(model.control.stop_batching, reason)  # not in the midst of a lane's commands
    if isinstance(model.fleet, LocalFleet):
        model.fleet.rows_are_not_independent(reason)


def _stop_padding(model: LoadedModel, reason: str) -> None:
    name = model.served.name
    log.error("model %s: %s: padding is off from now on (padding = 'off' turns it off from the start)", name, reason)
    asyncio.get_running_loop().call_soon(model.control.stop_padding, reason)
    if isinstance(model.fleet, LocalFleet):
        model.fleet.padding_changes_answers(reason)


def _with_quotas(inner: Service, quotas: Quotas, stats: ModelStats, clock: Callable[[], float]) -> Service:
    def count(failure: Failure, request: Request) -> None:
        stats.failed(failure.kind, 0.0)
        stats.lost(request, failure, "quota", clock())

    return QuotaLayer(inner, quotas, clock=clock, on_refused=count)


def _traced(
    inner: Service, tracer: "Tracer", name: str, version: str, stats: ModelStats, clock: Callable[[], float]
) -> Service:
    from dlproxy.serve.tracing import TraceLayer  # most servers start without it

    layer = TraceLayer(inner, tracer, name, version, clock)
    stats.observers = [*(one for one in stats.observers if not isinstance(one, TraceLayer)), layer]
    return layer


def _trace_batches(tracer: "Tracer", name: str, driver: Driver, fleet: Fleet, clock: Callable[[], float]) -> None:
    from dlproxy.serve.tracing import Runs

    if isinstance(fleet, PipelineFleet):
        fleet.tracer = tracer
    else:
        driver.trace_runs(Runs(tracer, name, clock))


async def unload_model(model: LoadedModel, drain_s: float, reason: str = "the model is being unloaded") -> None:
    """Refuse what comes, finish what is under way, stop the instances, let go of the weights, close the recording."""
    if model.autoscaler is not None:
        model.autoscaler.stop()
    if model.degrading is not None:
        model.degrading.close()
    if model.cache is not None:
        model.cache.close()
    try:
        if model.sequences is not None:
            drain_s = await model.sequences.drain(drain_s, reason)
        await model.driver.stop(drain_s, reason)
    finally:
        try:
            await model.fleet.stop()
        finally:
            model.forget()
            model.roster.forget()
            if model.recorder is not None:
                model.recorder.close()
