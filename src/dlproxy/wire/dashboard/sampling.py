"""Looks at every model once a second: what it did goes into its rings, what has happened to it onto the time line.

Made by feed.py, which calls `look`. A model at rest costs one comparison. Not aware of: who reads, HTTP.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import floor
from typing import Any, TypeAlias

from msgspec import Struct, structs

from dlproxy.message import encodable
from dlproxy.policy.planner import VersionState
from dlproxy.policy.view import LaneView
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.dashboard.events import Event, Key, Kind, of_instances, of_versions
from dlproxy.wire.dashboard.history import COLUMNS, HOUR, Counts, Track
from dlproxy.wire.dashboard.shown import capacity_of, instances_of, short, shown

MOST_TRACKS = 2000  # models whose hour is kept, of 24 kB each
MOST_EVENTS = 1000
MINUTE = 60

Told: TypeAlias = dict[str, Any]


class _Watched(Struct, eq=False):
    """A model that is served. `mark`: as it was last; `rests`: it has done nothing for so long that all is as at rest.
    `number`: of the second in which it was looked at last, and `view`, `instances`, `unusual`, `decisions` were so. `counted`:
    when its rings were let go of.
    """

    model: ServedModel
    mark: tuple[float, int] | None = None
    rests: bool = True
    number: int = -1
    view: LaneView | None = None
    instances: Sequence[Mapping[str, Any]] = ()
    unusual: str = ""
    decisions: int = 0
    counted: Counts | None = None


class Sampler:
    """`states`: as Operations has it, another one only after `changes` gives another number. Seconds have numbers, which the
    clock's whole seconds are. `events`: the newest, as the page has them.
    """

    def __init__(
        self,
        catalog: Catalog,
        states: Callable[[], Sequence[VersionState]],
        changes: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._states = states
        self._changes = changes
        self._clock = clock
        self._began = datetime.now(UTC).timestamp() - clock()
        self.looked_at = clock()
        self._number = floor(self.looked_at)
        self.versions: dict[Key, VersionState] = {}
        self._seen: int | None = None  # of `changes`
        self._watched: dict[Key, _Watched] = {}
        self._stale = True  # the catalog is another
        self._touched: set[str] = set()
        self.tracks: dict[Key, Track] = {}
        self.events: deque[Told] = deque(maxlen=MOST_EVENTS)
        self.happened = 0  # events, so far
        catalog.subscribe(self._catalog_changed)

    def wall(self, at: float) -> float:
        """Seconds since 1970."""
        return round(self._began + at, 3)

    def tell(self, model: str, kind: Kind, words: str) -> None:
        """Something was done with a model (empty: with all), which is looked at for that."""
        self._touched.add(model)
        self.events.append({"at": self.wall(self._clock()), "model": model, "kind": kind, "words": encodable(words)})
        self.happened += 1

    # Once a second

    def look(self, now: float) -> set[Key]:
        """Which versions may be others than a second ago, those that have gone included."""
        number = max(floor(now), self._number + 1)
        moved = self.follow()
        for key, watched in self._watched.items():
            if self._has_moved(watched):
                self._look_at(key, watched, number)
                moved.add(key)
        if self._touched:
            moved |= {key for key in self.versions if key[0] in self._touched or "" in self._touched}
            self._touched.clear()
        if number // MINUTE > self._number // MINUTE or len(self.tracks) > MOST_TRACKS:
            self._forget(number)
        self._number, self.looked_at = number, now
        return moved

    def follow(self) -> set[Key]:
        """Versions and models that have come, gone or become something else."""
        moved: set[Key] = set()
        if self._seen != (seen := self._changes()):
            before, self.versions = self.versions, {(one.name, one.version): one for one in _with_shares(self._states())}
            moved = {key for key in {**before, **self.versions} if before.get(key) != self.versions.get(key)}
            if self._seen is not None:
                self._tell(of_versions(before, self.versions))
            self._seen = seen
        if self._stale:
            self._stale = False
            served = {(model.name, model.version): model for model in self._catalog}
            for key in [key for key, watched in self._watched.items() if watched.model is not served.get(key)]:
                del self._watched[key]
                moved.add(key)
            self._watched |= {key: self._watch(served[key]) for key in served.keys() - self._watched.keys()}
        return moved

    def _watch(self, model: ServedModel) -> _Watched:
        """One that has done nothing yet is not looked at until it has."""
        stats, view = model.stats, model.view()
        stats.settle()
        asked = stats.request.count or view.queued_requests or view.running_requests or any(stats.failures.values())
        decisions = sum(stats.decisions.values())
        return _Watched(model, None if asked else model.mark(), instances=instances_of(model, view), decisions=decisions)

    def _catalog_changed(self) -> None:
        self._stale = True

    def _has_moved(self, watched: _Watched) -> bool:
        """Whether it is to be looked at: it did something since the last time, or has not come to rest from that."""
        mark = watched.model.mark()
        if mark == watched.mark:
            return not watched.rests
        watched.mark = mark
        return True

    def _look_at(self, key: Key, watched: _Watched, number: int) -> None:
        model, track = watched.model, self.tracks.get(key)
        if track is None:
            track = self.tracks[key] = Track(model.stats, self._number, watched.counted)
        elif track.stats is not model.stats:
            track.restart(model.stats, self._number)
        elif watched.rests:
            track.wake(self._number)
        view = model.view()
        queued, running = view.queued_requests, view.running_requests
        track.look(number, queued=queued, capacity=capacity_of(view))
        watched.number, watched.view = number, view
        watched.rests = not queued and not running and track.rests()
        before, watched.instances = watched.instances, instances_of(model, view)
        self._tell(self._of_instances(watched, before))
        self._tell(self._of_pilot(watched))

    def _of_instances(self, watched: _Watched, before: Sequence[Mapping[str, Any]]) -> list[Event]:
        """But for those that come and go for a trial of the autopilot, which tells of that itself."""
        events = list(of_instances(watched.model.name, before, watched.instances))
        pilot = watched.model.pilot(0) if events else None
        tried = pilot is not None and pilot["trying"]
        return [event for event in events if not tried or event[1] != "instance" or "was lost" in event[2]]

    def _of_pilot(self, watched: _Watched) -> Iterator[Event]:
        name, stats = watched.model.name, watched.model.stats
        before, watched.decisions = watched.decisions, sum(stats.decisions.values())
        unusual = stats.watch is not None and stats.watch.unusual
        if before == watched.decisions and unusual == bool(watched.unusual):
            return
        pilot = watched.model.pilot(watched.decisions - before)
        if pilot is None:
            return
        for decision in pilot["decisions"]:
            yield name, "autopilot", decision["text"]
        if pilot["unusual"] != watched.unusual:
            watched.unusual = pilot["unusual"]
            told = f"something is unusual: {watched.unusual}" if watched.unusual else "nothing is unusual any more"
            yield name, "alarm", told

    def _tell(self, events: Iterable[Event]) -> None:
        for event in events:
            self.tell(*event)

    def _forget(self, number: int) -> None:
        """Of those that rest, or are gone, for an hour; and the oldest if there are too many."""
        oldest = sorted(self.tracks, key=lambda key: self.tracks[key].last)
        for place, key in enumerate(oldest):
            if place < len(oldest) - MOST_TRACKS or self.tracks[key].last <= number - HOUR:
                track, watched = self.tracks.pop(key), self._watched.get(key)
                if watched is not None and watched.model.stats is track.stats:
                    watched.counted = track.counts

    # What it has found

    def shown(self, key: Key) -> Told:
        one, track, watched = self.versions[key], self.tracks.get(key), self._watched.get(key)
        if watched is None:
            return shown(one)
        model, view, instances = watched.model, watched.view, watched.instances
        if view is None or watched.number != self._number:
            view = model.view()
            instances = instances_of(model, view)
        return shown(one, model, view, instances, track)

    def version_of(self, name: str, version: str) -> str:
        """That version or label, or (empty) the default one; also one that is gone, within the hour. Raises InferenceError."""
        if (name, version) in self.versions or (name, version) in self.tracks:
            return version
        return self._catalog.get(name, version).version

    def asked(self) -> list[Told]:
        """Which models did something in the last hour, also those that are gone, and what they answered since they were loaded;
        the most asked first.
        """
        tracks = [(key, track) for key, track in self.tracks.items() if track.last > self._number - HOUR]
        told = [{"name": name, "version": version, "answered": track.counts.answered} for (name, version), track in tracks]
        return sorted(told, key=lambda one: -one["answered"])

    def history(self, name: str, version: str, seconds: int) -> Told:
        """Columns of the last so many seconds, the oldest first; empty ones of a model that was not asked in the last hour."""
        track = self.tracks.get((name, version))
        points = [] if track is None else list(track.points(self._number - seconds + 1, self._number))
        return {
            "name": name,
            "version": version,
            "step_s": [step_s for _, step_s, _ in points],
            "at": [self.wall(number) for number, _, _ in points],
            **{column: [short(values[place]) for _, _, values in points] for place, column in enumerate(COLUMNS)},
        }


def _with_shares(states: Sequence[VersionState]) -> Iterator[VersionState]:
    """The default version of each model has what others leave of it."""
    shared: defaultdict[str, float] = defaultdict(float)
    for one in states:
        if not one.default:
            shared[one.name] += one.share
    for one in states:
        yield structs.replace(one, share=max(1.0 - shared[one.name], 0.0)) if one.default else one
