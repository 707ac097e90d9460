"""Fewer layers, of networks that have learnt the digits: which are found, how many stay, what is kept of answers and names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlproxy.compress.recipe import Context, Made, RecipeError, Source

torch = pytest.importorskip("torch", exc_type=ImportError)
pytest.importorskip("sklearn")

from dlproxy.compress.recipes import rows  # noqa: E402 # where there is no torch, this file is skipped
from dlproxy.compress.recipes.torch.blocks import repeated, without  # noqa: E402
from dlproxy.compress.recipes.torch.export import simplified  # noqa: E402
from dlproxy.compress.recipes.torch.layers import prune_layers  # noqa: E402
from tests.compress.recipes.torch.digits import accuracy, answered, digits  # noqa: E402

pytestmark = pytest.mark.extras

Network = Callable[[str], Source]


def make(source: Source, folder: Path, **options: Any) -> Made:
    folder.mkdir(exist_ok=True)
    context = Context(
        folder=folder, training=digits()[0], metric="accuracy", options={"lr": 2e-3, "epochs": 3} | options, seed=3
    )
    made = prune_layers(source, context)
    assert [path.name for path in folder.iterdir()] == [made.path.name]
    return made


def operators(path: Path, *kinds: str) -> int:
    return sum(node.op_type in kinds for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(("name", "kind", "counts"), [("deep", "Softmax", (4, 2)), ("resnet", "Add", (4, 2))])
def test_half_of_the_layers_go(network: Network, tmp_path: Path, name: str, kind: str, counts: tuple[int, int]) -> None:
    source = network(name)
    made = make(source, tmp_path / "made", steps=2)
    before = accuracy(source.onnx)
    assert before > 0.85
    assert accuracy(made.path) >= before - 0.05
    assert (operators(simplified_to(source.onnx, tmp_path), kind), operators(made.path, kind)) == counts
    first, second = (onnx.load(path).graph for path in (source.onnx, made.path))
    assert (list(first.input), list(first.output)) == (list(second.input), list(second.output))
    assert "2 of 4 layers are left" in made.notes[0]


def simplified_to(path: Path, folder: Path) -> Path:
    simple = folder / "simple.onnx"
    onnx.save(simplified(path), simple)
    return simple


def test_the_same_of_the_same_seed(network: Network, tmp_path: Path) -> None:
    first, second = (make(network("deep"), tmp_path / str(turn), epochs=1) for turn in (0, 1))
    assert first.path.read_bytes() == second.path.read_bytes()


def test_products_of_what_is_left_become_int8(network: Network, tmp_path: Path) -> None:
    made = make(network("deep"), tmp_path / "made", epochs=1, keep=0.25)
    context = Context(folder=tmp_path, training=digits()[0], metric="accuracy")
    whole = rows.make(Source(made.path), context)
    assert np.mean(answered(whole.path).argmax(1) == answered(made.path).argmax(1)) > 0.95


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("cnn", {}, "no repeated layers"),
        ("deep", {"keep": 0.99}, "4 layers are repeated in it, and 99% of them are to stay"),
        ("deep", {"keep": 2}, "option keep"),
    ],
)
def test_what_has_none_to_spare_is_refused(
    network: Network, tmp_path: Path, name: str, options: dict[str, Any], why: str
) -> None:
    with pytest.raises(RecipeError, match=why):
        make(network(name), tmp_path / "made", **options)
    assert list((tmp_path / "made").iterdir()) == []


def graph(nodes: str, *, outputs: str = "y") -> onnx.ModelProto:
    """Of parts such as "y = Add x w"; w is a weight that keeps the shape, m a second input."""
    lines = [line.replace("=", "").split() for line in nodes.split(";")]
    made = [helper.make_node(kind, inputs, [name]) for name, kind, *inputs in lines]
    x, m = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6]) for name in "xm")
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 6]) for name in outputs.split()]
    weight = numpy_helper.from_array(np.eye(6, dtype=np.float32), "w")
    return helper.make_model(helper.make_graph(made, "g", [x, m], given, [weight]), opset_imports=[helper.make_opsetid("", 17)])


def block(start: str, end: str) -> str:
    return f"; {end}1 = MatMul {start} w; {end}2 = Mul {end}1 m; {end} = Add {end}2 {start}"


def normed(start: str, end: str) -> str:
    return f"{block(start, end + '3')}; {end} = Relu {end}3"


BLOCKS = "a = Relu x" + block("a", "b") + block("b", "c") + block("c", "d")
FOUND: dict[str, tuple[onnx.ModelProto, list[str]]] = {
    "blocks that a second input goes into": (graph(BLOCKS + "; y = Relu d"), ["ab", "bc", "cd"]),
    "the last gives the answer": (graph(BLOCKS + block("d", "y")), ["ab", "bc", "cd", "dy"]),
    "the shape of one is read": (graph(BLOCKS + "; s = Shape b2; y = Expand d s"), ["ab", "bc", "cd"]),
    "a norm before the first": (graph("n = Sigmoid x; a = Relu n" + normed("a", "b") + normed("b", "y")), ["ab", "by"]),
    "one is read from outside": (graph(BLOCKS + "; y = Mul d d2"), ["ab", "bc"]),
    "all are read from outside": (graph(BLOCKS + "; y1 = Mul d a; y = Mul y1 x"), []),
    "nothing is added": (graph("a = Relu x; b1 = MatMul a w; b = Relu b1; c1 = MatMul b w; y = Relu c1"), []),
    "sums alone": (graph("a = Relu x; b = Add a m; c = Add b m; y = Add c m"), []),
}


@pytest.mark.parametrize("name", FOUND)
def test_repeated_blocks(name: str) -> None:
    """And without the first of them: what read its answer reads what it took, and nothing of it is left."""
    model, expected = FOUND[name]
    onnx.checker.check_model(model, full_check=True)
    found = repeated(model)
    assert [one.start + one.end for one in found] == expected
    for gone in (found[:1], found[-1:], found):
        cut = without(model, gone)
        onnx.checker.check_model(cut, full_check=True)
        removed = sum(node.op_type in ("MatMul", "Add", "Relu") for node in model.graph.node)
        removed -= sum(node.op_type in ("MatMul", "Add", "Relu") for node in cut.graph.node)
        assert removed == len(gone) * (3 if name == "a norm before the first" else 2) or name == "the shape of one is read"
