"""Layers that look at the rows beside: always (MIXERS), or only where some row is as few rows are (RARE).

Each takes floats of [N, width] and hands on the same shape.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from dlproxy.message import DType
from tests import models
from tests.instance.graphs.draft import CERTAIN, Draft

Layer = Callable[[Draft, str], str]


def _rows(draft: Draft, x: str) -> str:
    """How many there are, int64 [1]."""
    return draft.op("Slice", draft.op("Shape", x), draft.ints(0), draft.ints(1))


def _over_rows(draft: Draft, x: str, reduction: str) -> str:
    if reduction == "ReduceSum":
        return draft.op(reduction, x, draft.ints(0), keepdims=1)
    return draft.op(reduction, x, axes=[0], keepdims=1)


# Always


def less_a_reduction(draft: Draft, x: str) -> str:
    reduction = draft.pick(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceSumSquare"])
    return draft.op("Sub", x, _over_rows(draft, x, reduction))


def softmax_of_columns(draft: Draft, x: str) -> str:
    return draft.op("Softmax", x, axis=0)


def softmax_turned(draft: Draft, x: str) -> str:
    """Along the last axis, as it should be, of the wrong way round."""
    return draft.op("Transpose", draft.op("Softmax", draft.op("Transpose", x), axis=-1))


def running_sum(draft: Draft, x: str) -> str:
    return draft.op("CumSum", x, draft.const(0, np.int64), reverse=draft.pick([0, 1]))


def less_the_first(draft: Draft, x: str) -> str:
    first = draft.op("Gather", x, draft.ints(draft.pick([0, -1])))
    return draft.op("Sub", x, first)


def plus_the_reverse(draft: Draft, x: str) -> str:
    ends = draft.ints(-1), draft.ints(-(2**31)), draft.ints(0), draft.ints(-1)
    return draft.op("Add", x, draft.op("Slice", x, *ends))


def sorted_columns(draft: Draft, x: str) -> str:
    return draft.ops("TopK", 2, x, _rows(draft, x), axis=0)[0]


def normalised_as_in_training(draft: Draft, x: str) -> str:
    """ONNX Runtime moves the means in place: what it answers depends on all that it was asked before, batched or not."""
    draft.is_random = True
    four = (draft.weights(draft.width) for _ in range(3))
    return draft.ops("BatchNormalization", 3, x, *four, draft.const(np.ones(draft.width), np.float32), training_mode=1)[0]


def normalised_over_all(draft: Draft, x: str) -> str:
    return draft.op("LayerNormalization", x, draft.weights(draft.width), axis=0, epsilon=0.5)


def norm_of_columns(draft: Draft, x: str) -> str:
    return draft.op("LpNormalization", x, axis=0, p=2)


def turned_by_reshape(draft: Draft, x: str) -> str:
    """[N, width] read as [width, N]: right for one row, and for none of several."""
    return draft.op("Transpose", draft.op("Reshape", x, draft.ints(draft.width, -1)), perm=[1, 0])


def flattened(draft: Draft, x: str) -> str:
    mean = draft.op("ReduceMean", draft.op("Flatten", x, axis=0), axes=[1], keepdims=1)
    return draft.op("Sub", x, mean)


def attending_to_each_other(draft: Draft, x: str) -> str:
    weights = draft.op("Softmax", draft.op("MatMul", x, draft.op("Transpose", x, perm=[1, 0])), axis=-1)
    return draft.op("MatMul", weights, x)


def beside_a_constant_row(draft: Draft, x: str) -> str:
    """A row of the model's own among the others, then the mean of all."""
    together = draft.op("Concat", draft.weights(1, draft.width), x, axis=0)
    return draft.op("Sub", x, draft.op("ReduceMean", together, axes=[0], keepdims=1))


def numbered(draft: Draft, x: str) -> str:
    """A row's place in its batch is added to it."""
    rows = draft.op("Squeeze", _rows(draft, x), draft.ints(0))
    places = draft.op("Range", draft.const(0, np.int64), rows, draft.const(1, np.int64))
    return draft.op("Add", x, draft.op("Unsqueeze", draft.op("Cast", places, to=1), draft.ints(1)))


def counted(draft: Draft, x: str) -> str:
    return draft.op(draft.pick(["Div", "Add"]), x, draft.op("Cast", _rows(draft, x), to=1))


def recurrent_over_rows(draft: Draft, x: str) -> str:
    """Rows are the steps of a GRU with a batch of one."""
    width = draft.width
    weights = draft.weights(1, 3 * width, width), draft.weights(1, 3 * width, width)
    states, _ = draft.ops("GRU", 2, draft.op("Unsqueeze", x, draft.ints(1)), *weights, hidden_size=width)
    return draft.op("Squeeze", states, draft.ints(1, 2))


