"""The models of one process: each is loaded, replaced and unloaded while the others serve.

Held by serve/server.py and serve/proxy.py. Owns what models share: the catalog, quotas, turns on the cores, the idle poll, the
memory of findings, the folder of event logs. Not aware of: sockets, what a model is made of (serve/assemble.py).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from dlproxy.autopilot.agents import Agents
from dlproxy.autopilot.flight import Flight, Tuned
from dlproxy.autopilot.host import Autopilot
from dlproxy.autopilot.watching import make_watch
from dlproxy.config import AutopilotConfig, CacheConfig, ConfigError, ModelConfig, ServerConfig, TenantConfig
from dlproxy.config.node import NodeConfig
from dlproxy.config.security import IntegrityConfig
from dlproxy.config.table import live_knobs
from dlproxy.cores import give_back, usable_cores
from dlproxy.fleet.control import Facts
from dlproxy.fleet.memory import MemoryMeter, large_blocks_apart, most_bytes, resident_bytes
from dlproxy.fleet.remembered import memory_in
from dlproxy.fleet.start import ALONE
from dlproxy.instance.integrity.settings import read_trust
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.planner import Routes, count_of
from dlproxy.policy.quota import Quotas, Use, quota_of
from dlproxy.policy.wanted import WantedVersion
from dlproxy.serve.assemble import LoadedModel, load_model, unload_model
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.idle_poll import IdlePoll, may_poll
from dlproxy.serve.pipelines import PipelineFleet, Pipelines
from dlproxy.serve.rollout import OnWorse, Rollouts
from dlproxy.serve.sequences import SequenceStore
from dlproxy.serve.tuning import holding, tuned
from dlproxy.serve.turns import Turns
from dlproxy.telemetry.exemplars import ExemplarStore
from dlproxy.telemetry.journal import Journal
from dlproxy.wire.catalog import Catalog

if TYPE_CHECKING:
    from dlproxy.fleet.lent import Lender
    from dlproxy.telemetry.tracing import Tracer

Key = tuple[str, str]  # name and version

EMPTY: Mapping[str, TenantConfig] = MappingProxyType({})
MARGIN = 1.1  # of load_timeout_s, which a worker process keeps to itself, and then says more
STOPPING = "the server is shutting down"

log = logging.getLogger(__name__)


class Models:
    """Everything happens on one event loop. A change that fails leaves everything as it was."""

    def __init__(
        self,
        server: ServerConfig,
        tenants: Mapping[str, TenantConfig] = EMPTY,
        *,
        autopilot: AutopilotConfig = AutopilotConfig(),  # noqa: B008 - it is frozen
        cache: CacheConfig = CacheConfig(),  # noqa: B008 - the same
        integrity: IntegrityConfig = IntegrityConfig(),  # noqa: B008 - the same
        asks: bool = False,
        tracer: "Tracer | None" = None,
        lender: "Lender | None" = None,
        node: NodeConfig = ALONE,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`asks`: clients prove who they are, and may have quotas of their own. `tracer`: of their requests. `lender`: who
        has the worker processes, where several servers share them. Raises ConfigError
        for a quota of no sense, keys of models that cannot be read, and what is to watch them but is no detector.
        """
        self.catalog = Catalog()
        self.caches = Caches(cache, clock)
        self.exemplars = ExemplarStore(Journal(clock))
        self._tuned: dict[LoadedModel, Tuned] = {}
        self.shares_cores = False
        """Whether batches of these models take turns on the cores now."""
        self.hangs = False
        """Whether a thread may still be in a load that took too long: nothing can end it but the end of the process."""
        self._server = server
        self._tenants = tenants
        self._clock = clock
        self._quotas = make_quotas(tenants, asks=asks)
        self._tracer = tracer
        self._lender = lender
        self._node = node
        self._trust = read_trust(integrity)
        agents = Agents(autopilot.policy, autopilot.challenger, self._trust)
        record = Path(autopilot.record) if autopilot.record else None
        self.autopilot = Autopilot(clock, agents=agents, record=record, watch=make_watch(autopilot.watch, clock, self._trust))
        self._mode = autopilot.mode
        self._memory = memory_in(server.calibration_folder, server.graph_folder)
        self._meter = MemoryMeter()
        self._turns: Turns | None = None
        self._idle_poll: IdlePoll | None = None
        self._loaded: dict[Key, LoadedModel] = {}
        self._leaving: dict[LoadedModel, asyncio.Task[None]] = {}
        self._sequences: WeakValueDictionary[str, SequenceStore] = WeakValueDictionary()
        self._changing: dict[Key, str] = {}
        self._coming: dict[Key, asyncio.Task[LoadedModel]] = {}
        self._warming_up = asyncio.Lock()  # one measures its time undisturbed by others that do
        self._lives: Counter[Key] = Counter()
        self.on_worse: OnWorse = _warn
        """Told when a guarded version does worse than the default one."""
        self._rollouts = Rollouts(self.catalog, self._loaded, lambda *what: self.on_worse(*what), clock)
        self.catalog.subscribe(self._find_variants)
        self._pipelines = Pipelines(self.catalog, clock)

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(list(self._loaded.values()))

    @property
    def unanswered(self) -> int:
        """Clients' requests that are queued or run, also of models that go."""
        return sum(model.driver.unanswered for model in self._up())

    def facts(self) -> dict[Key, Facts]:
        """What every version that is served, or goes and is not gone yet, holds and does."""
        found: dict[Key, Facts] = {}
        for model in self._up():
            key = _key(model)
            size = model.size_bytes + (found[key].size_bytes if key in found else 0)
            driver = self._loaded.get(key, model).driver  # of two, one has replaced the other
            last_at = max(driver.last_event_at, -inf if model.cache is None else model.cache.last_hit_at)
            keeps = model.sequences is not None and model.sequences.active() > 0  # which would end, to make room for others
            found[key] = Facts(size, last_at, busy=driver.unanswered > 0 or keeps)
        return found

    def uses(self) -> list[Use]:
        """How tenants and keys use their quotas."""
        return [] if self._quotas is None else self._quotas.uses(self._clock())

    def share_quotas(self) -> Quotas | None:
        """With other processes, which hear of `charges` and tell theirs; None where there are no quotas."""
        if self._quotas is not None:
            self._quotas.share()
        return self._quotas

    def size_of(self, config: ModelConfig) -> int:
        """What a model would take of the memory, in bytes, as far as that can be told before it is loaded."""
        return self._meter.size_of(config)

    def loading_bytes(self, config: ModelConfig) -> int:
        """What it would take besides for as long as it is loaded."""
        return self._meter.loading_bytes(config)

    def unmeasured_bytes(self) -> int:
        """What this process holds now besides what the models were measured to hold, as that comes and goes with requests."""
        here = sum(model.size_bytes - model.elsewhere_bytes for model in self._up())
        return max(resident_bytes() - (self._meter.base_bytes or 0) - here, 0)

    # Changes

    async def load(self, name: str, config: ModelConfig) -> LoadedModel:
        """Load and warm up a model, then serve it; requests that name no version get the one that was loaded last.

        Raises ConfigError, LogError, ModelError.
        """
        key = name, config.version
        self._must_be_new(key)
        with self._change(key, "loading"):
            return await self._brought_up(name, config)

    async def replace(self, name: str, version: str, config: ModelConfig) -> LoadedModel:
        """Serve another in place of this version (empty: the default one), which goes when the other is up.

        It may have the same version or another, which then is the default. Raises as `load`, and InferenceError if there is no
        such version. Returns when the old one has finished what it had under way.
        """
        old = self._loaded[name, self.catalog.get(name, version).version]
        key = name, config.version
        if key != _key(old):
            self._must_be_new(key)
        with self._change(_key(old), "being replaced"), self._change(key, "loading", also=_key(old)):
            new = await self._brought_up(name, config)
            await asyncio.shield(self._retire(old, f"version {old.served.version} of model '{name}' was replaced"))
        return new

    def give_up(self, name: str, version: str) -> None:
        """Load it no further, if it is being loaded: `load` and `replace` raise CancelledError. Nothing else changes.

        A thread that hangs in it goes on, and what it makes is dropped.
        """
        if (name, version) in self._coming:
            self._coming[name, version].cancel()

    def check_knobs(self, name: str, version: str, knobs: Mapping[str, Any]) -> None:
        """Raises ConfigError if this version (empty: any one) of the model is served and does not take them."""
        for (other, number), model in self._loaded.items():
            if other == name and version in ("", number):
                model.control.changed(knobs)

    async def adjust(self, name: str, version: str, before: WantedVersion, after: WantedVersion) -> None:
        """Change what differs of the knobs that can be changed while it serves, and the number of instances.

        Raises ConfigError, and InferenceError if there is no such version.
        """
        control = self._loaded[name, self.catalog.get(name, version).version].control
        old, new = before.config, after.config
        set_now = old.start.keys() - new.start.keys()  # to what it was declared to be: it began with another value
        changes = {
            knob: getattr(new, knob) for knob in live_knobs() if knob in set_now or getattr(old, knob) != getattr(new, knob)
        }
        if "max_batch" in changes:  # what it was loaded with allows it, unless its rows share no batch
            changes["max_batch"] = min(changes["max_batch"], control.most_batch)
        if changes:
            control.change(changes)
        count = count_of(after)
        if count is not None and count != count_of(before):
            await control.scale(count)

    async def unload(self, name: str, version: str = "", *, drain_s: float | None = None, reason: str = "") -> None:
        """Serve this version no more (empty: none of the model). Returns when what was under way has been answered.

        What takes longer than `drain_s` seconds (by default the server's) fails. `reason`: what those hear who come too late.
        Raises InferenceError if there is no such version, ConfigError while it is being changed.
        """
        if not version or (name, version) not in self._loaded:
            self.catalog.get(name, version)  # which says what there is
        keys = [key for key in self._loaded if key[0] == name and version in ("", key[1])]
        for key in keys:
            self._must_be_left_alone(key)
        reason = reason or f"model '{name}' is being unloaded"
        leaving = [self._retire(self._loaded[key], reason, drain_s) for key in keys]
        await asyncio.shield(asyncio.gather(*leaving))

    def route(self, name: str, routes: Routes) -> None:
        """Who gets which version from now on.

        Raises InferenceError if the default version or that of a label is not served, and then nothing has changed; ConfigError
        for versions that cannot share requests, and then all else holds.
        """
        self._rollouts.route(name, routes.default, routes.labels, routes.traffic)

    async def drain(self, drain_s: float | None = None) -> None:
        """Load nothing more, answer what is under way, unload everything."""
        self.catalog.drain()
        for model in reversed(list(self)):  # pipelines before their stages, which were there first
            if isinstance(model.fleet, PipelineFleet):
                await asyncio.shield(self._retire(model, STOPPING, drain_s))
        for model in self:
            self._retire(model, STOPPING, drain_s)
        async with self._warming_up:  # what was being loaded is stopped by whoever loads it
            await asyncio.gather(*self._leaving.values())
        await self._pipelines.stop()
        await self.caches.close()

    def close_recordings(self) -> None:
        """For a process that is about to end without draining."""
        for model in self._up():
            if model.recorder is not None:
                model.recorder.close()

    # One model

    async def _brought_up(self, name: str, config: ModelConfig) -> LoadedModel:
        key = name, config.version
        self._coming[key] = asyncio.create_task(self._bring_up(name, config), name=f"dlproxy-load-{name}")
        try:
            return await self._coming[key]
        finally:
            del self._coming[key]

    async def _bring_up(self, name: str, config: ModelConfig) -> LoadedModel:
        async with self._warming_up:
            if self.catalog.draining:
                raise ModelError(f"model '{name}' is not loaded: {STOPPING}")
            before = await asyncio.to_thread(self._meter.begin)
            try:
                async with large_blocks_apart(), asyncio.timeout(config.load_timeout_s * MARGIN):
                    model = await load_model(
                        name,
                        config,
                        ticket_ids=self.catalog.ticket_ids,
                        tenants=self._tenants,
                        quotas=self._quotas,
                        event_log=self._recording(name, config.version),
                        memory=self._memory,
                        trust=self._trust,
                        on_ways=self._ways_changed,
                        caches=self.caches,
                        pipelines=self._pipelines,
                        sequences=self._sequences.setdefault(name, SequenceStore(name, self._clock)),
                        exemplars=self.exemplars,
                        tracer=self._tracer,
                        lender=self._lender,
                        node=self._node,
                        clock=self._clock,
                    )
            except asyncio.CancelledError:
                self.hangs = True
                raise
            except TimeoutError:
                self.hangs = True
                raise ModelError(f"model '{name}' did not load within {config.load_timeout_s:g} s (load_timeout_s)") from None
            try:
                await asyncio.to_thread(self._measure, model, config, before)
                await self._scale_like_others(name, model)
                if self.catalog.draining:
                    raise ModelError(f"model '{name}' was not loaded: {STOPPING}")
                self._enter(model)
            except BaseException:
                await unload_model(model, 0.0, STOPPING)
                raise
            return model

    async def _scale_like_others(self, name: str, model: LoadedModel) -> None:
        """A version that takes over from one that scales begins with as many instances as that one has now."""
        if model.autoscaler is None or not self.catalog.versions(name):
            return
        serving = self._loaded[name, self.catalog.get(name).version].autoscaler
        if serving is not None and serving.wanted > model.autoscaler.wanted:
            model.autoscaler.moved(serving.wanted)
            await model.control.set_instances(serving.wanted)

    def _measure(self, model: LoadedModel, config: ModelConfig, before: int) -> None:
        most = most_bytes()
        model.elsewhere_bytes = model.fleet.elsewhere_bytes()
        held = self._meter.held()
        model.size_bytes = self._meter.loaded(config, held - before, model.elsewhere_bytes)
        self._meter.peaked(config, most - max(held, before + model.size_bytes))

    def _enter(self, model: LoadedModel) -> None:
        self._share_cores([*self._up(), model])
        if self._server.idle_poll_s and may_poll():
            if self._idle_poll is None:
                call_soon = asyncio.get_running_loop().call_soon
                self._idle_poll = IdlePoll(self._server.idle_poll_s, clock=self._clock, call_soon=call_soon)
            model.driver.poll_when_idle(self._idle_poll)
        self._loaded[_key(model)] = model
        self.catalog.add(model.served)
        self._tune(model)

    def _tune(self, model: LoadedModel) -> None:
        """The autopilot looks after it from now on, and is told of what others change."""
        handle = self._tuned[model] = tuned(model, self._mode, sessions=not self._server.memory_budget_mb)
        flight = self.autopilot.add(handle)
        model.served.pilot = flight.brief
        model.control.on_changing = flight.hold
        model.control.on_changed = partial(self._renew, flight)
        put_before = model.control.on_variants

        def name_variants() -> None:
            put_before()
            self._govern(model, flight)
            self.catalog.add(model.served)

        model.control.on_variants = name_variants
        self._govern(model, flight)

    def _govern(self, model: LoadedModel, flight: Flight) -> None:
        """What decides on its variants says so where the autopilot does, and rests where that is paused."""
        if model.degrading is not None:
            model.degrading.cores = self._server.cores or usable_cores()
            model.degrading.held = lambda: flight.paused
            model.degrading.tell = flight.note

    def _find_variants(self) -> None:
        """Models have come or gone that may answer for others."""
        for model in self._loaded.values():
            if model.degrading is not None:
                model.degrading.follow(self._default)

    def _default(self, name: str) -> LoadedModel | None:
        """The version of it that requests get which name none."""
        version = self.catalog.default(name)
        return None if self.catalog.draining else self._loaded.get((name, version))

    def _renew(self, flight: Flight) -> None:
        flight.renew()
        self.autopilot.look_on()

    def holds(self, name: str, version: str) -> dict[str, Any]:
        """What the knobs that the autopilot may turn without a reload are now; nothing if no such version is served."""
        if not version and any(served == name for served, _ in self._loaded):
            version = self.catalog.get(name).version
        model = self._loaded.get((name, version))
        return {} if model is None else holding(model)

    def _retire(self, model: LoadedModel, reason: str, drain_s: float | None = None) -> asyncio.Task[None]:
        """Out of the catalog at once, unless another is in its place already; the task ends when it is gone."""
        key = _key(model)
        if model in self._tuned:
            self.autopilot.remove(self._tuned.pop(model))
        if self._loaded.get(key) is model:
            del self._loaded[key]
            self.catalog.remove(*key)
        self._hand_on(model, reason)
        drain_s = self._server.drain_s if drain_s is None else drain_s
        task = self._leaving[model] = asyncio.create_task(self._let_go(model, reason, drain_s), name=f"dlproxy-unload-{key[0]}")
        self._announce(key)
        return task

    def _hand_on(self, model: LoadedModel, reason: str) -> None:
        """The sequences of a version that goes are those of whichever answers in its place."""
        successor = self._loaded.get(_key(model)) or self._default(model.served.name)
        if model.sequences is not None and successor is not None and successor.sequences is not None:
            model.sequences.give_way(successor.sequences, reason)

    async def _let_go(self, model: LoadedModel, reason: str, drain_s: float) -> None:
        name, version = key = _key(model)
        journal = self.exemplars.journal
        happening = journal.begin("unload", f"version {version} of model '{name}' was leaving", model=name, subject=version)
        try:
            await unload_model(model, drain_s, reason)
            await asyncio.to_thread(give_back)
        finally:
            if model.turn_needs:
                model.driver.leave_turns()  # which it may have been let into again meanwhile
            del self._leaving[model]
            journal.end(happening)
            self._announce(key)
            self._ways_changed()

    def _announce(self, key: Key) -> None:
        """What clients hear who ask for what is not served now."""
        if key not in self._loaded:
            leaves = any(_key(model) == key for model in self._leaving)
            state = "is being loaded" if self._changing.get(key) == "loading" else "is being unloaded" if leaves else ""
            self.catalog.announce(*key, state)

    def _recording(self, name: str, version: str) -> Path | None:
        """Every life of a model has an event log of its own."""
        if not self._server.event_log:
            return None
        self._lives[name, version] += 1
        life = self._lives[name, version]
        return Path(self._server.event_log) / (f"{name}-{version}.dlog" if life == 1 else f"{name}-{version}.{life}.dlog")

    # Who may change what

    def _must_be_new(self, key: Key) -> None:
        if key in self._loaded:
            raise ConfigError(f"model '{key[0]}' version {key[1]} is served already: replace it, or load another version")

    def _must_be_left_alone(self, key: Key) -> None:
        if key in self._changing:
            raise ConfigError(f"model '{key[0]}' version {key[1]} is {self._changing[key]}: wait until that is done")

    @contextmanager
    def _change(self, key: Key, phase: str, *, also: Key | None = None) -> Iterator[None]:
        """Nobody else changes it meanwhile. `also`: what the caller changes already."""
        if key == also:
            yield
            return
        self._must_be_left_alone(key)
        self._changing[key] = phase
        self._announce(key)
        journal = self.exemplars.journal
        happening = journal.begin(
            "load",
            f"version {key[1]} of model '{key[0]}' was {phase.replace('loading', 'being loaded')}",
            model=key[0],
            subject=key[1],
        )
        try:
            yield
        finally:
            journal.end(happening)
            del self._changing[key]
            self._announce(key)

    # Cores

    def _up(self) -> list[LoadedModel]:
        """What runs batches: also what goes, until it is gone."""
        return [*self._loaded.values(), *self._leaving]

    def _ways_changed(self) -> None:
        """Models run in other ways, or in other numbers, than before."""
        try:
            self._share_cores(self._up())
        except ConfigError as error:
            log.warning("who takes turns on the cores stays as it was: %s", error)

    def _share_cores(self, models: list[LoadedModel]) -> None:
        """Let batches take turns on the cores where that is wanted. Raises ConfigError for cores that do not suffice."""
        needs = turn_needs(models, self._server)
        self.shares_cores = bool(needs)
        for model in models:
            need = needs.get(model, {})
            if need == model.turn_needs:
                continue
            model.turn_needs = need
            if need:
                if self._turns is None:
                    self._turns = Turns(_arbiter(self._server), self._clock)
                self._turns.provide(model.fleet.way.resources)
                model.driver.take_turns(self._turns, need)
            model.control.turn_knobs(arbitrated=bool(need))
            if not need:
                model.driver.leave_turns()


