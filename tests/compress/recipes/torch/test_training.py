"""The trainer on data that a line explains: values, two classes, classes of every step; what it keeps when nothing helps."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlproxy.compress.data import Array, Dataset
from dlproxy.compress.recipe import Context, Source

torch = pytest.importorskip("torch", exc_type=ImportError)
from dlproxy.compress.recipes.torch.modules import Trainable, trainable  # noqa: E402 # where there is no torch, this file is skipped
from dlproxy.compress.recipes.torch.training import Plan, fit, labels_of, loss_on, planned, reproducible  # noqa: E402

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
    with reproducible(seed=context.seed, threads=context.threads):
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


def sums(path: Path, *, masked: bool) -> Path:
    """Of two numbers for each word, those where the mask is 1, or all."""
    nodes = [
        helper.make_node("Gather", ["words", "tokens"], ["g"]),
        helper.make_node("Cast", ["mask"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["f", "last"], ["u"]),
        helper.make_node("Mul" if masked else "Add", ["g", "u"], ["m"]),
        helper.make_node("ReduceSum", ["m", "time"], ["y"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"]) for name in ("tokens", "mask")]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    random = np.random.default_rng(2)
    arrays = {"words": random.standard_normal((9, 2)).astype(np.float32), "last": np.array([2]), "time": np.array([1])}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "g", inputs, [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("masked", [True, False])
def test_padding_is_left_out_where_the_answer_is_the_same_without(masked: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 12, 200)
    mask = (np.arange(16) < lengths[:, None]).astype(np.int64)
    inputs: dict[str, Array] = {"tokens": random.integers(1, 9, mask.shape) * mask, "mask": mask}
    context = Context(folder=tmp_path, training=Dataset(inputs, (lengths > 6).astype(np.int64)), metric="accuracy")
    of = trainable(Source(sums(tmp_path / "sums.onnx", masked=masked)), context.training)
    assert (None if of.lengths is None else of.lengths.tolist()) == (lengths.tolist() if masked else None)
    widths: list[int] = []
    of.module.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    with reproducible(seed=context.seed, threads=context.threads):
        before = loss_on(
            of.module, of, labels_of(context), (plan := Plan(epochs=4, lr=0.05, soft=0, batch=8)), torch.arange(200)
        )
        assert fit(of.module, of, labels_of(context), plan, context) < before / 2
    assert (max(widths), bool(np.mean(widths) < 9)) == ((11, True) if masked else (16, False))
