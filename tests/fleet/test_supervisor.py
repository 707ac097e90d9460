"""The supervisor keeps its number of instances alive, on virtual loop time, with fakes whose lives the test decides."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from dlproxy.fleet.supervisor import FIRST_DELAY_S, HEALTHY_S, MOST_DELAY_S, Supervisor
from dlproxy.instance import Instance
from dlproxy.instance.runtime import ModelError
from dlproxy.message import FailureKind, Signature
from dlproxy.testing import FakeInstance
from tests.serve.rig import SIGNATURE, Reply, Rig, pass_time

pytestmark = pytest.mark.looptime

START_S = 0.5


class Life(FakeInstance):
    """An instance that takes START_S to start, and lives until the test ends it."""

    def __init__(self, home: "Home", name: str) -> None:
        super().__init__(name, home.rig.runtime, service_s=home.service_s)
        self.on_lost: Callable[[str], None] | None = None
        self.calibration = None
        self.began_at = asyncio.get_running_loop().time()
        self.cancelled = False
        self._signature = home.signature
        self._problem = home.problems[name].pop(0) if home.problems[name] else None

    async def start(self) -> Signature:
        try:
            await pass_time(START_S)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self._problem is not None:
            raise self._problem
        return self._signature

    def adopt(self, signature: Signature) -> None:
        self._signature = signature

    def die(self, reason: str = "killed") -> None:
        assert self.on_lost is not None
        if self._running is not None and self._running.timer is not None:
            self._running.timer.cancel()
        self._running = None
        self._ended.set()
        self.on_lost(reason)


class Home:
    """Makes lives, and is their host: a real driver, with notes of what it is told. `problems`: by name, one for each start.

    `told`: who came and went. `heard`: everything else.
    """

    def __init__(self, *, service_s: float | None = 0.010) -> None:
        self.rig = Rig(instances=0)
        self.service_s = None if service_s is None else lambda rows: service_s
        self.lives: dict[str, list[Life]] = defaultdict(list)
        self.problems: dict[str, list[Exception | None]] = defaultdict(list)
        self.signature = SIGNATURE
        self.told: list[str] = []
        self.heard: list[str] = []
        self.supervisor = Supervisor("m", self.make)

    def make(self, name: str) -> Life:
        self.lives[name].append(Life(self, name))
        return self.lives[name][-1]

    def life(self, name: str) -> Life:
        """The present one."""
        return self.lives[name][-1]

    async def open(self, count: int) -> None:
        await self.supervisor.start(count)
        self.supervisor.attach(self)

    def add_instance(self, instance: Instance) -> None:
        self.told.append(f"+{instance.name}")
        self.rig.driver.add_instance(instance)

    def lose_instance(self, name: str, reason: str, *, crashed: bool) -> None:
        self.told.append(f"-{name}: {reason}")
        self.rig.driver.lose_instance(name, reason, crashed=crashed)

    def retire_instance(self, name: str) -> None:
        self.told.append(f"-{name}")
        self.rig.driver.retire_instance(name)

    def kept(self, name: str) -> int:
        return 0

    def instance_starts(self, instance: Instance) -> None:
        self.heard.append(f"{instance.name} starts")

    def instance_failed(self, instance: Instance, reason: str) -> None:
        self.heard.append(f"{instance.name} failed: {reason}")

    def instance_waits(self, name: str, delay_s: float) -> None:
        self.heard.append(f"{name} waits {delay_s:g} s")

    @property
    def up(self) -> list[str]:
        return [instance.name for instance in self.supervisor.instances]


# Starting


async def test_the_first_starts_alone_and_the_others_side_by_side() -> None:
    home = Home()
    assert await home.supervisor.start(3) == SIGNATURE
    assert [home.life(f"m-{number}").began_at for number in range(3)] == [0.0, START_S, START_S]
    assert not home.told, "nobody is attached yet"
    home.supervisor.attach(home)
    assert home.told == ["+m-0", "+m-1", "+m-2"]
    await home.supervisor.stop()


async def test_a_model_that_does_not_load_fails_the_start_at_once() -> None:
    home = Home()
    home.problems["m-0"] = [ModelError("no such file")]
    with pytest.raises(ModelError, match="no such file"):
        await home.supervisor.start(3)
    await pass_time(100.0)
    assert list(home.lives) == ["m-0"]
    assert len(home.lives["m-0"]) == 1, "a first start is not tried again"


async def test_if_one_of_the_others_does_not_start_none_is_left() -> None:
    home = Home()
    home.problems["m-2"] = [ModelError("out of memory")]
    with pytest.raises(ModelError, match="out of memory"):
        await home.supervisor.start(3)
    assert home.life("m-0").stopped
    assert home.life("m-1").stopped
    assert not home.up


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    home = Home()
    starting = asyncio.create_task(home.supervisor.start(3))
    await pass_time(1.5 * START_S)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert home.life("m-0").stopped
    assert home.life("m-1").cancelled
    assert not home.up


async def test_a_loss_before_anyone_is_attached_is_mended_all_the_same() -> None:
    home = Home()
    await home.supervisor.start(2)
    home.life("m-0").die()
    home.supervisor.attach(home)
    assert home.told == ["+m-1"]
    await pass_time(FIRST_DELAY_S + START_S + 0.01)
    assert home.told == ["+m-1", "+m-0"]
    await home.supervisor.stop()


# Losses


async def test_a_lost_instance_is_replaced_and_its_batch_runs_elsewhere() -> None:
    home = Home(service_s=None)
    await home.open(2)
    reply = home.rig.send(3.0)
    await pass_time(0.01)
    busy = next(life for life in (home.life("m-0"), home.life("m-1")) if life.busy)
    other = home.life("m-1" if busy.name == "m-0" else "m-0")
    died_at = asyncio.get_running_loop().time()
    busy.die("segfault")
    assert home.told[-1] == f"-{busy.name}: segfault", "the host hears of it at once"
    assert other.busy, "and runs the batch again at once"
    other.finish()
    assert (await reply.wait()).values == [6.0]
    await pass_time(FIRST_DELAY_S + START_S + 0.01)
    assert home.told[-1] == f"+{busy.name}"
    assert home.life(busy.name).began_at == pytest.approx(died_at + FIRST_DELAY_S)
    await home.supervisor.stop()


async def test_whoever_dies_again_and_again_waits_longer_and_longer() -> None:
    home = Home()
    await home.open(1)
    for number in range(10):
        delay_s = min(FIRST_DELAY_S * 2**number, MOST_DELAY_S)
        died_at = asyncio.get_running_loop().time()
        home.life("m-0").die()
        await pass_time(delay_s + START_S + 0.01)
        assert home.life("m-0").began_at == pytest.approx(died_at + delay_s)
        assert home.up == ["m-0"]
    await pass_time(HEALTHY_S)
    home.life("m-0").die()
    await pass_time(FIRST_DELAY_S + START_S + 0.01)
    assert home.up == ["m-0"], "a healthy life is a fresh beginning"
    await home.supervisor.stop()


async def test_restarts_that_fail_are_tried_again_and_told(caplog: pytest.LogCaptureFixture) -> None:
    home = Home()
    await home.open(1)
    home.problems["m-0"] = [ModelError("the disk is full"), OSError("odd"), None]
    home.life("m-0").die("killed by SIGKILL")
    await pass_time(FIRST_DELAY_S * (1 + 2 + 4) + 3 * START_S + 0.01)
    assert home.up == ["m-0"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["m-0: lost: killed by SIGKILL", "m-0: did not start: the disk is full", "m-0: did not start"]
    assert home.heard == [
        *("m-0 waits 0.1 s", "m-0 starts", "m-0 failed: the disk is full"),
        *("m-0 waits 0.2 s", "m-0 starts", "m-0 failed: odd"),
        *("m-0 waits 0.4 s", "m-0 starts"),
    ]
    await home.supervisor.stop()


async def test_a_model_that_has_become_another_is_not_served() -> None:
    home = Home()
    await home.open(1)
    home.signature = replace(SIGNATURE, batched=False)
    home.life("m-0").die()
    await pass_time(FIRST_DELAY_S + START_S + 0.01)
    assert home.life("m-0").stopped
    assert not home.up
    home.signature = SIGNATURE
    await pass_time(2 * FIRST_DELAY_S + START_S)
    assert home.up == ["m-0"]
    await home.supervisor.stop()


async def test_whether_lengths_may_differ_is_what_the_first_has_found() -> None:
    """The next may have been short of time, or luckier: the server pads by one word for all."""
    padded = tuple(replace(spec, padded=1, pad=0.0) for spec in SIGNATURE.inputs)
    home = Home()
    home.signature = replace(SIGNATURE, inputs=padded)
    await home.open(1)
    home.signature = SIGNATURE
    home.life("m-0").die()
    await pass_time(FIRST_DELAY_S + START_S + 0.01)
    assert home.up == ["m-0"]
    assert home.life("m-0")._signature.inputs == padded
    await home.supervisor.stop()


async def test_who_dies_as_soon_as_it_has_started_is_never_announced() -> None:
    home = Home()
    await home.open(1)
    home.life("m-0").die()
    await pass_time(FIRST_DELAY_S + 0.01)
    fresh = home.life("m-0")
    asyncio.get_running_loop().call_at(fresh.began_at + START_S, fresh.die)
    await pass_time(START_S + 0.1)
    assert home.told.count("+m-0") == 1
    await pass_time(2 * FIRST_DELAY_S + START_S)
    assert home.told.count("+m-0") == 2
    await home.supervisor.stop()


# Scaling


async def test_growing_adds_and_shrinking_takes_the_newest() -> None:
    home = Home()
    await home.open(1)
    await home.supervisor.scale(3)
    assert home.up == ["m-0", "m-1", "m-2"]
    await home.supervisor.scale(1)
    assert home.up == ["m-0"]
    assert home.life("m-2").stopped
    await home.supervisor.scale(2)
    assert home.told == ["+m-0", "+m-1", "+m-2", "-m-2", "-m-1", "+m-1"]
    await home.supervisor.stop()


async def test_shrinking_takes_those_that_are_down_first() -> None:
    home = Home()
    await home.open(2)
    home.life("m-0").die()
    await home.supervisor.scale(1)
    assert home.up == ["m-1"]
    await pass_time(100.0)
    assert len(home.lives["m-0"]) == 1, "it is not started again"
    await home.supervisor.scale(2)
    assert sorted(home.up) == ["m-0", "m-1"]
    await home.supervisor.stop()


async def test_who_must_leave_goes_when_another_is_up_in_its_place() -> None:
    home = Home()
    await home.open(2)
    replacing = asyncio.create_task(home.supervisor.replace(["m-0"]))
    await pass_time(START_S / 2)
    assert home.up == ["m-0", "m-1"], "it serves meanwhile"
    await replacing
    assert home.told == ["+m-0", "+m-1", "+m-2", "-m-0"]
    home.problems["m-0"] = [ModelError("no room")]
    with pytest.raises(ModelError, match="no room"):
        await home.supervisor.replace(["m-1", "gone"])
    assert home.up == ["m-1", "m-2"], "where no other can be had, it stays"
    await home.supervisor.scale(3)
    assert sorted(home.up) == ["m-0", "m-1", "m-2"]
    await home.supervisor.stop()
    await home.supervisor.replace(["m-1"])
    assert not home.up


async def shrink_while_both_run(home: Home) -> tuple[list[Reply], "asyncio.Task[None]"]:
    """Two instances run a request each when one of them is told to leave."""
    replies = []
    for value in (1.0, 2.0):
        replies.append(home.rig.send(value))
        await pass_time(0.01)
    shrinking = asyncio.create_task(home.supervisor.scale(1))
    await pass_time(0.01)
    return replies, shrinking


async def test_shrinking_loses_no_request() -> None:
    home = Home(service_s=None)
    await home.open(2)
    first, shrinking = await shrink_while_both_run(home)
    assert not shrinking.done(), "m-1 runs a batch"
    queued = home.rig.send(3.0)
    home.life("m-1").finish()
    await shrinking
    assert home.life("m-1").stopped
    assert not queued.answered, "what came meanwhile waits for m-0"
    home.life("m-0").finish()
    home.life("m-0").finish()
    assert sorted(reply.values[0] for reply in [*first, queued]) == [2.0, 4.0, 6.0]
    assert home.rig.is_at_rest()
    await home.supervisor.stop()


async def test_a_batch_lost_while_its_instance_leaves_runs_elsewhere() -> None:
    home = Home(service_s=None)
    await home.open(2)
    replies, shrinking = await shrink_while_both_run(home)
    home.life("m-1").die()
    await shrinking
    home.life("m-0").finish()
    home.life("m-0").finish()
    assert sorted(reply.values[0] for reply in replies) == [2.0, 4.0]
    assert home.rig.is_at_rest()
    await pass_time(100.0)
    assert len(home.lives["m-1"]) == 1
    await home.supervisor.stop()


async def test_growth_that_fails_leaves_what_was() -> None:
    home = Home()
    await home.open(1)
    home.problems["m-2"] = [ModelError("no memory for a third")]
    with pytest.raises(ModelError, match="third"):
        await home.supervisor.scale(3)
    assert home.up == ["m-0"]
    assert sorted(home.told) == ["+m-0", "+m-1", "-m-1", "-m-2"]
    assert "m-2 failed: no memory for a third" in home.heard
    await home.supervisor.stop()


async def test_requests_without_an_instance_are_refused_when_the_last_one_leaves() -> None:
    home = Home(service_s=None)
    await home.open(1)
    running = home.rig.send(1.0)
    await pass_time(0.01)
    queued = home.rig.send(2.0)
    await pass_time(0.01)
    shrinking = asyncio.create_task(home.supervisor.scale(0))
    await pass_time(0.01)
    assert queued.kind is FailureKind.UNAVAILABLE
    home.life("m-0").finish()
    await shrinking
    assert running.values == [2.0]
    await home.supervisor.stop()


# Stopping


async def test_stop_ends_what_is_up_what_is_starting_and_what_waits_to_start() -> None:
    home = Home()
    await home.open(2)
    home.life("m-0").die()
    home.life("m-1").die()
    await pass_time(FIRST_DELAY_S + 0.01)
    growing = asyncio.create_task(home.supervisor.scale(3))
    await pass_time(0.01)
    await home.supervisor.stop()
    with pytest.raises(ModelError, match="m was stopped meanwhile"):
        await growing
    assert all(life.cancelled for life in (home.life("m-0"), home.life("m-1"), home.life("m-2")))
    await pass_time(100.0)
    assert [len(home.lives[f"m-{number}"]) for number in range(3)] == [2, 2, 1]
    with pytest.raises(ModelError, match="m is being stopped"):
        await home.supervisor.scale(1)


async def test_what_the_driver_has_stopped_is_stopped_once_more_without_harm() -> None:
    home = Home()
    await home.open(2)
    reply = home.rig.send(1.0)
    await home.rig.driver.stop(10.0)
    await home.supervisor.stop()
    assert reply.values == [2.0]
    assert not home.up
