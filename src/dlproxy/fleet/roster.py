"""What every instance of one model does, and since when. Stands between the fleet, which starts them, and the driver.

Made by serve/assemble.py, read by serve/control.py. Counts every change for the metrics page; the event log gets those that
the lane does not hear of. Not aware of: where instances run, requests.
"""

from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct

from dlproxy.instance import Instance
from dlproxy.policy.why import Happening
from dlproxy.telemetry.event_log import Note
from dlproxy.telemetry.journal import Journal
from dlproxy.telemetry.stats import InstanceState, ModelStats


class Scheduler(Protocol):
    """Who gives instances their batches: a Driver."""

    def add_instance(self, instance: Instance) -> None: ...

    def lose_instance(self, name: str, reason: str, *, crashed: bool = False) -> None: ...

    def retire_instance(self, name: str, reason: str = "") -> None: ...

    def kept(self, name: str) -> int:
        """Sequences whose state would be gone with this instance."""
        ...


class _Place(Struct, eq=False):
    """One instance, through all its lives. `instance`: the life it has now, or had last. `start`: that is under way."""

    name: str
    state: InstanceState
    since: float
    again_at: float | None = None
    lives: int = 0
    last_problem: str | None = None
    instance: Instance | None = None
    start: Happening | None = None


class Roster:
    """A Host of instances of `model`. `record` takes notes for the event log, with their time."""

    def __init__(
        self,
        scheduler: Scheduler,
        stats: ModelStats,
        clock: Callable[[], float],
        record: Callable[[Note, float], None] | None = None,
        journal: Journal | None = None,
        model: str = "",
    ) -> None:
        self._scheduler = scheduler
        self._stats = stats
        self._clock = clock
        self._record = record
        self._journal = journal or Journal(clock)
        self._model = model
        self._places: dict[str, _Place] = {}

    def kept(self, name: str) -> int:
        """Sequences whose state would be gone with it."""
        return self._scheduler.kept(name)

    # What happens

    def add_instance(self, instance: Instance) -> None:
        """It is up and gets batches."""
        place = self._enter(instance.name, "up")
        place.instance = instance
        place.lives += 1
        self._happened(place, "came up")
        self._stats.instance_changes["up"] += 1
        self._scheduler.add_instance(instance)

    def lose_instance(self, name: str, reason: str, *, crashed: bool = False) -> None:
        """It was up and has died; what it ran is retried elsewhere or fails. `crashed`: as InstanceLost has it."""
        if name in self._places:  # else it was retired, and ended while it ran its last batch
            place = self._enter(name, "lost")
            place.last_problem = reason
            self._happened(place, f"was lost: {reason}")
        self._stats.instance_changes["lost"] += 1
        self._scheduler.lose_instance(name, reason, crashed=crashed)

    def suspend_instance(self, name: str, reason: str) -> None:
        """It takes nothing more for now, though it is wanted; what it runs is let finish."""
        place = self._enter(name, "lost")
        place.last_problem = reason
        self._happened(place, f"was suspended: {reason}")
        self._stats.instance_changes["lost"] += 1
        self._scheduler.retire_instance(name, reason)

    def retire_instance(self, name: str) -> None:
        """It is not wanted any more, up or not: no more batches for it; one that runs is let finish.

        Unknown names are ignored: its start may have been cancelled before it began.
        """
        place = self._places.pop(name, None)
        if place is None:
            return
        self._stats.instance_states[place.state] -= 1
        self._stats.stirred += 1
        if place.lives:
            self._stats.instance_changes["retired"] += 1
        if place.state == "up":
            self._scheduler.retire_instance(name)
        else:
            self._note(name, "retired")

    def instance_starts(self, instance: Instance) -> None:
        """It will be up, unless its start fails."""
        place = self._enter(instance.name, "starting")
        place.instance = instance
        place.start = self._journal.begin("start", f"{instance.name} was starting", model=self._model, subject=instance.name)
        self._note(instance.name, "starting")

    def instance_failed(self, instance: Instance, reason: str) -> None:
        """It did not start, or could not be reached when the model was loaded."""
        place = self._enter(instance.name, "lost")
        place.instance, place.last_problem = instance, reason
        self._happened(place, f"did not start: {reason}")
        self._stats.instance_changes["failed_to_start"] += 1
        self._note(instance.name, "failed_to_start", reason)

    def instance_waits(self, name: str, delay_s: float) -> None:
        """Its next start is due in so many seconds."""
        place = self._enter(name, "waiting")
        place.again_at = place.since + delay_s
        self._note(name, "waiting", f"starts again in {delay_s:g} s")

    def forget(self) -> None:
        """All are gone, and nobody asks any more: nothing of them is kept alive here."""
        self._places.clear()

    # What is the case

    def __len__(self) -> int:
        """Instances that are wanted, up or not."""
        return len(self._places)

    def places(self) -> list[dict[str, Any]]:
        """JSON: every instance that is wanted, up or not, in the order of first coming. Durations are in seconds."""
        now = self._clock()
        return [_described(place, now) for place in self._places.values()]

    def _enter(self, name: str, state: InstanceState) -> _Place:
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = _Place(name, state, self._clock())
        else:
            self._stats.instance_states[place.state] -= 1
            place.state, place.since, place.again_at = state, self._clock(), None
        self._stats.instance_states[state] += 1
        self._stats.stirred += 1
        return place

    def _happened(self, place: _Place, what: str) -> None:
        start, place.start = place.start, None
        if start is not None:
            self._journal.end(start)
        self._journal.add("instance", f"{place.name} {what}", model=self._model, subject=place.name)

    def _note(self, name: str, change: str, reason: str = "") -> None:
        if self._record is not None:
            self._record(Note(name, change, reason), self._clock())


def _described(place: _Place, now: float) -> dict[str, Any]:
    address = getattr(place.instance, "address", None)  # what only upstream servers have
    return {
        "name": place.name,
        "state": place.state,
        "for_s": round(now - place.since, 3),
        "again_in_s": None if place.again_at is None else round(max(place.again_at - now, 0.0), 3),
        "restarts": max(place.lives - 1, 0),
        "last_problem": place.last_problem,
        "pid": getattr(place.instance, "pid", None),  # what only worker processes have, while they live
        "address": None if address is None else address.place,
    }
