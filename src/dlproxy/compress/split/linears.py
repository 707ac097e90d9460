"""A large product with a matrix of weights as several smaller ones, side by side: of columns that are put together, or of rows
whose products are added up.

Called by search.py before a graph is cut. Not aware of: stages, who computes which share.
Source: Megatron-LM (Shoeybi et al., 2019), section 3.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct
from onnx import helper

from dlproxy.compress.recipes.graphs import Model, array_of, constants, replace
from dlproxy.compress.recipes.linears import Builder, Linear, linear_of

Way = Literal["columns", "rows"]


class Share(Struct, frozen=True):
    """A product that may be shared. `number`: of its node; `read_bytes`, `given_bytes`: of one row of its input and output."""

    number: int
    linear: Linear
    read_bytes: int
    given_bytes: int
    of_model: bool
    """Its input is the model's own, which nothing before it can cut."""

    def way(self, parts: int) -> Way | None:
        """The one that sends less; None if it is smaller than so many parts."""
        inner, outer = self.linear.weights.shape
        by_columns = parts * self.read_bytes + self.given_bytes <= self.read_bytes + parts * self.given_bytes
        if outer >= parts and (by_columns or self.of_model or inner < parts):
            return "columns"
        return "rows" if inner >= parts and not self.of_model else None

    def sent_bytes(self, parts: int) -> int:
        """From one process to others and back, of one row, beside what the whole product is sent."""
        shares = parts * self.read_bytes + self.given_bytes, self.read_bytes + parts * self.given_bytes
        return shares[0] if self.way(parts) == "columns" else shares[1]


def shares_of(model: Model, row_bytes: Mapping[str, int]) -> list[Share]:
    """Every product with a constant matrix of which the input and output can be carried."""
    known, inputs = constants(model), {one.name for one in model.graph.input}
    found = []
    for number, node in enumerate(model.graph.node):
        linear = linear_of(node, known)
        if linear is None or linear.bias not in ("", *known) or not {linear.x, linear.output} <= row_bytes.keys():
            continue
        sizes = row_bytes[linear.x], row_bytes[linear.output]
        found.append(Share(number, linear, *sizes, of_model=linear.x in inputs))
    return found


def shared(model: Model, chosen: Sequence[Share], parts: int) -> tuple[Model, list[tuple[int, int]]]:
    """The model with these products in `parts`; of each of its nodes which node of the original it stands for, and its lane:
    1 and on for shares, 0 for all else.
    """
    by_number = {share.number: share for share in chosen}
    made = Model.FromString(model.SerializeToString())
    builder, places = Builder(made, "share"), list[tuple[int, int]]()
    known = constants(made)
    for number, node in enumerate(made.graph.node):
        share = by_number.get(number)
        if share is None:
            builder.nodes.append(node)
            places.append((number, 0))
            continue
        bias = None if not share.linear.bias else np.asarray(array_of(known[share.linear.bias]), np.float32)
        lanes = _add(builder, share, parts, bias)
        places += [(number, lane) for lane in lanes]
    replace(made.graph.node, builder.nodes)
    made.graph.initializer.extend(builder.constants.values())
    return made, places


def _add(
    builder: Builder, share: Share, parts: int, bias: "np.ndarray[tuple[int, ...], np.dtype[np.float32]] | None"
) -> list[int]:
    """The lanes of the nodes that were added."""
    linear, before = share.linear, len(builder.nodes)
    columns = share.way(parts) == "columns"
    if columns:
        lanes, taken = [], [linear.x] * parts
    else:
        sizes = [len(part) for part in np.array_split(np.arange(len(linear.weights)), parts)]
        taken = [f"{linear.output}_taken{number}" for number in range(parts)]
        split = builder.constant(np.asarray(sizes, np.int64))
        builder.nodes.append(helper.make_node("Split", [linear.x, split], taken, axis=-1, name=f"{linear.output}:split"))
        lanes = [0]
    products = []
    for number, weights in enumerate(np.array_split(linear.weights, parts, axis=1 if columns else 0)):
        product = builder.add("MatMul", [taken[number], builder.constant(np.ascontiguousarray(weights))])
        lanes.append(number + 1)
        if columns and bias is not None and bias.ndim:
            part = np.array_split(np.broadcast_to(bias, (*bias.shape[:-1], linear.weights.shape[1])), parts, axis=-1)[number]
            product = builder.add("Add", [product, builder.constant(np.ascontiguousarray(part))])
            lanes.append(number + 1)
        products.append(product)
    if columns:
        late = bias is not None and not bias.ndim
        joined = builder.add("Concat", products, axis=-1, output="" if late else linear.output)
    else:
        late = bias is not None
        joined = builder.add("Sum", products, output="" if late else linear.output)
    lanes.append(0)
    if late and bias is not None:
        builder.add("Add", [joined, builder.constant(bias)], output=linear.output)
        lanes.append(0)
    assert len(lanes) == len(builder.nodes) - before
    return lanes
