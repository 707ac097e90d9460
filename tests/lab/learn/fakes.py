"""A kind of experiment that learns nothing, and says what it was asked: for tests of the frame, without torch."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, ModuleType

import pytest

from dlproxy.lab.learn import experiment as experiments
from dlproxy.lab.learn import train as training
from dlproxy.lab.learn.experiment import Experiment, Kind, Place, Run

WRITTEN = """kind = "fake"
about = "learns nothing"
seeds = 3

[settings]
size = 4
"""


class Trainer:
    """Each seed's figure is the seed; it is interrupted at `interrupted_at`."""

    def __init__(self, curves: Callable[[int], dict[str, list[float]]], *, interrupted_at: int = 0) -> None:
        self.seeds: list[int] = []
        self.interrupted_at = interrupted_at
        self._curves = curves

    def train(self, experiment: Experiment, place: Place) -> Run:
        if place.seed == self.interrupted_at:
            raise KeyboardInterrupt
        self.seeds.append(place.seed)
        (place.folder / "model.onnx").write_text(f"of seed {place.seed}", "utf-8")
        return Run(seed=place.seed, figures={"accuracy": float(place.seed)}, curves=self._curves(place.seed))


def install(monkeypatch: pytest.MonkeyPatch, *, needs: tuple[str, ...] = ()) -> Trainer:
    """Its kind is the only one."""
    trainer = Trainer(lambda seed: {"loss": [2.0, 1.0, float(seed)]})
    module = ModuleType("dlproxy.lab.learn.fake")
    module.train = trainer.train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kinds = MappingProxyType({"fake": Kind("nothing", "fake:train", needs)})
    monkeypatch.setattr(experiments, "KINDS", kinds)
    monkeypatch.setattr(training, "KINDS", kinds)
    return trainer


def written(folder: Path, text: str = WRITTEN) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return path
