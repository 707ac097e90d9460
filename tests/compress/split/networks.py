"""Models for the tests of splitting: what is easy to cut, what is not, and what cannot be."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from dlproxy.message import DType
from tests import models

WIDTH = 16


def weights(name: str, shape: Sequence[int] = (WIDTH, WIDTH), seed: int = 0) -> TensorProto:
    rng = np.random.default_rng([seed, *map(ord, name)])
    return models.constant(name, rng.normal(0, 1 / np.sqrt(shape[0]), shape).astype(np.float32))


def chain(layers: int = 6, width: int = WIDTH, *, tied: bool = False) -> models.Model:
    """Products and activations, one after the other. `tied`: all by one matrix."""
    made = of_widths(*[width] * (layers + 1))
    if tied:
        for node in made.graph.node[::2]:
            node.input[1] = "w0"
        del made.graph.initializer[1:]
    return made


def of_widths(*widths: int) -> models.Model:
    """The same, from width to width."""
    nodes, last = [], "x"
    for number in range(len(widths) - 1):
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"/layer.{number}/product"]))
        nodes.append(helper.make_node("Tanh", [f"/layer.{number}/product"], [f"h{number}"]))
        last = f"h{number}"
    nodes[-1].output[0] = "y"
    constants = [weights(f"w{number}", pair) for number, pair in enumerate(pairwise(widths))]
    return models.model(nodes, *_ends(widths[0]), constants)


def _ends(width: int = WIDTH) -> tuple[list[ValueInfoProto], list[ValueInfoProto]]:
    return [models.value("x", DType.FP32, ("N", width))], [models.value("y", DType.FP32, ("N", width))]


def tangled() -> models.Model:
    """Residuals over many nodes, an output in the midst, a size that is computed from a shape and read everywhere, an If that
    takes tensors from outside, and a sequence.
    """
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["b", "a"], [f"{op}_out"])], op, [], [models.value(f"{op}_out", DType.FP32, ("N", WIDTH))]
        )
        for op in ("Add", "Sub")
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("ReduceSum", ["size"], ["elements"], keepdims=0),
        helper.make_node("Greater", ["elements", "some"], ["many"]),
        helper.make_node("If", ["many"], ["c"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("MatMul", ["c", "w1"], ["middle"]),
        helper.make_node("Reshape", ["middle", "size"], ["d"]),
        helper.make_node("SequenceConstruct", ["d", "a"], ["both"]),
        helper.make_node("ConcatFromSequence", ["both"], ["e"], axis=1),
        helper.make_node("MatMul", ["e", "w2"], ["f"]),
        helper.make_node("Add", ["f", "b"], ["y"]),
    ]
    inputs, outputs = _ends()
    constants = [weights("w0"), weights("w1"), weights("w2", (2 * WIDTH, WIDTH)), models.constant("some", np.int64(3))]
    return models.model(nodes, inputs, [*outputs, models.value("middle", DType.FP32, ("N", WIDTH))], constants)


def wide(width: int = 64, *, bias: bool = True, outer: int = 0) -> models.Model:
    """One product of this width, or from it to `outer`, between two activations."""
    outer = outer or width
    nodes = [
        helper.make_node("Tanh", ["x"], ["h"]),
        helper.make_node("Gemm", ["h", "w", *["bias"] * bias], ["p"]),
        helper.make_node("Tanh", ["p"], ["y"]),
    ]
    constants = [weights("w", (width, outer)), *[weights("bias", (1, outer))] * bias]
    ends = [models.value("x", DType.FP32, ("N", width))], [models.value("y", DType.FP32, ("N", outer))]
    return models.model(nodes, *ends, constants)


def rows_second() -> models.Model:
    """Sequences with the rows on axis 1, as recurrent networks have them."""
    made = chain(3)
    del made.graph.input[:], made.graph.output[:]
    made.graph.input.append(models.value("x", DType.FP32, (5, "N", WIDTH)))
    made.graph.output.append(models.value("y", DType.FP32, (5, "N", WIDTH)))
    return made


def passing_on() -> models.Model:
    """An output is the input."""
    made = chain(2)
    made.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH]))
    return made


def save(made: models.Model, folder: Path, name: str = "m") -> Path:
    return models.save(made, folder / f"{name}.onnx")
