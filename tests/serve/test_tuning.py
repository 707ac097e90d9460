"""What the autopilot may turn of loaded models, and that it comes and goes with them."""

import asyncio
from typing import Any

import pytest

from dlproxy.autopilot.flight import Flight
from dlproxy.config import AutopilotConfig, ModelConfig, ServerConfig
from dlproxy.fleet import local
from dlproxy.message import InferenceError
from dlproxy.policy import changes
from dlproxy.policy.tuning.protocol import Space
from dlproxy.policy.wanted import WantedModel, WantedVersion
from dlproxy.serve.models import Models
from dlproxy.serve.tuning import LANE
from tests import models

SLEEP = "sleep:base=2ms,row=0.1ms"


class House:
    """Models under an autopilot, on two cores."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mode: Any = "on", **server: Any) -> None:
        monkeypatch.setattr(local, "usable_cores", lambda: 2)
        config = ServerConfig(calibration_folder="", **server)
        self.models = Models(config, autopilot=AutopilotConfig(mode=mode), clock=asyncio.get_running_loop().time)

    async def load(self, name: str = "m", **config: Any) -> None:
        settings = {"path": SLEEP, "run": "thread", "slo": "p99=50ms", "instances": 1, "threads": 1, **config}
        await self.models.load(name, ModelConfig(**settings))

    def flight(self, name: str = "m", version: str = "1") -> Flight:
        flights = self.models.autopilot._flights.values()
        return next(one for one in flights if (one.tuned.name, one.tuned.version) == (name, version))

    @property
    def tuned(self) -> list[tuple[str, str]]:
        return [(one["name"], one["version"]) for one in self.models.autopilot.states()]

    def space(self, name: str = "m") -> Space:
        found = self.flight(name).tuned.space()
        assert isinstance(found, Space)
        return found


async def test_what_an_objective_says_is_what_it_is_tuned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    await house.load(slo="p95=50ms, min cores", pinned=["hedge"], max_batch=32)
    space = house.space()
    assert (space.objective_s, space.prefers, space.max_batch, space.pinned) == (0.05, "cores", 32, frozenset({"hedge"}))
    assert space.tolerated == pytest.approx(0.05)
    assert space.ways == ((1, 1), (2, 1))
    knobs = house.flight().tuned.knobs()
    assert set(knobs) == {*LANE, "instances", "threads"}
    assert (knobs["max_batch"], knobs["instances"], knobs["threads"]) == (32, 1, 1)
    await house.models.drain(1.0)


@pytest.mark.parametrize(
    ("config", "server", "ways"),
    [
        ({"path": str(models.DIGITS)}, {}, {(1, 1), (2, 1), (1, 2)}),
        ({"path": str(models.DIGITS)}, {"memory_budget_mb": 1000}, {(1, 1), (2, 1)}),
        ({"path": str(models.DIGITS), "pinned": ["threads"]}, {}, {(1, 1)}),
        ({"pinned": ["instances"]}, {}, {(1, 1)}),
        ({"autoscale": "in-flight"}, {}, {(1, 1)}),
        ({"run": "inline"}, {}, {(1, 1)}),
    ],
)
async def test_which_ways_it_may_choose_from(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], server: dict[str, Any], ways: set[tuple[int, int]]
) -> None:
    house = House(monkeypatch, **server)
    await house.load(**config)
    assert set(house.space().ways) == ways
    await house.models.drain(1.0)


async def test_it_says_why_it_tunes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    await house.load("aimless", slo="")
    await house.load("off", autopilot="off")
    await house.load("advised", autopilot="advise")
    await house.load("quick", slo="max rate")
    states = {one["name"]: one for one in house.models.autopilot.states()}
    assert states["aimless"]["state"].startswith("it has no objective to tune for; set one")
    assert (states["off"]["mode"], states["off"]["state"]) == ("off", "off")
    assert states["advised"]["mode"] == "advise"
    assert (states["quick"]["mode"], states["quick"]["prefers"]) == ("on", "rate")
    await house.models.drain(1.0)


async def test_there_is_one_task_while_anything_is_tuned_and_none_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks() -> int:
        return sum(task.get_name() == "dlproxy-autopilot" for task in asyncio.all_tasks())

    house = House(monkeypatch, mode="off")
    await house.load("a")
    assert tasks() == 0
    for name in "bc":
        await house.load(name, autopilot="on")
    assert tasks() == 1
    for name in "bc":
        await house.models.unload(name, drain_s=1.0)
    await asyncio.sleep(0)
    assert tasks() == 0
    house.models._loaded["a", "1"].control.change({"autopilot": "on"})
    assert tasks() == 1
    await house.models.drain(1.0)


async def test_versions_each_have_their_own_and_leave_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    await house.load(version="1")
    await house.load(version="2")
    first = house.flight()
    assert house.tuned == [("m", "1"), ("m", "2")]
    assert first.pilot is not house.flight(version="2").pilot
    stats = house.models._loaded["m", "1"].served.stats
    assert len(stats.readers) == 2, "the objective has one of its own"
    config = ModelConfig(path=SLEEP, run="thread", slo="p99=50ms", instances=1, threads=1, version="3")
    await house.models.replace("m", "1", config)
    assert house.tuned == [("m", "2"), ("m", "3")]
    assert (first.pilot, stats.readers) == (None, [stats.objective])
    await house.models.unload("m", "2", drain_s=1.0)
    assert house.tuned == [("m", "3")]
    with pytest.raises(InferenceError, match=r"no model 'zzz' that the autopilot could tune$"):
        house.models.autopilot.states("zzz")
    await house.models.drain(1.0)


async def test_what_a_pilot_wants_is_checked_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    await house.load(max_batch=32)
    tuned = house.flight().tuned
    for wrong, clue in (({"discipline": "zzz"}, "discipline"), ({"max_batch": 33}, "max_batch 33 is above 32")):
        with pytest.raises(Exception, match=clue):
            await tuned.prepare({**tuned.knobs(), **wrong})
    knobs = {**tuned.knobs(), "instances": 2, "max_batch": 8}
    await tuned.prepare(knobs)
    assert tuned.ready(knobs)
    tuned.apply(knobs)
    assert tuned.knobs() == knobs
    assert house.models._loaded["m", "1"].control.tuned == {"max_batch": 8}
    await house.models.drain(1.0)


async def test_a_second_session_serves_real_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    await house.load(path=str(models.DIGITS), slo="p99=1s")
    tuned = house.flight().tuned
    knobs = {**tuned.knobs(), "threads": 2}
    await tuned.prepare(knobs)
    tuned.apply(knobs)
    await tuned.let_go()
    assert (tuned.knobs()["threads"], tuned.up()) == (2, 1)
    (instance,) = house.models._loaded["m", "1"].control.state()["instances"]
    assert instance["state"] == "up"
    await house.models.drain(1.0)


async def test_knobs_are_pinned_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    await house.load()
    tuned = house.flight().tuned
    tuned.apply({**tuned.knobs(), "max_batch": 8})
    assert house.models.holds("m", "")["max_batch"] == 8
    assert "threads" not in house.models.holds("m", "1"), "which a model has to be loaded anew for"
    assert house.models.holds("zzz", "") == {}
    await house.models.drain(1.0)


async def test_who_sets_a_knob_to_what_it_is_declared_to_be_ends_its_first_value(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch)
    begins = ModelConfig(path=SLEEP, run="thread", instances=1, threads=1, slo="p99=50ms", start={"max_batch": 1})
    before = WantedModel({"1": WantedVersion(begins)})
    await house.models.load("m", begins)
    assert house.flight().tuned.knobs()["max_batch"] == 1
    after = changes.with_knobs(before, "1", {"max_batch": begins.max_batch})
    await house.models.adjust("m", "1", before.versions["1"], after.versions["1"])
    assert house.flight().tuned.knobs()["max_batch"] == begins.max_batch
    assert house.space().pinned == {"max_batch"}
    await house.models.drain(1.0)
