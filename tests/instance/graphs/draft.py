"""An ONNX graph while it is being drawn, and the requests that may be sent to it.

Used by entries.py, rows.py, mixing.py, exits.py and whole.py, each of which adds some nodes. Values are multiples of 1/4, so
sums of few of them are exact in float32: what is cut off from them (ArgMax, thresholds) does not depend on rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, printer

from dlproxy.message import DType
from tests import models

Array = NDArray[Any]
T = TypeVar("T")
Axis = int | str  # a fixed size, or what the axis counts: ROWS, LENGTH, TABLE, or something that there is one of
Fill = Callable[[np.random.Generator, tuple[int, ...]], Array]

ROWS, LENGTH, TABLE = "N", "L", "M"
NAMINGS = ("alike", "unnamed", "apart", "fixed")  # what the file says of the open axes; fixed: one row, no more
LARGE = 96.0  # what no plain value comes near; rarer values are larger still
CERTAIN = 1.25  # a value that is one of many in requests, and none that comes to mind
VOCABULARY = 40
RARE_ID = 30  # and above: ids that plain requests name seldom


@dataclass(frozen=True, repr=False)
class Input:
    """`optional`: there is a default in the file, and a request may leave it out."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]
    fill: Fill
    optional: bool = False


@dataclass(frozen=True, repr=False)
class Made:
    """A graph that has been drawn, as a file would hold it. `words`: how it was put together, for reports.

    `random`: ONNX Runtime itself gives another answer each time, to be compared by its shape alone.
    """

    model: onnx.ModelProto
    inputs: tuple[Input, ...]
    naming: str
    words: str
    random: bool
    plain: bool
    """Rows go in and come out on axis 0 and nothing looks at its neighbours: it would be a pity not to batch it."""
    lengths: tuple[int, ...] = (1, 2, 3, 8, 20, 24)
    at_once: int = 3
    """Lengths, of which so many are drawn for the requests of a proof."""

    def __repr__(self) -> str:
        return self.words

    @property
    def text(self) -> str:
        """The graph as ONNX writes it for people."""
        return printer.to_text(self.model.graph)

    def requests(self, seed: int, count: int) -> list[dict[str, Array]]:
        """Of 1 to 5 rows and a few lengths; where the file tells axes apart, they may differ in size."""
        random = np.random.default_rng(seed)
        lengths = random.choice(self.lengths, self.at_once)
        requests = []
        for _ in range(count):
            sizes = {ROWS: 1 if self.naming == "fixed" else int(random.choice([1, 1, 1, 2, 3, 5]))}
            sizes |= {LENGTH: int(random.choice(lengths)), TABLE: int(random.choice([1, 2, 4]))}
            chosen = [one for one in self.inputs if not (one.optional and random.random() < 0.5)]
            requests.append({one.name: one.fill(random, _sized(one.axes, sizes)) for one in chosen})
        return requests


def _sized(axes: Sequence[Axis], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in axes)


