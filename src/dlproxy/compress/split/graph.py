"""A model's graph as it is cut: nodes in an order in which they can run, and the tensors that would cross each cut.

Made by search.py of what probing.py saw. Not aware of: how long nodes take, where to cut.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

from msgspec import Struct
from onnx import NodeProto

from dlproxy.compress.recipes.graphs import Model, subgraphs


class Carried(Struct, frozen=True):
    """A tensor that can go from part to part. `kind`: its type, of TensorProto.DataType; `shape`: -1 where it varies;
    `row_bytes`: of one row, or of all where it has none.
    """

    kind: int
    shape: tuple[int, ...]
    row_bytes: int


class Part(Struct, frozen=True):
    """Nodes that are one file. `own`: by number, in order; `again`: further ones, which others have, too, as what they give
    cannot be carried; `inputs`, `outputs`: tensors by name. `lane`: 0, or which share of products it computes.
    """

    own: tuple[int, ...]
    again: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lane: int = 0


class Network:
    """`carried`: tensors that may cross a cut, inputs of the model included. Others are computed again where they are read."""

    def __init__(self, model: Model, carried: Mapping[str, Carried]) -> None:
        self.model = model
        self.carried = carried
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.inputs = [one.name for one in model.graph.input]
        self.outputs = [one.name for one in model.graph.output]
        self.constants = {weight.name for weight in model.graph.initializer}
        self.producer = {name: number for number, node in enumerate(self.nodes) for name in node.output if name}
        self._cones: dict[str, tuple[frozenset[str], frozenset[int]]] = {}

    @cached_property
    def reads(self) -> list[tuple[str, ...]]:
        """By node: the tensors that it reads, those inside of it included, without constants."""
        return [tuple(name for name in dict.fromkeys(read_by(node)) if name not in self.constants) for node in self.nodes]

    @cached_property
    def last_reader(self) -> dict[str, int]:
        """Of each tensor; outputs of the model are read at the end."""
        last = {name: number for number, names in enumerate(self.reads) for name in names}
        return last | dict.fromkeys(self.outputs, len(self.nodes))

    def needed(self, name: str) -> tuple[frozenset[str], frozenset[int]]:
        """What must be there to read this tensor elsewhere: tensors that are carried, and nodes that run again."""
        if name in self.carried:
            return frozenset((name,)), frozenset()
        if name not in self._cones:
            number = self.producer[name]
            found = [self.needed(read) for read in self.reads[number]]
            sources = frozenset[str]().union(*(one for one, _ in found))
            self._cones[name] = sources, frozenset((number,)).union(*(one for _, one in found))
        return self._cones[name]

    def crossing(self, place: int) -> list[str]:
        """Tensors from before this node that are read by it or later, without inputs of the model."""
        return [name for name, number in self.producer.items() if number < place <= self.last_reader.get(name, -1)]

    def parts(self, groups: Sequence[tuple[Sequence[int], int]]) -> list[Part]:
        """Of all nodes: those of each group, in order, with its lane."""
        needs = [self._needs(numbers) for numbers, _ in groups]
        made = []
        for place, (numbers, lane) in enumerate(groups):
            wanted = {name for other, (names, _) in enumerate(needs) if other != place for name in names} | set(self.outputs)
            given = [name for number in numbers for name in self.nodes[number].output if name in wanted]
            names, again = needs[place]
            made.append(Part(tuple(numbers), tuple(sorted(again)), tuple(sorted(names)), tuple(given), lane))
        return made

    def _needs(self, numbers: Sequence[int]) -> tuple[set[str], set[int]]:
        inside = {name for number in numbers for name in self.nodes[number].output}
        names, again = set[str](), set[int]()
        for number in numbers:
            for name in self.reads[number]:
                if name not in inside:
                    sources, nodes = self.needed(name)
                    names |= sources
                    again |= nodes
        return names, again - set(numbers)


def read_by(node: NodeProto) -> Iterator[str]:
    """Names of the tensors that a node reads, those that graphs inside of it take from outside included."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        known = {one.name for one in (*graph.input, *graph.initializer)}
        for inner in graph.node:
            yield from (name for name in read_by(inner) if name not in known)
            known |= set(inner.output)
        yield from (one.name for one in graph.output if one.name not in known)


def constants_of(model: Model, nodes: Collection[NodeProto]) -> list[str]:
    """Names of the weights that these nodes read, in the model's order."""
    names = {name for node in nodes for name in read_by(node)}
    return [weight.name for weight in model.graph.initializer if weight.name in names]
