"""Repeated blocks of residual networks (layers of a transformer, blocks of a ResNet), found in an ONNX graph and cut out.

Called by layers.py. Not aware of: which blocks should go, names of nodes or weights, training.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import onnx
from msgspec import Struct

from dlproxy.compress.recipes.graphs import drop_unused, replace
from dlproxy.compress.recipes.torch.graph import shapes_of

_OF_SIZES = ("Shape", "Size")  # read no values: what they say stays when a block of the same shape goes
_SUMS = ("Add", "Sum")


class Block(Struct, frozen=True):
    """It takes the tensor `start` and gives `end`, which has the same shape. Nothing else of it is read outside."""

    start: str
    end: str


class _Segment(Struct, frozen=True):
    """What stands between two tensors through which everything passes. `form`: equal for equal operators on weights of equal
    shapes. `residual`: what it takes is added to what it computes.
    """

    start: str
    end: str
    form: Any
    residual: bool


def repeated(model: onnx.ModelProto) -> list[Block]:
    """In their order: runs of two or more equal ones, each with a residual sum. Empty if there are none."""
    shapes = shapes_of(model)
    chains = _Flow(model).chains()
    return max((list(_runs(chain, shapes)) for chain in chains), key=len, default=[])


def without(model: onnx.ModelProto, gone: Collection[Block]) -> onnx.ModelProto:
    """A copy in which whoever read what these blocks give reads what they take."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    starts = {block.end: block.start for block in gone}
    for node in cut.graph.node:
        node.input[:] = [_followed(starts, name) for name in node.input]
    given = [one.name for one in cut.graph.output if one.name in starts]
    kept = [node for node in cut.graph.node if not set(node.output) & set(given)]
    kept += [onnx.helper.make_node("Identity", [_followed(starts, name)], [name]) for name in given]
    read = {one.name for one in cut.graph.output}
    alive = []
    for node in reversed(kept):
        if read & set(node.output):
            read.update(node.input)
            alive.append(node)
    replace(cut.graph.node, alive[::-1])
    drop_unused(cut)
    return cut


def _followed(starts: Mapping[str, str], name: str) -> str:
    while name in starts:
        name = starts[name]
    return name


class _Flow:
    """Of values, from node to node, by their numbers; one number more is that of the answers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._nodes = list(graph.node)
        self._weights = {one.name: (one.data_type, *one.dims) for one in graph.initializer}
        self._inputs = [one.name for one in graph.input if one.name not in self._weights]
        self._readers: dict[str, list[int]] = {}
        for number, node in enumerate(self._nodes):
            for name in node.input if node.op_type not in _OF_SIZES else ():
                self._readers.setdefault(name, []).append(number)
        end = len(self._nodes)
        for one in graph.output:
            self._readers.setdefault(one.name, []).append(end)
        self._next, self._depth = {end: end}, {end: 0}  # immediate post-dominators: the first that all paths lead through
        for number in reversed(range(end)):
            self._place(number, self._after(number))

    def chains(self) -> Iterator[list[_Segment]]:
        """For each input, the segments that all of it passes through, one after the other."""
        end = len(self._nodes)
        for name in self._inputs:
            readers = [number for number in self._readers.get(name, ()) if number in self._depth]
            passed, place = list[int](), reduce(self._common, readers, readers[0]) if readers else end
            while place != end:
                if len(self._nodes[place].output) == 1:
                    passed.append(place)
                place = self._next[place]
            yield [self._segment(*pair) for pair in pairwise(passed)]

    def _after(self, number: int) -> list[int]:
        return [reader for name in self._nodes[number].output for reader in self._readers.get(name, ())]

    def _place(self, number: int, after: Sequence[int]) -> None:
        """In the tree of post-dominators (Cooper, Harvey & Kennedy 2001; one pass, as there are no loops)."""
        leading = [one for one in after if one in self._depth]
        if leading:
            self._next[number] = reduce(self._common, leading)
            self._depth[number] = self._depth[self._next[number]] + 1

    def _common(self, one: int, other: int) -> int:
        while one != other:
            if self._depth[one] < self._depth[other]:
                one, other = other, one
            one = self._next[one]
        return one

    def _segment(self, first: int, last: int) -> _Segment:
        """Tensors are known by where they are made in it; all from elsewhere (a mask, say) are alike."""
        inside, waiting = {last}, self._after(first)
        while waiting:
            number = waiting.pop()
            if number not in inside and number in self._depth:
                inside.add(number)
                waiting += self._after(number)
        start, end = self._nodes[first].output[0], self._nodes[last].output[0]
        made, summed, form = {start: 0}, {start}, []
        for number in sorted(inside):
            node = self._nodes[number]
            inputs = [made.get(name, self._weights.get(name, bool(name))) for name in node.input]
            attributes = sorted(one.SerializeToString(deterministic=True) for one in node.attribute)
            form.append((node.domain, node.op_type, tuple(inputs), tuple(attributes)))
            made.update({name: len(made) + place + 1 for place, name in enumerate(node.output)})
            if node.op_type in _SUMS and summed & set(node.input):
                summed.add(node.output[0])
        return _Segment(start, end, tuple(form), end in summed and len(inside) >= len(summed))


def _runs(chain: Sequence[_Segment], shapes: Mapping[str, Any]) -> Iterator[Block]:
    """Of the runs that start anywhere, the longest, and those before and behind it. Of equal ones, that of the smallest blocks;
    then that which starts last, as blocks begin with a branch and end with a norm or an activation, which may stand before
    the first block, too.
    """
    best, longest = None, 0
    for period in range(1, len(chain) // 2 + 1):
        for start in range(len(chain) - 2 * period + 1):
            count = _count(chain, start, period, shapes)
            if count > 1 and (count * period, -period) >= (longest, -(best or (0, 0, period))[2]):
                best, longest = (start, count, period), count * period
    if best is None:
        return
    start, count, period = best
    yield from _runs(chain[:start], shapes)
    for first in range(start, start + count * period, period):
        yield Block(chain[first].start, chain[first + period - 1].end)
    yield from _runs(chain[start + count * period :], shapes)


def _count(chain: Sequence[_Segment], start: int, period: int, shapes: Mapping[str, Any]) -> int:
    """How many equal blocks of so many segments stand here in a row."""
    block = chain[start : start + period]
    shape = shapes.get(block[0].start)
    if not any(one.residual for one in block) or shape is None or shapes.get(block[-1].end) != shape:
        return 0
    count = 1
    while [one.form for one in chain[start + count * period : start + (count + 1) * period]] == [one.form for one in block]:
        count += 1
    return count
