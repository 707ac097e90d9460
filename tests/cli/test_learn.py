"""`dlproxy learn` as one runs it: what it prints and writes, and its exit codes."""

from pathlib import Path

import pytest

from dlproxy.cli import main
from tests.lab.learn.fakes import Trainer, install, written


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    """Beside mine.toml, in the working folder."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    return install(monkeypatch)


def test_the_list_names_each_experiment_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("digits-cnn ") and "convolutional" in line for line in lines)
    assert lines == sorted(lines)


def test_it_trains_shows_the_mean_with_its_interval_and_says_how_to_serve_it(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn", "train", "mine.toml"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "accuracy                 2 ± 2.5",
        "written: learnt/mine   (dlproxy serve learnt/mine/model.onnx)",
    ]
    assert "seed 2 of 3" in said.err
    assert (tmp_path / "learnt" / "mine" / "result.json").exists()


def test_what_leaves_with_a_configuration_is_served_by_it(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there" / "seed-1").mkdir(parents=True)
    (tmp_path / "there" / "seed-1" / "dlproxy.toml").touch()
    assert main(["learn", "train", "mine.toml", "--out", "there"]) == 0
    assert "written: there   (dlproxy serve --config there/seed-1/dlproxy.toml)" in capsys.readouterr().out


def test_seeds_and_folder_may_be_others(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "train", "mine.toml", "--seeds", "1", "--out", "there"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "accuracy                 1"
    assert trainer.seeds == [1]
    assert (tmp_path / "there" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no experiment 'nothing'"),
        (["other.toml"], "other.toml"),
        (["mine.toml", "--seeds", "0"], "--seeds 0 is out of range: give 1 or more"),
        (["mine.toml", "--threads", "-1"], "--threads -1 is out of range"),
        (["mine.toml", "--workers", "0"], "--workers 0 is out of range: give 1 or more"),
        (["mine.toml", "--workers", "2"], "mine is trained by one worker only: --workers is for one network"),
        (["mine.toml", "--asynchronous"], "--asynchronous is for several workers: give --workers 2, say"),
        (["mine.toml", "--ray", "auto"], "--ray is for several workers"),
        (["mine.toml", "--workers", "2", "--staleness", "1"], "--staleness is for workers at their own pace"),
        (["mine.toml", "--workers", "2", "--asynchronous", "--staleness", "-1"], "--staleness -1 is out of range"),
    ],
)
def test_what_cannot_be_is_answered_in_a_line(
    arguments: list[str], message: str, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn", "train", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert trainer.seeds == []


def test_other_settings_for_the_same_folder_are_refused(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn", "train", "mine.toml"]) == 0
    written(tmp_path, (tmp_path / "mine.toml").read_text("utf-8").replace("size = 4", "size = 5"))
    capsys.readouterr()
    assert main(["learn", "train", "mine.toml"]) == 2
    assert "of other settings; remove it, or name another folder (--out)" in capsys.readouterr().err
