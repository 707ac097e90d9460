"""Seed after seed: what is written, what is not trained again, what is refused."""

import json
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from msgspec import structs

from dlproxy.lab.learn.experiment import Experiment, LearnError
from dlproxy.lab.learn.train import Result, interval, train
from tests.lab.learn.fakes import Trainer, install

THREE = Experiment(kind="fake", about="learns nothing", seeds=3, settings={"size": 4}, name="mine")


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    return install(monkeypatch)


def trained(folder: Path, experiment: Experiment = THREE) -> tuple[Result, list[str]]:
    told: list[str] = []
    return train(experiment, folder, threads=1, tell=told.append), told


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        ([4.0], 4.0, 0.0),
        ([1.0, 3.0], 2.0, 12.706),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 3.0, 2.776 * (2.5 / 5) ** 0.5),
        ([0.0, 2.0] * 50, 1.0, 2.0 * (100 / 99) ** 0.5 / 10),
    ],
)
def test_the_interval_is_students(values: list[float], mean: float, half: float) -> None:
    assert interval(values) == (pytest.approx(mean), pytest.approx(half))


def test_a_folder_has_the_first_seeds_model_every_figure_and_a_picture(trainer: Trainer, tmp_path: Path) -> None:
    result, told = trained(tmp_path / "new" / "mine")
    assert trainer.seeds == [1, 2, 3]
    assert told == ["seed 1 of 3", "seed 2 of 3", "seed 3 of 3"]
    assert result.figures() == {"accuracy": (2.0, pytest.approx(4.303 / 3**0.5))}
    folder = tmp_path / "new" / "mine"
    assert (folder / "model.onnx").read_text("utf-8") == "of seed 1"
    kept = msgspec.json.decode((folder / "result.json").read_bytes(), type=Result)
    assert kept == result
    assert all(run.seconds > 0.0 for run in kept.runs)
    drawn = ElementTree.parse(folder / "curves.svg")
    assert "loss by epoch, means of 3 seeds" in {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}desc")}


def test_it_goes_on_where_it_was_interrupted(trainer: Trainer, tmp_path: Path) -> None:
    trainer.interrupted_at = 2
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    trainer.interrupted_at = 0
    result, told = trained(tmp_path)
    assert trainer.seeds == [1, 2, 3]
    assert told[0] == "seed 1 of 3: trained before"
    assert [run.seed for run in result.runs] == [1, 2, 3]


def test_more_seeds_are_added_and_fewer_are_those_that_there_are(trainer: Trainer, tmp_path: Path) -> None:
    trained(tmp_path)
    more, _ = trained(tmp_path, structs.replace(THREE, seeds=5))
    assert trainer.seeds == [1, 2, 3, 4, 5]
    fewer, _ = trained(tmp_path, structs.replace(THREE, seeds=2))
    assert trainer.seeds == [1, 2, 3, 4, 5]
    assert (len(more.runs), [run.seed for run in fewer.runs]) == (5, [1, 2])
    assert len(json.loads((tmp_path / "result.json").read_text("utf-8"))["runs"]) == 5


@pytest.mark.parametrize("change", [{"settings": {"size": 5}}, {"kind": "fake", "about": "else"}])
def test_other_settings_are_refused_a_folder_that_has_results(
    change: dict[str, object], trainer: Trainer, tmp_path: Path
) -> None:
    trained(tmp_path)
    with pytest.raises(LearnError, match="of another experiment, or of other settings; remove it, or name another folder"):
        trained(tmp_path, structs.replace(THREE, **change))
    assert trainer.seeds == [1, 2, 3]


def test_a_record_that_is_none_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{", "utf-8")
    with pytest.raises(LearnError, match=r"result\.json cannot be read"):
        trained(tmp_path)
    assert trainer.seeds == []


def test_names_of_curves_have_room_beside_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = install(monkeypatch)
    trainer._curves = lambda seed: {"x" * 25: [1.0, 2.0]}
    trained(tmp_path)
    texts = list(ElementTree.parse(tmp_path / "curves.svg").iter("{http://www.w3.org/2000/svg}text"))
    (name,) = [text for text in texts if text.text == "x" * 25]
    assert float(name.attrib["x"]) + 7 * 25 <= 560


def test_curves_that_ended_early_are_drawn_as_far_as_all_went(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = install(monkeypatch)
    trainer._curves = lambda seed: {"loss": [1.0] * (4 - seed), "none": []}
    trained(tmp_path)
    drawn = (tmp_path / "curves.svg").read_text("utf-8")
    assert "loss by epoch" in drawn
    trainer._curves = lambda seed: {}
    trained(tmp_path / "bare")
    assert not (tmp_path / "bare" / "curves.svg").exists()
