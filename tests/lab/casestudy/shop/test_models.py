"""The packaged models: they read uploads that nobody has learnt from as often as their card says."""

import json
from math import sqrt
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from dlproxy.lab.casestudy.goods import goods
from dlproxy.lab.casestudy.shop import advertisement
from dlproxy.lab.casestudy.shop.catalogue import CATEGORIES
from dlproxy.lab.casestudy.shop.examples import Examples, examples, pixels
from dlproxy.lab.casestudy.shop.train import MODELS, NAMES, probabilities
from dlproxy.lab.casestudy.steps import as_toml, configuration, possible

ROOT = Path(__file__).parents[4]
FIGURES = json.loads((MODELS / "figures.json").read_text("utf-8"))
FRESH = 250  # uploads
PACKAGED = 9e6  # bytes, of all models at most


@pytest.fixture(scope="module")
def fresh() -> Examples:
    return examples(0, FRESH, seed=77)


def as_said(right: NDArray[np.bool_], said: float) -> bool:
    """Within four deviations of chance, which 1 set of uploads in 16,000 is not."""
    return abs(right.mean() - said) < 4 * sqrt(said * (1 - said) / len(right))


def test_each_is_right_as_often_as_is_said(fresh: Examples) -> None:
    shop = goods()
    found = {name: probabilities(path, fresh.image) for name, path in shop.files.items()}
    assert set(found) == {*NAMES, "compressed"}
    found["together"] = np.mean([found[name] for name in NAMES], axis=0)
    for name, each in found.items():
        assert each.shape == (FRESH, len(CATEGORIES))
        np.testing.assert_allclose(each.sum(1), 1, atol=1e-3)
        assert as_said(each.argmax(1) == fresh.label, shop.accuracy[name]), name


def test_together_they_make_fewer_errors() -> None:
    right, cascade = {name: figures["accuracy"] for name, figures in FIGURES.items()}, FIGURES["cascade"]
    for alone, together in ((right["classifier"], right["together"]), (cascade["alone"], cascade["accuracy"])):
        assert 1 - together <= 0.92 * (1 - alone)
    assert cascade["asked"] < 0.5


def test_they_are_small_enough_to_come_with_dlproxy() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*")) < PACKAGED


def test_advertisements_are_judged_as_often_rightly_as_is_said() -> None:
    said = json.loads(advertisement.FIGURES.read_text("utf-8"))
    fresh = advertisement.advertisements(FRESH, seed=78, held_out=True)
    given = {"image": pixels([one.jpeg for one in fresh]), "words": advertisement.tokens([one.text for one in fresh])}
    session = onnxruntime.InferenceSession(str(advertisement.MODEL), providers=["CPUExecutionProvider"])
    probabilities, matches = session.run(["probabilities", "matches"], given)
    assert as_said(probabilities.argmax(1) == [one.category for one in fresh], said["accuracy, category"])
    assert as_said((matches[:, 0] > 0.5) == [one.matches for one in fresh], said["accuracy, matches"])


def test_the_example_serves_what_the_study_ends_with() -> None:
    whole = as_toml(configuration(possible(goods(), None), goods(), objective_ms=100.0))
    expected = whole.replace(str(MODELS), "../../src/dlproxy/lab/casestudy/shop/models")
    assert (ROOT / "examples" / "promotion" / "dlproxy.toml").read_text("utf-8") == expected
