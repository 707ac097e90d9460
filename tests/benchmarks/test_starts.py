"""The benchmark of starts says what a change of everything does, and compares turn by turn."""

from pathlib import Path

import pytest

from benchmarks.compress import starts
from benchmarks.models import build_mlp


def test_ratios_are_of_turns() -> None:
    check = starts._times("m", "load", {"plain": [4.0, 9.0, 2.0], "kept": [2.0, 3.0, 2.0]}, "plain", "kept")
    assert check.measured == 2.0
    assert not check.missed
    assert starts._times("m", "load", {"plain": [3.0], "kept": [2.0]}, "plain", "kept").missed


def test_every_change_gives_another_graph_and_none_the_same(tmp_path: Path) -> None:
    path = build_mlp(tmp_path / "m.onnx")
    before = path.read_bytes()
    checks = starts._invalidation(path, tmp_path / "graphs")
    assert [check.measured for check in checks] == [5.0, 1.0]
    assert path.read_bytes() == before


def test_a_child_prints_what_a_load_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = build_mlp(tmp_path / "m.onnx")
    assert starts.main(["--load", str(path), "--graphs", str(tmp_path / "graphs")]) == 0
    seconds, cpu_s = map(float, capsys.readouterr().out.split())
    assert seconds > 0 < cpu_s
