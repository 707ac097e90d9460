"""Adversarial training on a small budget: it is served as it was trained, and attacks harm it less than the plain one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.lab.learn.robust import hardened  # noqa: E402
from tests.lab.learn.making import Made, make  # noqa: E402

pytestmark = pytest.mark.extras

HOW = {"batch": 32, "epochs": 8, "rate": 0.01}
QUICK = {"network": "mlp", "sizes": [32], "how": HOW, "hardened": HOW, "epsilons": [2.0], "examples": 300, "restarts": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("digits-robust", tmp_path_factory.mktemp("robust"), hardened, **QUICK)


async def test_both_are_served_as_they_were_trained(made: Made) -> None:
    with np.load(made.folder / "heldout.npz") as kept:
        rows, labels = kept["image"], kept["label"]
    async with Proxy([Model(made.folder / "model.onnx"), Model(made.folder / "plain.onnx")]) as proxy:
        for name, network in (("model", "hardened"), ("plain", "plain")):
            found = (await proxy.infer(name, {"image": rows}))["probabilities"]
            with torch.no_grad():
                expected = made.modules[f"{name}.onnx"](torch.from_numpy(rows)).numpy()
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert float((found.argmax(axis=1) == labels).mean()) == pytest.approx(made.run.figures[f"{network}, clean"])


def test_attacks_harm_it_less(made: Made) -> None:
    figures = made.run.figures
    assert min(figures["plain, clean"], figures["hardened, clean"]) > 0.8
    assert figures["hardened, pgd 2"] > figures["plain, pgd 2"] + 0.1
    for network in ("plain", "hardened"):
        left = [figures[f"{network}, {what}"] for what in ("noise 2", "fgsm 2", "pgd 2", "pgd 16")]
        assert left == sorted(left, reverse=True), "the stronger the attack, the less is right"
        assert figures[f"{network}, transfer 2"] >= figures[f"{network}, pgd 2"]
        assert left[-1] < 0.05
