"""A dashboard over models that are made to do things, second by second, by a clock that the test turns."""

import json
from typing import Any

from dlproxy.policy.planner import VersionState
from dlproxy.policy.view import LaneView
from dlproxy.telemetry.stats import AnsweredBatch
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.dashboard.feed import Feed
from dlproxy.wire.dashboard.telling import Audience

from ..fixtures import PLAIN, EchoService, served

ALL = Audience(None, may_change=True)
BEGAN = 10_000.0


class Model:
    """One version. `looks`: how often its lane was asked."""

    def __init__(self, name: str, version: str = "1") -> None:
        self.looks = 0
        self.moved_at = 0.0
        self.queued = 0
        self.places: list[dict[str, Any]] = [place("m-0")]
        self.pilot: dict[str, Any] | None = None
        self.served = served(EchoService(PLAIN, model=name, version=version))
        self.stats = self.served.stats
        self._view, self.served.view = self.served.view, self._looked
        self.served.last_event_at = lambda: self.moved_at
        self.served.places = lambda: self.places
        self.served.pilot = lambda newest: self.pilot

    def _looked(self) -> LaneView:
        self.looks += 1
        view = self._view()
        return LaneView(**{**{name: getattr(view, name) for name in view.__struct_fields__}, "queued_requests": self.queued})

    def answers(self, count: int, at: float, *, rows: int = 1, seconds: float = 0.004) -> None:
        """Batches of one request each."""
        self.moved_at = at
        for _ in range(count):
            self.stats.batch_answered(AnsweredBatch(rows, [seconds / 2.0], seconds / 2.0, 0.0, seconds / 2.0, 0.0))


def place(name: str, state: str = "up", problem: str | None = None, address: str | None = None) -> dict[str, Any]:
    return {"name": name, "state": state, "last_problem": problem, "address": address}


class Rig:
    """`states` are those of `models`, and of `others`, which do not serve."""

    def __init__(self, *names: str) -> None:
        self.now = BEGAN
        self.catalog = Catalog()
        self.models: dict[str, Model] = {}
        self.others: list[VersionState] = []
        self.shares: dict[str, float] = {}
        self.changes = 0
        self.asked = 0
        for name in names:
            self.add(name)
        self.feed = Feed(
            self.catalog, states=self._states, changes=lambda: self.changes, facts=lambda: {"cores": 2}, clock=lambda: self.now
        )
        self.sampler = self.feed.sampler

    def add(self, name: str, version: str = "1") -> Model:
        model = self.models[f"{name}/{version}"] = Model(name, version)
        self.catalog.add(model.served)
        self.changes += 1
        return model

    def remove(self, name: str) -> None:
        model = self.models.pop(name)
        self.catalog.remove(model.served.name, model.served.version)
        self.changes += 1

    def say(self, *others: VersionState) -> None:
        """These do not serve now."""
        self.others = list(others)
        self.changes += 1

    def _states(self) -> list[VersionState]:
        self.asked += 1
        serving = [
            VersionState(
                model.served.name,
                model.served.version,
                "serving",
                default=self.catalog.default(model.served.name) == model.served.version and name not in self.shares,
                share=self.shares.get(name, 0.0),
            )
            for name, model in self.models.items()
        ]
        return serving + self.others

    def second(self, seconds: int = 1) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.feed.look(self.now)

    @property
    def events(self) -> list[tuple[str, str, str]]:
        return [(event["model"], event["kind"], event["words"]) for event in self.sampler.events]


def read(event: bytes) -> tuple[str, dict[str, Any]]:
    """Kind and data of one Server-Sent Event."""
    kind, data, *rest = event.decode().split("\n")
    assert rest == ["", ""]
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))
