"""The autoscaler on virtual loop time: a real driver and lane, instances that take their time to start; no request is lost."""

import asyncio
import logging
from math import inf
from typing import Any

import pytest
from msgspec.structs import replace

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.fleet.autoscale import RETRY_S, Autoscaler, Scaled, autoscaler, most_instances
from dlproxy.fleet.processes import threads_of
from dlproxy.fleet.roster import Roster
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.trial import Way
from dlproxy.message import FailureKind
from dlproxy.serve.control import LaneControl
from dlproxy.serve.layers import WakeLayer
from tests.serve.rig import KNOBS, Reply, Rig, pass_time

pytestmark = pytest.mark.looptime

START_S = 2.0
SERVICE_S = 0.1
CONFIG = ModelConfig(path="sleep:base=100ms", autoscale="in-flight", max_instances=4)


class House:
    """A fleet of fakes; `problem`: why no further one starts. `starts`: how many were begun."""

    run = "thread"
    way = Way(inline=False, instances=1, threads=1)

    def __init__(self, rig: Rig, roster: Roster) -> None:
        self._rig = rig
        self._roster = roster
        self._lock = asyncio.Lock()
        self.up: list[str] = []
        self.problem: Exception | None = None
        self.starts = 0

    async def scale(self, count: int) -> None:
        async with self._lock:
            if count > len(self.up):
                self.starts += 1
                await pass_time(START_S)
                if self.problem is not None:
                    raise self.problem
            while len(self.up) < count:
                self.add()
            while len(self.up) > count:
                self._roster.retire_instance(self.up.pop())

    def add(self) -> None:
        name = f"m-{len(self.up)}"
        self.up.append(name)
        self._roster.add_instance(self._rig.fake(name))


class Scene(Rig):
    """A model under an autoscaler, asked through the layer that wakes it."""

    def __init__(self, config: ModelConfig = CONFIG, *, batch: int = 8, slo_s: float | None = None) -> None:
        knobs = replace(KNOBS, max_batch=batch, slo_s=slo_s)
        super().__init__(instances=0, service_s=SERVICE_S, knobs=knobs)
        roster = Roster(self.driver, self.stats, self.now)
        self.house = House(self, roster)
        self.house.add()
        self.least = 0
        self.control = LaneControl(config, self.lane, self.driver, knobs, self.house, roster, batch)
        scaled = Scaled(
            "m",
            self.lane,
            self.stats,
            self.house,
            self.control.set_instances,
            self.driver.expect_instance,
            self.now,
            lambda: self.least,
        )
        made = autoscaler(scaled, config, config.forecast)
        assert made is not None
        self.scaler: Autoscaler = made
        self.control.autoscaler = made
        self.layer = WakeLayer(self.driver, made)
        made.start()

    def ask(self, *, timeout_s: float = inf, promised: bool = False) -> Reply:
        reply = Reply(self.request(timeout_s=timeout_s, promised=promised))
        self.layer.submit(reply.request, reply)
        return reply

    async def load(self, seconds: float, rate: float) -> list[Reply]:
        replies = []
        for _ in range(round(seconds * rate)):
            replies.append(self.ask())
            await pass_time(1.0 / rate)
        return replies


async def test_instances_come_with_load_and_go_with_it_and_no_request_is_lost() -> None:
    scene = Scene(batch=1)
    replies = await scene.load(30.0, 20.0)
    assert len(scene.house.up) == 4
    replies += await scene.load(400.0, 1.0)
    assert len(scene.house.up) == 1
    await pass_time(60.0)
    assert [reply.values for reply in replies] == [[2.0]] * len(replies)
    assert scene.is_at_rest()


async def test_instances_that_keep_something_stay_until_they_do_not() -> None:
    scene = Scene(batch=1)
    await scene.load(30.0, 20.0)
    scene.least = 3
    await scene.load(400.0, 1.0)
    assert len(scene.house.up) == 3
    scene.least = 0
    await scene.load(200.0, 1.0)
    assert len(scene.house.up) == 1


async def test_a_steady_load_changes_nothing_in_five_minutes() -> None:
    scene = Scene()
    await scene.load(60.0, 20.0)
    starts, up = scene.house.starts, list(scene.house.up)
    await scene.load(300.0, 20.0)
    assert (scene.house.starts, scene.house.up) == (starts, up)


async def test_who_comes_while_there_is_no_instance_has_one_started_at_once_and_waits_for_it() -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=10.0))
    await pass_time(15.0)
    assert scene.house.up == []
    assert scene.scaler.asleep
    assert scene.lane.view().asleep
    asked_at = scene.now()
    replies = [scene.ask(timeout_s=0.05), scene.ask(timeout_s=0.05)]  # their objective is no reason to fail them
    for reply in replies:
        assert (await reply.wait()).values == [2.0]
        assert reply.at - asked_at == pytest.approx(START_S + SERVICE_S)
    assert scene.house.starts == 1
    await pass_time(30.0)
    assert scene.house.up == []


async def test_a_clients_own_deadline_holds_while_an_instance_starts() -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=10.0))
    await pass_time(15.0)
    asked_at = scene.now()
    reply = await scene.ask(timeout_s=0.5, promised=True).wait()
    assert reply.failure is not None
    assert reply.at - asked_at == pytest.approx(0.5, abs=0.01)
    assert (await scene.ask().wait()).values == [2.0]


