"""The roster knows how every instance is, counts what becomes of them, and notes for the event log what no lane hears of."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlproxy.fleet.roster import Roster
from dlproxy.fleet.upstreams import UpstreamFleet
from dlproxy.instance.remote import RemoteSettings, parse_address
from dlproxy.instance.remote.codec import UpstreamModel
from dlproxy.instance.warmup import Calibration
from dlproxy.policy.events import InstanceExpected, InstanceLost, InstanceRetired, InstanceUp
from dlproxy.serve.driver import Driver
from dlproxy.telemetry.event_log import Header, Note, Recorder, read, replay
from dlproxy.telemetry.journal import Journal
from dlproxy.testing import FakeInstance
from tests.serve.rig import KNOBS, PRIOR, SIGNATURE, Rig, pass_time

pytestmark = pytest.mark.looptime


class Signed(Rig):
    """A rig with a roster before its driver, recorded if there is a file to record to."""

    def __init__(self, log: Path | None = None) -> None:
        super().__init__(instances=0)
        self.recorder = None
        if log is not None:
            self.recorder = Recorder(log, Header("m", KNOBS, list(PRIOR)), self.lane)
            self.driver = Driver(
                model="m",
                version="1",
                signature=SIGNATURE,
                lane_on=self.recorder.on,
                stats=self.stats,
                clock=self.now,
                outage_wait_s=0.25,
            )
        self.journal = Journal(self.now)
        note = self.recorder.note if self.recorder else None
        self.roster = Roster(self.driver, self.stats, self.now, note, self.journal, "m")

    def place(self, name: str = "m-0") -> dict[str, Any]:
        return next(place for place in self.roster.places() if place["name"] == name)

    def states(self) -> dict[str, int]:
        return {state: number for state, number in self.stats.instance_states.items() if number}


async def test_a_life_after_the_other_is_told_with_its_times() -> None:
    rig = Signed()
    rig.roster.instance_starts(rig.fake("m-0"))
    await pass_time(1.5)
    assert (rig.place()["state"], rig.place()["for_s"]) == ("starting", 1.5)
    assert not rig.driver.ready
    rig.roster.add_instance(rig.fake("m-0"))
    await pass_time(2.0)
    assert (rig.place()["state"], rig.place()["for_s"], rig.place()["restarts"]) == ("up", 2.0, 0)
    assert rig.driver.ready
    rig.roster.lose_instance("m-0", "killed by SIGKILL", crashed=True)
    assert not rig.driver.ready, "at once"
    assert (rig.place()["state"], rig.place()["last_problem"]) == ("lost", "killed by SIGKILL")
    rig.roster.instance_waits("m-0", 0.4)
    await pass_time(0.1)
    assert (rig.place()["state"], rig.place()["again_in_s"]) == ("waiting", pytest.approx(0.3))
    await pass_time(1.0)
    assert rig.place()["again_in_s"] == 0.0, "late, not due before it is"
    rig.roster.instance_starts(rig.fake("m-0"))
    assert rig.place()["again_in_s"] is None
    rig.roster.instance_failed(rig.fake("m-0"), "the disk is full")
    assert (rig.place()["state"], rig.place()["last_problem"]) == ("lost", "the disk is full")
    rig.roster.add_instance(rig.fake("m-0"))
    assert (rig.place()["state"], rig.place()["restarts"], rig.place()["last_problem"]) == ("up", 1, "the disk is full")


async def test_every_change_is_counted_and_the_states_add_up() -> None:
    rig = Signed()
    for name in ("m-0", "m-1", "m-2"):
        rig.roster.instance_starts(rig.fake(name))
    assert rig.states() == {"starting": 3}
    rig.roster.add_instance(rig.fake("m-0"))
    rig.roster.add_instance(rig.fake("m-1"))
    rig.roster.instance_failed(rig.fake("m-2"), "no memory")
    rig.roster.instance_waits("m-2", 0.1)
    assert rig.states() == {"up": 2, "waiting": 1}
    assert rig.stats.stirred == 3 + 2 + 2, "whoever shows it looks again"
    rig.roster.lose_instance("m-0", "killed")
    assert rig.states() == {"up": 1, "lost": 1, "waiting": 1}
    for name in ("m-0", "m-1", "m-2"):
        rig.roster.retire_instance(name)
    assert rig.states() == {}
    assert rig.roster.places() == []
    assert rig.stats.instance_changes == {"up": 2, "lost": 1, "retired": 2, "failed_to_start": 1}, "m-2 never was up"


async def test_an_instance_that_is_suspended_ends_what_it_runs_and_says_why_it_takes_nothing() -> None:
    rig = Signed()
    rig.roster.add_instance(rig.fake("m-0"))
    running = rig.send(1.0)
    await pass_time(0.001)
    waiting = rig.send(2.0)
    await pass_time(0.001)
    rig.roster.suspend_instance("m-0", "its stage has left")
    assert waiting.failure is not None
    assert waiting.failure.message == "the model cannot answer now: its stage has left"
    assert (await running.wait()).values == [2.0]
    assert (rig.place()["state"], rig.place()["last_problem"], rig.driver.ready) == ("lost", "its stage has left", False)
    assert rig.states() == {"lost": 1}
    rig.roster.retire_instance("m-0")
    assert rig.roster.places() == []
    assert rig.states() == {}


async def test_an_instance_that_dies_while_it_leaves_does_not_come_back() -> None:
    rig = Signed()
    for name in ("m-0", "m-1"):
        rig.roster.add_instance(rig.fake(name))
    replies = [rig.send(float(number), rows=64) for number in range(2)]
    await asyncio.sleep(0)
    rig.roster.retire_instance("m-1")
    rig.roster.lose_instance("m-1", "killed", crashed=True)
    for number, reply in enumerate(replies):
        assert (await reply.wait()).values[0] == 2.0 * number, "its batch ran elsewhere"
    assert [place["name"] for place in rig.roster.places()] == ["m-0"]
    assert rig.states() == {"up": 1}
    rig.roster.retire_instance("nobody")  # nor does one appear that never was


async def test_the_event_log_holds_every_change_with_its_time_and_replays(tmp_path: Path) -> None:
    rig = Signed(tmp_path / "m.dlog")
    assert rig.recorder is not None
    began_at = rig.now()
    rig.roster.add_instance(rig.fake("m-0"))
    await pass_time(1.0)
    rig.roster.lose_instance("m-0", "killed by SIGKILL", crashed=True)
    rig.roster.instance_waits("m-0", 0.1)
    await pass_time(0.1)
    rig.roster.instance_starts(rig.fake("m-0"))
    rig.roster.instance_failed(rig.fake("m-0"), "the disk is full")
    rig.roster.instance_waits("m-0", 0.2)
    rig.roster.retire_instance("m-0")
    rig.roster.add_instance(rig.fake("m-0"))
    rig.roster.retire_instance("m-0")
    rig.recorder.close()
    _, entries = read(tmp_path / "m.dlog")
    kept = [(round(entry.at - began_at, 3), entry.event) for entry in entries]
    assert kept == [
        (0.0, InstanceUp("m-0")),
        (1.0, InstanceExpected(began_at + 1.0 + 0.25)),
        (1.0, InstanceLost("m-0", "killed by SIGKILL", crashed=True)),
        (1.0, Note("m-0", "waiting", "starts again in 0.1 s")),
        (1.1, Note("m-0", "starting")),
        (1.1, Note("m-0", "failed_to_start", "the disk is full")),
        (1.1, Note("m-0", "waiting", "starts again in 0.2 s")),
        (1.1, Note("m-0", "retired")),
        (1.1, InstanceUp("m-0")),
        (1.1, InstanceRetired("m-0")),
    ]
    assert replay(tmp_path / "m.dlog").first_difference is None


class Upstream(FakeInstance):
    """What a UpstreamFleet needs of a remote instance."""

    def __init__(self, name: str, rig: Rig, *, up: bool) -> None:
        super().__init__(name, rig.runtime)
        self.up = up
        self.model = UpstreamModel(SIGNATURE, None, binary=True)
        self.address = parse_address(f"http://{name}.example:8000/v2/models/m")
        self.on_lost: Callable[[str], None] = lambda reason: None
        self.on_up: Callable[[], None] = lambda: None


async def test_upstreams_are_shown_with_their_address_from_the_start_on_and_come_and_go() -> None:
    rig = Signed()
    well, missing = Upstream("m-0", rig, up=True), Upstream("m-1", rig, up=False)
    fleet = UpstreamFleet("m", [well, missing], well.model, Calibration((), True), RemoteSettings())  # type: ignore[list-item]
    fleet.attach(rig.roster)
    assert [(place["state"], place["address"]) for place in rig.roster.places()] == [
        ("up", "m-0.example:8000"),
        ("lost", "m-1.example:8000"),
    ]
    assert rig.place("m-1")["last_problem"] == "it could not be used when the model was loaded"
    missing.on_up()
    well.on_lost("connection refused")
    assert rig.states() == {"up": 1, "lost": 1}
    assert (rig.place("m-0")["last_problem"], rig.place("m-0")["address"]) == ("connection refused", "m-0.example:8000")
    well.on_up()
    assert (rig.states(), rig.place("m-0")["restarts"], rig.place("m-1")["restarts"]) == ({"up": 2}, 1, 0)


async def test_the_journal_has_starts_with_their_ends() -> None:
    rig = Signed()
    rig.roster.instance_starts(rig.fake("m-0"))
    await pass_time(1.5)
    rig.roster.add_instance(rig.fake("m-0"))
    await pass_time(1.5)
    rig.roster.lose_instance("m-0", "killed", crashed=True)
    told = [(one.kind, one.words, one.began_at, one.ended_at) for one in rig.journal.since(0.0)]
    assert told[::-1] == [
        ("start", "m-0 was starting", 0.0, 1.5),
        ("instance", "m-0 came up", 1.5, 1.5),
        ("instance", "m-0 was lost: killed", 3.0, 3.0),
    ]
    assert {(one.model, one.subject) for one in rig.journal.since(0.0)} == {("m", "m-0")}
