"""Heads on one trunk: each task's answer is served as it was trained, in its own unit, and each loss counts by its weight."""

from typing import Any

import numpy as np
import pytest
from msgspec import convert, structs

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.compress.recipes.torch.training import reproducible  # noqa: E402
from dlproxy.lab.learn.combine import multitask  # noqa: E402
from dlproxy.lab.learn.experiment import LearnError, Place, find  # noqa: E402
from dlproxy.lab.learn.networks import data as sets  # noqa: E402
from tests.lab.learn.making import make  # noqa: E402

pytestmark = pytest.mark.extras

QUICK = {"how": {"epochs": 8, "rate": 0.01}, "examples": 300}
SHOWN = {
    "digits-multitask": {"digit": 0.5, "odd": 0.7, "reconstruction": 0.1},
    "cancer-multitask": {"benign": 0.85, "largest area": 0.5},
}


@pytest.mark.parametrize("name", SHOWN)
async def test_every_head_is_served_as_it_was_trained(name: str, tmp_path: Any) -> None:
    made = make(name, tmp_path, multitask, **QUICK)
    with np.load(tmp_path / "heldout.npz") as kept:
        (takes,) = (key for key in kept if key != "label")
        rows, labels = kept[takes], kept["label"]
    with torch.no_grad():
        expected = made.modules["model.onnx"](torch.from_numpy(rows))
    async with Proxy([Model(tmp_path / "model.onnx")]) as proxy:
        found = await proxy.infer("model", {takes: rows})
    assert list(found) == [task.replace(" ", "_") for task in SHOWN[name]]
    for got, wanted in zip(found.values(), expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-4)
    first = next(iter(found.values()))
    assert float((first.argmax(axis=1) == labels).mean()) == made.run.figures[f"{next(iter(SHOWN[name]))}, together"]
    for task, least in SHOWN[name].items():
        assert made.run.figures[f"{task}, together"] > least, made.run.figures
        assert made.run.figures[f"{task}, alone"] > least, made.run.figures


def test_a_loss_counts_by_its_weight() -> None:
    """A head whose loss counts for nothing stays as it was drawn."""
    one = find("cancer-multitask")
    data, tasks = multitask.TASKS["cancer"](sets.load("cancer"))
    heads = {}
    for name, weight, rate in (("drawn", 1.0, 1e-12), ("without", 1e-9, 0.05), ("with", 1.0, 0.05)):
        how = {"epochs": 2, "rate": rate, "optimiser": "momentum"}  # Adam makes small gradients large
        tried = {"how": how, "tasks": {"benign": 1.0, "largest area": weight}}
        with reproducible(seed=1, threads=1):
            served = multitask.taught(data, np.arange(300), tasks, convert(one.settings | tried, multitask.Settings))
        heads[name] = served.network.heads["largest area"].weight.detach()
    torch.testing.assert_close(heads["without"], heads["drawn"], rtol=0, atol=1e-6)
    assert (heads["with"] - heads["drawn"]).norm() > 0.1


def test_the_measured_column_is_not_seen() -> None:
    data, tasks = multitask.TASKS["cancer"](sets.load("cancer"))
    assert data.inputs.shape == (569, 10)
    assert not any(np.array_equal(column, tasks["largest area"].targets[:, 0]) for column in data.inputs.T)


def test_what_there_is_no_task_for(tmp_path: Any) -> None:
    one = find("digits-multitask")
    with pytest.raises(LearnError, match="there is no task even; there are digit, odd, above four, reconstruction"):
        multitask.train(
            structs.replace(one, settings=one.settings | {"tasks": {"even": 1.0}}),
            Place(folder=tmp_path, seed=1, threads=1, tell=str),
        )
