"""What is watched on virtual loop time: a fault raises an alarm that says what, holds the autopilot, and ends with the fault."""

import logging

import pytest

from dlproxy.autopilot.watching import Watch, make_watch
from dlproxy.config import ConfigError
from dlproxy.policy.watch.detectors import Charts
from dlproxy.policy.watch.usual import FIRST
from dlproxy.policy.watch.watcher import CALM, WINDOW_S
from tests.autopilot.scene import Says, Scene, once

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)

LEARNT_S = (FIRST + 2) * WINDOW_S
CALM_S = (CALM + 4) * WINDOW_S


def alarms(scene: Scene) -> int:
    assert scene.stats.watch is not None
    return scene.stats.watch.alarms


@pytest.mark.parametrize("tuned", [True, False])
async def test_a_slow_instance_raises_an_alarm_that_ends_with_it(tuned: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlproxy.autopilot.watching")
    scene = Scene(lambda: Says(once()), mode="on" if tuned else "off", watch=True)
    await scene.load(LEARNT_S, 12.0)
    await scene.load(60.0, 12.0)
    assert (alarms(scene), scene.flight.unusual) == (0, "")
    scene.garage.slow = 2.5
    await scene.load(20.0, 12.0)
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("model m: something is unusual: time of batches 2.5 times the known, usually 1 times the known")
    assert scene.flight.shown(most=1)["unusual"] in said
    assert scene.flight.state.startswith("holds: something is unusual" if tuned else "off")
    scene.garage.slow = 1.0
    await scene.load(CALM_S, 12.0)
    assert (alarms(scene), scene.flight.unusual) == (1, "")
    assert caplog.records[-1].getMessage() == "model m: nothing is unusual any more"
    await scene.ends_well()
    assert scene.stats.watch is None


async def test_a_trial_ends_with_an_alarm_and_none_begins_before_it_has_been_calm_for_a_while() -> None:
    slow: list[bool] = []
    scene = Scene(lambda: Says(lambda knobs: once(max_batch=8)(knobs) if slow else None), watch=True)
    await scene.load(LEARNT_S, 12.0)
    scene.garage.slow = 2.5
    slow.append(True)
    await scene.load(30.0, 12.0)
    assert scene.decided == ["tries", "holds"]
    assert scene.flight.log[-1].reason.startswith("something is unusual: ")
    assert scene.holding()["max_batch"] == 64
    await scene.load(60.0, 12.0)
    scene.control.change({"max_batch": 32})  # which makes its pilot look anew
    await scene.load(10.0, 12.0)
    assert scene.decided == ["tries", "holds"]
    scene.garage.slow = 1.0
    await scene.load(CALM_S + 60.0, 12.0)
    assert "keeps" in scene.decided
    await scene.ends_well()


async def test_an_operator_who_resumes_takes_what_is_for_usual() -> None:
    scene = Scene(lambda: Says(once()), watch=True)
    await scene.load(LEARNT_S, 12.0)
    scene.garage.slow = 2.5
    await scene.load(20.0, 12.0)
    assert scene.flight.unusual
    scene.autopilot.pause("m")
    assert scene.flight.state == "paused"
    scene.autopilot.resume("m")
    assert scene.flight.unusual == ""
    await scene.load(LEARNT_S + 60.0, 12.0)
    assert alarms(scene) == 1
    await scene.ends_well()


async def test_what_fails_in_watching_ends_it_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Charts):
        def observe(self, off: object, now: float) -> float:
            raise ZeroDivisionError("of nothing")

    scene = Scene(lambda: Says(once()))
    watch = Watch(scene.now, Broken)
    watch.add(scene.tuned, scene.flight)
    await scene.load(LEARNT_S + 5.0, 12.0)
    (error,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert error.getMessage() == "model m: watching has failed, and ends"
    assert (scene.stats.watch, scene.flight.unusual) == (None, "")
    await scene.ends_well()


async def test_nothing_is_there_when_it_is_off_and_a_file_that_is_no_detector_is_refused(tmp_path: object) -> None:
    assert make_watch("off", lambda: 0.0) is None
    with pytest.raises(ConfigError, match="cannot be loaded"):
        make_watch(f"{tmp_path}/none.onnx", lambda: 0.0)
