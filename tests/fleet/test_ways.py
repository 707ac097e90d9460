"""A local fleet that runs in other ways for a trial: it flips at once, loses no request, and lets go of what is not needed."""

import asyncio
from threading import Event

import pytest

from dlproxy.config import ModelConfig
from dlproxy.fleet import local
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.warm_model import WarmModel
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.testing import FakeRuntime
from tests import models
from tests.serve.rig import SIGNATURE, Rig, double


class Session(FakeRuntime):
    """Knows its threads, and whether it is closed."""

    def __init__(self, threads: int) -> None:
        super().__init__(SIGNATURE, double)
        self.threads = threads
        self.closed = False
        self.may_end = Event()
        self.may_end.set()

    def run(self, inputs):  # type: ignore[no-untyped-def]
        assert not self.closed, "a batch runs in a session that is closed"
        self.may_end.wait()
        return super().run(inputs)

    def close(self) -> None:
        self.closed = True


class Housed:
    """A fleet of one instance with one thread on four cores; `sessions`: all that were loaded beside it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, inline: bool = False, path: str = str(models.DIGITS)) -> None:
        self.rig = Rig(instances=0)
        self.first = Session(1)
        self.sessions: list[Session] = []
        self.problem: Exception | None = None
        warm = WarmModel(self.first, Calibration(((1, 0.001),), True), 1, Way(inline=inline, instances=1, threads=1))
        self.fleet = LocalFleet("m", ModelConfig(path=path, run="auto"), [warm])
        self.roster = Roster(self.rig.driver, self.rig.stats, self.rig.now)
        self.fleet.attach(self.roster)
        self.moved: list[Way] = []
        self.fleet.on_moved = self.moved.append
        monkeypatch.setattr(local, "usable_cores", lambda: 4)
        monkeypatch.setattr(local, "open_like", self._open)

    def _open(self, warm: WarmModel, config: ModelConfig, threads: int) -> Session:
        if self.problem is not None:
            raise self.problem
        self.sessions.append(Session(threads))
        return self.sessions[-1]

    @property
    def up(self) -> list[str]:
        return [place["name"] for place in self.roster.places()]

    async def end(self) -> None:
        await self.rig.driver.stop(1.0)
        await self.fleet.stop()
        assert all(session.closed for session in (self.first, *self.sessions))


async def test_which_ways_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Housed(monkeypatch)
    every = {(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)}
    assert (house.fleet.ways(sessions=True)[0], set(house.fleet.ways(sessions=True))) == ((1, 1), every)
    assert house.fleet.ways(sessions=False) == ((1, 1), (2, 1), (4, 1)), "without memory for another session"
    await house.fleet.scale(3)
    assert house.fleet.ways(sessions=False)[0] == (3, 1), "the present one is always among them"
    await house.end()
    for other in (Housed(monkeypatch, inline=True), Housed(monkeypatch, path="gone.onnx")):
        assert set(other.fleet.ways(sessions=True)) <= {(1, 1), (2, 1), (4, 1)}
        assert other.fleet.way.inline is (len(other.fleet.ways(sessions=True)) == 1)
        await other.end()


async def test_flips_take_hold_at_once_and_lose_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Housed(monkeypatch)
    await house.fleet.prepare(2)
    assert not house.moved
    replies = []
    for way in [(2, 2), (1, 1)] * 25:
        house.fleet.use(*way)
        assert (house.fleet.present, len(house.up)) == (way, way[0])
        replies += [house.rig.send(float(number)) for number in range(4)]
        await asyncio.sleep(0)
    for number, reply in enumerate(replies):
        assert (await reply.wait()).values == [2.0 * (number % 4)]
    assert (len(house.sessions), len(house.moved)) == (1, 50)
    assert house.rig.is_at_rest()
    await house.end()


async def test_more_of_the_same_session_leave_those_alone_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Housed(monkeypatch)
    (first,) = house.up
    house.fleet.use(3, 1)
    assert (house.up[0], len(set(house.up))) == (first, 3)
    house.fleet.use(1, 1)
    assert house.up == [first]
    house.fleet.use(2, 1)
    assert len(set(house.up)) == 2
    assert house.sessions == []
    await house.end()


async def test_what_is_not_needed_any_more_goes_when_its_last_batch_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Housed(monkeypatch)
    house.first.may_end.clear()
    reply = house.rig.send()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await house.fleet.prepare(2)
    house.fleet.use(1, 2)
    letting_go = asyncio.create_task(house.fleet.let_go())
    await asyncio.sleep(0)
    assert not house.first.closed
    house.first.may_end.set()
    await letting_go
    assert (await reply.wait()).values == [2.0]
    assert (house.first.closed, house.fleet.is_ready(1), house.fleet.is_ready(2)) == (True, False, True)
    assert (await house.rig.send().wait()).values == [2.0]
    await house.end()


async def test_a_session_that_cannot_be_had_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Housed(monkeypatch)
    house.problem = ModelError("no memory")
    with pytest.raises(ModelError, match="no memory"):
        await house.fleet.prepare(4)
    assert (house.fleet.present, house.fleet.is_ready(4)) == ((1, 1), False)
    assert (await house.rig.send().wait()).values == [2.0]
    await house.end()
    with pytest.raises(ModelError, match="m is being stopped"):
        await house.fleet.prepare(2)


async def test_scaling_goes_on_in_the_way_that_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Housed(monkeypatch)
    await house.fleet.prepare(2)
    house.fleet.use(2, 2)
    await house.fleet.scale(3)
    assert (house.fleet.present, len(house.up)) == ((3, 2), 3)
    for reply in [house.rig.send() for _ in range(8)]:
        assert (await reply.wait()).values == [2.0]
    assert house.first.rows == []
    await house.end()


async def test_nothing_else_moves_what_the_autopilot_has_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    house = Housed(monkeypatch)
    await house.fleet.prepare(2)
    assert house.fleet.try_again([house.rig.request()]) is False
    assert house.fleet._moving is None
    await house.end()
