"""Agents on a server: a challenger is heard in shadow and then in turns, files are followed, what was seen is written down."""

import json
import os
from pathlib import Path

import pytest

from dlproxy.autopilot.agents import Agents
from dlproxy.autopilot.records import Records
from dlproxy.config import ConfigError
from dlproxy.instance.integrity import Trust
from dlproxy.policy.tuning import duel
from dlproxy.policy.tuning.duel import Duel
from dlproxy.policy.tuning.moves import Move
from dlproxy.policy.tuning.pilot import Decision
from dlproxy.policy.tuning.protocol import Knobs
from dlproxy.policy.tuning.window import joined
from tests.autopilot.agent_file import write_agent
from tests.autopilot.scene import Scene
from tests.policy.tuning.lanes import KNOBS, SPACE, window

SHADOW_S, BLOCK_S = 15.0, 20.0


@pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)
async def test_a_challenger_is_heard_beside_the_rules_and_then_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is lost, whoever decides."""
    for name, value in {"SHADOW_S": SHADOW_S, "SHADOW_ASKED": 5, "BLOCK_S": BLOCK_S}.items():
        monkeypatch.setattr(duel, name, value)
    path = write_agent(tmp_path / "agent.onnx", {Move.HALF_ROWS: 1.0})
    scene = Scene(Agents("rules", str(path), Trust()).make)
    await scene.load(90.0, until="compares")
    assert scene.decided[0] == "shadows"
    assert "agent.onnx is asked beside rules" in scene.flight.log[0].reason
    shown = scene.flight.shown(most=20)
    assert shown["policy"] == "rules and agent.onnx in turns, now rules, after 0 pairs of blocks"
    assert scene.flight.explanation() is not None
    before = scene.holding()
    await scene.load(5 * BLOCK_S)
    tried = [decision for decision in scene.flight.log if decision.reason.startswith("agent.onnx: saw ")]
    assert tried, (before, scene.decided)
    assert all(scene.space.allows({**before, **decision_knobs(decision)}, before) for decision in tried)
    await scene.ends_well()


def decision_knobs(decision: Decision) -> Knobs:
    return {name: after for name, (_, after) in decision.changes.items()}


def test_files_that_change_come_as_challengers(tmp_path: Path) -> None:
    path = write_agent(tmp_path / "agent.onnx", {Move.LEAVE: 1.0})
    agents = Agents("rules", str(path), Trust())
    assert agents.changed() == []
    write_agent(path, {Move.TWICE_ROWS: 1.0})
    os.utime(path, ns=(1, 1))
    [challenger] = agents.changed()
    assert challenger().name == "agent.onnx (2)"
    assert agents.changed() == []
    path.write_bytes(b"half a file")
    assert agents.changed() == [], "it stays as it was, and that is logged"
    assert agents.changed() == []
    agents.enter(challenger)
    assert agents.make().challenger is not None


@pytest.mark.parametrize(
    ("policy", "challenger", "clue"),
    [
        ("oracle", "", r"\[autopilot\] policy: there is no policy 'oracle': give rules, bandit, climb, or an agent's file"),
        ("rules", "gone.onnx", r"\[autopilot\] challenger: model file gone.onnx does not exist"),
    ],
)
def test_mistakes_are_told_at_the_start(policy: str, challenger: str, clue: str) -> None:
    with pytest.raises(ConfigError, match=clue):
        Agents(policy, challenger, Trust())


def test_without_a_challenger_there_is_none() -> None:
    made = Agents("climb", "", Trust()).make()
    assert isinstance(made, Duel)
    assert made.state == "climb"


def test_what_was_seen_is_written_down_by_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path / "new", "m-1")
    windows = [window(0.5 * number, missed=number) for number in range(25)]
    for number, one in enumerate(windows):
        records.window(one, KNOBS if number < 15 else {**KNOBS, "max_batch": 16}, SPACE)
    records.decision(Decision(at=1.0, kind="keeps", reason="it may", changes={"max_batch": (8, 16)}))
    records.write()
    lines = [json.loads(line) for line in records.path.read_text("utf-8").splitlines()]
    stretches = [line for line in lines if "window" in line]
    assert [(line["window"]["arrived"], line["knobs"]["max_batch"]) for line in stretches] == [(1000, 8), (500, 8)]
    assert stretches[0]["window"]["in_time"] == joined(windows[:10]).in_time
    assert stretches[0]["space"]["objective_s"] == SPACE.objective_s
    assert lines[-1]["changes"] == {"max_batch": [8, 16]}
    monkeypatch.setattr("dlproxy.autopilot.records.MOST_BYTES", 10)
    records.window(windows[0], KNOBS, SPACE)
    records.write()
    assert records.path.with_name(f"{records.path.name}.1").exists()


def test_records_that_cannot_be_written_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    records = Records(tmp_path / "file", "m-1")
    for _ in range(3):
        records.decision(Decision(at=1.0, kind="keeps", reason="it may"))
        records.write()
    assert len(caplog.records) == 1
