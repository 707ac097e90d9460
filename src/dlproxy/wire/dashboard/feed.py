"""The dashboard's stream: what has changed since a second ago, told to all who read.

Made by serve/server.py, asked by http.py. What is told is made and encoded once for all who may see the same; whoever reads
too slowly skips seconds; with no reader nothing is made. Not aware of: HTTP, how models are looked at (sampling.py).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from math import floor, inf
from time import monotonic

import msgspec
from msgspec import Struct

from dlproxy.message import fits
from dlproxy.policy.planner import VersionState
from dlproxy.policy.quota import Use
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.dashboard.events import Key
from dlproxy.wire.dashboard.sampling import MOST_EVENTS, Sampler, Told
from dlproxy.wire.dashboard.shown import short

log = logging.getLogger(__name__)


class Audience(Struct, frozen=True):
    """Who may see the same: the models of these names and patterns (None: all), and whether they may change something."""

    models: tuple[str, ...] | None = None
    may_change: bool = False

    def sees(self, name: str) -> bool:
        """Empty: what is about no single model."""
        return self.models is None or not name or any(fits(pattern, name) for pattern in self.models)


class _Change(Struct):
    """What is other than a second ago. `models`: by their names here, those fields that are."""

    at: float = 0.0
    server: Told = {}
    models: dict[str, Told] = {}
    gone: list[str] = []
    events: list[Told] = []
    upstreams: list[Told] | None = None
    tenants: list[Told] | None = None


class Feed:
    """`states`, `changes`: as Sampler has them. `facts`: of the server; `uses`: of quotas. `start` it on a running loop;
    `close` ends it and what its readers read.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        states: Callable[[], Sequence[VersionState]],
        changes: Callable[[], int],
        facts: Callable[[], Told],
        uses: Callable[[], Sequence[Use]] = tuple,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.closed = False
        self.sampler = Sampler(catalog, states, changes, clock)
        self.tell = self.sampler.tell
        self._catalog = catalog
        self._facts = facts
        self._uses = uses
        self._clock = clock
        self._told: dict[str, Told] = {}
        self._server: Told = {}
        self._upstreams: list[Told] = []
        self._tenants: list[Told] = []
        self._admitted: dict[tuple[str, str], tuple[int, int]] = {}
        self._events = 0  # that were told
        self._change = _Change()
        self._encoded: dict[tuple[Audience, bool], bytes] = {}
        self._readers = 0
        self._seconds = 0  # in which something was told
        self._next = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

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
        """At all models, once a second."""
        moved = self.sampler.look(now)
        if self._readers:
            self._tell(moved)

    # What is told

    def _tell(self, moved: set[Key]) -> None:
        """Everybody who reads, what is other than a second ago."""
        sampler = self.sampler
        models: dict[str, Told] = {}
        gone = [_name(key) for key in moved - sampler.versions.keys()]
        for name in gone:
            self._told.pop(name, None)
        for key in moved & sampler.versions.keys():
            name, told = _name(key), sampler.shown(key)
            if changed := _changed(self._told.get(name, {}), told):
                models[name], self._told[name] = changed, told
        before = self._server, self._upstreams, self._tenants
        self._look_around(upstreams=bool(moved))
        self._change = _Change(
            sampler.wall(sampler.looked_at),
            _changed(before[0], self._server),
            models,
            gone,
            self._new_events(),
            self._upstreams if self._upstreams != before[1] else None,
            self._tenants if self._tenants != before[2] else None,
        )
        self._encoded.clear()
        self._seconds += 1
        reached, self._next = self._next, asyncio.Event()
        reached.set()

    def _begin(self) -> None:
        """Somebody reads, and nobody did: from now on it is known what was told."""
        self.sampler.follow()
        self._told = {_name(key): self.sampler.shown(key) for key in self.sampler.versions}
        self._look_around(upstreams=True)
        self._new_events()
        self._encoded.clear()

    def _look_around(self, *, upstreams: bool) -> None:
        """At what is of no single model. `upstreams`: they may be others than before."""
        down = any(told["state"] == "down" for told in self._told.values())
        self._server = {**self._facts(), "ready": not down and not self._catalog.draining}
        if upstreams:
            self._upstreams = [
                {"model": name, **{field: each[field] for field in ("name", "address", "state", "busy")}}
                for name, told in self._told.items()
                for each in told.get("instances", ())
                if each["address"]
            ]
        self._tenants = [self._tenant(use) for use in self._uses()]
        self._admitted = {(one["of"], one["name"]): (one["admitted"], one["refused"]) for one in self._tenants}

    def _tenant(self, use: Use) -> Told:
        admitted, refused = self._admitted.get((use.of, use.name), (use.admitted, use.refused))
        quota = use.quota
        limits = {"requests_per_s": quota.requests_per_s, "rows_per_s": quota.rows_per_s, "concurrent": quota.concurrent}
        return {
            "name": use.name,
            "of": use.of,
            **{limit: None if most == inf else most for limit, most in limits.items()},
            "running": use.running,
            "requests_left": short(use.requests_left),
            "rows_left": short(use.rows_left),
            "admitted": use.admitted,
            "refused": use.refused,
            "rate": use.admitted - admitted,
            "refused_rate": use.refused - refused,
        }

    def _new_events(self) -> list[Told]:
        before, self._events = self._events, self.sampler.happened
        new = min(self._events - before, MOST_EVENTS)
        return list(islice(self.sampler.events, len(self.sampler.events) - new, None))

    # Who reads

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

    def now(self, audience: Audience) -> bytes:
        """All that it may see, as JSON, for who asks once."""
        if self._readers == 0:
            self._begin()
        return msgspec.json.encode(self._whole(audience))

    def _encode(self, audience: Audience, *, whole: bool) -> bytes:
        """Once a second for all who may see the same."""
        found = self._encoded.get((audience, whole))
        if found is None:
            data = self._whole(audience) if whole else self._delta(audience)
            kind = b"whole" if whole else b"delta"
            found = self._encoded[audience, whole] = b"event: %b\ndata: %b\n\n" % (kind, msgspec.json.encode(data))
        return found

    def _whole(self, audience: Audience) -> Told:
        sees = audience.sees
        return {
            "at": self.sampler.wall(self.sampler.looked_at),
            "server": {**self._server, "may_change": audience.may_change},
            "models": {name: told for name, told in self._told.items() if sees(told["name"])},
            "events": [event for event in self.sampler.events if sees(event["model"])],
            "upstreams": [each for each in self._upstreams if sees(_model(each["model"]))],
            "tenants": self._tenants if audience.models is None else [],
        }

    def _delta(self, audience: Audience) -> Told:
        change, sees = self._change, audience.sees
        data: Told = {"server": change.server}
        data["models"] = {name: told for name, told in change.models.items() if sees(_model(name))}
        data["gone"] = [name for name in change.gone if sees(_model(name))]
        data["events"] = [event for event in change.events if sees(event["model"])]
        told = {"at": change.at, **{name: value for name, value in data.items() if value}}
        if change.upstreams is not None:
            told["upstreams"] = [each for each in change.upstreams if sees(_model(each["model"]))]
        if change.tenants is not None and audience.models is None:
            told["tenants"] = change.tenants
        return told


def _changed(before: Told, after: Told) -> Told:
    """Fields of `after` that are others; None for those that it does not have."""
    gone = dict.fromkeys(before.keys() - after.keys())
    return {field: value for field, value in after.items() if field not in before or before[field] != value} | gone


def _name(key: Key) -> str:
    return "/".join(key)


def _model(name: str) -> str:
    return name.rpartition("/")[0]
