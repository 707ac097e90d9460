"""Parts of a graph as ONNX files: what they take and give, in fewer bits where that is wanted, and weights that several have.

Called by search.py. Not aware of: where a graph is cut, what serves the files.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from msgspec import Struct
from onnx import TensorProto, helper, numpy_helper

from dlproxy.compress.recipes.graphs import Model, Node, opset, subgraphs, write
from dlproxy.compress.split import ROWS
from dlproxy.compress.split.graph import Carried, Network, Part, constants_of

Transfer = Literal["", "fp16", "int8"]

TIED, LEAST_TIED_BYTES, ALIGNED = "tied.weights", 1 << 16, 1 << 16  # mappings begin at pages, and some systems have large ones
LEAST_SCALE = 1e-30
AXES_AS_INPUT = 18  # the opset from which ReduceMax takes its axes so


class PartFile(Struct, frozen=True):
    """A part with its model. `takes`, `gives`: for each tensor of the network the names under which it goes, of int8 two.
    `row_bytes`: that go in, and out, for a row.
    """

    part: Part
    model: Model
    row_bytes: tuple[float, float]
    takes: Mapping[str, tuple[str, ...]]
    gives: Mapping[str, tuple[str, ...]]


def part_files(network: Network, parts: Sequence[Part], transfer: Transfer = "") -> list[PartFile]:
    """The models of all parts, which together are the network."""
    inner = dict.fromkeys(name for part in parts for name in part.inputs if name not in network.inputs)
    names = {name: f"cut{number}" for number, name in enumerate(inner)}
    return [_part_file(network, part, names, transfer) for part in parts]


def _part_file(network: Network, part: Part, names: Mapping[str, str], transfer: Transfer) -> PartFile:
    bodies = [network.nodes[number] for number in sorted((*part.again, *part.own))]
    edge = _Edge(network, transfer)
    takes = {name: edge.taken(name, names.get(name, name)) for name in part.inputs}
    gives: dict[str, tuple[str, ...]] = {}
    for name in part.outputs:
        if name in network.outputs:
            edge.outputs.append(next(one for one in network.model.graph.output if one.name == name))
            gives[name] = (name,)
        if name in names and not (name in gives and not edge.lessened(name)):
            gives[name] = edge.given(name, names[name])
    renamed = edge.renamed
    nodes = [*edge.first, *(_renamed(node, renamed) for node in bodies), *edge.last]
    weights = set(constants_of(network.model, bodies))
    graph = helper.make_graph(
        nodes,
        "part",
        edge.inputs,
        edge.outputs,
        [*(one for one in network.model.graph.initializer if one.name in weights), *edge.constants],
    )
    model = helper.make_model(graph, opset_imports=network.model.opset_import, ir_version=network.model.ir_version)
    return PartFile(
        part, model, (_row_bytes(network, part.inputs, transfer), _row_bytes(network, part.outputs, transfer)), takes, gives
    )


class _Edge:
    """What stands at the ends of a part."""

    def __init__(self, network: Network, transfer: Transfer) -> None:
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.first: list[Node] = []
        self.last: list[Node] = []
        self.constants: list[TensorProto] = []
        self.renamed: dict[str, str] = {}
        self._network = network
        self._transfer = transfer
        self._axes_as_input = opset(network.model) >= AXES_AS_INPUT

    def lessened(self, name: str) -> bool:
        """Whether it goes in fewer bits."""
        carried = self._network.carried[name]
        return bool(self._transfer) and carried.kind == TensorProto.FLOAT and len(carried.shape) > 1

    def taken(self, name: str, as_name: str) -> tuple[str, ...]:
        if name in self._network.inputs:
            self.inputs.append(next(one for one in self._network.model.graph.input if one.name == name))
            return (name,)
        carried = self._network.carried[name]
        if name in self._network.outputs and not self.lessened(name):
            as_name = name
        if not self.lessened(name):
            self.inputs.append(_value(as_name, carried.kind, carried.shape))
            self.renamed[name] = as_name
            return (as_name,)
        if self._transfer == "fp16":
            self.inputs.append(_value(as_name, TensorProto.FLOAT16, carried.shape))
            self.first.append(helper.make_node("Cast", [as_name], [f"{as_name}_whole"], to=TensorProto.FLOAT))
        else:
            self.inputs.append(_value(as_name, TensorProto.INT8, carried.shape))
            self.inputs.append(_value(f"{as_name}_scale", TensorProto.FLOAT, _scales(carried)))
            self.first.append(helper.make_node("Cast", [as_name], [f"{as_name}_number"], to=TensorProto.FLOAT))
            self.first.append(helper.make_node("Mul", [f"{as_name}_number", f"{as_name}_scale"], [f"{as_name}_whole"]))
        self.renamed[name] = f"{as_name}_whole"
        return tuple(one.name for one in self.inputs[-1 if self._transfer == "fp16" else -2 :])

    def given(self, name: str, as_name: str) -> tuple[str, ...]:
        carried = self._network.carried[name]
        if not self.lessened(name):
            self.outputs.append(_value(as_name, carried.kind, carried.shape))
            self.renamed[name] = as_name
            return (as_name,)
        if self._transfer == "fp16":
            self.outputs.append(_value(as_name, TensorProto.FLOAT16, carried.shape))
            self.last.append(helper.make_node("Cast", [name], [as_name], to=TensorProto.FLOAT16))
            return (as_name,)
        scale = f"{as_name}_scale"
        self.outputs += [_value(as_name, TensorProto.INT8, carried.shape), _value(scale, TensorProto.FLOAT, _scales(carried))]
        self._add_rounding(name, as_name, scale, _axes(carried))
        return as_name, scale

    def _add_rounding(self, name: str, as_name: str, scale: str, axes: Sequence[int]) -> None:
        """Symmetric, a scale of its own for what is reduced over these axes: never one for several rows."""
        constants = {"most": np.float32(127.0), "least": np.float32(LEAST_SCALE)}
        size, largest = f"{as_name}_size", f"{as_name}_largest"
        if self._axes_as_input:
            self.constants.append(numpy_helper.from_array(np.asarray(axes, np.int64), f"{as_name}_axes"))
            reduced = helper.make_node("ReduceMax", [size, f"{as_name}_axes"], [largest], keepdims=1)
        else:
            reduced = helper.make_node("ReduceMax", [size], [largest], keepdims=1, axes=list(axes))
        self.constants += [numpy_helper.from_array(np.asarray(one), f"{as_name}_{key}") for key, one in constants.items()]
        self.last += [
            helper.make_node("Abs", [name], [size]),
            reduced,
            helper.make_node("Div", [largest, f"{as_name}_most"], [f"{as_name}_step"]),
            helper.make_node("Max", [f"{as_name}_step", f"{as_name}_least"], [scale]),
            helper.make_node("Div", [name, scale], [f"{as_name}_scaled"]),
            helper.make_node("Round", [f"{as_name}_scaled"], [f"{as_name}_rounded"]),
            helper.make_node("Cast", [f"{as_name}_rounded"], [as_name], to=TensorProto.INT8),
        ]


def _axes(carried: Carried) -> list[int]:
    """Pictures have a scale for each channel, sequences for each step, all else for each row."""
    rank = len(carried.shape)
    return [1] if rank == 2 else [rank - 1] if rank == 3 else list(range(2, rank))


def _scales(carried: Carried) -> tuple[int, ...]:
    axes = _axes(carried)
    return tuple(1 if place in axes else size for place, size in enumerate(carried.shape))


def sent_bytes(carried: Carried, transfer: Transfer) -> float:
    """Of one row, with its scales."""
    if not transfer or carried.kind != TensorProto.FLOAT or len(carried.shape) < 2:
        return carried.row_bytes
    return carried.row_bytes / (2 if transfer == "fp16" else 4)


def _row_bytes(network: Network, names: Sequence[str], transfer: Transfer) -> float:
    """Outputs of the model that cannot be carried are small, or nobody's but the client's."""
    return sum(
        sent_bytes(network.carried[name], transfer if name in network.producer and name not in network.outputs else "")
        for name in names
        if name in network.carried
    )


def _value(name: str, kind: int, shape: Sequence[int]) -> onnx.ValueInfoProto:
    sizes = [ROWS if not place and size < 0 else size if size >= 0 else f"{name}_{place}" for place, size in enumerate(shape)]
    return helper.make_tensor_value_info(name, kind, sizes)


def _renamed(node: Node, names: Mapping[str, str]) -> Node:
    made: Node = Node.FromString(node.SerializeToString())
    made.input[:] = [names.get(name, name) for name in node.input]
    made.output[:] = [names.get(name, name) for name in node.output]
    for graph in subgraphs(made):
        _rename_inside(graph, names)
    return made


def _rename_inside(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    own = {one.name for one in (*graph.input, *graph.initializer)} | {name for node in graph.node for name in node.output}
    outer = {name: new for name, new in names.items() if name not in own}
    for node in graph.node:
        node.input[:] = [outer.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            _rename_inside(inner, outer)


def save(files: Sequence[PartFile], names: Sequence[str], folder: Path) -> int:
    """NAME.onnx of each below the folder; weights of several of them once, in a file beside them. Its bytes, 0 for none."""
    counted = Counter(digest for file in files for digest in {_digest(weight) for weight in file.model.graph.initializer})
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / TIED).open("wb") as beside:
        for file in files:
            for weight in file.model.graph.initializer:
                digest = _digest(weight)
                if counted[digest] < 2 or len(weight.raw_data) < LEAST_TIED_BYTES:
                    continue
                if digest not in places:
                    beside.seek(-(-beside.tell() // ALIGNED) * ALIGNED)
                    places[digest] = beside.tell(), len(weight.raw_data)
                    beside.write(weight.raw_data)
                _point(weight, *places[digest])
        size = beside.tell()
    if not size:
        (folder / TIED).unlink()
    for file, name in zip(files, names, strict=True):
        write(file.model, folder / f"{name}.onnx")
    return size


def _digest(weight: TensorProto) -> bytes:
    return hashlib.sha256(repr((weight.data_type, list(weight.dims))).encode() + weight.raw_data).digest()


def _point(weight: TensorProto, offset: int, length: int) -> None:
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", TIED), ("offset", str(offset)), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
