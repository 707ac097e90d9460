"""ONNX graphs read as modules: the same answers as ONNX Runtime's, layers where weights are constants, refusals by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlproxy.compress.recipe import RecipeError

torch = pytest.importorskip("torch", exc_type=ImportError)
from torch import nn  # noqa: E402 # where there is none, this file is skipped

from dlproxy.compress.recipes.torch.export import answers, export  # noqa: E402
from dlproxy.compress.recipes.torch.modules import read  # noqa: E402

pytestmark = pytest.mark.extras

Weights = dict[str, Any]
_random = np.random.default_rng(5)


def weight(*shape: int) -> Any:
    return _random.standard_normal(shape).astype(np.float32) * 0.5


def whole(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, [name.strip("-") for name in inputs.split()], outputs.split(), **attributes)


def model(nodes: Sequence[Any], shape: Sequence[int | str], weights: Weights, opset: int = 17) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(list(nodes), "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


IMAGE, ROW, SERIES = (3, 8, 8), (6,), (5, 6)
CASES: dict[str, tuple[list[Any], tuple[int | str, ...], Weights]] = {
    "gemm": ([node("Gemm", "x w b", transB=1)], ROW, {"w": weight(4, 6), "b": weight(4)}),
    "gemm with a bias of one": ([node("Gemm", "x w b")], ROW, {"w": weight(6, 4), "b": weight(1)}),
    "product and sum": ([node("MatMul", "x w", "h"), node("Add", "b h")], SERIES, {"w": weight(6, 4), "b": weight(4)}),
    "a product that two read": (
        [node("MatMul", "x w", "h"), node("Add", "h b", "s"), node("Mul", "s h")],
        ROW,
        {"w": weight(6, 4), "b": weight(4)},
    ),
    "convolution": (
        [node("Conv", "x w b", strides=[2, 1], pads=[1, 0, 1, 0])],
        IMAGE,
        {"w": weight(4, 3, 3, 3), "b": weight(4)},
    ),
    "convolution, uneven": ([node("Conv", "x w", pads=[0, 1, 2, 0], dilations=[2, 1])], IMAGE, {"w": weight(4, 3, 3, 2)}),
    "convolution, same": ([node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2])], IMAGE, {"w": weight(4, 3, 4, 4)}),
    "depthwise": ([node("Conv", "x w", group=3)], IMAGE, {"w": weight(3, 1, 3, 3)}),
    "convolution of series": ([node("Conv", "x w", pads=[1, 1])], SERIES, {"w": weight(4, 5, 3)}),
    "batch normalisation": (
        [node("BatchNormalization", "x s b m v", epsilon=1e-3)],
        IMAGE,
        {"s": weight(3), "b": weight(3), "m": weight(3), "v": np.abs(weight(3)) + 0.1},
    ),
    "layer normalisation": ([node("LayerNormalization", "x s b", axis=-1)], SERIES, {"s": weight(6), "b": weight(6)}),
    "largest of a window": ([node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])], IMAGE, {}),
    "mean of a window": ([node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], IMAGE, {}),
    "global mean": ([node("GlobalAveragePool", "x", "h"), node("Flatten", "h")], IMAGE, {}),
    "reductions": ([node("ReduceMean", "x", "h", axes=[1], keepdims=0), node("ReduceSum", "h a")], SERIES, {"a": whole(1)}),
    "activations": (
        [node("LeakyRelu", "x", "a", alpha=0.2), node("HardSigmoid", "a", "b"), node("Clip", "b l h", "c"), node("Erf", "c")],
        ROW,
        {"l": np.float32(0.1), "h": np.float32(0.9)},
    ),
    "softmax": ([node("Softmax", "x", axis=1)], SERIES, {}),
    "sizes": (
        [
            node("Shape", "x", "s"),
            node("Gather", "s i", "n"),
            node("Unsqueeze", "n z", "u"),
            node("Mul", "u two", "t"),
            node("Concat", "t r", "c", axis=0),
            node("Reshape", "x c"),
        ],
        SERIES,
        {"i": np.int64(0), "z": whole(0), "two": whole(2), "r": whole(-1)},
    ),
    "a shape that keeps axes": ([node("Reshape", "x s")], IMAGE, {"s": whole(0, 0, -1)}),
    "cuts": (
        [
            node("Slice", "x a b c", "h"),
            node("Transpose", "h", "t", perm=[0, 2, 1]),
            node("Split", "t", "p q", axis=2),
            node("Concat", "q p", axis=2),
        ],
        SERIES,
        {"a": whole(1), "b": whole(2**62), "c": whole(1)},
    ),
    "cut to a size that is open": (
        [node("Shape", "x", "s"), node("Slice", "s one two", "n"), node("Slice", "p zero n one", "h"), node("Add", "x h")],
        ("T", 6),
        {"p": weight(1, 9, 6), "zero": whole(0), "one": whole(1), "two": whole(2)},
    ),
    "unit length": ([node("LpNormalization", "x", axis=1, p=1)], SERIES, {}),
    "one step of a series": ([node("Gather", "x i", axis=1)], SERIES, {"i": np.int64(-1)}),
    "lstm": (
        [
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("LSTM", "t w r b", "s h c", hidden_size=4, direction="bidirectional"),
            node("Concat", "h c", axis=0),
        ],
        SERIES,
        {"w": weight(2, 16, 6), "r": weight(2, 16, 4), "b": weight(2, 32)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_as_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    made = model(*CASES[name])
    onnx.save(made, tmp_path / "m.onnx")
    module = read(made).module
    for rows in (1, 4):
        shape = (size if isinstance(size, int) else 4 + rows for size in CASES[name][1])
        x = torch.from_numpy(_random.standard_normal((rows, *shape)).astype(np.float32))
        with torch.no_grad():
            np.testing.assert_allclose(module(x).numpy(), answers(tmp_path / "m.onnx", {"x": x})[0], rtol=1e-4, atol=1e-5)


def test_constants_become_layers_that_can_be_trained() -> None:
    found = read(model(*CASES["product and sum"]))
    (layer,) = (one for one in found.module.modules() if isinstance(one, nn.Linear))
    assert (layer.in_features, layer.out_features, layer.bias.shape) == (6, 4, (4,))
    origins = {name: (one.initializer, one.transposed) for name, one in found.origins.items()}
    assert sorted(origins.values()) == [("b", False), ("w", True)]
    assert set(origins) == {name for name, _ in found.module.named_parameters()}


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.layer = nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(16, 3)

    def forward(self, tokens: Any) -> Any:
        return self.out(self.layer(self.words(tokens))[0].mean(1))


def test_reads_what_torch_writes(tmp_path: Path) -> None:
    """Two LSTM layers over each other whose states start as zeros in the size of the batch."""
    module = _Encoder().eval()
    tokens = torch.arange(30).reshape(6, 5) % 20
    export(module, tmp_path / "m.onnx", [tokens], inputs=["tokens"], outputs=["y"])
    with torch.no_grad():
        again = read(onnx.load(tmp_path / "m.onnx")).module(tokens)
        np.testing.assert_allclose(again.numpy(), module(tokens).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "weights", "words"),
    [
        ([node("Mish", "x")], {}, "operator Mish cannot be read"),
        ([helper.make_node("Thing", ["x"], ["y"], domain="my.ops")], {}, "operator my.ops.Thing cannot be read"),
        ([node("Gemm", "x w", alpha=2.0)], {"w": weight(6, 4)}, "operator Gemm with a factor"),
        ([node("Cast", "x", "i", to=7), node("Slice", "x i i")], {}, "places that are computed"),
        ([node("Slice", "x a b c d")], {"a": whole(-1), "b": whole(-9), "c": whole(1), "d": whole(-1)}, "a negative step"),
    ],
)
def test_what_cannot_be_read_is_named(nodes: list[Any], weights: Weights, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read(model(nodes, ROW, weights, opset=18 if nodes[0].op_type == "Mish" else 17))
