"""The packaged models: they read uploads that nobody has learnt from as often as their card says."""

import json
from math import sqrt

import numpy as np
import pytest

from dlproxy.lab.casestudy.shop.catalogue import CATEGORIES
from dlproxy.lab.casestudy.shop.examples import Examples, examples
from dlproxy.lab.casestudy.shop.train import MODELS, NAMES, probabilities

FIGURES = json.loads((MODELS / "figures.json").read_text("utf-8"))
FRESH = 250  # uploads
PACKAGED = 8e6  # bytes, of all models at most


@pytest.fixture(scope="module")
def fresh() -> Examples:
    return examples(0, FRESH, seed=77)


def as_said(share: float, said: float) -> bool:
    """Within four deviations of chance, which 1 set of uploads in 16,000 is not."""
    return abs(share - said) < 4 * sqrt(said * (1 - said) / FRESH)


def test_each_is_right_as_often_as_is_said(fresh: Examples) -> None:
    found = {name: probabilities(MODELS / f"{name}.onnx", fresh.image) for name in NAMES}
    found["together"] = np.mean(list(found.values()), axis=0)
    assert set(FIGURES) == {*found, "cascade"}
    for name, each in found.items():
        assert each.shape == (FRESH, len(CATEGORIES))
        np.testing.assert_allclose(each.sum(1), 1, atol=1e-3)
        assert as_said(float((each.argmax(1) == fresh.label).mean()), FIGURES[name]["accuracy"]), name


def test_together_they_make_fewer_errors() -> None:
    right, cascade = {name: figures["accuracy"] for name, figures in FIGURES.items()}, FIGURES["cascade"]
    for alone, together in ((right["classifier"], right["together"]), (cascade["alone"], cascade["accuracy"])):
        assert 1 - together <= 0.92 * (1 - alone)
    assert cascade["asked"] < 0.5


def test_they_are_small_enough_to_come_with_dlproxy() -> None:
    assert sum(path.stat().st_size for path in MODELS.iterdir()) < PACKAGED
