"""The large products with constant weights and the tables of a graph, and other operators in their place.

What rows.py and weights.py have in common. Not aware of: how the numbers are rounded beyond eight bits a row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dlproxy.compress.recipes.graphs import Model, Node, array_of, constants, every_node, replace

LEAST_WEIGHTS = 1024  # of smaller ones the operators around them cost more than they save
Weights = NDArray[np.float32]


class Linear(Struct, frozen=True):
    """`output` = `x` times `weights` [K, N], plus `bias` where it is named."""

    x: str
    weights: Weights
    output: str
    bias: str = ""


class Builder:
    """Collects what takes a node's place. All names begin with `name`, so that they are nobody else's."""

    def __init__(self, model: Model, name: str) -> None:
        taken = {text for node in every_node(model.graph) for text in node.output}
        while any(text.startswith(name) for text in taken):
            name += "_"
        self.nodes: list[Node] = []
        self.constants: dict[str, TensorProto] = {}
        self._name = name
        self._number = 0

    def constant(self, array: NDArray[np.generic] | np.generic) -> str:
        """Of equal arrays one."""
        tensor = numpy_helper.from_array(np.asarray(array))
        for name, other in self.constants.items():
            if (other.data_type, other.dims, other.raw_data) == (tensor.data_type, tensor.dims, tensor.raw_data):
                return name
        tensor.name = self._next()
        self.constants[tensor.name] = tensor
        return tensor.name

    def add(self, op: str, inputs: Sequence[str], *, domain: str = "", output: str = "", **attributes: Any) -> str:
        """The name of its output."""
        name = output or self._next()
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"{self._name}:{name}", domain=domain, **attributes))
        return name

    def _next(self) -> str:
        self._number += 1
        return f"{self._name}{self._number}"


def linear_of(node: Node, known: dict[str, TensorProto]) -> Linear | None:
    """None for what is no product with a matrix of constant floats, and for small ones."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return None
    tensor = known.get(node.input[1])
    if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
        return None
    if tensor.dims[0] * tensor.dims[1] < LEAST_WEIGHTS:
        return None
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if settings.get("transA", 0) or settings.get("alpha", 1.0) != 1.0 or settings.get("beta", 1.0) != 1.0:
        return None
    weights = array_of(tensor).astype(np.float32)
    weights = weights.T if settings.get("transB", 0) else weights
    if not np.isfinite(weights).all():
        return None
    return Linear(node.input[0], weights, node.output[0], node.input[2] if len(node.input) > 2 else "")


def rewrite(model: Model, builder: Builder, linear: Callable[[Builder, Linear], None]) -> tuple[int, int]:
    """Puts what `linear` adds in the place of every product, and 8 bits a row in the place of tables that rows are taken
    from. How many of each.
    """
    known = constants(model)
    found = tables = 0
    for node in model.graph.node:
        product = linear_of(node, known)
        if product is not None:
            linear(builder, product)
            found += 1
        elif _is_table(node, known):
            _take_rows(builder, node, array_of(known[node.input[0]]).astype(np.float32))
            tables += 1
        else:
            builder.nodes.append(node)
    replace(model.graph.node, builder.nodes)
    model.graph.initializer.extend(builder.constants.values())
    return found, tables


def _is_table(node: Node, known: dict[str, TensorProto]) -> bool:
    tensor = known.get(node.input[0]) if node.op_type == "Gather" and node.domain in ("", "ai.onnx") else None
    if tensor is None or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
        return False
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return axis in (0, -2) and tensor.dims[0] * tensor.dims[1] >= LEAST_WEIGHTS and tensor.dims[1] > 1


def _take_rows(builder: Builder, node: Node, table: Weights) -> None:
    """Whole numbers and a scale for each row of the table: two look-ups and a product."""
    numbers, scales = rounded(table.T, 8)
    taken = builder.add("Gather", [builder.constant(numbers.T.copy()), node.input[1]], axis=0)
    scale = builder.add("Gather", [builder.constant(scales[:, None]), node.input[1]], axis=0)
    builder.add("Mul", [builder.add("Cast", [taken], to=TensorProto.FLOAT), scale], output=node.output[0])


def rounded(weights: Weights, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric, a scale for each column: `weights` is about numbers times scales."""
    most = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(weights).max(axis=0), np.finfo(np.float32).tiny * most) / np.float32(most)
    return np.clip(np.rint(weights / scales), -most, most).astype(np.int8), scales.astype(np.float32)
