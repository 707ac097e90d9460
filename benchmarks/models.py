"""The ONNX models that the benchmarks serve: tiny ones that show the proxy's own cost, and slow ones that hide it.

Weights are random with a fixed seed and scaled to keep activations near one, so no run is slowed down by denormals.
"""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
MLP_WIDTHS = (784, 256, 128, 10)
SLOW_IMAGE_SIDE = 32
SLOW_CHANNELS = 256
SLOW_CONVOLUTIONS = 4
CNN_IMAGE_SIDE = 28
CNN_CHANNELS = (1, 16, 32)
CLASSES = 10
RESNET_IMAGE_SIDE = 224
RESNET_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width and bottleneck blocks: ResNet-50's
RESNET_EXPANSION = 4
RESNET_CLASSES = 1000
SMALL_RESNET_IMAGE_SIDE = 64
SMALL_RESNET_STAGES = ((16, 1), (32, 1), (64, 1))
TOKENS, TOKEN_WIDTH, TRANSFORMER_LAYERS = 32, 128, 2
LARGE_TOKEN_WIDTH, LARGE_TRANSFORMER_LAYERS = 512, 24
RESNET_BRANCH_GAIN = 0.3  # how much each block adds to what passes it by: small enough that 16 of them do not blow up


def _save(path: Path, nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], sizes: tuple[list[int], int]) -> Path:
    input_sizes, output_size = sizes
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *input_sizes])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", output_size])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def build_mlp(path: Path, widths: Sequence[int] = MLP_WIDTHS) -> Path:
    """Fully connected layers: these three take some 25 microseconds an item, so a server's own work dominates."""
    random = np.random.default_rng(784)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    previous = "input"
    last = len(widths) - 2
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        matrix = random.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"weight{layer}"))
        weights.append(numpy_helper.from_array(np.zeros(fan_out, np.float32), f"bias{layer}"))
        result = "output" if layer == last else f"dense{layer}"
        nodes.append(helper.make_node("Gemm", [previous, f"weight{layer}", f"bias{layer}"], [result]))
        if layer != last:
            nodes.append(helper.make_node("Relu", [result], [f"relu{layer}"]))
            previous = f"relu{layer}"
    return _save(path, nodes, weights, ([widths[0]], widths[-1]))


