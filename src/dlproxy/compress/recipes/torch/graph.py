"""Reads an ONNX graph into a PyTorch module that can be trained: layers where its weights are constants, functions elsewhere.

Called by modules.py and qat.py. The operators stand in operators.py. Not aware of: what is trained, where the file comes from.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from msgspec import Struct
from onnx import numpy_helper
from torch import fx, nn

from dlproxy.compress.recipe import RecipeError


class Origin(Struct, frozen=True):
    """Which initializer a parameter came from. `transposed`: it is the other way round there. `scale`, `zero`: of one that is
    whole numbers there, broadcast; all of them from `low` to `high`.
    """

    initializer: str
    transposed: bool = False
    scale: Any = None
    zero: Any = 0
    low: int = 0
    high: int = 0


class Read(Struct, frozen=True):
    """`origins`: by parameter."""

    module: Any
    inputs: list[str]
    outputs: list[str]
    origins: dict[str, Origin]


class Reader:
    """What the operators see: `values` by name, each an fx.Node, a constant array, or the list of a shape's sizes; `shapes`
    as far as they are known, None for an open size.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.origins: dict[str, Origin] = {}
        self.values: dict[str, Any] = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        self.uses = Counter(name for node in model.graph.node for name in node.input)
        self.uses.update(one.name for one in model.graph.output)
        self.shapes = shapes_of(model)
        self.opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
        self._kept: dict[str, fx.Node] = {}

    def read(self, model: onnx.ModelProto, table: dict[str, Callable[..., Any]]) -> Read:
        """Raises RecipeError that names the first operator which is not known or is used in a way that is not."""
        inputs = [one.name for one in model.graph.input if one.name not in self.values]
        for number, name in enumerate(inputs):
            self.values[name] = self.graph.placeholder(f"input_{number}")
        for node in model.graph.node:
            read = table.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if read is None:
                raise RecipeError(
                    f"operator {node.domain and node.domain + '.'}{node.op_type} cannot be read as a PyTorch module; "
                    "give the module itself, as file.py:make"
                )
            found = read(self, node, {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute})
            names = list(node.output)
            self.values.update(zip(names, found if isinstance(found, tuple) else (found,), strict=False))
        outputs = [one.name for one in model.graph.output]
        nodes = [self.tensor(name) for name in outputs]
        self.graph.output(nodes[0] if len(nodes) == 1 else tuple(nodes))
        self.graph.lint()
        return Read(fx.GraphModule(self.root, self.graph).eval(), inputs, outputs, self.origins)

    def constant(self, name: str) -> Any:
        """The array of a name that is a constant, else None. An input that is left out is None, too."""
        value = self.values[name] if name else None
        if isinstance(value, list) and all(isinstance(size, int) for size in value):
            return np.array(value, np.int64)
        return value if isinstance(value, np.ndarray) else None

    def needed(self, name: str, node: onnx.NodeProto) -> Any:
        """The same of one that must be a constant. Raises RecipeError."""
        found = self.constant(name)
        if found is None:
            raise cannot(node, "an input that is computed where a constant is usual")
        return found

    def tensor(self, name: str) -> fx.Node:
        """As a node of the graph: a constant of floats becomes a parameter, any other a buffer."""
        value = self.values[name]
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, list):
            value = self.constant(name)
            if value is None:
                raise RecipeError("the size of the batch is used as a number, which cannot be read as a PyTorch module")
        if name not in self._kept:
            self._kept[name] = self.parameter(torch.tensor(value), Origin(name))
        return self._kept[name]

    def parameter(self, value: Any, origin: Origin) -> fx.Node:
        """Floats with more than one element are trained."""
        target = f"value_{len(list(self.root.parameters())) + len(list(self.root.buffers()))}"
        if value.is_floating_point() and value.numel() > 1:
            self.root.register_parameter(target, nn.Parameter(value))
            self.origins[target] = origin
        else:
            self.root.register_buffer(target, value)
        return self.graph.get_attr(target)

    def layer(self, module: Any, *inputs: Any, origins: dict[str, Origin] | None = None) -> fx.Node:
        """A call of this module. `origins`: by the names of its own parameters."""
        target = f"{type(module).__name__.lower()}_{len(list(self.root.children()))}"
        self.root.add_module(target, module)
        self.origins.update({f"{target}.{name}": one for name, one in (origins or {}).items()})
        return self.graph.call_module(target, inputs)

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> fx.Node:
        """A call of a function of tensors."""
        return self.graph.call_function(function, arguments, named)

    def sizes(self, name: str) -> list[Any]:
        """The sizes of a tensor, those that are open as nodes."""
        shape = self.shapes.get(name)
        tensor = self.tensor(name)
        if shape is None:
            raise RecipeError(f"the shape of '{name}' is not known; give the module itself, as file.py:make")
        return [self.graph.call_method("size", (tensor, axis)) if size is None else size for axis, size in enumerate(shape)]

    def numbers(self, name: str) -> list[Any] | None:
        """A shape's sizes, or a constant of whole numbers, as a list; None for anything else."""
        value = self.values[name]
        if isinstance(value, np.ndarray) and value.dtype.kind == "i" and value.ndim <= 1:
            return [int(one) for one in value.reshape(-1)]
        return value if isinstance(value, list) else None

    def on_numbers(self, node: onnx.NodeProto, function: Callable[[Any, Any], Any]) -> list[Any] | None:
        """Arithmetic of two shapes; None if one of them is none. Of two constants nothing is left to compute."""
        if not any(isinstance(self.values[name], list) for name in node.input):
            return None
        first, second = (self.numbers(name) for name in node.input)
        if first is None or second is None:
            return None
        length = max(len(first), len(second))
        pairs = zip(first * (length // len(first)), second * (length // len(second)), strict=True)
        return [
            function(one, other) if isinstance(one, int) and isinstance(other, int) else self.call(function, one, other)
            for one, other in pairs
        ]


def cannot(node: onnx.NodeProto, what: str) -> RecipeError:
    """The refusal of a known operator."""
    return RecipeError(f"operator {node.op_type} with {what} cannot be read as a PyTorch module")


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int | None]]:
    """As far as they can be told, None for an open size."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        inferred = model  # of operators that are not ONNX's own; they are named when they are read
    shapes: dict[str, list[int | None]] = {one.name: list(one.dims) for one in model.graph.initializer}
    graph = inferred.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = [size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim]
    return shapes


def positions(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    return [int(axis) % rank for axis in axes]
