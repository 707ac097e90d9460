"""An ensemble as it leaves: its members and the three ways of combining them, served, are what a calculation by hand says."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from msgspec import structs

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.lab.learn.combine import ensemble  # noqa: E402
from dlproxy.lab.learn.experiment import LearnError, Place, find  # noqa: E402
from tests.clients.server import ServerProcess  # noqa: E402
from tests.lab.learn.making import Made, answered, body, make  # noqa: E402

pytestmark = pytest.mark.extras

QUICK = {"batch": 16, "epochs": 4, "rate": 0.01}
MEMBERS = {
    "small": {"network": "cnn", "sizes": [4, 4], **QUICK},
    "flat": {"network": "mlp", "sizes": [16], **QUICK},
    "tall": {"network": "mlp", "sizes": [16, 16], **QUICK},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("ensemble")
    return make("digits-ensemble", folder, ensemble, members=MEMBERS, alone=MEMBERS["flat"], examples=400)


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[ServerProcess]:
    with ServerProcess("--config", made.folder / "dlproxy.toml") as process:
        yield process


async def test_the_ways_served_are_those_by_hand(made: Made, server: ServerProcess) -> None:
    with np.load(made.folder / "heldout.npz") as kept:
        rows, labels = kept["image"][:100], kept["label"]
    with torch.no_grad():
        each = [made.modules[f"{name}.onnx"](torch.from_numpy(rows)).numpy() for name in MEMBERS]
    served = {
        name: answered(server.ask(f"/v2/models/{name}/infer", body("image", rows)))
        for name in (*MEMBERS, "average", "vote", "stack")
    }
    for name, expected in zip(MEMBERS, each, strict=True):
        np.testing.assert_allclose(served[name]["probabilities"], expected, atol=1e-4)
    mean = sum(each) / len(each)
    np.testing.assert_allclose(served["average"]["probabilities"], mean, atol=1e-4)
    np.testing.assert_allclose(served["stack"]["probabilities"], _stacked(made, each), atol=1e-4)
    for row, voted in enumerate(served["vote"]["class"].tolist()):
        ballots = [int(one[row].argmax()) for one in each]
        best = max(range(10), key=lambda label: (ballots.count(label), mean[row, label]))
        assert voted == best
        assert served["vote"]["votes"][row, voted] == pytest.approx(ballots.count(voted) / len(ballots), abs=1e-4)
    async with Proxy([Model(made.folder / "model.onnx")]) as proxy:
        found = (await proxy.infer("model", {"image": rows}))["probabilities"]
        np.testing.assert_allclose(found, mean, atol=1e-4)
    assert len(labels) == 360


def _stacked(made: Made, each: list[Any]) -> Any:
    with np.load(made.folder / "head.npz") as head:
        assert head["names"].tolist() == list(MEMBERS)
        logits = (np.hstack(each) - head["means"]) @ head["weights"] + head["bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_what_was_measured_is_what_leaves(made: Made) -> None:
    """And members that have learnt a little are right more often together."""
    with np.load(made.folder / "heldout.npz") as kept:
        rows, labels = torch.from_numpy(kept["image"]), kept["label"]
    with torch.no_grad():
        each = [made.modules[f"{name}.onnx"](rows).numpy() for name in MEMBERS]
    figures = made.run.figures
    right = [float((one.argmax(axis=1) == labels).mean()) for one in each]
    assert figures["accuracy, mean member"] == pytest.approx(np.mean(right))
    assert figures["accuracy, average"] == float((sum(each).argmax(axis=1) == labels).mean())
    assert figures["accuracy, stack"] == float((_stacked(made, each).argmax(axis=1) == labels).mean())
    assert figures["accuracy, average"] > figures["accuracy, mean member"] > 0.5


def test_one_network_is_no_ensemble(tmp_path: Any) -> None:
    alone = find("digits-ensemble")
    alone = structs.replace(alone, settings=alone.settings | {"members": {"small": MEMBERS["small"]}})
    with pytest.raises(LearnError, match="an ensemble has two members or more"):
        ensemble.train(alone, Place(folder=tmp_path, seed=1, threads=1, tell=lambda _text: None))
