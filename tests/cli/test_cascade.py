"""`dlproxy cascade` as one runs it: what it prints and writes, and its exit codes."""

import json
from pathlib import Path

import numpy as np
import pytest

from dlproxy.cli import cascade, main
from dlproxy.config import load
from tests.compress import fakes, graphs

MODELS = ("cheap.onnx", "dear.onnx", "--data", "data.npz")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two models and examples."""
    graphs.saved(graphs.classifier(weights=np.round(graphs.WEIGHTS / 0.5) * np.float32(0.5)), tmp_path, "cheap")
    graphs.saved(graphs.classifier(60), tmp_path, "dear")
    given = graphs.dataset(2000)
    assert given.labels is not None
    fakes.saved_data(tmp_path / "data.npz", **given.inputs, label=given.labels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cascade, "RACE_S", 0.1)
    return tmp_path


def test_what_pays_is_written_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["cascade", *MODELS, "--max-loss", "1%", "--batch", "8", "--name", "quick"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "What cheap answers stands from a margin of " in said.out
    assert "accepted: loses" in said.out
    assert "written: quick.toml   (dlproxy serve --config quick.toml)" in said.out
    assert "dear: answering 2,000 examples" in said.err.splitlines()
    assert list(load(folder / "quick.toml").models) == ["cheap", "dear", "quick"]
    assert main(["cascade", *MODELS, "--name", "quick"]) == 2
    assert "quick.toml is there already" in capsys.readouterr().err


def test_that_nothing_pays_is_a_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["cascade", *MODELS, "--max-loss", "0.1%", "--batch", "8", "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    report = json.loads(said.out)
    assert report["verdict"]["status"] == "refused"
    assert report["threshold"] is None
    assert not (folder / "cascade.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("cheap.onnx", "cheap.onnx", "--data", "data.npz"), "two models are named 'cheap'"),
        ((*MODELS, "--name", "dear"), "give the pipeline a name of its own"),
        ((*MODELS, "--batch", "0"), "--batch 0 is out of range"),
        ((*MODELS, "--target", "size=1MB"), "a cascade takes more memory"),
        ((*MODELS, "--max-loss", "0"), "no number of examples shows"),
        (("cheap.onnx", "none.onnx", "--data", "data.npz"), "none.onnx"),
        (("cheap.onnx", "dear.onnx", "--data", "none.npz"), "none.npz does not exist"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cascade", *arguments]) == 2
    said = capsys.readouterr()
    assert why in said.err
    assert "Traceback" not in said.err