def turn_needs(models: list[LoadedModel], server: ServerConfig) -> dict[LoadedModel, dict[str, float]]:
    """What a batch of each model takes while it has its turn; nothing if they take no turns.

    As many cores as it has threads, or all of them, and 1 of whatever else its way of running has. Batches that run on the
    event loop take no turns: the loop runs one at a time as it is. Raises ConfigError for cores that do not suffice.
    """
    if server.arbiter == "off":
        return {}
    cores = server.cores or usable_cores()
    there, busiest = {"cores": float(cores)}, Counter[str]()
    needs: dict[LoadedModel, dict[str, float]] = {}
    for model in models:
        way = model.fleet.way
        if way.inline or not (way.threads or way.resources) or model.lane.view().knobs.leased:
            continue
        there.update(way.resources)
        need = needs[model] = {"cores": min(way.threads, cores), **dict.fromkeys(way.resources, 1)}
        for _ in model.lane.view().instances:
            busiest.update(need)
    crowded = len(needs) > 1 and any(busiest[name] > there[name] for name in busiest)
    if server.arbiter == "auto" and not crowded:
        return {}
    for model, need in needs.items():
        if need["cores"] > cores - server.reserved_cores:
            raise ConfigError(
                f"a batch of model {model.served.name} takes {need['cores']} cores, but of {cores} cores "
                f"{server.reserved_cores} are reserved: lower reserved_cores or the model's threads"
            )
    return needs


def make_quotas(tenants: Mapping[str, TenantConfig], *, asks: bool = False) -> Quotas | None:
    """Over all models; None where nobody can have one. `asks`: keys may. Raises ConfigError for one that never admits."""
    quotas = {}
    for name, tenant in tenants.items():
        try:
            quota = quota_of(tenant.requests_per_s, tenant.rows_per_s, tenant.burst_s, tenant.concurrent)
        except ValueError as error:
            raise ConfigError(f"tenants.{name}: {error}, or 0 for no limit") from None
        if quota is not None:
            quotas[name] = quota
    return Quotas(quotas) if quotas or asks else None


def _arbiter(server: ServerConfig) -> Arbiter:
    cores = server.cores or usable_cores()
    return Arbiter({"cores": cores}, discipline=server.arbiter_discipline, reserved={"cores": server.reserved_cores})


def _warn(name: str, version: str, reason: str) -> None:
    log.error("model %s: version %s does worse than the default one: %s", name, version, reason)


def _key(model: LoadedModel) -> Key:
    return model.served.name, model.served.version
