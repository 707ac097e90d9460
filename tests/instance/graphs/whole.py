"""Graphs that are no chain of layers over [N, width]: quantised, ragged, stateful, random, of many axes or none.

Each function makes inputs, nodes and outputs. FAMILIES is the table of them.
"""

from collections.abc import Callable

import numpy as np
from onnx import helper

from dlproxy.message import DType
from tests import models
from tests.instance.graphs import entries, exits
from tests.instance.graphs.draft import (
    LARGE,
    LENGTH,
    RARE_ID,
    ROWS,
    TABLE,
    VOCABULARY,
    Array,
    Draft,
    flags,
    ids,
    not_all_finite,
    scalars,
    texts,
    vectors,
)
from tests.instance.graphs.rows import chain

Form = Callable[[Draft], None]


def _x(draft: Draft) -> str:
    return draft.input("x", DType.FP32, (ROWS, draft.width), draft.floats)


# Only where ids, lengths or values are rare


def if_id_is_rare(draft: Draft) -> None:
    given = draft.input("ids", DType.INT64, (ROWS, LENGTH), ids)
    flag = draft.op("Greater", draft.op("ReduceMax", given, keepdims=0), draft.const(RARE_ID, np.int64))
    table = draft.weights(60, draft.width)
    x = draft.op("ReduceSum", draft.op("Gather", table, given), draft.ints(1), keepdims=0)
    exits.rows(draft, draft.op("Where", flag, draft.op("Neg", x), x))


def if_id_is_certain(draft: Draft) -> None:
    """One id of many, anywhere in the batch."""
    given = draft.input("ids", DType.INT64, (ROWS, LENGTH), ids)
    same = draft.op("Cast", draft.op("Equal", given, draft.const(draft.pick([11, 2, 1]), np.int64)), to=1)
    flag = draft.op("Greater", draft.op("ReduceMax", same, keepdims=0), draft.number(0.5))
    x = draft.op("ReduceSum", draft.op("Gather", draft.weights(60, draft.width), given), draft.ints(1), keepdims=0)
    exits.rows(draft, draft.op("Where", flag, draft.op("Neg", x), x))


def if_any_mark_is_set(draft: Draft) -> None:
    marks = draft.input("marks", DType.BOOL, (ROWS, 1), flags)
    chosen = draft.op("ReduceMax", draft.op("Cast", marks, to=1), axes=[0], keepdims=1)
    exits.rows(draft, draft.op("Mul", _x(draft), draft.op("Sub", draft.number(2), chosen)))


def if_a_text_is_certain(draft: Draft) -> None:
    word = draft.input("word", DType.BYTES, (ROWS, 1), texts)
    table = {"keys_strings": ["c"], "values_floats": [1.0], "default_float": 0.0}
    number = draft.op("LabelEncoder", word, domain="ai.onnx.ml", **table)
    found = draft.op("ReduceMax", number, axes=[0], keepdims=1)
    exits.rows(draft, draft.op("Mul", _x(draft), draft.op("Sub", draft.number(2), found)))


def if_long(draft: Draft) -> None:
    """Rows of more than 16 steps are compared with one another."""
    _mixed_by_length(draft, "Greater", 16)


def if_short(draft: Draft) -> None:
    _mixed_by_length(draft, "Less", 4)


def if_a_one(draft: Draft) -> None:
    """One of the numbers that people do think of."""
    x = _x(draft)
    ones = draft.op("Cast", draft.op("Equal", x, draft.number(1)), to=1)
    flag = draft.op("Greater", draft.op("ReduceMax", ones, keepdims=0), draft.number(0.5))
    exits.rows(draft, draft.op("Where", flag, draft.op("Sub", draft.number(5), x), x))


def _mixed_by_length(draft: Draft, test: str, limit: int) -> None:
    x = draft.input("x", DType.FP32, (ROWS, LENGTH, draft.width), draft.floats)
    length = draft.op("Gather", draft.op("Shape", x), draft.const(1, np.int64))
    last = draft.op("ReduceMax", x, axes=[1], keepdims=0)
    mixed = draft.op("Sub", last, draft.op("ReduceMean", last, axes=[0], keepdims=1))
    exits.rows(draft, draft.op("Where", draft.op(test, length, draft.const(limit, np.int64)), mixed, last))


def if_anything_is_nan(draft: Draft) -> None:
    x = draft.input("x", DType.FP32, (ROWS, draft.width), not_all_finite)
    total = draft.op("ReduceSum", x, draft.ints(0), keepdims=1)
    exits.rows(draft, draft.op("Add", x, draft.op("Mul", total, draft.number(0))))


# Quantised


