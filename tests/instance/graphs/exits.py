"""How rows go out: each exit makes outputs of floats of [N, width]."""

import numpy as np

from dlproxy.message import DType
from tests.instance.graphs.draft import ROWS, Draft


def rows(draft: Draft, y: str) -> None:
    draft.output("y", y, DType.FP32, (ROWS, draft.width))


def scores(draft: Draft, y: str) -> None:
    draft.output("y", draft.op("ReduceSum", y, draft.ints(1), keepdims=0), DType.FP32, (ROWS,))


def rows_and_labels(draft: Draft, y: str) -> None:
    rows(draft, y)
    if draft.exact:
        draft.output("label", draft.op("ArgMax", y, axis=1, keepdims=0), DType.INT64, (ROWS,))


def tops(draft: Draft, y: str) -> None:
    values, places = draft.ops("TopK", 2, y, draft.ints(1), axis=1)
    draft.output("top", values, DType.FP32, (ROWS, 1))
    if draft.exact:
        draft.output("place", places, DType.INT64, (ROWS, 1))


def flags(draft: Draft, y: str) -> None:
    rows(draft, y)
    if draft.exact:
        draft.output("high", draft.op("Greater", y, draft.number(0.5)), DType.BOOL, (ROWS, draft.width))


def rows_of_pairs(draft: Draft, y: str) -> None:
    draft.output("y", draft.op("Unsqueeze", y, draft.ints(2)), DType.FP32, (ROWS, draft.width, 1))


def columns(draft: Draft, y: str) -> None:
    """Rows stand on axis 1."""
    draft.plain = False
    draft.output("y", draft.op("Transpose", y, perm=[1, 0]), DType.FP32, (draft.width, ROWS))


def labels_of_one(draft: Draft, y: str) -> None:
    """As LightGBM's converter declares labels: one, however many rows there are."""
    draft.plain = False
    rows(draft, y)
    summed = draft.op("ReduceMax", y, axes=[1], keepdims=0)
    draft.output("label", summed, DType.FP32, (1,))


def rows_and_a_constant(draft: Draft, y: str) -> None:
    draft.plain = False
    rows(draft, y)
    draft.output("names", draft.const([3, 5, 8], np.int64), DType.INT64, (3,))


def rows_and_their_sum(draft: Draft, y: str) -> None:
    draft.plain = False
    rows(draft, y)
    draft.output("total", draft.op("ReduceSum", y, keepdims=0), DType.FP32, ())


def rows_and_a_mean(draft: Draft, y: str) -> None:
    """The first output is of rows; the second has one row for all."""
    draft.plain = False
    rows(draft, y)
    draft.output("mean", draft.op("ReduceMean", y, axes=[0], keepdims=1), DType.FP32, (ROWS, draft.width))


PLAIN = (rows, scores, rows_and_labels, tops, flags, rows_of_pairs)
ODD = (columns, labels_of_one, rows_and_a_constant, rows_and_their_sum, rows_and_a_mean)