async def test_who_comes_at_any_moment_of_falling_asleep_is_answered() -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=5.0))
    for number in range(60):
        await pass_time(5.0 + 0.05 * number)
        reply = scene.ask()
        await reply.wait()
        assert reply.values == [2.0]
    assert scene.house.starts > 10


async def test_an_instance_that_does_not_start_fails_those_who_wait_and_is_tried_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=10.0))
    await pass_time(15.0)
    scene.house.problem = ModelError("no memory")
    with caplog.at_level(logging.ERROR):
        reply = await scene.ask().wait()
    assert reply.kind == FailureKind.UNAVAILABLE
    assert "no memory" in caplog.text
    assert (await scene.ask().wait()).kind == FailureKind.UNAVAILABLE
    assert scene.house.starts == 1
    scene.house.problem = None
    await pass_time(RETRY_S + 1.0)
    assert (await scene.ask().wait()).values == [2.0]


async def test_a_further_instance_that_does_not_start_is_not_tried_at_every_look(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(batch=1)
    scene.house.problem = ModelError("no memory")
    with caplog.at_level(logging.ERROR):
        await scene.load(60.0, 20.0)
    assert scene.house.starts == 2
    assert scene.house.up == ["m-0"]
    assert scene.control.state()["autoscale"]["wanted"] == 1


async def test_what_an_operator_asks_for_is_held_until_the_bounds_are_changed() -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=10.0))
    await scene.control.scale(3)
    await pass_time(60.0)
    assert len(scene.house.up) == 3
    assert scene.control.state()["autoscale"]["held"]
    scene.control.change({"min_instances": 2})
    assert not scene.control.state()["autoscale"]["held"]
    await scene.load(300.0, 1.0)
    assert len(scene.house.up) == 2
    assert scene.control.state()["knobs"]["min_instances"] == 2


async def test_none_at_an_operators_wish_is_not_sleep() -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=10.0))
    await scene.control.scale(0)
    await pass_time(20.0)
    assert (await scene.ask().wait()).kind == FailureKind.UNAVAILABLE
    assert scene.house.starts == 0
    scene.control.change({"min_instances": 1})
    assert (await scene.ask().wait()).values == [2.0]


async def test_an_operators_number_that_cannot_be_had_is_not_held() -> None:
    scene = Scene()
    scene.house.problem = ModelError("no memory")
    with pytest.raises(ConfigError, match="no memory"):
        await scene.control.scale(3)
    assert not scene.control.state()["autoscale"]["held"]
    assert scene.scaler.wanted == 1


async def test_who_waits_while_an_operators_number_cannot_be_had_is_answered_later() -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=10.0))
    await pass_time(15.0)
    scene.house.problem = ModelError("no memory")
    with pytest.raises(ConfigError, match="no memory"):
        await scene.control.scale(3)
    scene.house.problem = None
    assert (await scene.ask().wait()).values == [2.0]


async def test_other_bounds_hold_at_once() -> None:
    scene = Scene()
    scene.control.change({"min_instances": 3})
    await pass_time(5.0)
    assert len(scene.house.up) == 3
    scene.control.change({"min_instances": 1, "max_instances": 2})
    await pass_time(5.0)
    assert len(scene.house.up) == 2


async def test_a_stopped_autoscaler_lets_the_start_under_way_go_on() -> None:
    scene = Scene(replace(CONFIG, scale_to_zero_s=10.0))
    await pass_time(15.0)
    reply = scene.ask()
    await pass_time(0.5)
    scene.scaler.stop()
    await scene.driver.stop(drain_s=10.0)
    assert reply.values == [2.0]


@pytest.mark.parametrize(
    ("wanted", "threads", "most"), [(0, 1, 4), (0, 2, 2), (0, 3, 1), (0, 8, 1), (9, 1, 4), (3, 1, 3), (3, 2, 2)]
)
async def test_there_are_never_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, wanted: int, threads: int, most: int
) -> None:
    monkeypatch.setattr("dlproxy.fleet.autoscale.usable_cores", lambda: 4)
    house = Scene().house
    house.way = Way(inline=False, instances=1, threads=threads)
    assert most_instances(ModelConfig(path="m.onnx", max_instances=wanted), house) == most


async def test_on_ray_the_cluster_says_how_many_there_are_and_not_the_cores_here() -> None:
    class OnRay(House):
        run = "ray"

        def room(self) -> int:
            return 7

    rig = Rig(instances=0)
    fleet = OnRay(rig, Roster(rig.driver, rig.stats, rig.now))
    assert [most_instances(replace(CONFIG, max_instances=most), fleet) for most in (0, 400)] == [7, 400]


@pytest.mark.parametrize(
    ("settings", "threads"),
    [({}, 4), ({"autoscale": "in-flight"}, 1), ({"autoscale": "in-flight", "max_instances": 2}, 2), ({"threads": 3}, 3)],
)
def test_worker_processes_leave_cores_for_those_that_may_come(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], threads: int
) -> None:
    monkeypatch.setattr("dlproxy.fleet.processes.usable_cores", lambda: 4)
    assert threads_of(ModelConfig(path="m.onnx", **settings), 1) == threads
