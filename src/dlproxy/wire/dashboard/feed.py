"""The dashboard's data: looks at every model once a second, and tells all who read what has changed since.

Made by serve/server.py, asked by http.py. A model at rest is not looked at; what is told is made and encoded once for all who
may see the same; whoever reads too slowly skips seconds. Not aware of: HTTP, what a model is made of.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from math import floor
from time import monotonic
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct, structs

from dlproxy.message import fits
from dlproxy.policy.planner import VersionState
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.dashboard.history import HOUR, Track
from dlproxy.wire.dashboard.shown import capacity_of, shown

MOST_TRACKS = 2000  # models whose hour is kept, of 24 kB each

Key: TypeAlias = tuple[str, str]  # name and version
Told: TypeAlias = dict[str, Any]

log = logging.getLogger(__name__)


class Audience(Struct, frozen=True):
    """Who may see the same: the models of these names and patterns (None: all), and whether they may change something."""

    models: tuple[str, ...] | None = None
    may_change: bool = False

    def sees(self, name: str) -> bool:
        """Empty: what is about no single model."""
        return self.models is None or not name or any(fits(pattern, name) for pattern in self.models)


class _Watched(Struct, eq=False):
    """A model that is served. `mark`: as it was last; `rests`: it has done nothing for so long that all is as at rest."""

    model: ServedModel
    mark: tuple[object, ...] = ()
    rests: bool = True


class _Change(Struct):
    """What is new in one second. `at`, in seconds since 1970."""

    at: float
    server: Told
    models: dict[str, Told]
    gone: list[str]
    events: list[Told]


class Feed:
    """`states`: as Operations has it, another one only after `changes` gives another number. `facts`: of the server.

    `start` it on a running loop; `close` ends it and what its readers read.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        states: Callable[[], Sequence[VersionState]],
        changes: Callable[[], int],
        facts: Callable[[], Told],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.closed = False
        self._catalog = catalog
        self._states = states
        self._changes = changes
        self._facts = facts
        self._clock = clock
        self._began = datetime.now(UTC).timestamp() - clock()
        self._number = floor(clock())
        self._looked_at = clock()
        self._versions: dict[Key, VersionState] = {}
        self._seen = -1  # of `changes`
        self._watched: dict[Key, _Watched] = {}
        self._tracks: dict[Key, Track] = {}
        self._stale = True  # whether the catalog is another
        self._told: dict[str, Told] = {}
        self._server: Told = {}
        self._change = _Change(0.0, {}, {}, [], [])
        self._encoded: dict[tuple[Audience, bool], bytes] = {}
        self._readers = 0
        self._seconds = 0  # in which something was told
        self._next = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        catalog.subscribe(self._catalog_changed)

    # Once a second

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dlproxy-dashboard")

    def close(self) -> None:
        """Nothing is looked at any more, and every stream ends."""
        if self._task is not None:
            self._task.cancel()
        self._end()

    async def _run(self) -> None:
        try:
            while True:
                now = self._clock()
                await asyncio.sleep(floor(now) + 1.0 - now)
                self.look(self._clock())
        except Exception:
            log.exception("the dashboard has failed, and ends")
            self._end()

    def _end(self) -> None:
        self.closed = True
        self._next.set()

    def look(self, now: float) -> None:
        """At what has moved. Called about once a second."""
        number = max(floor(now), self._number + 1)
        before = set(self._versions)
        moved = self._follow()
        for key, watched in self._watched.items():
            if self._has_moved(watched):
                self._look_at(key, watched, number, now)
                moved.add(key)
        self._number, self._looked_at = number, now
        self._forget(number)
        if self._readers:
            self._tell(moved, before)

    def _follow(self) -> set[Key]:
        """Versions and models that have come, gone or become something else."""
        moved: set[Key] = set()
        if self._seen != (seen := self._changes()):
            self._seen = seen
            found = {(one.name, one.version): one for one in _with_shares(self._states())}
            moved = {key for key, one in found.items() if self._versions.get(key) != one}
            self._versions = found
        if self._stale:
            self._stale = False
            served = {(model.name, model.version): model for model in self._catalog}
            for key in [key for key in self._watched if key not in served]:
                del self._watched[key]
                moved.add(key)
            for key, model in served.items():
                watched = self._watched.get(key)
                if watched is None or watched.model is not model:
                    self._watched[key] = _Watched(model)
                    moved.add(key)
        return moved

    def _catalog_changed(self) -> None:
        self._stale = True

    def _has_moved(self, watched: _Watched) -> bool:
        """Whether it is to be looked at: it did something since the last time, or has not come to rest from that."""
        mark = watched.model.mark()
        if mark == watched.mark:
            return not watched.rests
        watched.mark = mark
        return True

    def _look_at(self, key: Key, watched: _Watched, number: int, now: float) -> None:
        stats, track = watched.model.stats, self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = Track(stats, self._number, self._looked_at)
        elif track.stats is not stats:
            track.restart(stats, self._number, self._looked_at)
        elif watched.rests:
            track.wake(self._number, self._looked_at)
        view = watched.model.view()
        queued, running = view.queued_requests, view.running_requests
        track.look(number, now, queued=queued, capacity=capacity_of(view))
        watched.rests = not queued and not running and track.rests()

    def _forget(self, number: int) -> None:
        """Those that rest, or are gone, for an hour; and the oldest if there are too many."""
        if number % HOUR and len(self._tracks) <= MOST_TRACKS:
            return
        old = sorted(self._tracks, key=lambda key: self._tracks[key].last)
        most = len(old) - MOST_TRACKS
        for place, key in enumerate(old):
            if place < most or self._tracks[key].last < number - HOUR:
                del self._tracks[key]

    # What is told

    def _tell(self, moved: set[Key], before: set[Key]) -> None:
        """Everybody who reads, what is other than a second ago."""
        models: dict[str, Told] = {}
        gone = [_name(key) for key in before - self._versions.keys()]
        for name in gone:
            self._told.pop(name, None)
        for key in moved & self._versions.keys():
            name, told = _name(key), self._shown(key)
            known = self._told.get(name, {})
            changed = {field: value for field, value in told.items() if field not in known or known[field] != value}
            changed |= dict.fromkeys(known.keys() - told.keys())
            if changed:
                models[name], self._told[name] = changed, told
        facts = self._server_facts()
        server = {field: value for field, value in facts.items() if self._server.get(field) != value}
        self._server = facts
        self._change = _Change(self._wall(), server, models, gone, [])
        self._encoded.clear()
        self._seconds += 1
        reached, self._next = self._next, asyncio.Event()
        reached.set()

    def _shown(self, key: Key) -> Told:
        watched = self._watched.get(key)
        return shown(self._versions[key], None if watched is None else watched.model, self._tracks.get(key))

    def _server_facts(self) -> Told:
        return {**self._facts(), "ready": self._catalog.ready}

    def _wall(self) -> float:
        """When the last second ended."""
        return round(self._began + self._looked_at, 3)

    def _begin(self) -> None:
        """Somebody reads, and nobody did: from now on it is known what was told."""
        self._follow()
        self._told = {_name(key): self._shown(key) for key in self._versions}
        self._server = self._server_facts()
        self._encoded.clear()

    def _whole(self, audience: Audience) -> Told:
        return {
            "at": self._wall(),
            "server": {**self._server, "may_change": audience.may_change},
            "models": {name: told for name, told in self._told.items() if audience.sees(told["name"])},
            "events": [],
            "upstreams": [],
            "tenants": [],
        }

    def _delta(self, audience: Audience) -> Told:
        change, sees = self._change, audience.sees
        data: Told = {"at": change.at, "server": change.server}
        data["models"] = {name: told for name, told in change.models.items() if sees(_model(name))}
        data["gone"] = [name for name in change.gone if sees(_model(name))]
        data["events"] = [event for event in change.events if sees(event["model"])]
        return {name: value for name, value in data.items() if value}

    async def read(self, audience: Audience) -> AsyncIterator[bytes]:
        """Whole, then what changes, each as soon as it is known and the one before is taken; whole again if that was late."""
        if self._readers == 0:
            self._begin()
        self._readers += 1
        known = -1
        try:
            while not self.closed:
                seconds, coming = self._seconds, self._next
                if known == seconds:
                    await coming.wait()
                    continue
                whole = known < 0 or known != seconds - 1
                known = seconds
                yield self._encode(audience, whole=whole)
        finally:
            self._readers -= 1

    def _encode(self, audience: Audience, *, whole: bool) -> bytes:
        """Once a second for all who may see the same."""
        found = self._encoded.get((audience, whole))
        if found is None:
            data = self._whole(audience) if whole else self._delta(audience)
            kind = b"whole" if whole else b"delta"
            found = self._encoded[audience, whole] = b"event: %b\ndata: %b\n\n" % (kind, msgspec.json.encode(data))
        return found


def _with_shares(states: Sequence[VersionState]) -> Iterator[VersionState]:
    """The default version of each model has what others leave of it."""
    shared: defaultdict[str, float] = defaultdict(float)
    for one in states:
        if not one.default:
            shared[one.name] += one.share
    for one in states:
        yield structs.replace(one, share=max(1.0 - shared[one.name], 0.0)) if one.default else one


def _name(key: Key) -> str:
    return "/".join(key)


def _model(name: str) -> str:
    return name.rpartition("/")[0]