def quantised_by_hand(draft: Draft) -> None:
    """DynamicQuantizeLinear: one scale for the whole batch."""
    x = chain(draft, draft.pick(entries.OF_FLOATS)(draft), 1)
    quantised, scale, zero = draft.ops("DynamicQuantizeLinear", 3, x)
    weights = draft.const(draft.random.integers(-100, 100, (draft.width, draft.width)), np.int8)
    product = draft.op("Cast", draft.op("MatMulInteger", quantised, weights, zero), to=1)
    exits.rows(draft, draft.op("Mul", draft.op("Mul", product, scale), draft.number(0.01)))


def quantised_ids(draft: Draft) -> None:
    """The text model: an embedding, an average, a quantised product. The first two ids have one scale, large ids another."""
    table = draft.random.standard_normal((VOCABULARY, draft.width)).astype(np.float32)
    table[1] = table[0][::-1]
    table[RARE_ID:] *= 20
    looked_up = draft.op("Gather", draft.const(table), draft.input("ids", DType.INT64, (ROWS, LENGTH), ids))
    x = draft.op("ReduceMean", looked_up, axes=[1], keepdims=0)
    quantised, scale, zero = draft.ops("DynamicQuantizeLinear", 3, x)
    weights = draft.const(draft.random.integers(-100, 100, (draft.width, draft.width)), np.int8)
    product = draft.op("Cast", draft.op("MatMulInteger", quantised, weights, zero), to=1)
    exits.rows(draft, draft.op("Mul", product, scale))


def quantised_by_a_tool(draft: Draft) -> None:
    """What onnxruntime.quantization.quantize_dynamic makes of a product, after its fusions."""
    x = chain(draft, draft.pick(entries.OF_FLOATS)(draft), 1)
    weights = draft.const(draft.random.integers(-100, 100, (draft.width, draft.width)), np.int8)
    scale, zero = draft.number(0.01), draft.const(0, np.int8)
    exits.rows(draft, draft.op("DynamicQuantizeMatMul", x, weights, scale, zero, domain="com.microsoft"))


def quantised_recurrent(draft: Draft) -> None:
    """A quantised LSTM: the scale of its input is the batch's."""
    width = draft.width
    weights = [draft.const(draft.random.integers(-100, 100, (1, width, 4 * width)), np.int8) for _ in range(2)]
    scales = [(draft.const([0.01], np.float32), draft.const([0], np.int8)) for _ in range(2)]
    step = draft.op("Unsqueeze", _x(draft), draft.ints(0))
    given = [step, *weights, "", "", "", "", "", *scales[0], *scales[1]]
    _, last, _ = draft.ops("DynamicQuantizeLSTM", 3, *given, domain="com.microsoft", hidden_size=width)
    exits.rows(draft, draft.op("Squeeze", last, draft.ints(0)))


def quantised_with_fixed_scales(draft: Draft) -> None:
    """Calibrated before: rows do not matter to one another."""
    scale, zero = draft.number(0.25), draft.const(0, np.int8)
    quantised = draft.op("QuantizeLinear", _x(draft), scale, zero)
    x = draft.op("DequantizeLinear", quantised, scale, zero)
    exits.rows(draft, draft.op("MatMul", x, draft.weights(draft.width, draft.width)))


# Ragged: as many rows come out as are found


def finds(draft: Draft) -> None:
    found = draft.op("Transpose", draft.op("NonZero", _x(draft)), perm=[1, 0])
    columns = draft.op("Slice", found, draft.ints(1), draft.ints(2), draft.ints(1))
    draft.output("columns", columns, DType.INT64, (draft.pick([ROWS, "found"]), 1))


def kept_rows(draft: Draft) -> None:
    """Rows that pass a test: all of the plain ones, none of the rare."""
    x = _x(draft)
    largest = draft.op("ReduceMax", x, axes=[1], keepdims=0)
    kept = draft.pick(["positive", "small"])
    test = ("Greater", -0.01) if kept == "positive" else ("Less", LARGE / 2)
    kept_x = draft.op("Compress", x, draft.op(test[0], largest, draft.number(test[1])), axis=0)
    draft.output("kept", kept_x, DType.FP32, (ROWS, draft.width))


def distinct_rows(draft: Draft) -> None:
    draft.output("rows", draft.ops("Unique", 1, _x(draft), axis=0)[0], DType.FP32, (ROWS, draft.width))


def boxes(draft: Draft) -> None:
    """A detector: boxes of all pictures in one list, each with its picture's number, its class's and its own."""
    given = draft.input("boxes", DType.FP32, (ROWS, 4, 4), draft.floats)
    scores = draft.input("scores", DType.FP32, (ROWS, 1, 4), draft.floats)
    limits = draft.const([3], np.int64), draft.const([0.5], np.float32), draft.const([0.25], np.float32)
    found = draft.op("NonMaxSuppression", given, scores, *limits)
    draft.output("found", found, DType.INT64, (draft.pick([ROWS, "found"]), 3))


