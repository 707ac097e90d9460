"""`dlproxy compress` as one runs it, with recipes that are known: what it prints and writes, its exit codes, and Ctrl-C."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dlproxy.cli import main
from dlproxy.compress.manifest import read_report
from dlproxy.compress.recipe import Recipe
from dlproxy.config import load
from dlproxy.instance.integrity.writing import make_key_pair
from tests.compress import fakes, graphs

QUICK = fakes.Writes(name="clean", what="takes detours out", model=graphs.classifier().SerializeToString())
FUSE = fakes.Does(name="fuse", what="joins operators", do=fakes.refuses)
INTERRUPTS = fakes.Does(name="interrupts", do=fakes.interrupts)
TRAINS = fakes.Writes(name="distil", what="teaches a smaller one", model=b"", trains=True, needs=("no_such_package",))

Command = Callable[..., int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model and examples."""
    graphs.saved(graphs.classifier(80), tmp_path, "house")
    given = graphs.dataset(700)
    assert given.labels is not None
    fakes.saved_data(tmp_path / "data.npz", **given.inputs, label=given.labels)
    fakes.saved_data(tmp_path / "bare.npz", **given.inputs)
    fakes.saved_data(tmp_path / "narrow.npz", x=np.zeros((700, 3), np.float32))
    fakes.saved_data(tmp_path / "single.npz", x=given.inputs["x"][:1])
    (tmp_path / "notes.onnx").write_text("no model", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compress(monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, with these recipes."""

    def command(*arguments: str, recipes: Sequence[Recipe] = (FUSE, QUICK)) -> int:
        monkeypatch.setattr("dlproxy.compress.recipes.RECIPES", fakes.table(*recipes), raising=False)
        return main(["compress", *arguments])

    return command


def test_what_pays_is_written_and_shown(folder: Path, compress: Command, capsys: pytest.CaptureFixture[str]) -> None:
    original = hashlib.sha256((folder / "house.onnx").read_bytes()).hexdigest()
    (folder / "house.onnx").chmod(0o444)
    make_key_pair(folder / "release")
    given = ["--edge", "--budget", "90s", "--batch", "8", "--set", "clean.depth=3", "--set", "clean.kind=both"]
    code = compress("house.onnx", "--data", "data.npz", *given, "--sign", "release.key")
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "clean is " in said.out
    assert "written: house-compressed   (dlproxy serve --config house-compressed/dlproxy.toml)" in said.out
    assert "fuse: failed: does nothing here: there is nothing to fuse" in said.err.splitlines()
    report = read_report(folder / "house-compressed" / "report.json")
    assert [(one.recipe, one.status) for one in report.candidates] == [("fuse", "failed"), ("clean", "accepted")]
    assert report.candidates[1].steps[0].settings == {"from": "original", "depth": 3, "kind": "both"}
    assert (report.run.machine.cores, report.run.machine.threads) == (1, 1)
    assert list((folder / "house-compressed" / "house-clean").glob("*manifest*")), "it is signed"
    assert "<section" in (folder / "house-compressed" / "report.html").read_text("utf-8")
    assert hashlib.sha256((folder / "house.onnx").read_bytes()).hexdigest() == original
    served = load(folder / "house-compressed" / "dlproxy.toml").models
    assert {name: Path(versions[0].path).is_file() for name, versions in served.items()} == {"house": True, "house-clean": True}


def test_that_nothing_pays_is_a_result(folder: Path, compress: Command, capsys: pytest.CaptureFixture[str]) -> None:
    code = compress("NAME=house.onnx", "--data", "bare.npz", "--json", "--out", "found", "--budget", "30s", recipes=[FUSE])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert json.loads(said.out)["candidates"][0]["failure"] == "does nothing here: there is nothing to fuse"
    assert {path.name for path in (folder / "found").iterdir()} == {"report.html", "report.json"}


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_what_was_accepted(
    folder: Path, compress: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = folder / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    code = compress("house.onnx", "--data", "data.npz", "--batch", "8", "--budget", "3m", recipes=[QUICK, INTERRUPTS])
    said = capsys.readouterr()
    assert (code, "interrupted: this is what was found until then" in said.out) == (130, True), said
    report = read_report(folder / "house-compressed" / "report.json")
    assert (report.interrupted, [one.recipe for one in report.candidates]) == (True, ["clean"])
    assert (folder / "house-compressed" / "house-clean" / "model.onnx").exists()
    assert "Traceback" not in said.err
    assert not list(temporary.iterdir())


def test_the_list_says_what_there_is(compress: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert compress("--list", recipes=[QUICK, TRAINS]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "clean   takes detours out (options: depth, kind)",
        "distil  teaches a smaller one (learns from labels; options: depth, kind; "
        "needs no_such_package: pip install 'dlproxy[compress,train]')",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no model given; try: dlproxy compress"),
        (["house.onnx"], "--data is missing: give examples as an .npz file"),
        (["nosuch.onnx", "--data", "data.npz"], "model file nosuch.onnx does not exist"),
        (["notes.onnx", "--data", "data.npz"], "notes.onnx is not a model that ONNX Runtime"),
        (["house.onnx", "--data", "nosuch.npz"], "nosuch.npz does not exist"),
        (["house.onnx", "--data", "narrow.npz"], "'x' is FP32[700,3], the model takes FP32[-1,16]"),
        (["house.onnx", "--data", "single.npz"], "held-out examples are too few to judge by"),
        (["house.onnx", "--data", "bare.npz", "--metric", "accuracy"], "accuracy needs labels"),
        (
            ["house.onnx", "--data", "data.npz", "--recipes", "quantise"],
            "there is no recipe 'quantise': give some of fuse, clean",
        ),
        (["house.onnx", "--data", "data.npz", "--recipes", "distil"], "distil needs no_such_package: pip install"),
        (["house.onnx", "--data", "data.npz", "--recipes", "fuse", "--all"], "give one of the two"),
        (["house.onnx", "--data", "data.npz", "--max-loss", "all"], "--max-loss all: write a share like 1% or 0.01"),
        (["house.onnx", "--data", "data.npz", "--target", "small"], "--target small: write how many times as quick"),
        (["house.onnx", "--data", "data.npz", "--held-out", "120%"], "--held-out 120% is no share of the examples"),
        (["house.onnx", "--data", "data.npz", "--budget", "1s"], "--budget 1s is out of range: give 10s or more"),
        (
            ["house.onnx", "--data", "data.npz", "--set", "fuse.width=1"],
            "--set fuse.width=1: fuse has no such option; it has none",
        ),
        (["house.onnx", "--data", "data.npz", "--set", "fuze.depth=1"], "there is no recipe 'fuze'"),
        (["house.onnx", "--data", "data.npz", "--set", "clean.depth=1", "--recipes", "fuse"], "clean is not among"),
        (["house.onnx", "--data", "data.npz", "--set", "depth=1"], "write it like prune-channels.ratio=0.3"),
        (["house.onnx", "--data", "data.npz", "--batch", "0"], "--batch 0 is out of range: give 1 or more"),
        (["house.onnx", "--data", "data.npz", "--edge", "--threads", "2"], "--edge means one thread: omit --threads"),
        (["house.onnx", "--data", "data.npz", "--sign", "nosuch.key"], "--sign nosuch.key: No such file"),
        (["house.onnx", "--data", "data.npz", "--sign", "data.npz"], "--sign data.npz: "),
        (["house.onnx", "--data", "data.npz", "--out", "."], "is not empty, and holds no earlier result"),
    ],
)
def test_what_can_be_mended_is_said_in_a_line(
    arguments: list[str], said: str, folder: Path, compress: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compress(*arguments, recipes=[FUSE, QUICK, TRAINS]) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlproxy: ")]
    assert len(complaint) == 1
    assert said in complaint[0]
    assert not (folder / "house-compressed").exists()
