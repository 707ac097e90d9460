"""What goes on from what was learnt before: which weights move, whose examples are seen, and that it is served as trained."""

from typing import Any

import numpy as np
import pytest
from msgspec import structs

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.compress.recipes.torch.training import reproducible  # noqa: E402
from dlproxy.lab.learn.combine import transfer  # noqa: E402
from dlproxy.lab.learn.experiment import LearnError, Place, find  # noqa: E402
from dlproxy.lab.learn.networks import data as sets  # noqa: E402
from dlproxy.lab.learn.networks.fit import How  # noqa: E402
from tests.lab.learn.making import make  # noqa: E402

pytestmark = pytest.mark.extras

QUICK = {
    "sizes": [6, 8],
    "backbone": {"batch": 32, "epochs": 3, "rate": 0.01},
    "examples": [10],
    "steps": 40,
    "draws": 1,
}


async def test_it_is_served_as_it_was_trained_and_knows_more_than_chance(tmp_path: Any) -> None:
    made = make("digits-transfer", tmp_path, transfer, **QUICK)
    with np.load(tmp_path / "heldout.npz") as kept:
        rows, labels = kept["image"], kept["label"]
    async with Proxy([Model(tmp_path / "model.onnx"), Model(tmp_path / "backbone.onnx")]) as proxy:
        for name in ("model", "backbone"):
            with torch.no_grad():
                expected = made.modules[f"{name}.onnx"](torch.from_numpy(rows)).numpy()
            found = (await proxy.infer(name, {"image": rows}))["probabilities"]
            np.testing.assert_allclose(found, expected, atol=1e-4)
            if name == "model":
                assert float((found.argmax(axis=1) == labels).mean()) == pytest.approx(made.run.figures["tuned, 10"])
    assert made.run.figures["accuracy, known"] > 0.8
    assert all(made.run.figures[f"{way}, 10"] > 0.4 for way in transfer.WAYS)
    assert set(labels.tolist()) == {0, 1, 2, 3, 4}, "5 to 9 are the new classes 0 to 4"


def test_what_is_frozen_stays_and_what_is_tuned_moves() -> None:
    with reproducible(seed=1, threads=1):
        backbone = torch.nn.Sequential(
            torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(3 * 36, 4)
        )
        before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
        rows, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
        after = {
            way: taught(backbone, rows, labels, How(rate=0.1, epochs=3), 2).state_dict()
            for way, taught in transfer.WAYS.items()
            if way != "pixels"
        }
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.state_dict().items()), "the backbone is copied"
    body = [name for name in before if not name.startswith("3.")]
    assert all(torch.equal(after["frozen"][name], before[name]) for name in body)
    assert not torch.equal(after["tuned"]["0.weight"], before["0.weight"])
    near, far = ((after[way]["0.weight"] - before["0.weight"]).norm() for way in ("tuned", "scratch"))
    assert near < far, "from scratch it begins elsewhere"


def test_few_examples_are_so_many_of_each_class_and_of_those_alone() -> None:
    data = transfer.only(sets.load("digits"), [9, 3])
    assert data.classes == 2
    assert set(np.unique(data.targets)) == {0, 1}
    learnt = np.arange(0, len(data), 2)
    with reproducible(seed=1, threads=1):
        places = transfer.few(data, learnt, 7)
    assert np.bincount(data.targets[places]).tolist() == [7, 7]
    assert set(places.tolist()) <= set(learnt.tolist())
    with pytest.raises(LearnError, match="of a class to learn from, and not 1000"):
        transfer.few(data, learnt, 1000)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"known": [1]}, "known has 2 to 8 of the classes 0 to 9"),
        ({"known": [1, 10]}, "known has 2 to 8 of the classes 0 to 9"),
        ({"rates": {"frozen": 0.1}}, "rates has none for tuned, scratch, pixels"),
        ({"rates": {"melted": 0.1}}, "melted"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], message: str, tmp_path: Any) -> None:
    one = find("digits-transfer")
    with pytest.raises(LearnError, match=message):
        transfer.train(
            structs.replace(one, settings=one.settings | changed), Place(folder=tmp_path, seed=1, threads=1, tell=str)
        )
