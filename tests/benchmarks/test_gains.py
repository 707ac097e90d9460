"""A gain is of the seeds' own differences, and none where its interval reaches 0; what was trained is not trained again."""

from pathlib import Path

import pytest

from benchmarks.learn.gains import gain, share, trained, value
from dlproxy.lab.learn import experiment
from dlproxy.lab.learn.experiment import Run
from tests.lab.learn import fakes


def _runs(*pairs: tuple[float, float]) -> list[Run]:
    return [Run(seed=seed, figures={"a": first, "b": second}) for seed, (first, second) in enumerate(pairs, 1)]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (((0.90, 0.80), (0.70, 0.59), (0.80, 0.71)), "**+10.0 ± 2.5**"),
        (((0.80, 0.90), (0.59, 0.70), (0.71, 0.80)), "**-10.0 ± 2.5**"),
        (((0.90, 0.80), (0.70, 0.75), (0.80, 0.78)), "none (+2.3 ± 18.6)"),
        (((0.5, 0.5), (0.6, 0.6)), "none (+0.0 ± 0.0)"),
    ],
)
def test_gains_are_paired(pairs: tuple[tuple[float, float], ...], said: str) -> None:
    """By hand: the differences 10, 11 and 9 have the deviation 1, and 4.303 / sqrt(3) is 2.48."""
    assert gain(_runs(*pairs), "a", "b") == said


def test_shares_and_values() -> None:
    runs = _runs((0.90, 1.0), (0.92, 1.0), (0.88, 1.0))
    assert share(runs, "a") == "90.0 ± 5.0"
    assert value(runs, "b") == "1.000 ± 0.000"


def test_other_settings_are_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fakes.install(monkeypatch)
    fakes.written(tmp_path)
    monkeypatch.setattr(experiment, "OURS", tmp_path)
    for changed in ({}, {"size": 4}, {"size": 5}, {"size": 5}):
        trained("mine", tmp_path / "kept", 2, **changed)
    assert trainer.seeds == [1, 2, 1, 2]