def convolved_over_rows(draft: Draft, x: str) -> str:
    width = draft.width
    picture = draft.op("Unsqueeze", draft.op("Transpose", x), draft.ints(0))
    convolved = draft.op("Conv", picture, draft.weights(width, width, 3), pads=[1, 1])
    return draft.op("Transpose", draft.op("Squeeze", convolved, draft.ints(0)))


def scanned(draft: Draft, x: str) -> str:
    """A Scan whose state runs from row to row."""
    value = models.value
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Identity", ["next"], ["sum"])],
        "body",
        [value("state", DType.FP32, (draft.width,)), value("row", DType.FP32, (draft.width,))],
        [value("next", DType.FP32, (draft.width,)), value("sum", DType.FP32, (draft.width,))],
    )
    start = draft.const(np.zeros(draft.width), np.float32)
    return draft.ops("Scan", 2, start, x, body=body, num_scan_inputs=1)[1]


def one_column(draft: Draft, x: str) -> str:
    """Only the last column is compared."""
    mask = np.zeros((1, draft.width), np.float32)
    mask[0, -1] = 1
    return draft.op("Sub", x, draft.op("Mul", _over_rows(draft, x, "ReduceMax"), draft.const(mask)))


def distinct_values(draft: Draft, x: str) -> str:
    values = draft.op("Unique", draft.op("Reshape", x, draft.ints(-1)))
    return draft.op("Div", x, draft.op("Cast", draft.op("Shape", values), to=1))


def multiplied_by_letters(draft: Draft, x: str) -> str:
    return draft.op("MatMul", draft.op("Einsum", x, x, equation="ni,mi->nm"), x)


def reversed_as_a_sequence(draft: Draft, x: str) -> str:
    rows = draft.op("Expand", _rows(draft, x), draft.ints(draft.width))
    return draft.op("Add", x, draft.op("ReverseSequence", x, rows, batch_axis=1, time_axis=0))


def attending_to_those_before(draft: Draft, x: str) -> str:
    """A triangle of ones over rows."""
    pairs = draft.op("MatMul", x, draft.op("Transpose", x, perm=[1, 0]))
    return draft.op("MatMul", draft.op("Trilu", pairs, upper=0), x)


def in_a_function(draft: Draft, x: str) -> str:
    """The mixing is in a function of the file's own, which the graph only calls."""
    nodes = [helper.make_node("ReduceMax", ["x"], ["top"], axes=[0]), helper.make_node("Sub", ["x", "top"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    if not draft.functions:
        draft.functions.append(helper.make_function("tests", "Mix", ["x"], ["y"], nodes, opsets))
    return draft.op("Mix", x, domain="tests")


def in_a_loop(draft: Draft, x: str) -> str:
    """A Loop of two rounds whose body takes the mean off."""
    at = len(draft.nodes)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["still"]),
            helper.make_node("ReduceMean", [f"in{at}"], ["mean"], axes=[0]),
            helper.make_node("Sub", [f"in{at}", "mean"], ["less"]),
        ],
        "body",
        [models.value("i", DType.INT64, ()), models.value("on", DType.BOOL, ()), _loose(f"in{at}")],
        [models.value("still", DType.BOOL, ()), _loose("less")],
    )
    return draft.op("Loop", draft.const(2, np.int64), draft.const(True), x, body=body)


def _loose(name: str) -> onnx.ValueInfoProto:
    return models.value(name, DType.FP32, (None, None))


MIXERS: tuple[Layer, ...] = (
    *(less_a_reduction, softmax_of_columns, softmax_turned, running_sum, less_the_first, plus_the_reverse, sorted_columns),
    *(normalised_as_in_training, normalised_over_all, norm_of_columns, turned_by_reshape, flattened),
    *(attending_to_each_other, beside_a_constant_row, numbered, counted, recurrent_over_rows, convolved_over_rows, scanned),
    *(one_column, distinct_values, multiplied_by_letters, reversed_as_a_sequence, attending_to_those_before),
    *(in_a_function, in_a_loop),
)


# Only where some row is as few are: `where` makes a flag of the batch, which turns every row of it


def _turned_if(draft: Draft, x: str, flag: str) -> str:
    """By Where, or by If with a graph of its own in each branch."""
    if draft.pick([True, False]):
        return draft.op("Where", flag, draft.op("Sub", draft.number(5), x), x)
    five = models.constant(f"five{len(draft.nodes)}", np.float32(5))

    def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph([node], name, [], [models.value(node.output[0], DType.FP32, (None, draft.width))], [five])

    at = len(draft.nodes)
    turned = branch("turned", helper.make_node("Sub", [five.name, x], [f"turned{at}"]))
    same = branch("same", helper.make_node("Identity", [x], [f"same{at}"]))
    return draft.op("If", draft.op("Reshape", flag, draft.ints(1)), then_branch=turned, else_branch=same)