def build_slow(path: Path) -> Path:
    """A stack of wide convolutions over a 4 KiB image: tens of milliseconds an item, and no cheaper in a batch."""
    random = np.random.default_rng(256)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    previous, channels = "input", 1
    for layer in range(SLOW_CONVOLUTIONS):
        kernel = random.normal(0, np.sqrt(2 / (channels * 9)), (SLOW_CHANNELS, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"kernel{layer}"))
        nodes.append(helper.make_node("Conv", [previous, f"kernel{layer}"], [f"conv{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        previous, channels = f"relu{layer}", SLOW_CHANNELS
    nodes.append(helper.make_node("GlobalAveragePool", [previous], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["output"]))
    return _save(path, nodes, weights, ([1, SLOW_IMAGE_SIDE, SLOW_IMAGE_SIDE], SLOW_CHANNELS))


def build_cnn(path: Path) -> Path:
    """Two convolutions with pooling and a dense layer, as tutorials use for MNIST: some 50 microseconds an item."""
    network = _Network(np.random.default_rng(28))
    for channels in CNN_CHANNELS[1:]:
        network.convolution(channels, kernel=3)
        network.add("Relu")
        network.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    network.add("Flatten")
    side = CNN_IMAGE_SIDE // 2 ** (len(CNN_CHANNELS) - 1)
    network.dense(CNN_CHANNELS[-1] * side * side, CLASSES)
    return network.save(path, [CNN_CHANNELS[0], CNN_IMAGE_SIDE, CNN_IMAGE_SIDE], CLASSES)


def build_resnet50(path: Path) -> Path:
    """ResNet-50's layers and sizes (batch norm folded, 100 MB of weights): 60 to 80 milliseconds an item on one thread."""
    return _build_resnet(path, RESNET_STAGES, RESNET_IMAGE_SIDE, 64)


def build_small_resnet(path: Path) -> Path:
    """The same blocks, one for each of three widths, over a small image: about a millisecond an item."""
    return _build_resnet(path, SMALL_RESNET_STAGES, SMALL_RESNET_IMAGE_SIDE, 16)


def _build_resnet(path: Path, stages: Sequence[tuple[int, int]], side: int, first_width: int) -> Path:
    network = _Network(np.random.default_rng(50), channels=3)
    network.convolution(first_width, kernel=7, stride=2)
    network.add("Relu")
    network.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, (width, blocks) in enumerate(stages):
        for block in range(blocks):
            network.bottleneck(width, stride=2 if stage > 0 and block == 0 else 1)
    network.add("GlobalAveragePool")
    network.add("Flatten")
    network.dense(network.channels, RESNET_CLASSES)
    return network.save(path, [3, side, side], RESNET_CLASSES)


def build_transformer(path: Path) -> Path:
    """Layers of attention (one head) and a dense pair, each with a residual, over 32 tokens: about a millisecond an item."""
    return _build_transformer(path, TRANSFORMER_LAYERS, TOKEN_WIDTH)


def build_large_transformer(path: Path) -> Path:
    """The same with 277 MB of weights: some 100 milliseconds an item on one thread."""
    return _build_transformer(path, LARGE_TRANSFORMER_LAYERS, LARGE_TOKEN_WIDTH)


def _build_transformer(path: Path, layers: int, width: int) -> Path:
    network = _Network(np.random.default_rng(32))
    for _ in range(layers):
        network.attention(width)
        network.residual(lambda: network.pair(width, 4 * width))
    network.add("ReduceMean", axes=[1], keepdims=0)
    network.dense(width, CLASSES)
    return network.save(path, [TOKENS, width], CLASSES)


class _Network:
    """Layers appended one after another, each to what the last one gave."""

    def __init__(self, random: np.random.Generator, channels: int = 1) -> None:
        self.random = random
        self.channels = channels
        self.last = "input"
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, operator: str, *more_inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.last, *more_inputs], [name], **attributes))
        self.last = name
        return name

    def convolution(self, channels: int, kernel: int, stride: int = 1, gain: float = 1.0) -> str:
        fan_in = self.channels * kernel * kernel
        values = self.random.standard_normal((channels, self.channels, kernel, kernel), np.float32)
        weight = self._weight(values * np.float32(gain * np.sqrt(2 / fan_in)))
        bias = self._weight(np.zeros(channels, np.float32))
        self.channels = channels
        return self.add("Conv", weight, bias, strides=[stride, stride], pads=[kernel // 2] * 4)

    def dense(self, fan_in: int, fan_out: int) -> str:
        values = self.random.standard_normal((fan_in, fan_out), np.float32)
        weight = self._weight(values * np.float32(np.sqrt(1 / fan_in)))
        return self.add("Gemm", weight, self._weight(np.zeros(fan_out, np.float32)))

    def bottleneck(self, width: int, stride: int) -> None:
        entry, entry_channels = self.last, self.channels
        self.convolution(width, kernel=1)
        self.add("Relu")
        self.convolution(width, kernel=3, stride=stride)
        self.add("Relu")
        branch = self.convolution(width * RESNET_EXPANSION, kernel=1, gain=RESNET_BRANCH_GAIN)
        self.last = entry
        if entry_channels != self.channels:
            self.channels = entry_channels
            self.convolution(width * RESNET_EXPANSION, kernel=1, stride=stride)
        self.add("Add", branch)
        self.add("Relu")

    def residual(self, branch: Callable[[], object]) -> None:
        """What the branch makes of the last layer is added to it."""
        entry = self.last
        branch()
        self.add("Add", entry)

    def attention(self, width: int) -> None:
        entry = self.last
        projected = []
        for _ in range(3):
            self.last = entry
            projected.append(self._product(width, width))
        queries, keys, values = projected
        self.last = keys
        turned = self.add("Transpose", perm=[0, 2, 1])
        self.last = queries
        self.add("MatMul", turned)
        self.add("Softmax", axis=-1)
        self.add("MatMul", values)
        self.add("Add", entry)

    def pair(self, width: int, inner: int) -> None:
        self._product(width, inner)
        self.add("Relu")
        self._product(inner, width)

    def _product(self, fan_in: int, fan_out: int) -> str:
        values = self.random.standard_normal((fan_in, fan_out), np.float32)
        return self.add("MatMul", self._weight(values * np.float32(np.sqrt(0.3 / fan_in))))

    def save(self, path: Path, input_sizes: list[int], output_size: int) -> Path:
        self.nodes[-1].output[0] = "output"
        return _save(path, self.nodes, self.weights, (input_sizes, output_size))

    def _weight(self, values: NDArray[np.float32]) -> str:
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32, copy=False), name))
        return name
