"""What the dashboard's page is told: all there is, and then what has changed, encoded once for all who may see the same.

Base of feed.py, and of what sums up several gateways. Whoever reads too slowly skips seconds; with no reader nothing is made.
Not aware of: HTTP, how models are looked at.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from dlproxy.message import fits

Told: TypeAlias = dict[str, Any]


class Audience(Struct, frozen=True):
    """Who may see the same: the models of these names and patterns (None: all), and whether they may change something."""

    models: tuple[str, ...] | None = None
    may_change: bool = False

    def sees(self, name: str) -> bool:
        """Empty: what is about no single model."""
        return self.models is None or not name or any(fits(pattern, name) for pattern in self.models)


class Picture(Struct):
    """All there is. `models`: by their names here, which are NAME/VERSION."""

    at: float = 0.0
    server: Told = {}
    models: dict[str, Told] = {}
    upstreams: list[Told] = []
    tenants: list[Told] = []


class _Change(Struct):
    """What is other than a second ago. `models`: those fields that are."""

    at: float = 0.0
    server: Told = {}
    models: dict[str, Told] = {}
    gone: list[str] = []
    events: list[Told] = []
    upstreams: list[Told] | None = None
    tenants: list[Told] | None = None


class Telling:
    """`draw`, of who derives from this, makes the picture when somebody begins to read; `tell` says how it is another."""

    def __init__(self) -> None:
        self.closed = False
        self.picture = Picture()
        self.events: Iterable[Told] = ()
        """The newest, that whoever begins to read is told."""
        self.readers = 0
        self._change = _Change()
        self._encoded: dict[tuple[Audience, bool], bytes] = {}
        self._seconds = 0  # in which something was told
        self._next = asyncio.Event()

    async def draw(self) -> None:
        """The picture as it is now, for whoever begins to read when nobody did."""
        raise NotImplementedError

    def tell(self, moved: Picture, gone: Sequence[str], events: list[Told]) -> None:
        """Everybody who reads. `moved`: the picture, of its models those that may be others than before."""
        before = self.picture
        models: dict[str, Told] = {}
        for name in gone:
            before.models.pop(name, None)
        for name, told in moved.models.items():
            if changed := _changed(before.models.get(name, {}), told):
                models[name], before.models[name] = changed, told
        self._change = _Change(
            moved.at,
            _changed(before.server, moved.server),
            models,
            list(gone),
            events,
            moved.upstreams if moved.upstreams != before.upstreams else None,
            moved.tenants if moved.tenants != before.tenants else None,
        )
        moved.models = before.models
        self._show(moved, seconds=1)

    def anew(self, picture: Picture) -> None:
        """Everybody who reads is told all there is, which need not follow from what there was."""
        self._show(picture, seconds=2)  # as if they had missed one

    def _show(self, picture: Picture, *, seconds: int) -> None:
        self.picture = picture
        self._encoded.clear()
        self._seconds += seconds
        reached, self._next = self._next, asyncio.Event()
        reached.set()

    def end(self) -> None:
        """Every stream ends."""
        self.closed = True
        self._next.set()

    async def read(self, audience: Audience) -> AsyncIterator[bytes]:
        """Whole, then what changes, each as soon as it is known and the one before is taken; whole again if that was late."""
        await self._begin()
        self.readers += 1
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
            self.readers -= 1

    async def now(self, audience: Audience) -> bytes:
        """All that it may see, as JSON, for who asks once."""
        await self._begin()
        return msgspec.json.encode(self._whole(audience))

    async def _begin(self) -> None:
        if self.readers == 0:
            await self.draw()
            self._encoded.clear()

    def _encode(self, audience: Audience, *, whole: bool) -> bytes:
        """Once a second for all who may see the same."""
        found = self._encoded.get((audience, whole))
        if found is None:
            data = self._whole(audience) if whole else self._delta(audience)
            kind = b"whole" if whole else b"delta"
            found = self._encoded[audience, whole] = b"event: %b\ndata: %b\n\n" % (kind, msgspec.json.encode(data))
        return found

    def _whole(self, audience: Audience) -> Told:
        sees, picture = audience.sees, self.picture
        return {
            "at": picture.at,
            "server": {**picture.server, "may_change": audience.may_change},
            "models": {name: told for name, told in picture.models.items() if sees(told["name"])},
            "events": [event for event in self.events if sees(event["model"])],
            "upstreams": [each for each in picture.upstreams if sees(_model(each["model"]))],
            "tenants": picture.tenants if audience.models is None else [],
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


def _model(name: str) -> str:
    return name.rpartition("/")[0]
