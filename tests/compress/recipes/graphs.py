"""Small models of the kinds that recipes are for, with data that suits them. Weights are random and always the same."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from dlproxy.compress.data import Array, Dataset
from dlproxy.compress.recipe import Context, Source
from dlproxy.message import DType
from tests.models import Dims, Model, constant, save, value
from tests.models import model as model_of

EXAMPLES, WIDTH = 64, 64
HEADS, TOKENS, WORDS = 4, 8, 100


class Layers:
    """Nodes one after the other; `weight` makes constants of random numbers that keep the size of what goes through."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def weight(self, *sizes: int) -> str:
        return self.put(self.random.standard_normal(sizes) / np.sqrt(sizes[0] if len(sizes) < 3 else np.prod(sizes[1:])))

    def put(self, array: object) -> str:
        array = np.asarray(array)
        name = f"c{len(self.constants)}"
        self.constants.append(constant(name, array.astype(np.float32) if array.dtype == np.float64 else array))
        return name

    def add(self, op: str, inputs: Sequence[str], output: str = "", **attributes: object) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))  # type: ignore[arg-type]
        return name

    def linear(self, x: str, inner: int, outer: int) -> str:
        return self.add("Add", [self.add("MatMul", [x, self.weight(inner, outer)]), self.weight(outer)])

    def model(self, inputs: dict[str, tuple[DType, Dims]], output: str, dims: Dims) -> Model:
        self.add("Identity", [output], "y")
        takes = [value(name, dtype, sizes) for name, (dtype, sizes) in inputs.items()]
        made = model_of(self.nodes, takes, [value("y", DType.FP32, dims)], self.constants)
        onnx.checker.check_model(made)
        return made


def rows_of_floats(*sizes: int) -> Array:
    return np.random.default_rng(1).standard_normal((EXAMPLES, *sizes)).astype(np.float32)


def mlp(outlier: float = 0.0) -> tuple[Model, Dataset]:
    """Three layers; Gemm and MatMul. `outlier`: of the second layer's input, one channel that nothing hears is so large."""
    layers = Layers()
    transposed = [layers.weight(WIDTH, WIDTH), layers.weight(WIDTH)]
    x = layers.add("Relu", [layers.add("Gemm", ["x", *transposed], transB=1)])
    if outlier:
        loud, deaf = np.zeros(WIDTH), layers.random.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
        loud[3], deaf[3] = outlier, 0
        x = layers.add("MatMul", [layers.add("Add", [x, layers.put(loud)]), layers.put(deaf)])
    x = layers.add("Relu", [layers.linear(x, WIDTH, WIDTH)])
    x = layers.linear(x, WIDTH, 10)
    return layers.model({"x": (DType.FP32, ("N", WIDTH))}, x, ("N", 10)), Dataset({"x": rows_of_floats(WIDTH)})


def cnn() -> tuple[Model, Dataset]:
    """Two convolutions with a normalisation to fold, a shortcut, a pool and a product."""
    layers = Layers()
    x = layers.add("Conv", ["x", layers.weight(8, 3, 3, 3), layers.weight(8)], pads=[1] * 4)
    statistics = [layers.put(np.full(8, number)) for number in (1.5, 0.1, 0.0, 2.0)]
    x = layers.add("Relu", [layers.add("BatchNormalization", [x, *statistics])])
    again = layers.add("Conv", [x, layers.weight(8, 8, 3, 3)], pads=[1] * 4)
    x = layers.add("Relu", [layers.add("Add", [x, again])])
    x = layers.add("Flatten", [layers.add("GlobalAveragePool", [x])])
    x = layers.add("Gemm", [x, layers.weight(8, 130), layers.weight(130)])
    return layers.model({"x": (DType.FP32, ("N", 3, 8, 8))}, x, ("N", 130)), Dataset({"x": rows_of_floats(3, 8, 8)})


def lstm() -> tuple[Model, Dataset]:
    """Time after rows at the edge, before them inside."""
    layers = Layers()
    x = layers.add("Transpose", ["x"], perm=[1, 0, 2])
    weights = [layers.put(layers.random.uniform(-0.2, 0.2, (1, 4 * WIDTH, size))) for size in (16, WIDTH)]
    layers.nodes.append(helper.make_node("LSTM", [x, *weights], ["", "last"], hidden_size=WIDTH))
    last = layers.add("Squeeze", ["last", layers.put(np.array([0]))])
    x = layers.linear(last, WIDTH, 20)
    return layers.model({"x": (DType.FP32, ("N", "T", 16))}, x, ("N", 20)), Dataset({"x": rows_of_floats(5, 16)})


def attention() -> tuple[Model, Dataset]:
    """A block of BERT with its embedding and mask, as exporters write it."""
    layers, size = Layers(), WIDTH // HEADS
    axes = [layers.put(np.array([axis])) for axis in (1, 2)]
    mask = layers.add("Unsqueeze", [layers.add("Unsqueeze", ["mask", axes[0]]), axes[1]])
    unseen = layers.add("Sub", [layers.put(np.float32(1)), layers.add("Cast", [mask], to=onnx.TensorProto.FLOAT)])
    bias = layers.add("Mul", [unseen, layers.put(np.float32(-1e4))])
    x = _norm(layers, layers.add("Gather", [layers.weight(WORDS, WIDTH), "ids"]))
    split, joined = layers.put(np.array([0, 0, HEADS, size])), layers.put(np.array([0, 0, WIDTH]))
    query, key, values = (
        layers.add("Transpose", [layers.add("Reshape", [layers.linear(x, WIDTH, WIDTH), split])], perm=order)
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scores = layers.add("Div", [layers.add("MatMul", [query, key]), layers.put(np.float32(size**0.5))])
    shares = layers.add("Softmax", [layers.add("Add", [scores, bias])], axis=-1)
    mixed = layers.add("Transpose", [layers.add("MatMul", [shares, values])], perm=[0, 2, 1, 3])
    attended = layers.linear(layers.add("Reshape", [mixed, joined]), WIDTH, WIDTH)
    x = _norm(layers, layers.add("Add", [attended, x]))
    sizes = ("N", "T")
    made = layers.model({"ids": (DType.INT64, sizes), "mask": (DType.INT64, sizes)}, x, (*sizes, WIDTH))
    random = np.random.default_rng(1)
    lengths = random.integers(2, TOKENS + 1, EXAMPLES)
    ids = random.integers(0, WORDS, (EXAMPLES, TOKENS))
    return made, Dataset({"ids": ids, "mask": (np.arange(TOKENS) < lengths[:, None]).astype(np.int64)})


def _norm(layers: Layers, x: str) -> str:
    return layers.add("LayerNormalization", [x, layers.put(np.ones(WIDTH)), layers.put(np.zeros(WIDTH))], axis=-1)


KINDS: dict[str, Callable[[], tuple[Model, Dataset]]] = {"mlp": mlp, "cnn": cnn, "lstm": lstm, "attention": attention}


def at(made: Model, data: Dataset, folder: Path, **options: object) -> tuple[Source, Context]:
    """The model's file, and a folder beside it to work in."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    return Source(save(made, folder / "model.onnx")), Context(folder=work, training=data, metric="", options=options)