def _largest(draft: Draft, x: str) -> str:
    return draft.op("ReduceMax", x, keepdims=0)


def if_large(draft: Draft, x: str) -> str:
    return _turned_if(draft, x, draft.op("Greater", _largest(draft, x), draft.number(draft.large / 2 + 0.1)))


def if_first_is_large(draft: Draft, x: str) -> str:
    first = draft.op("Gather", x, draft.ints(0))
    return _turned_if(draft, x, draft.op("Greater", _largest(draft, first), draft.number(draft.large / 2 + 0.1)))


def clipped_together(draft: Draft, x: str) -> str:
    """Divided by what exceeds the usual: by 1 unless some row is large."""
    over = draft.op("Div", _over_rows(draft, x, "ReduceMax"), draft.number(draft.large / 2))
    return draft.op("Div", x, draft.op("Max", over, draft.number(1)))


def if_zeros(draft: Draft, x: str) -> str:
    least = draft.op("ReduceMin", draft.op("ReduceL1", x, axes=[1]), keepdims=0)
    return _turned_if(draft, x, draft.op("Less", least, draft.number(0.01)))


def if_negative(draft: Draft, x: str) -> str:
    """A row without any positive value."""
    least = draft.op("ReduceMin", draft.op("ReduceMax", x, axes=[1]), keepdims=0)
    return _turned_if(draft, x, draft.op("Less", least, draft.number(0)))


def if_all_negative(draft: Draft, x: str) -> str:
    """No positive value in the whole batch: what one row alone may be, and many together hardly are."""
    return _turned_if(draft, x, draft.op("Less", _largest(draft, x), draft.number(0)))


def if_equal(draft: Draft, x: str) -> str:
    """Two rows are the same."""
    apart = draft.op("Sub", draft.op("Unsqueeze", x, draft.ints(0)), draft.op("Unsqueeze", x, draft.ints(1)))
    same = draft.op("Cast", draft.op("Less", draft.op("ReduceL1", apart, axes=[2]), draft.number(1e-6)), to=1)
    pairs = draft.op("ReduceSum", same, keepdims=0)
    rows = draft.op("Cast", draft.op("Squeeze", _rows(draft, x)), to=1)
    return _turned_if(draft, x, draft.op("Greater", pairs, rows))


def _if_rows(draft: Draft, x: str, least: int) -> str:
    return _turned_if(draft, x, draft.op("Greater", draft.op("Squeeze", _rows(draft, x)), draft.const(least - 1, np.int64)))


def if_three_rows(draft: Draft, x: str) -> str:
    return _if_rows(draft, x, 3)


def if_ten_rows(draft: Draft, x: str) -> str:
    return _if_rows(draft, x, 10)


def if_odd_rows(draft: Draft, x: str) -> str:
    rows = draft.op("Squeeze", _rows(draft, x))
    odd = draft.op("And", *_odd_and_more(draft, rows))
    return _turned_if(draft, x, odd)


def _odd_and_more(draft: Draft, rows: str) -> tuple[str, str]:
    odd = draft.op("Equal", draft.op("Mod", rows, draft.const(2, np.int64)), draft.const(1, np.int64))
    return odd, draft.op("Greater", rows, draft.const(1, np.int64))


def if_spread(draft: Draft, x: str) -> str:
    """Rows that lie far apart: what no rows of one kind do."""
    spread = draft.op("Sub", _largest(draft, x), draft.op("ReduceMin", x, keepdims=0))
    return _turned_if(draft, x, draft.op("Greater", spread, draft.number(draft.large / 2 + 0.1)))


def if_certain(draft: Draft, x: str) -> str:
    """One value of many, anywhere in the batch."""
    near = draft.op("Less", draft.op("Abs", draft.op("Sub", x, draft.number(CERTAIN))), draft.number(0.01))
    return _turned_if(draft, x, draft.op("Greater", _largest(draft, draft.op("Cast", near, to=1)), draft.number(0.5)))


def if_the_total_is_low(draft: Draft, x: str) -> str:
    return _turned_if(draft, x, draft.op("Less", draft.op("ReduceSum", x, keepdims=0), draft.number(-10.1)))


RARE: tuple[Layer, ...] = (
    *(if_large, if_first_is_large, clipped_together, if_zeros, if_negative, if_all_negative, if_equal, if_spread),
    *(if_three_rows, if_ten_rows, if_odd_rows, if_certain, if_the_total_is_low),
)
