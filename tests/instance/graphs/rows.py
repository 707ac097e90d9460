"""Layers that look at one row at a time: each takes floats of [N, width] and hands on the same shape."""

from collections.abc import Callable

import numpy as np

from tests.instance.graphs.draft import Draft

Layer = Callable[[Draft, str], str]


def relu(draft: Draft, x: str) -> str:
    return draft.op("Relu", x)


def add(draft: Draft, x: str) -> str:
    return draft.op("Add", x, draft.weights(draft.width))


def multiply(draft: Draft, x: str) -> str:
    return draft.op("Mul", x, draft.weights(1, draft.width))


def matmul(draft: Draft, x: str) -> str:
    if draft.matmuls >= 2:  # more bits than float32 has
        return add(draft, x)
    draft.matmuls += 1
    return draft.op("MatMul", x, draft.weights(draft.width, draft.width))


def gemm(draft: Draft, x: str) -> str:
    if draft.matmuls >= 2:
        return add(draft, x)
    draft.matmuls += 1
    return draft.op("Gemm", x, draft.weights(draft.width, draft.width), draft.weights(draft.width), transB=1)


def transposed_twice(draft: Draft, x: str) -> str:
    turned = draft.op("Transpose", x, perm=[1, 0])
    return draft.op("Transpose", draft.op("Add", turned, draft.weights(draft.width, 1)), perm=[1, 0])


def reshaped_and_back(draft: Draft, x: str) -> str:
    """Rows keep their axis: a copying 0, or -1 in its place."""
    axis = draft.pick([0, -1])
    apart = draft.op("Reshape", x, draft.ints(axis, draft.width, 1))
    return draft.op("Reshape", draft.op("Relu", apart), draft.ints(axis, draft.width))


def merged_and_back(draft: Draft, x: str) -> str:
    """Axis 0 counts other things for a while: [N * width, 1]."""
    merged = draft.op("Mul", draft.op("Reshape", x, draft.ints(-1, 1)), draft.weights(1, 1))
    return draft.op("Reshape", merged, draft.ints(-1, draft.width))


def widened(draft: Draft, x: str) -> str:
    first = draft.op("Slice", x, draft.ints(0), draft.ints(draft.width), draft.ints(1))
    return draft.op("Add", first, draft.op("Concat", x, axis=1))


def clipped(draft: Draft, x: str) -> str:
    return draft.op("Clip", x, draft.number(-2), draft.number(2))


def chosen(draft: Draft, x: str) -> str:
    """A row's own largest value decides about the row."""
    largest = draft.op("ReduceMax", x, axes=[1], keepdims=1)
    return draft.op("Where", draft.op("Greater", largest, draft.number(1)), x, draft.op("Neg", x))


def squashed(draft: Draft, x: str) -> str:
    draft.exact = False
    return draft.op(draft.pick(["Tanh", "Sigmoid"]), x)


def softmax(draft: Draft, x: str) -> str:
    draft.exact = False
    return draft.op("Softmax", x, axis=-1)


def normalised(draft: Draft, x: str) -> str:
    """Spelled as one operator, or as frameworks export it."""
    draft.exact = False
    if draft.pick([True, False]):
        return draft.op("LayerNormalization", x, draft.weights(draft.width), axis=-1, epsilon=0.5)
    centred = draft.op("Sub", x, draft.op("ReduceMean", x, axes=[-1], keepdims=1))
    spread = draft.op("ReduceMean", draft.op("Mul", centred, centred), axes=[-1], keepdims=1)
    return draft.op("Div", centred, draft.op("Sqrt", draft.op("Add", spread, draft.number(0.5))))


def batch_normalised(draft: Draft, x: str) -> str:
    """As it is served: with the means of the training."""
    draft.exact = False
    scale, bias, mean = (draft.weights(draft.width) for _ in range(3))
    return draft.op("BatchNormalization", x, scale, bias, mean, draft.const(np.ones(draft.width), np.float32))


def average_kept(draft: Draft, x: str) -> str:
    draft.exact = False
    return draft.op("Sub", x, draft.op("ReduceMean", x, axes=[1], keepdims=1))


def recurrent(draft: Draft, x: str) -> str:
    """Rows are the batch of a GRU over one step."""
    draft.exact = False
    width = draft.width
    step = draft.op("Unsqueeze", x, draft.ints(0))
    weights = draft.weights(1, 3 * width, width), draft.weights(1, 3 * width, width)
    _, last = draft.ops("GRU", 2, step, *weights, hidden_size=width)
    return draft.op("Squeeze", last, draft.ints(0))


def gated(draft: Draft, x: str) -> str:
    """Rows shaped by their number, as exports do: Shape, Expand."""
    rows = draft.op("Slice", draft.op("Shape", x), draft.ints(0), draft.ints(1))
    ones = draft.op("Expand", draft.weights(1, draft.width), draft.op("Concat", rows, draft.ints(draft.width), axis=0))
    return draft.op("Mul", x, ones)


def reshaped_by_shape(draft: Draft, x: str) -> str:
    rows = draft.op("Gather", draft.op("Shape", x), draft.ints(0))
    apart = draft.op("Reshape", x, draft.op("Concat", rows, draft.ints(1, draft.width), axis=0))
    return draft.op("Squeeze", apart, draft.ints(1))


def multiplied_by_letters(draft: Draft, x: str) -> str:
    if draft.matmuls >= 2:
        return add(draft, x)
    draft.matmuls += 1
    return draft.op("Einsum", x, draft.weights(draft.width, draft.width), equation="ni,ij->nj")


def split_and_swapped(draft: Draft, x: str) -> str:
    first, rest = draft.ops("Split", 2, x, draft.ints(1, draft.width - 1), axis=1)
    return draft.op("Concat", rest, first, axis=1)


def padded_and_cut(draft: Draft, x: str) -> str:
    padded = draft.op("Pad", x, draft.ints(0, 1, 0, 0))
    return draft.op("Slice", padded, draft.ints(0), draft.ints(draft.width), draft.ints(1))


def columns_taken(draft: Draft, x: str) -> str:
    return draft.op("Gather", x, draft.ints(*draft.random.integers(0, draft.width, draft.width)), axis=1)


def sorted_within(draft: Draft, x: str) -> str:
    return draft.ops("TopK", 2, x, draft.ints(draft.width), axis=1)[0]


def running_sum_within(draft: Draft, x: str) -> str:
    return draft.op("CumSum", x, draft.const(1, np.int64))


def gelu(draft: Draft, x: str) -> str:
    draft.exact = False
    half = draft.op("Add", draft.op("Erf", draft.op("Div", x, draft.number(1.4142135))), draft.number(1))
    return draft.op("Mul", draft.op("Mul", x, half), draft.number(0.5))


LAYERS: tuple[Layer, ...] = (
    *(relu, add, multiply, matmul, gemm, transposed_twice, reshaped_and_back, merged_and_back, widened, clipped, chosen),
    *(squashed, softmax, normalised, batch_normalised, average_kept, recurrent, gated),
    *(reshaped_by_shape, multiplied_by_letters, split_and_swapped, padded_and_cut, columns_taken, sorted_within),
    *(running_sum_within, gelu),
)


def chain(draft: Draft, x: str, most: int) -> str:
    """Up to so many layers."""
    for _ in range(draft.pick(range(most + 1))):
        layer = draft.pick(LAYERS)
        draft.words.append(layer.__name__)
        x = layer(draft, x)
    return x
