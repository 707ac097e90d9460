"""`dlproxy split` as one runs it: what it prints and writes, and its exit codes."""

from pathlib import Path

import pytest

from dlproxy.cli import main
from dlproxy.compress.split.handing import Handing
from dlproxy.config import load
from tests.compress.split import networks, timed


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model."""
    networks.save(networks.chain(4, 64), tmp_path, "net")
    monkeypatch.chdir(tmp_path)
    timed.use(monkeypatch, Handing(0.0, 0.0))
    return tmp_path


def test_parts_are_written_with_a_configuration_that_serves_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["split", "net.onnx", "--stages", "2", "--batch", "4"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "2.00 times as quick as one process on one core" in said.out
    assert "answers equal the model's in 12 batches: they differ by 0.0e+00" in said.out
    assert "written: net-split   (dlproxy serve --config net-split/dlproxy.toml)" in said.out
    config = load(folder / "net-split" / "dlproxy.toml")
    assert list(config.models) == ["net-stage1", "net-stage2", "net"]
    pipeline = config.models["net"][0]
    assert pipeline.part_rows == 4
    assert pipeline.steps["stage2"].inputs == {"cut0": "stage1.cut0"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert main(["split", "net.onnx", "--stages", "2"]) == 2
    assert "net-split is there already" in capsys.readouterr().err


def test_shares_are_steps_of_a_pipeline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", "net.v1=net.onnx", "--tensor-parts", "2", "--out", "here"]) == 0, capsys.readouterr().err
    config = load(folder / "here" / "dlproxy.toml")
    steps = config.models["net.v1"][0].steps
    assert {"stage1_1_share1", "stage1_1_share2", "stage1_2"} <= steps.keys()
    assert steps["stage1_2"].inputs == {"cut0": "stage1_1_share1.cut0", "cut1": "stage1_1_share2.cut1"}


def test_fewer_bits_are_said_with_what_they_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", "net.onnx", "--stages", "2", "--transfer", "int8", "--max-error", "0.05"]) == 0
    said = capsys.readouterr().out
    assert "answers, with int8 between stages, differ by " in said
    assert "0.05 is allowed" in said
    steps = load(Path("net-split") / "dlproxy.toml").models["net"][0].steps
    assert steps["stage2"].inputs == {"cut0": "stage1.cut0", "cut0_scale": "stage1.cut0_scale"}


def test_replicas_alone_are_a_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", "net.onnx", "--cores", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("chosen") == 1
    model = load(folder / "net-split" / "dlproxy.toml").models["net"][0]
    assert (model.run, model.instances, Path(model.path).resolve()) == ("process", 2, folder / "net.onnx")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "say how to cut"),
        (("--stages", "1"), "give 2 or more"),
        (("--stages", "-1"), "--stages -1 is out of range"),
        (("--stages", "2", "--batch", "0"), "--batch 0 is out of range"),
        (("--stages", "2", "--transfer", "fp16"), "--transfer and --max-error go together"),
        (("--stages", "2", "--max-error", "0.1"), "--transfer and --max-error go together"),
        (("--stages", "2", "--transfer", "fp16", "--max-error", "2"), "--max-error 2 is out of range"),
        (("--stages", "2", "--target", "size=1MB"), "parts are no smaller"),
        (("--stages", "2", "--data", "none.npz"), "none.npz does not exist"),
        (("--stages", "99"), "--stages 99 is out of range: give 1 to 64"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", "net.onnx", *arguments]) == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("name", "content"), [("none.onnx", None), ("junk.onnx", b"junk"), ("text.onnx", b"")])
def test_what_is_no_model_is_refused(
    name: str, content: bytes | None, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    assert main(["split", name, "--stages", "2"]) == 2
    assert name in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / f"{Path(name).stem}-split").exists()


def test_interrupted_nothing_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlproxy.compress.split.search.seconds_of", interrupted)
    assert main(["split", "net.onnx", "--stages", "2"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["net.onnx"]