def one_row_more(draft: Draft) -> None:
    x = _x(draft)
    places = [x, draft.weights(1, draft.width)]
    draft.output("y", draft.op("Concat", *draft.pick([places, places[::-1]]), axis=0), DType.FP32, (ROWS, draft.width))


def every_row_twice(draft: Draft) -> None:
    draft.output("y", draft.op("Tile", _x(draft), draft.ints(2, 1)), DType.FP32, (ROWS, draft.width))


def pairs_of_rows(draft: Draft) -> None:
    """Two rows become one; an odd number of them fails."""
    y = draft.op("Reshape", _x(draft), draft.ints(-1, 2 * draft.width))
    draft.output("y", y, DType.FP32, (ROWS, 2 * draft.width))


def rows_of_columns(draft: Draft) -> None:
    """Every number a row of its own: axis 0 counts width times as many."""
    draft.output("y", draft.op("Reshape", chain(draft, _x(draft), 1), draft.ints(-1, 1)), DType.FP32, (ROWS, 1))


def all_in_a_list(draft: Draft) -> None:
    draft.output("y", draft.op("Reshape", _x(draft), draft.ints(-1)), DType.FP32, (ROWS,))


def steps_as_rows(draft: Draft) -> None:
    """[rows, length] to [rows * length]: as long as the batch only where rows have one step."""
    x = draft.input("x", DType.FP32, (ROWS, LENGTH), draft.floats)
    draft.output("y", draft.op("Reshape", x, draft.ints(-1)), DType.FP32, (ROWS,))


def first_row_only(draft: Draft) -> None:
    first = draft.op("Slice", _x(draft), draft.ints(0), draft.ints(1), draft.ints(0))
    draft.output("y", first, DType.FP32, (ROWS, draft.width))


def nothing_but_a_constant(draft: Draft) -> None:
    shape = draft.op("Shape", _x(draft))
    draft.output("y", draft.op("Mul", draft.op("Slice", shape, draft.ints(1), draft.ints(2)), draft.ints(3)), DType.INT64, (1,))


def one_row_only(draft: Draft) -> None:
    """The file says any number of rows; a Reshape inside says one."""
    exits.rows(draft, draft.op("Reshape", _x(draft), draft.ints(1, draft.width)))


def total(draft: Draft) -> None:
    draft.output("y", draft.op("ReduceSum", _x(draft), keepdims=0), DType.FP32, ())


# Stateful, and inputs that are not of the batch


def stateful(draft: Draft) -> None:
    """A recurrent cell: rows of the state stand on axis 1."""
    width, state = draft.width, draft.input("h", DType.FP32, (draft.pick([1, "layers"]), ROWS, draft.width), vectors)
    x = draft.op("Unsqueeze", _x(draft), draft.ints(0))
    mixed = draft.op(
        "Add", draft.op("MatMul", x, draft.weights(width, width)), draft.op("MatMul", state, draft.weights(width, width))
    )
    following = draft.op("Tanh", mixed)
    draft.output("y", draft.op("ReduceSum", following, draft.ints(0), keepdims=0), DType.FP32, (ROWS, width))
    draft.output("h_next", following, DType.FP32, (1, ROWS, width))


def recurrent_steps_first(draft: Draft) -> None:
    """A GRU as PyTorch exports it: steps on axis 0, rows on axis 1 of all."""
    width = draft.width
    x = draft.input("x", DType.FP32, (LENGTH, ROWS, width), draft.floats)
    h = draft.input("h", DType.FP32, (1, ROWS, width), vectors)
    weights = draft.weights(1, 3 * width, width), draft.weights(1, 3 * width, width)
    states, last = draft.ops("GRU", 2, x, *weights, "", "", h, hidden_size=width)
    draft.output("y", draft.op("Squeeze", states, draft.ints(1)), DType.FP32, (LENGTH, ROWS, width))
    draft.output("h_next", last, DType.FP32, (1, ROWS, width))


def tempered(draft: Draft) -> None:
    """A scalar of the request's own, as [] or [1]."""
    axes: tuple[int, ...] = draft.pick([(), (1,)])
    temperature = draft.input("temperature", DType.FP32, axes, scalars)
    exits.rows(draft, draft.op("Div", chain(draft, _x(draft), 1), temperature))


def with_a_default(draft: Draft) -> None:
    """An input that may be left out."""
    default = (draft.random.integers(-8, 9, draft.width) / 4).astype(np.float32)
    bias = draft.input("bias", DType.FP32, (draft.width,), vectors, optional=True)
    draft.default(bias, default)
    exits.rows(draft, draft.op("Add", _x(draft), bias))


