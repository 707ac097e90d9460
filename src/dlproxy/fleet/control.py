"""The control plane of a process: whoever wants something else says so here, and what is served follows.

Called by start, file changes, operators and tuners. policy/planner.py decides; this carries it out, one version at a time,
tries again what failed, and tells how far it is. Not aware of: files, protocols, how a model is loaded.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.fleet.store import MemoryStore, Store
from dlproxy.fleet.tasks import end_all
from dlproxy.message import InferenceError
from dlproxy.policy import planner
from dlproxy.policy.planner import (
    Action,
    Actual,
    Adjust,
    FailedLoad,
    Key,
    Load,
    Phase,
    Refuse,
    Route,
    Routes,
    Unblock,
    Unload,
    Version,
    VersionState,
)
from dlproxy.policy.stages import waiting_for
from dlproxy.policy.wanted import Wanted, WantedVersion

LONG_S = 5.0  # of a load, after which the log has a line
AGAIN_S = 1.0  # a store that cannot be read is asked again so often
TOLERATED, MOST_UNMEASURED = 0.05, 0.25  # of the memory budget: what the process holds besides its models' sizes is given room
# from the one, for it may come from requests, up to the other, for more than that has other causes

log = logging.getLogger(__name__)


@contextmanager
def _told_while_it_lasts(key: Key) -> Iterator[None]:
    """Whoever watches the log hears of a load that takes long: after 5 s, 15, 35 and so on."""
    loop = asyncio.get_running_loop()
    timers = []

    def tell(seconds: float, after_s: float) -> None:
        log.info("model '%s' version %s: still loading after %g s", *key, seconds)
        timers.append(loop.call_later(2.0 * after_s, tell, seconds + 2.0 * after_s, 2.0 * after_s))

    timers.append(loop.call_later(LONG_S, tell, LONG_S, LONG_S))
    try:
        yield
    finally:
        timers[-1].cancel()


class Facts(Struct, frozen=True):
    """What a version that is up holds and does. `used_at`: of its last request, by the clock of `Control`."""

    size_bytes: int
    used_at: float
    busy: bool


class Models(Protocol):
    """Who loads and serves: serve/models.py. Everything is called on the event loop."""

    async def load(self, name: str, config: ModelConfig) -> Any: ...

    async def replace(self, name: str, version: str, config: ModelConfig) -> Any: ...

    def give_up(self, name: str, version: str) -> None:
        """Load it no further, if it is being loaded: whoever waits for that gets CancelledError."""
        ...

    async def adjust(self, name: str, version: str, before: WantedVersion, after: WantedVersion) -> None:
        """Other knobs, those that can be changed while it serves, and another number of instances."""
        ...

    async def unload(self, name: str, version: str, *, reason: str) -> None: ...

    def route(self, name: str, routes: Routes) -> None: ...

    def facts(self) -> Mapping[Key, Facts]:
        """Of every version that is up."""
        ...

    def size_of(self, config: ModelConfig) -> int:
        """What it would take of the memory, in bytes, as far as that can be told before it is loaded."""
        ...

    def loading_bytes(self, config: ModelConfig) -> int:
        """What it would take besides for as long as it is loaded."""
        ...

    def unmeasured_bytes(self) -> int:
        """What this process holds now besides what the models were measured to hold."""
        ...


class _Work(Struct, eq=False):
    """Under way. `to`: what the version becomes; None: it goes."""

    phase: Phase
    task: asyncio.Task[None]
    to: WantedVersion | None


class Control:
    """Everything happens on one event loop, between `start` and `stop`."""

    def __init__(
        self,
        models: Models,
        store: Store | None = None,
        *,
        memory_bytes: float = inf,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.wanted = Wanted()
        self._models = models
        self._store = store or MemoryStore()
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._made_of: dict[Key, WantedVersion] = {}
        self._loaded_as: dict[Key, WantedVersion] = {}
        self._under_way: dict[Key, _Work] = {}
        self._failed: dict[Key, FailedLoad] = {}
        self._errors: dict[Key, Exception] = {}
        self._routes: dict[str, Routes] = {}
        self._misrouted: dict[str, Exception] = {}
        self._demanded: dict[str, int] = {}
        self._awaited: Counter[str] = Counter()  # who waits for a model hears of its failures, and need not read the log
        self._timer: asyncio.TimerHandle | None = None
        self._following: asyncio.Task[None] | None = None
        self._progress: asyncio.Event = asyncio.Event()
        self.changes = 0
        """Times that what `states` gives may have become something else."""
        self._stopped = False

    # What is wanted

    async def start(self) -> None:
        """Take up what the store has, and follow it from now on. Raises what the store raises."""
        self._take(await self._store.read())
        self._following = asyncio.create_task(self._follow(), name="dlproxy-control")

    async def stop(self) -> None:
        """Change nothing more; what is being loaded is given up. What is up stays."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [work.task for work in self._under_way.values()]
        if self._following is not None:
            tasks.append(self._following)
        await end_all(tasks)
        await self._store.close()
        self._tell()

    async def change(self, edit: Callable[[Wanted], Wanted]) -> Wanted:
        """Want what `edit` makes of what is wanted; it is called again if somebody else was quicker.

        Returns at once, with what is wanted now: `settled` waits for it. Raises what `edit` raises, and then nothing changes.
        """
        while True:
            before = await self._store.read()
            after = edit(before)
            if after == before:
                self._take(before)
                return before
            after = msgspec.structs.replace(after, revision=before.revision + 1)
            if await self._store.swap(before.revision, after):
                self._take(after)
                return after

    async def tried(self, name: str) -> None:
        """Returns when the model is as it is wanted, or it was tried to make it so: then the log says why it is not."""
        while not self._stopped:
            outstanding, error = self._progress_of(name, None)
            if not outstanding or (error is not None and not any(key[0] == name for key in self._under_way)):
                return
            await self._progress.wait()

    async def settled(self, name: str, versions: Collection[str] | None = None) -> None:
        """Returns when these versions (None: all) of the model are as they are wanted: up, or gone; and so are its routes.

        Raises what the load raised if one failed, or Cancelled if the server stops.
        """
        self._awaited[name] += 1
        try:
            while not self._stopped:
                outstanding, error = self._progress_of(name, versions)
                if error is not None:
                    raise error
                if not outstanding:
                    return
                await self._progress.wait()
        finally:
            self._awaited[name] -= 1
        raise asyncio.CancelledError

    def _progress_of(self, name: str, versions: Collection[str] | None) -> tuple[bool, Exception | None]:
        """Whether something is still to be done about these versions (None: about any), and what went wrong last."""
        model = self.wanted.models.get(name)
        outstanding, error = False, None
        for key in {*self._made_of, *self._under_way, *self._wanted_keys(name)}:
            if key[0] != name or (versions is not None and key[1] not in versions):
                continue
            wanted, made_of, failed = self._wanted_version(key), self._made_of.get(key), self._failed.get(key)
            if key in self._under_way:
                outstanding = True
            elif wanted is not None and failed is not None and failed.made_of == wanted:
                outstanding, error = True, self._errors[key]
            elif made_of != wanted and not (made_of is None and model is not None and model.on_demand):
                outstanding = True
        return outstanding, error if outstanding else self._misrouted.get(name)

    def may_come(self, name: str, version: str = "") -> bool:
        """Whether it is loaded when somebody asks for it. `version`: a number or a label; empty: any one."""
        model = self.wanted.models.get(name)
        return model is not None and model.on_demand and bool(self._meant(name, version))

    async def demand(self, name: str, version: str = "") -> None:
        """Somebody waits for a model that is loaded on demand. Returns when that version is up, or is not wanted any more.

        `version`: as in `may_come`. Raises what the load raised.
        """
        self._demanded[name] = self._demanded.get(name, 0) + 1
        try:
            self._step()
            while not self._stopped and not any(self._serves(key) for key in self._meant(name, version)):
                wanted = self._meant(name, version)
                errors = [self._errors[key] for key in wanted if key in self._errors and key not in self._under_way]
                if not wanted or len(errors) == len(wanted):
                    break
                await self._progress.wait()
            else:
                errors = []
            if errors:
                raise errors[-1]
        finally:
            self._demanded[name] -= 1
            if not self._demanded[name]:
                del self._demanded[name]

    def states(self) -> list[VersionState]:
        """Every version that is wanted or there, model by model."""
        facts = self._models.facts()
        wanted = [(name, version) for name, model in self.wanted.models.items() for version in model.versions]
        keys = dict.fromkeys((*wanted, *self._made_of, *self._under_way))
        return [self._state(key, facts.get(key)) for key in keys]

    # What is done

    async def _follow(self) -> None:
        while True:
            try:
                await self._store.changed(self.wanted.revision)
                self._take(await self._store.read())
            except (ConfigError, OSError) as error:
                log.warning("what is wanted cannot be read; what was read last stays: %s", error)
                await asyncio.sleep(AGAIN_S)

    def _take(self, wanted: Wanted) -> None:
        if wanted.revision >= self.wanted.revision:
            self.wanted = wanted
        for key in [key for key in self._failed if self._failed[key].made_of != self._wanted_version(key)]:
            del self._failed[key]
            self._errors.pop(key, None)
        for key, work in self._under_way.items():
            self._give_up_unwanted(key, work)
        self._step()

    def _give_up_unwanted(self, key: Key, work: "_Work") -> None:
        """A load that would have to be undone may hang, and others wait until it is done."""
        wanted = self._wanted_version(key)
        if work.to is None or (wanted is not None and planner.cost(work.to, wanted) != "reload"):
            return
        if work.phase == "loading":
            work.task.cancel()
        else:
            self._models.give_up(*key)  # once the new one is up, the old one's leaving goes on

    def _step(self) -> None:
        """Do what is to be done next."""
        if self._stopped:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        while True:
            plan = planner.plan(self.wanted, self._actual(), now)
            for action in plan.actions:
                self._begin(action)
            if not any(isinstance(action, Route | Refuse | Unblock) for action in plan.actions):  # which are done already
                break
        if plan.again_at < inf:
            self._timer = asyncio.get_running_loop().call_later(max(plan.again_at - now, 0.0), self._step)
        self._tell()

    def _actual(self) -> Actual:
        facts = self._models.facts()
        nothing = Facts(0, 0.0, False)
        versions = {}
        for key, made_of in self._made_of.items():
            fact = facts.get(key, nothing)
            phase = self._under_way[key].phase if key in self._under_way else "serving"
            versions[key] = Version(phase, made_of, fact.size_bytes, fact.used_at, fact.busy, self._loaded_as.get(key))
        for key, work in self._under_way.items():
            if key not in versions and work.to is not None:
                versions[key] = Version(work.phase, work.to, self._models.size_of(work.to.config))
        if self._memory_bytes == inf:
            return Actual(versions, self._failed, self._routes, list(self._demanded))
        sizes, passing = {}, {}
        for key, config in self._to_load(versions):
            sizes[key] = self._models.size_of(config)
            passing[key] = self._models.loading_bytes(config)
        if passing:
            most, tolerated = int(self._memory_bytes * MOST_UNMEASURED), int(self._memory_bytes * TOLERATED)
            besides = max(min(self._models.unmeasured_bytes(), most) - tolerated, 0)
            passing = {key: size + besides for key, size in passing.items()}
        return Actual(versions, self._failed, self._routes, list(self._demanded), sizes, passing, self._memory_bytes)

    def _to_load(self, versions: Mapping[Key, Version]) -> Iterator[tuple[Key, ModelConfig]]:
        """Versions that may have to be loaded now."""
        there = {name for name, _ in versions}
        for name in planner.to_be_up(self.wanted, {*self._demanded, *there}):
            for version, wanted in self.wanted.models[name].versions.items():
                one = versions.get((name, version))
                if one is None or one.made_of != wanted:
                    yield (name, version), wanted.config

    def _begin(self, action: Action) -> None:
        match action:
            case Load(key, wanted, replaces):
                self._run(key, "changing" if replaces else "loading", wanted, self._load(key, wanted, replaces=replaces))
            case Adjust(key, wanted):
                self._run(key, "changing", wanted, self._adjust(key, wanted))
            case Unload(key, reason):
                self._run(key, "leaving", None, self._unload(key, reason))
            case Route(name, routes):
                self._route(name, routes)
            case Refuse(key, wanted, reason, for_good, blocked):
                error = ConfigError(f"model '{key[0]}' version {key[1]} is not loaded: {reason}")
                self._note_failure(key, wanted, error, reason, for_good=for_good, blocked=blocked)
            case Unblock(key):
                self._failed.pop(key, None)
                self._errors.pop(key, None)

    def _run(self, key: Key, phase: Phase, wanted: WantedVersion | None, work: Coroutine[Any, Any, None]) -> None:
        """`wanted`: what it is to become."""
        task = asyncio.create_task(work, name=f"dlproxy-{phase}-{key[0]}")
        self._under_way[key] = _Work(phase, task, wanted)
        task.add_done_callback(partial(self._done, key, wanted))

    def _done(self, key: Key, wanted: WantedVersion | None, task: asyncio.Task[None]) -> None:
        del self._under_way[key]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            if wanted is None:
                log.error("model '%s' version %s could not be unloaded", *key, exc_info=error)
            else:
                self._note_failure(key, wanted, error, str(error))
        elif not task.cancelled():
            self._failed.pop(key, None)
            self._errors.pop(key, None)
        self._step()

    async def _load(self, key: Key, wanted: WantedVersion, *, replaces: bool) -> None:
        with _told_while_it_lasts(key):
            if replaces:
                await self._models.replace(*key, wanted.config)
            else:
                await self._models.load(key[0], wanted.config)
        self._made_of[key] = self._loaded_as[key] = wanted
        count = planner.count_of(wanted)
        if wanted.instances is not None and count is not None:
            await self._models.adjust(*key, WantedVersion(wanted.config), wanted)

    async def _adjust(self, key: Key, wanted: WantedVersion) -> None:
        await self._models.adjust(*key, self._made_of[key], wanted)
        self._made_of[key] = wanted

    async def _unload(self, key: Key, reason: str) -> None:
        makes_room = self._wanted_version(key) is not None  # which happens all the time
        log.log(logging.DEBUG if makes_room else logging.INFO, "model '%s' version %s goes: %s", *key, reason)
        try:
            await self._models.unload(*key, reason=f"model '{key[0]}' version {key[1]} is being unloaded: {reason}")
        finally:
            self._made_of.pop(key, None)
            self._loaded_as.pop(key, None)
            if not any(other[0] == key[0] for other in self._made_of):
                self._routes.pop(key[0], None)
                self._misrouted.pop(key[0], None)

    def _route(self, name: str, routes: Routes) -> None:
        self._routes[name] = routes
        try:
            self._models.route(name, routes)
            self._misrouted.pop(name, None)
        except (ConfigError, InferenceError) as error:
            self._misrouted[name] = error
            log.log(self._level(name), "model '%s': its requests are not shared as wanted: %s", name, error)

    def _note_failure(
        self,
        key: Key,
        wanted: WantedVersion,
        error: Exception,
        reason: str,
        *,
        for_good: bool = False,
        blocked: bool = False,
    ) -> None:
        before = self._failed.get(key)
        times = before.times + 1 if before is not None and before.made_of == wanted else 1
        failed = self._failed[key] = FailedLoad(wanted, reason, self._clock(), times, for_good, blocked)
        self._errors[key] = error
        old = ", the one that serves stays" if key in self._made_of else ""
        again = "" if failed.again_at == inf else f"; next attempt in {failed.again_at - failed.failed_at:g} s"
        log.log(self._level(key[0]), "model '%s' version %s is not loaded%s: %s%s", *key, old, reason, again)

    # Looking

    def _level(self, name: str) -> int:
        """Of a message about what whoever waits for the model hears, too."""
        return logging.DEBUG if self._awaited[name] else logging.ERROR

    def _tell(self) -> None:
        self.changes += 1
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()

    def _wanted_version(self, key: Key) -> WantedVersion | None:
        model = self.wanted.models.get(key[0])
        return None if model is None else model.versions.get(key[1])

    def _wanted_keys(self, name: str) -> list[Key]:
        model = self.wanted.models.get(name)
        return [] if model is None else [(name, version) for version in model.versions]

    def _meant(self, name: str, version: str) -> list[Key]:
        """By a client: what is wanted of the model under this number or label, or (empty) all of it."""
        model = self.wanted.models.get(name)
        number = "" if model is None else model.labels.get(version, version)
        return [key for key in self._wanted_keys(name) if number in ("", key[1])]

    def _serves(self, key: Key) -> bool:
        return key in self._made_of and (key not in self._under_way or self._under_way[key].phase != "leaving")

    def _state(self, key: Key, facts: Facts | None) -> VersionState:
        name, version = key
        model, routes, failed = self.wanted.models.get(name), self._routes.get(name), self._failed.get(key)
        if key in self._under_way:
            phase: str = self._under_way[key].phase
        elif key in self._made_of:
            phase = "serving"
        else:
            phase = "wanted" if failed is None else "failed"
        reason = failed.reason if failed is not None else ""
        if phase == "wanted" and model is not None and not model.on_demand:
            reason = waiting_for(model.versions[version].config, self.wanted, self._serves)
        return VersionState(
            name,
            version,
            phase,
            reason=reason,
            default=routes is not None and routes.default == version,
            labels=tuple(label for label, to in routes.labels.items() if to == version) if routes is not None else (),
            share=routes.traffic.shares.get(version, 0.0) if routes is not None else 0.0,
            on_demand=model is not None and model.on_demand,
            size_bytes=0 if facts is None else facts.size_bytes,
        )
