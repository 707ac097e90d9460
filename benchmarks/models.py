"""The ONNX models that the benchmarks serve: a tiny one that shows the proxy's own cost, and a slow one that hides it.

Weights are random with a fixed seed and scaled to keep activations near one, so no run is slowed down by denormals.
"""

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
MLP_WIDTHS = (784, 256, 128, 10)
SLOW_IMAGE_SIDE = 32
SLOW_CHANNELS = 256
SLOW_CONVOLUTIONS = 4


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


def build_mlp(path: Path) -> Path:
    """Three fully connected layers: some 25 microseconds an item, so a server's own work dominates."""
    random = np.random.default_rng(784)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    previous = "input"
    last = len(MLP_WIDTHS) - 2
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(MLP_WIDTHS)):
        matrix = random.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"weight{layer}"))
        weights.append(numpy_helper.from_array(np.zeros(fan_out, np.float32), f"bias{layer}"))
        result = "output" if layer == last else f"dense{layer}"
        nodes.append(helper.make_node("Gemm", [previous, f"weight{layer}", f"bias{layer}"], [result]))
        if layer != last:
            nodes.append(helper.make_node("Relu", [result], [f"relu{layer}"]))
            previous = f"relu{layer}"
    return _save(path, nodes, weights, ([MLP_WIDTHS[0]], MLP_WIDTHS[-1]))


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