def looked_up_in_its_own_table(draft: Draft) -> None:
    """A table of its own comes with each request; rows are looked up in it."""
    table = draft.input("table", DType.FP32, (TABLE, draft.width), vectors)
    x = _x(draft)
    exits.rows(draft, draft.op("MatMul", draft.op("MatMul", x, draft.op("Transpose", table)), table))


def scored_items(draft: Draft) -> None:
    """One user, many items: the first axes have sizes of their own."""
    user = draft.input("user", DType.FP32, (1 if draft.pick([True, False]) else "users", draft.width), _one_row)
    items = draft.input("items", DType.FP32, (ROWS, draft.width), draft.floats)
    draft.output("score", draft.op("ReduceSum", draft.op("Mul", user, items), draft.ints(1), keepdims=0), DType.FP32, (ROWS,))


def _one_row(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return vectors(random, (1, *shape[1:]))


def everything_with_everything(draft: Draft) -> None:
    a = draft.input("a", DType.FP32, (ROWS, draft.width), draft.floats)
    b = draft.input("b", DType.FP32, (TABLE, draft.width), vectors)
    draft.output("scores", draft.op("MatMul", a, draft.op("Transpose", b)), DType.FP32, (ROWS, TABLE))


# Random: no two runs are alike


def noise(draft: Draft) -> None:
    draft.is_random = True
    x = chain(draft, _x(draft), 1)
    kind = draft.pick(["RandomNormalLike", "RandomUniformLike", "RandomNormal", "Bernoulli", "Dropout"])
    if kind == "RandomNormal":
        made = draft.op(kind, shape=[1, draft.width])
    elif kind == "Bernoulli":
        made = draft.op(kind, draft.op("Sigmoid", x))
    elif kind == "Dropout":
        made = draft.op(kind, x, draft.number(0.5), draft.const(True))
    else:
        made = draft.op(kind, x)
    exits.rows(draft, draft.op("Add", x, made))


def noise_if_large(draft: Draft) -> None:
    """Only where a row's own value is rare."""
    draft.is_random = True
    x = _x(draft)
    large = draft.op("Greater", x, draft.number(LARGE / 2))
    exits.rows(draft, draft.op("Where", large, draft.op("Add", x, draft.op("RandomNormalLike", x)), x))


def noise_in_a_branch(draft: Draft) -> None:
    """In the graph of an If's branch, which is taken where the batch holds a large value."""
    draft.is_random = True
    x = _x(draft)
    flag = draft.op("Greater", draft.op("ReduceMax", x, keepdims=0), draft.number(LARGE / 2))
    out = models.value("noisy", DType.FP32, (None, draft.width)), models.value("same", DType.FP32, (None, draft.width))
    noisy = helper.make_graph([helper.make_node("RandomNormalLike", [x], ["noisy"])], "noisy", [], [out[0]])
    same = helper.make_graph([helper.make_node("Identity", [x], ["same"])], "same", [], [out[1]])
    branches = {"then_branch": noisy, "else_branch": same}
    exits.rows(draft, draft.op("If", draft.op("Reshape", flag, draft.ints(1)), **branches))


FAMILIES: dict[Form, str] = {
    **dict.fromkeys((if_id_is_rare, if_id_is_certain, if_long, if_short, if_anything_is_nan), "rarely mixing"),
    **dict.fromkeys((if_any_mark_is_set, if_a_text_is_certain, if_a_one), "rarely mixing"),
    **dict.fromkeys((quantised_by_hand, quantised_ids, quantised_by_a_tool, quantised_recurrent), "quantised"),
    **dict.fromkeys((quantised_with_fixed_scales,), "quantised"),
    **dict.fromkeys((finds, kept_rows, distinct_rows, boxes, one_row_more, every_row_twice, pairs_of_rows), "ragged"),
    **dict.fromkeys((rows_of_columns, all_in_a_list, steps_as_rows, first_row_only, nothing_but_a_constant, total), "ragged"),
    **dict.fromkeys((one_row_only,), "ragged"),
    **dict.fromkeys((stateful, recurrent_steps_first), "stateful"),
    **dict.fromkeys((tempered, with_a_default, looked_up_in_its_own_table), "inputs of no rows"),
    **dict.fromkeys((scored_items, everything_with_everything), "inputs of no rows"),
    **dict.fromkeys((noise, noise_if_large, noise_in_a_branch), "random"),
}
IMPOSSIBLE = {(pairs_of_rows, "fixed")}  # ONNX Runtime sees that one row makes no pair
