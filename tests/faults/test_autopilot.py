"""A real model under load, in real time: it is tried on more threads, replaced in the midst of a trial, and its file is gone
when it is to be loaded once more. No request fails."""

import asyncio
import shutil
from pathlib import Path

import numpy as np
import pytest

from dlproxy.autopilot.host import Autopilot
from dlproxy.config import AutopilotConfig, ConfigError, ModelConfig, ServerConfig
from dlproxy.fleet import local
from dlproxy.message import DType, Tensor
from dlproxy.policy.tuning import pilot
from dlproxy.policy.tuning.moves import Move
from dlproxy.serve.models import Models
from dlproxy.wire.endpoint import Endpoint, FrontDesk
from tests import models
from tests.autopilot.agent_file import write_agent
from tests.autopilot.scene import Says, once
from tests.serve.rig import pass_time

HANG_S = 180.0  # what a busy moment has undone is tried again
PAUSE_S = 0.005  # between an answer and the next request
IMAGE = np.zeros((1, 1, 8, 8), np.float32).tobytes()


class House:
    """One model under an autopilot that wants to see it on two threads; four clients ask until `end`."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, **autopilot: str) -> None:
        """`autopilot`: what tunes it instead, as in [autopilot]."""
        monkeypatch.setattr(local, "usable_cores", lambda: 2)
        for waits, seconds in (("DWELL_S", 2.0), ("AGAIN_S", 4.0), ("SAFE_S", 4.0)):
            monkeypatch.setattr(pilot, waits, seconds)
        clock = asyncio.get_running_loop().time
        config = AutopilotConfig(mode="on", **autopilot)
        self.models = Models(ServerConfig(calibration_folder=""), autopilot=config, clock=clock)
        if not autopilot:
            self.models.autopilot = Autopilot(clock, lambda: Says(once(threads=2)))
        self.desk = FrontDesk(self.models.catalog, lambda endpoint: endpoint, clock=clock)
        self.path = path
        self.answers = 0
        self._ended = False
        self._clients: list[asyncio.Task[None]] = []

    def config(self, version: str = "1") -> ModelConfig:
        settings = {"run": "thread", "instances": 1, "threads": 1, "slo": "p99=250ms"}
        return ModelConfig(path=str(self.path), version=version, **settings)  # type: ignore[arg-type]

    async def serve(self) -> None:
        await self.models.load("m", self.config())
        self._clients = [asyncio.create_task(self._ask()) for _ in range(4)]

    async def decided(self, kind: str, version: str = "1") -> None:
        """Returns when the autopilot has decided this of the version."""

        async def until() -> None:
            while kind not in self._decisions(version):
                await pass_time(PAUSE_S)

        await asyncio.wait_for(until(), HANG_S)

    async def threads(self, number: int) -> None:
        """Returns when it runs on so many."""

        async def until() -> None:
            while self.models.autopilot.states("m")[-1]["knobs"]["threads"] != number:
                await pass_time(PAUSE_S)

        await asyncio.wait_for(until(), HANG_S)

    async def end(self) -> None:
        """Raises what a request has met."""
        self._ended = True
        await asyncio.wait_for(asyncio.gather(*self._clients), HANG_S)
        await self.models.drain(5.0)
        assert self.answers > 100

    def _decisions(self, version: str) -> list[str]:
        found = (one for one in self.models.autopilot.states("m") if one["version"] == version)
        return [decision["kind"] for one in found for decision in one["decisions"]]

    async def _ask(self) -> None:
        while not self._ended:
            await self._one(self.desk.find("m"))
            self.answers += 1
            await pass_time(PAUSE_S)

    async def _one(self, endpoint: Endpoint) -> None:
        await endpoint.infer(endpoint.request([Tensor("image", DType.FP32, (1, 1, 8, 8), IMAGE)], endpoint.checker.all_outputs))


async def test_threads_are_tried_under_load_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(models.DIGITS, monkeypatch)
    await house.serve()
    await house.decided("keeps")
    await house.threads(2)
    await house.end()


async def test_an_agent_s_file_tunes_under_load_and_another_challenges_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agent = write_agent(tmp_path / "agent.onnx", {Move.MORE_THREADS: 2.0, Move.QUARTER_ROWS: 1.0, Move.TWICE_ROWS: 0.5})
    house = House(models.DIGITS, monkeypatch, policy=str(agent), record=str(tmp_path / "seen"))
    await house.serve()
    await house.decided("tries")
    with pytest.raises(ConfigError, match="there is no policy 'oracle'"):
        await house.models.autopilot.challenge("oracle")
    other = write_agent(tmp_path / "other.onnx", {Move.LEAVE: 1.0})
    await house.models.autopilot.challenge(str(other), "m")
    await house.decided("shadows")
    [state] = house.models.autopilot.states("m")
    assert state["policy"].startswith("agent.onnx, beside it other.onnx: asked ")
    assert all(decision["reason"].startswith("saw ") for decision in state["decisions"] if decision["kind"] == "tries")
    await house.models.autopilot.challenge("")
    assert house.models.autopilot.states("m")[0]["policy"] == "agent.onnx"
    await house.end()
    assert (tmp_path / "seen" / "m-1.tuning.jsonl").read_bytes()


async def test_a_model_is_replaced_in_the_midst_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(models.DIGITS, monkeypatch)
    await house.serve()
    await house.threads(2)
    await house.models.replace("m", "1", house.config("2"))
    assert [one["version"] for one in house.models.autopilot.states("m")] == ["2"]
    await house.threads(2)
    await house.end()


async def test_a_model_whose_file_is_gone_runs_on_as_it_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    shutil.copy(models.DIGITS, path)
    house = House(path, monkeypatch)
    await house.serve()
    path.unlink()
    await house.decided("gives up")
    state = house.models.autopilot.states("m")[0]
    assert "does not exist" in state["decisions"][-1]["reason"]
    assert state["knobs"]["threads"] == 1
    await house.end()
