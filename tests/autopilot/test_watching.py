"""What is watched on virtual loop time: a fault raises an alarm that says what and holds the autopilot, and both end."""

import logging
from pathlib import Path

import pytest

from dlproxy.autopilot.watching import Watch, make_watch
from dlproxy.config import ConfigError
from dlproxy.message import DType
from dlproxy.policy.watch import usual, watcher
from dlproxy.policy.watch.detectors import Charts
from dlproxy.policy.watch.watcher import WINDOW_S
from tests import models
from tests.autopilot.scene import Says, Scene, once

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)

FIRST, CALM = 15, 5  # windows: less to wait for than on a server
RATE = 8.0
LEARNT_S = (FIRST + 2) * WINDOW_S


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usual, "FIRST", FIRST)
    monkeypatch.setattr(watcher, "CALM", CALM)


def alarms(scene: Scene) -> int:
    assert scene.stats.watch is not None
    return scene.stats.watch.alarms


async def test_a_slow_instance_raises_an_alarm_that_holds_the_autopilot_until_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dlproxy.autopilot.watching")
    proposes: list[bool] = []
    scene = Scene(lambda: Says(lambda knobs: once(max_batch=8)(knobs) if proposes else None), watch=True)
    await scene.load(LEARNT_S + 10.0, RATE)
    assert (alarms(scene), scene.flight.unusual) == (0, "")
    scene.garage.slow = 2.5
    proposes.append(True)
    await scene.load(16.0, RATE)
    (said,) = caplog.messages
    assert said.startswith("model m: something is unusual: time of batches against the known 2")
    assert "median latency 77.5 ms, usually 31 ms" in said
    assert scene.flight.shown(most=1)["unusual"] in said
    brief = scene.flight.brief(newest=1)
    assert (brief["unusual"], brief["trying"]) == (scene.flight.unusual, False)
    assert [decision["kind"] for decision in brief["decisions"]] == ["holds"]
    assert scene.flight.brief()["decisions"] == []
    assert scene.decided == ["tries", "holds"]
    assert scene.flight.log[-1].reason.startswith("something is unusual: time of batches")
    assert scene.flight.state.startswith("holds: something is unusual: time of batches")
    scene.control.change({"max_batch": 32})  # which makes its pilot look anew
    await scene.load(10.0, RATE)
    assert (scene.decided, scene.holding()["max_batch"]) == (["tries", "holds"], 32)
    scene.garage.slow = 1.0
    await scene.load(60.0, RATE, until="tries")
    assert (alarms(scene), scene.flight.unusual) == (1, "")
    assert caplog.messages[1:] == ["model m: nothing is unusual any more"]
    await scene.ends_well()
    assert scene.stats.watch is None


async def test_a_poisoned_model_that_is_not_tuned_is_watched_too_and_who_resumes_takes_what_is_for_usual() -> None:
    scene = Scene(lambda: Says(once()), mode="off", watch=True)
    await scene.load(LEARNT_S, RATE)
    scene.runtime._errors += [ValueError("not a number"), None, None] * 1000
    await scene.load(14.0, RATE)
    assert (alarms(scene), scene.flight.state) == (1, "off")
    assert scene.flight.unusual.startswith("failed requests 3"), scene.flight.unusual
    scene.autopilot.pause("m")
    scene.autopilot.resume("m")
    assert scene.flight.unusual == ""
    await scene.load(LEARNT_S + 10.0, RATE)
    assert alarms(scene) == 1
    await scene.ends_well(refused=True)


async def test_what_fails_in_watching_ends_it_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Charts):
        def observe(self, off: object, now: float) -> float:
            raise ZeroDivisionError("of nothing")

    scene = Scene(lambda: Says(once()))
    watch = Watch(scene.now, Broken)
    watch.add(scene.tuned, scene.flight)
    await scene.load(LEARNT_S, RATE)
    (error,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert error.getMessage() == "model m: watching has failed, and ends"
    assert (scene.stats.watch, scene.flight.unusual) == (None, "")
    await scene.ends_well()


async def test_nothing_is_there_when_it_is_off_and_a_file_that_is_no_detector_is_refused(tmp_path: Path) -> None:
    assert make_watch("off", lambda: 0.0) is None
    with pytest.raises(ConfigError, match="does not exist"):
        make_watch(str(tmp_path / "none.onnx"), lambda: 0.0)
    models.save(models.identity(DType.FP32), tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match=r"was trained on other features than this version has \(it names none\)"):
        make_watch(str(tmp_path / "other.onnx"), lambda: 0.0)
