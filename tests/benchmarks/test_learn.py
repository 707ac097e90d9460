"""The benchmark of learnt networks, with next to nothing learnt: its pages hold what was measured, beside what is simpler."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec import structs

pytest.importorskip("torch")
pytest.importorskip("sklearn")

from benchmarks.learn import networks
from benchmarks.learn.__main__ import main
from benchmarks.learn.baselines import baseline, figure
from dlproxy.lab.learn.experiment import Experiment
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.training import Settings

pytestmark = pytest.mark.extras
LITTLE = {"epochs": 1, "examples": 100}
WINE = Experiment(
    kind="network", about="wine", settings={"data": "wine", "network": "mlp", "folds": 2, "epochs": 2}, name="wine-mlp"
)


def test_a_page_has_every_part_and_a_picture_of_each_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "PICTURES", tmp_path / "curves")
    monkeypatch.setattr("benchmarks.learn.__main__.HERE", tmp_path)
    monkeypatch.setattr(networks, "ours", lambda: iter([WINE]))
    for name in ("PASSES", "FEW", "VALUES", "IMAGES", "SERIES"):
        small = LITTLE if name in ("FEW", "VALUES", "PASSES") else LITTLE | {"sizes": (4,)}
        monkeypatch.setattr(networks, name, structs.replace(getattr(networks, name), **small))
    few: dict[str, Any] = {name: (way, rates[:2]) for name, (way, rates) in networks.RATES.items() if way["batch"] != 1}
    monkeypatch.setattr(networks, "RATES", few)
    monkeypatch.setattr(
        networks, "STRENGTHS", {"none": ({},), "L2": ({"l2": 0.1}, {"l2": 0.2}), "dropout": ({"dropout": 0.1},)}
    )
    monkeypatch.setattr(networks, "EACH", {"shift": 0.5, "zoom": 0.1})
    assert main(["--only", "networks", "--seeds", "2", "--folder", str(tmp_path / "learnt"), "--write"]) == 0
    page = (tmp_path / "NETWORKS.md").read_text("utf-8")
    assert page in capsys.readouterr().out
    for part in ("Networks", "Optimisers", "Regularisers", "Augmentation of images", "Augmentation of telemetry"):
        assert f"## {part}" in page
    assert "| wine-mlp, accuracy | all 178, 2 folds |" in page
    assert "| logistic regression | " in page
    for picture in ("wine-mlp", "optimisers"):
        assert f"(curves/{picture}.svg)" in page
        assert ElementTree.parse(tmp_path / "curves" / f"{picture}.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("settings", "name", "least"),
    [
        (Settings(data="digits", network="cnn"), "support vectors (radial basis)", 0.97),
        (Settings(data="digits", network="autoencoder", sizes=(8,)), "8 principal components", 0.6),
        (Settings(data="wine", network="mlp", folds=3), "logistic regression", 0.9),
        (Settings(data="diabetes", network="mlp"), "ridge regression", 0.3),
        (Settings(data="loads", network="lstm"), "a random forest on scatter and autocorrelation", 0.6),
    ],
)
def test_what_has_to_be_beaten_is_no_straw_man(settings: Settings, name: str, least: float) -> None:
    data = sets.load(settings.data)
    what, method = baseline(data, settings)
    assert what == name
    assert figure(data, settings, method, 1) > least