@dataclass(repr=False)
class Draft:
    """Nodes so far. `exact`: no value has been rounded yet. `plain`: see Made."""

    draw: st.DrawFn
    random: np.random.Generator
    width: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    outputs: list[tuple[str, DType, tuple[Axis | None, ...]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    exact: bool = True
    plain: bool = True
    is_random: bool = False
    matmuls: int = 0
    domains: set[str] = field(default_factory=set)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    large: float = LARGE
    close_lengths: bool = False

    def pick(self, options: Sequence[T]) -> T:
        """One of them; reports shrink towards the first."""
        return self.draw(st.sampled_from(options))

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node of one output, whose name is given back."""
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        names = [f"{kind.lower()}{len(self.nodes)}" + ("" if not number else f"_{number}") for number in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        if domain:
            self.domains.add(domain)
        return names

    def const(self, array: Any, dtype: Any = None) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(models.constant(name, np.asarray(array, dtype)))
        return name

    def ints(self, *numbers: int) -> str:
        return self.const(numbers, np.int64)

    def number(self, value: float) -> str:
        return self.const(value, np.float32)

    def weights(self, *shape: int) -> str:
        """Multiples of 1/4 up to 1, and no column or row of zeros."""
        quarters = self.random.integers(1, 5, shape) * self.random.choice([-1, 1], shape)
        return self.const(quarters / 4, np.float32)

    def input(self, name: str, dtype: DType, axes: tuple[Axis, ...], fill: Fill, *, optional: bool = False) -> str:
        self.inputs.append(Input(name, dtype, axes, fill, optional))
        return name

    def floats(self, random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """A `Fill` of what this graph takes for large."""
        return floats(random, shape, self.large)

    def default(self, name: str, array: Array) -> None:
        """What an optional input is where a request leaves it out."""
        self.constants.append(models.constant(name, array))

    def output(self, name: str, value: str, dtype: DType, axes: tuple[Axis | None, ...]) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append((name, dtype, axes))

    def finish(self, naming: str) -> Made:
        made = models.model(
            self.nodes,
            [models.value(one.name, one.dtype, self._dims(naming, one.name, one.axes)) for one in self.inputs],
            [models.value(name, dtype, self._dims(naming, name, axes)) for name, dtype, axes in self.outputs],
            self.constants,
        )
        made.opset_import.extend(
            helper.make_opsetid(domain, {"ai.onnx.ml": 3}.get(domain, 1)) for domain in sorted(self.domains)
        )
        made.functions.extend(self.functions)
        words = f"{' > '.join([*self.words, naming])}"
        plain = self.plain and naming in ("alike", "unnamed")
        lengths = {"lengths": (*range(1, 10), 20, 22, 24), "at_once": 8} if self.close_lengths else {}
        return Made(made, tuple(self.inputs), naming, words, self.is_random, plain, **lengths)

    @staticmethod
    def _dims(naming: str, tensor: str, axes: Sequence[Axis | None]) -> list[int | str | None]:
        def dim(number: int, axis: Axis | None) -> int | str | None:
            if not isinstance(axis, str) or naming == "alike":
                return axis
            if naming == "fixed":
                return 1 if axis == ROWS else axis
            return None if naming == "unnamed" else f"{tensor}_{number}"

        return [dim(number, axis) for number, axis in enumerate(axes)]


# What requests hold


def floats(random: np.random.Generator, shape: tuple[int, ...], large: float = LARGE) -> Array:
    """Rows of axis 0, each plain or of a kind that some graphs treat otherwise."""
    array = random.integers(-8, 9, shape) / 4
    for row in range(shape[0] if shape else 0):
        draw = random.random()
        if draw < 0.6:
            continue
        if draw < 0.7:
            array[row] = large + np.abs(array[row])
        elif draw < 0.8:
            array[row] = 0
        elif draw < 0.9:
            array[row] = 0.75  # like other rows, in this request and others
        else:
            array[row] = -np.abs(array[row]) - 0.25
    return array.astype(np.float32)


def not_all_finite(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    array = floats(random, shape)
    if random.random() < 0.3:
        array[random.integers(shape[0])] = random.choice([np.nan, np.inf, -np.inf])
    return array


def ids(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Mostly small; now and then one that the vocabulary does not have, which fails alone and must fail alone."""
    highest = VOCABULARY if random.random() < 0.3 else RARE_ID
    array = random.integers(0, highest, shape)
    if random.random() < 0.05:
        array.reshape(-1)[-1] = VOCABULARY + 7
    return array.astype(np.int64)


def counts(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.integers(-8, 97, shape).astype(np.int32)


def flags(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.random(shape) < random.choice([0.0, 0.5, 1.0])


def texts(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return random.choice(np.array(["a", "b", "c", "none of them"], object), shape)


def scalars(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return np.asarray(random.choice([0.5, 1, 2, 4]), np.float32).reshape(shape)


def vectors(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Plain floats."""
    return (random.integers(-8, 9, shape) / 4).astype(np.float32)
