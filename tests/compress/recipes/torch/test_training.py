"""The trainer on data that a line explains: values, two classes, classes of every step; what it keeps when nothing helps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.compress.data import Dataset
from dlproxy.compress.recipe import Context

torch = pytest.importorskip("torch", exc_type=ImportError)
from dlproxy.compress.recipes.torch.modules import Trainable  # noqa: E402 # where there is no torch, this file is skipped
from dlproxy.compress.recipes.torch.training import Plan, fit, labels_of, planned, reproducible  # noqa: E402

pytestmark = pytest.mark.extras

X = np.random.default_rng(0).standard_normal((256, 5, 4)).astype(np.float32)
SUMS = X[:, 0].sum(1)
CASES = {
    "values": (lambda: torch.nn.Linear(4, 1), X[:, 0], SUMS),
    "two classes, scores": (lambda: torch.nn.Linear(4, 1), X[:, 0], SUMS > 0),
    "two classes, probabilities": (
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Sigmoid()),
        X[:, 0],
        (SUMS > 0).astype(np.uint8),
    ),
    "a class of every step": (lambda: torch.nn.Linear(4, 2), X, (X.sum(2) > 0).astype(np.int32)),
}


def taught(name: str, folder: Path, plan: Plan) -> tuple[Any, Trainable, float]:
    make, inputs, labels = CASES[name]
    context = Context(folder=folder, training=Dataset({"x": inputs}, labels), metric="")
    with reproducible(context):
        module = make()
        tensors = [torch.from_numpy(inputs)]
        of = Trainable(module, ["x"], ["y"], tensors, module(*tensors).detach())
        return module, of, fit(module, of, labels_of(context), plan, context)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", CASES)
def test_it_learns(name: str, optimizer: str, tmp_path: Path) -> None:
    module, of, loss = taught(name, tmp_path, Plan(epochs=12, lr=0.1, optimizer=optimizer, soft=0))
    assert loss < 0.2
    wanted = CASES[name][2]
    with torch.no_grad():
        got = module(*of.tensors).numpy()
    if name == "values":
        np.testing.assert_allclose(got[:, 0], wanted, atol=0.1)
    else:
        said = got.argmax(-1) if got.shape[-1] > 1 else got[:, 0] > (0.5 if "probabilities" in name else 0)
        assert np.mean(said == wanted) > 0.95


def test_the_originals_answers_alone_change_nothing(tmp_path: Path) -> None:
    """They are those of the module itself: the loss is none at the start, and what is best stays."""
    module, of, loss = taught("values", tmp_path, Plan(epochs=3, lr=0.1, soft=1))
    assert loss == 0
    with torch.no_grad():
        assert torch.equal(module(*of.tensors), of.answers)


def test_options_over_a_recipes_own(tmp_path: Path) -> None:
    context = Context(folder=tmp_path, training=Dataset({}), metric="", options={"epochs": 7, "soft": 0, "batch": 16})
    assert planned(context, epochs=3, lr=0.01) == Plan(epochs=7, lr=0.01, batch=16, soft=0)
