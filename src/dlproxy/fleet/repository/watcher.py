"""Follows a model repository: whatever changes there and then stays as it is becomes what is wanted.

Started by serve/server.py; asked by whatever loads models by name. Not aware of: how models are loaded, what else is wanted.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from time import monotonic, time_ns

from msgspec.structs import replace

from dlproxy.config import ConfigError, ServerConfig
from dlproxy.fleet.repository.edit import edited, merged
from dlproxy.fleet.repository.model_folder import FoundModel, Knobs
from dlproxy.fleet.repository.settling import SETTLE_S, Settling, is_young
from dlproxy.fleet.repository.source import Source
from dlproxy.fleet.repository.wakes import wake_on_changes
from dlproxy.policy.stages import stages_of
from dlproxy.policy.wanted import Wanted, WantedModel

RESCAN_S = 15.0  # as Triton; whoever tells of changes may miss some, and network file systems tell of none
PATIENCE_S = 10.0  # with files that still change, at start and when they are asked for
REST = 10.0  # times as long as a look took

Edit = Callable[[Wanted], Wanted]
Wake = Callable[[Collection[str], Callable[[], None]], Callable[[], None]]

log = logging.getLogger(__name__)


class Repository:
    """`start`, then it goes by itself until `stop`. On one event loop; files are read on threads, by one at a time."""

    def __init__(
        self,
        server: ServerConfig,
        change: Callable[[Edit], Awaitable[object]],
        clock: Callable[[], float] = monotonic,
        *,
        wall_ns: Callable[[], int] = time_ns,
        wake: Wake = wake_on_changes,
    ) -> None:
        """`change`: Control.change. `wake`: as that of wakes.py."""
        self._source = Source(server.repository)
        self._mode = server.repository_mode
        self._on_demand = server.repository_on_demand
        self._change = change
        self._clock = clock
        self._wall_ns = wall_ns
        self._wake = wake
        self._settling = Settling()
        self._adopted: dict[str, FoundModel] | None = None
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._reading = asyncio.Lock()
        self._woken = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._watched: object = None
        self._unwatch: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Want what is there, but in mode explicit, and in mode poll what comes. Raises ConfigError if it cannot be read."""
        if self._mode == "explicit":
            await self.available()
            return
        until = self._clock() + PATIENCE_S
        unsettled = await self.look()
        while unsettled and self._clock() < until:
            await asyncio.sleep(SETTLE_S)
            unsettled = await self.look()
        if self._mode == "poll":
            self._following = asyncio.create_task(self._follow())
        elif unsettled:
            log.warning("left out, because their files were still changing: %s", ", ".join(sorted(unsettled)))

    async def stop(self) -> None:
        """Look no more. What is wanted stays so."""
        self._unwatch()
        self._source.stop()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def available(self) -> dict[str, list[str]]:
        """All models that are there, with the versions that are, whether they are served or not. Raises ConfigError."""
        async with self._reading:
            return await asyncio.to_thread(self._source.versions)

    async def wanted_of(self, name: str, overrides: Knobs | None = None) -> WantedModel:
        """One model as it would be served, for whoever loads it by name. Raises ConfigError, also if it cannot be.

        `overrides`: knobs over its own, or Triton's configuration as JSON has it, in place of config.pbtxt.
        """
        until = self._clock() + PATIENCE_S
        while is_young(found := await self._read(name, overrides), self._wall_ns()):
            if self._clock() >= until:
                raise ConfigError(f"model '{name}' is not loaded: its files are still changing")
            await asyncio.sleep(SETTLE_S)
        problems = [version.problem for version in found.wanted.versions.values()]
        if all(problems):
            raise ConfigError(f"model '{name}': {problems[-1]}")
        for warning in _warnings(name, found):
            log.warning("%s", warning)
        return replace(found.wanted, on_demand=self._on_demand)

    async def load(self, name: str, overrides: Knobs | None = None) -> None:
        """Want it, under whatever has been said of its versions before. Raises ConfigError.

        As in Triton, models that a pipeline asks come with it, if they are there and are not wanted yet.
        """
        new = {name: await self.wanted_of(name, overrides)}
        if asked := _asked(new[name]):
            there = (await self.available()).keys() - await self._wanted_now()
            for stage in asked:
                if stage in there and stage not in new:
                    new[stage] = await self.wanted_of(stage)
                    asked += _asked(new[stage])
        notes: list[str] = []

        def edit(wanted: Wanted) -> Wanted:
            notes.clear()
            for one, model in new.items():
                old = wanted.models.get(one, WantedModel())
                if one == name or not old.versions:
                    wanted = wanted.having(one, merged(one, old, model, (), notes, on_demand=self._on_demand))
            return wanted

        await self._change(edit)
        for note in notes:
            log.warning("%s", note)

    async def _wanted_now(self) -> set[str]:
        names: set[str] = set()

        def read(wanted: Wanted) -> Wanted:
            names.update(name for name, model in wanted.models.items() if model.versions)
            return wanted

        await self._change(read)
        return names

    async def look(self) -> set[str]:
        """Look once, and want what has settled. Returns what has not. Raises ConfigError if nothing can be seen."""
        async with self._reading:
            found = await asyncio.to_thread(self._source.scan)
        unsettled = self._settling.unsettled(found, self._clock(), self._wall_ns())
        before = self._adopted or {}
        now = {name: model for name, model in found.items() if name not in unsettled}
        now |= {name: before[name] for name in unsettled & before.keys()}
        same = {name for name, model in now.items() if name in before and before[name].wanted == model.wanted}
        if self._adopted is None or len(same) < len(now) or len(now) < len(before):
            await self._change(lambda wanted: self._edited(wanted, now, unsettled | same, before))
        self._adopted = now
        self._say([*self._notes, *(warning for name, model in now.items() for warning in _warnings(name, model))])
        return unsettled

    def _edited(
        self, wanted: Wanted, found: dict[str, FoundModel], left_alone: set[str], before: dict[str, FoundModel]
    ) -> Wanted:
        changed, self._notes = edited(wanted, found, left_alone, before, on_demand=self._on_demand)
        return changed

    async def _read(self, name: str, overrides: Knobs | None) -> FoundModel:
        async with self._reading:
            return await asyncio.to_thread(self._source.read, name, overrides)

    async def _follow(self) -> None:
        took, unsettled = 0.0, False
        while True:
            again = self._watch() or unsettled  # what changed before anybody watched is not told of
            await asyncio.sleep(max(SETTLE_S, took * REST))
            if not again:
                try:
                    await asyncio.wait_for(self._woken.wait(), RESCAN_S - SETTLE_S)
                except TimeoutError:
                    log.debug("nobody told of a change")
            self._woken.clear()
            begun = self._clock()
            try:
                unsettled = bool(await self.look())
            except ConfigError as error:  # a disk that is not mounted is no reason to stop serving
                unsettled = False
                self._say([f"{error}; what is served stays"])
            except Exception:
                unsettled = False
                log.exception("the model repository could not be followed; the next look comes in %g s", RESCAN_S)
            took = self._clock() - begun

    def _watch(self) -> bool:
        """Be told of changes, anew if what is followed is other folders than before: whether it is."""
        folders = self._source.folders
        if folders == self._watched:
            return False
        self._watched = folders
        self._unwatch()
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            loop.call_soon_threadsafe(self._woken.set)

        if folders:
            self._unwatch = self._wake(list(folders), on_change)
        return True

    def _say(self, warnings: Iterable[str]) -> None:
        """Each once, until it is true no more."""
        now = dict.fromkeys(warnings)
        for warning in now:
            if warning not in self._said:
                log.warning("%s", warning)
        self._said = set(now)


def _asked(model: WantedModel) -> list[str]:
    """Models that its steps ask, if it is a pipeline."""
    return [stage.model for version in model.versions.values() for stage in stages_of(version.config)]


def _warnings(name: str, found: FoundModel) -> list[str]:
    """Of what is left out. That a version cannot be served is said by whoever would load it."""
    return [f"model '{name}': {warning}" for warning in found.warnings]
