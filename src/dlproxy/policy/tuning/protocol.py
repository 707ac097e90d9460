"""The one interface of everything that turns knobs: rules, a bandit, a search, an agent. All are pure and told the time.

Used by pilot.py, which guards whatever they propose. Not aware of: how knobs are turned.
"""

from collections import deque
from collections.abc import Mapping
from math import inf
from typing import Protocol, runtime_checkable

from msgspec import Struct

from dlproxy.policy.tuning.window import Window

Value = int | float | str | bool
Knobs = Mapping[str, Value]
"""Knobs of config/knobs.py by name, beside them `instances` and `threads` as they are, never 0."""


def cores_of(knobs: Knobs) -> int:
    """That their instances take when all run."""
    return int(knobs["instances"]) * int(knobs["threads"])


Point = tuple[tuple[str, Value], ...]


def point_of(knobs: Knobs) -> Point:
    """The same for the same values, in whatever order."""
    return tuple(sorted(knobs.items()))


class Space(Struct, frozen=True, kw_only=True):
    """Within which a model may be tuned. `cores`: for its threads. `max_batch`: that was promised or is allowed, in rows.

    `ways`: the (instances, threads) that it can run in, the present one among them. `objective_s`: latency that requests are to
    have, and `tolerated` the share that may miss it. `prefers`: "rate" as many answers as can be, "cores" as few cores as
    will do; empty: what meets the objective is good. `pinned`: knobs that nobody but their operator turns; `closed`:
    knobs that were tried not long ago and did not help.
    """

    cores: int
    max_batch: int
    ways: tuple[tuple[int, int], ...]
    objective_s: float
    tolerated: float = 0.01
    prefers: str = ""
    pinned: frozenset[str] = frozenset()
    closed: frozenset[Point] = frozenset()

    def allows(self, knobs: Knobs, before: Knobs) -> bool:
        """Whether these may hold in place of those before: same names and kinds, within bounds, what is pinned as before."""
        if knobs.keys() != before.keys() or not all(_alike(value, before[name]) for name, value in knobs.items()):
            return False
        if point_of(knobs) in self.closed or any(knobs[name] != before[name] for name in self.pinned & knobs.keys()):
            return False
        rows, wait_s = int(knobs.get("max_batch", 1)), float(knobs.get("max_wait_s", 0.0))
        way = int(knobs.get("instances", 1)), int(knobs.get("threads", 1))
        same = all(knobs.get(name) == before.get(name) for name in ("instances", "threads"))
        return 1 <= rows <= self.max_batch and 0.0 <= wait_s < inf and (same or way in self.ways)


def _alike(value: Value, before: Value) -> bool:
    return type(value) is type(before) or (isinstance(before, float) and type(value) is int)


class Proposal(Struct, frozen=True, kw_only=True):
    """Knobs that ought to be better, and why. `gain`: by how much of all requests fewer would miss the objective, as predicted.

    `harmless`: nothing has to get better for it to be kept, only nothing worse: it makes room, or frees cores. `again`: it may
    be tried although it was given up a moment ago.
    """

    knobs: Knobs
    reason: str
    gain: float = 0.0
    harmless: bool = False
    again: bool = False


class KnobPolicy(Protocol):
    """Remembers what it was told; asked at every window."""

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        """Other knobs, or None to leave them. `window`: the last seconds under `knobs`."""
        ...

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        """What came of a proposal that was tried: the windows under it, and whether it was kept."""
        ...


@runtime_checkable
class Watcher(Protocol):
    """A KnobPolicy that is told of every window that can be believed, also while a proposal is on trial."""

    def watch(self, window: Window, knobs: Knobs, now: float) -> None:
        """`knobs`: under which it passed."""
        ...


@runtime_checkable
class Notifier(Protocol):
    """A KnobPolicy that has something to say beside its proposals. Whoever has told it takes it away."""

    notices: deque[str]
