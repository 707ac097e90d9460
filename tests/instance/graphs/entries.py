"""How rows come in: each entry adds inputs and hands on floats of [N, width]. A table of functions for `pick`."""

import numpy as np

from dlproxy.message import DType
from tests.instance.graphs.draft import LENGTH, ROWS, VOCABULARY, Draft, counts, flags, ids, texts


def vectors(draft: Draft) -> str:
    return draft.input("x", DType.FP32, (ROWS, draft.width), draft.floats)


def two_inputs(draft: Draft) -> str:
    a = draft.input("a", DType.FP32, (ROWS, draft.width), draft.floats)
    b = draft.input("b", DType.FP32, (ROWS, draft.width), draft.floats)
    return draft.op("Add", a, b)


def joined_inputs(draft: Draft) -> str:
    a = draft.input("a", DType.FP32, (ROWS, 2), draft.floats)
    b = draft.input("b", DType.FP32, (ROWS,), draft.floats)
    whole = draft.op("Concat", a, draft.op("Unsqueeze", b, draft.ints(1)), axis=1)
    return draft.op("MatMul", whole, draft.weights(3, draft.width))


def three_inputs(draft: Draft) -> str:
    x = two_inputs(draft)
    flag = draft.input("flag", DType.BOOL, (ROWS, 1), flags)
    return draft.op("Where", flag, x, draft.op("Neg", x))


def numbers(draft: Draft) -> str:
    """One number a row: [N]."""
    x = draft.op("Unsqueeze", draft.input("x", DType.FP32, (ROWS,), draft.floats), draft.ints(1))
    return draft.op("MatMul", x, draft.weights(1, draft.width))


def steps_summed(draft: Draft) -> str:
    x = draft.input("x", DType.FP32, (ROWS, LENGTH, draft.width), draft.floats)
    return draft.op("ReduceMax", x, axes=[1], keepdims=0)


def steps_averaged(draft: Draft) -> str:
    draft.exact = False
    x = draft.input("x", DType.FP32, (ROWS, LENGTH, draft.width), draft.floats)
    return draft.op("ReduceMean", x, axes=[1], keepdims=0)


def steps_attending(draft: Draft) -> str:
    draft.exact = False
    x = draft.input("x", DType.FP32, (ROWS, LENGTH, draft.width), draft.floats)
    scores = draft.op("Softmax", draft.op("MatMul", x, draft.op("Transpose", x, perm=[0, 2, 1])), axis=2)
    return draft.op("ReduceMean", draft.op("MatMul", scores, x), axes=[1], keepdims=0)


def steps_convolved(draft: Draft) -> str:
    x = draft.input("x", DType.FP32, (ROWS, 2, LENGTH), draft.floats)
    convolved = draft.op("Conv", x, draft.weights(draft.width, 2, 3), pads=[1, 1])
    return draft.op("ReduceMax", convolved, axes=[2], keepdims=0)


def pictures(draft: Draft) -> str:
    x = draft.input("x", DType.FP32, (ROWS, 1, 4, 4), draft.floats)
    pooled = draft.op("MaxPool", draft.op("Conv", x, draft.weights(2, 1, 3, 3)), kernel_shape=[2, 2])
    return draft.op("MatMul", draft.op("Flatten", pooled, axis=1), draft.weights(2, draft.width))


def _table(draft: Draft) -> str:
    """Of multiples of 1/4 that grow with the id: the last rows are twenty times the first."""
    table = draft.random.integers(-8, 9, (VOCABULARY, draft.width)) / 4
    table[VOCABULARY * 3 // 4 :] *= 20
    return draft.const(table, np.float32)


def one_id(draft: Draft) -> str:
    return draft.op("Gather", _table(draft), draft.input("ids", DType.INT64, (ROWS,), ids))


def many_ids(draft: Draft) -> str:
    looked_up = draft.op("Gather", _table(draft), draft.input("ids", DType.INT64, (ROWS, LENGTH), ids))
    return draft.op("ReduceSum", looked_up, draft.ints(1), keepdims=0)


def masked_ids(draft: Draft) -> str:
    looked_up = draft.op("Gather", _table(draft), draft.input("ids", DType.INT64, (ROWS, LENGTH), ids))
    mask = draft.op("Cast", draft.input("mask", DType.BOOL, (ROWS, LENGTH), flags), to=1)
    masked = draft.op("Mul", looked_up, draft.op("Unsqueeze", mask, draft.ints(2)))
    return draft.op("ReduceSum", masked, draft.ints(1), keepdims=0)


def heads_attending(draft: Draft) -> str:
    """Attention of two heads, spelled as exports do."""
    draft.exact = False
    x = draft.input("x", DType.FP32, (ROWS, LENGTH, 4), draft.floats)

    def heads(*order: int) -> str:
        part = draft.op("Reshape", draft.op("MatMul", x, draft.weights(4, 4)), draft.ints(0, 0, 2, 2))
        return draft.op("Transpose", part, perm=list(order))

    weights = draft.op("Softmax", draft.op("MatMul", heads(0, 2, 1, 3), heads(0, 2, 3, 1)), axis=-1)
    together = draft.op("Transpose", draft.op("MatMul", weights, heads(0, 2, 1, 3)), perm=[0, 2, 1, 3])
    seen = draft.op("Reshape", together, draft.ints(0, 0, 4))
    return draft.op("MatMul", draft.op("ReduceMean", seen, axes=[1], keepdims=0), draft.weights(4, draft.width))


def whole_numbers(draft: Draft) -> str:
    return draft.op("Cast", draft.input("count", DType.INT32, (ROWS, draft.width), counts), to=1)


def marks(draft: Draft) -> str:
    return draft.op("Cast", draft.input("marks", DType.BOOL, (ROWS, draft.width), flags), to=1)


def words(draft: Draft) -> str:
    numbers = {"keys_strings": ["a", "b", "c"], "values_floats": [0.5, 1.0, 96.0], "default_float": 0.0}
    number = draft.op("LabelEncoder", draft.input("word", DType.BYTES, (ROWS, 1), texts), domain="ai.onnx.ml", **numbers)
    return draft.op("MatMul", number, draft.weights(1, draft.width))


ENTRIES = (
    *(vectors, two_inputs, joined_inputs, three_inputs, numbers, steps_summed, steps_averaged, steps_attending),
    *(steps_convolved, pictures, one_id, many_ids, masked_ids, marks, words, heads_attending, whole_numbers),
)
OF_FLOATS = (vectors, two_inputs, numbers, steps_summed)  # which hand on large values, zeros and equal rows as they came
