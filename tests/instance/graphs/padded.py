"""Graphs whose requests differ in length: some may be padded to one, for all others that would change an answer.

Each function makes inputs, nodes and outputs. SAFE and UNSAFE are the tables of them.
"""

from collections.abc import Callable

import numpy as np

from dlproxy.message import DType
from tests.instance.graphs import exits
from tests.instance.graphs.draft import LENGTH, ROWS, VOCABULARY, Array, Draft, ids

Form = Callable[[Draft], None]


def _marks(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Mostly as tokenizers make them; some as clients make them that pad themselves, on the left too, or hide whole rows."""
    mask = np.ones(shape, np.int64)
    for row in mask:
        draw, cut = random.random(), int(random.integers(0, len(row) + 1))
        if draw < 0.2:
            row[cut:] = 0
        elif draw < 0.3:
            row[:cut] = 0
        elif draw < 0.4:
            row[:] = random.integers(0, 2, len(row))
    return mask


def _lengths(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Of rows that are mostly no shorter than two, and of which some say more than there is."""
    return random.integers(1, 4, shape).astype(np.int32)


def _embedded(draft: Draft) -> str:
    table = draft.random.integers(1, 9, (VOCABULARY, draft.width)) / 4 * draft.random.choice([-1, 1], (VOCABULARY, draft.width))
    given = draft.input("ids", DType.INT64, (ROWS, LENGTH), ids)
    return draft.op("Gather", draft.const(table, np.float32), given)


def _features(draft: Draft) -> str:
    return draft.input("x", DType.FP32, (ROWS, LENGTH, draft.width), draft.floats)


def _mask(draft: Draft) -> str:
    return draft.op("Cast", draft.input("attention_mask", DType.INT64, (ROWS, LENGTH), _marks), to=1)


def _per_step(draft: Draft, value: str) -> None:
    draft.output("steps", value, DType.FP32, (ROWS, LENGTH, draft.width))


def _last(draft: Draft, x: str) -> str:
    return draft.op("Gather", x, draft.const(-1, np.int64), axis=1)


def _steps(draft: Draft, x: str) -> str:
    """How many there are, as a float."""
    return draft.op("Cast", draft.op("Gather", draft.op("Shape", x), draft.const(1, np.int64)), to=1)


# Padding changes nothing


def masked_sum(draft: Draft) -> None:
    masked = draft.op("Mul", _embedded(draft), draft.op("Unsqueeze", _mask(draft), draft.ints(2)))
    exits.rows(draft, draft.op("ReduceSum", masked, draft.ints(1), keepdims=0))


def masked_mean(draft: Draft) -> None:
    mask = draft.op("Unsqueeze", _mask(draft), draft.ints(2))
    total = draft.op("ReduceSum", draft.op("Mul", _embedded(draft), mask), draft.ints(1), keepdims=0)
    exits.rows(draft, draft.op("Div", total, draft.op("ReduceSum", mask, draft.ints(1), keepdims=0)))


def masked_attention(draft: Draft) -> None:
    """What rows that are hidden whole attend to is all that is there: these must not be padded."""
    x, mask = _embedded(draft), _mask(draft)
    hidden = draft.op("Mul", draft.op("Sub", draft.number(1), mask), draft.number(-1e9))
    scores = draft.op("MatMul", x, draft.op("Transpose", x, perm=[0, 2, 1]))
    weights = draft.op("Softmax", draft.op("Add", scores, draft.op("Unsqueeze", hidden, draft.ints(1))), axis=-1)
    seen = draft.op("MatMul", weights, x)
    exits.rows(draft, draft.op("Gather", seen, draft.const(0, np.int64), axis=1))
    _per_step(draft, seen)


def steps_apart(draft: Draft) -> None:
    """Each step by itself."""
    _per_step(draft, draft.op("MatMul", draft.op("Relu", _features(draft)), draft.weights(draft.width, draft.width)))


def running_sum(draft: Draft) -> None:
    """Each step knows what came before it."""
    x = draft.pick([_features, _embedded])(draft)
    _per_step(draft, draft.op("CumSum", x, draft.const(1, np.int64)))


def recurrent_of_length(draft: Draft) -> None:
    """Both directions, of as many steps as a row says: steps stand on axis 0."""
    width = draft.width
    x = draft.input("x", DType.FP32, (LENGTH, ROWS, width), draft.floats)
    lengths = draft.input("lengths", DType.INT32, (ROWS,), _lengths)
    weights = draft.weights(2, 3 * width, width), draft.weights(2, 3 * width, width)
    _, last = draft.ops("GRU", 2, x, *weights, "", lengths, hidden_size=width, direction="bidirectional")
    exits.rows(draft, draft.op("ReduceSum", last, draft.ints(0), keepdims=0))


# Padding changes something


def plain_mean(draft: Draft) -> None:
    exits.rows(draft, draft.op("ReduceMean", draft.pick([_embedded, _features])(draft), axes=[1], keepdims=0))


def plain_sum_of_ids(draft: Draft) -> None:
    """The embedding of what fills up is not zero."""
    exits.rows(draft, draft.op("ReduceSum", _embedded(draft), draft.ints(1), keepdims=0))


def plain_max(draft: Draft) -> None:
    exits.rows(draft, draft.op("ReduceMax", draft.pick([_embedded, _features])(draft), axes=[1], keepdims=0))


def unheeded_mask(draft: Draft) -> None:
    draft.output("mask_again", _mask(draft), DType.FP32, (ROWS, LENGTH))
    exits.rows(draft, draft.op("ReduceMean", _embedded(draft), axes=[1], keepdims=0))


def last_step(draft: Draft) -> None:
    exits.rows(draft, _last(draft, draft.pick([_embedded, _features])(draft)))


def recurrent(draft: Draft) -> None:
    """Over all that is there, forth or back."""
    width = draft.width
    x = draft.op("Transpose", draft.pick([_embedded, _features])(draft), perm=[1, 0, 2])
    weights = draft.weights(1, 3 * width, width), draft.weights(1, 3 * width, width)
    direction = draft.pick(["forward", "reverse"])
    _, last = draft.ops("GRU", 2, x, *weights, hidden_size=width, direction=direction)
    exits.rows(draft, draft.op("Squeeze", last, draft.ints(0)))


def convolved_over_the_edge(draft: Draft) -> None:
    """Ids, whose embeddings of what fills up reach into the last step."""
    x = draft.op("Transpose", _embedded(draft), perm=[0, 2, 1])
    convolved = draft.op("Conv", x, draft.weights(draft.width, draft.width, 3), pads=[1, 1])
    _per_step(draft, draft.op("Transpose", convolved, perm=[0, 2, 1]))


def counted_from_the_right(draft: Draft) -> None:
    x = _embedded(draft)
    ones = draft.op("Add", draft.op("Mul", x, draft.number(0)), draft.number(0.25))
    _per_step(draft, draft.op("Add", x, draft.op("CumSum", ones, draft.const(1, np.int64), reverse=1)))


def softmax_over_steps(draft: Draft) -> None:
    _per_step(draft, draft.op("Softmax", draft.pick([_embedded, _features])(draft), axis=1))


def number_of_steps(draft: Draft) -> None:
    x = _features(draft)
    exits.rows(draft, draft.op("Mul", draft.op("ReduceSum", x, draft.ints(1), keepdims=0), _steps(draft, x)))


def every_other_step(draft: Draft) -> None:
    x = _embedded(draft)
    halved = draft.op("Slice", x, draft.ints(0), draft.ints(1 << 40), draft.ints(1), draft.ints(2))
    draft.output("steps", halved, DType.FP32, (ROWS, None, draft.width))


def steps_by_steps(draft: Draft) -> None:
    x = _features(draft)
    draft.output("scores", draft.op("MatMul", x, draft.op("Transpose", x, perm=[0, 2, 1])), DType.FP32, (ROWS, LENGTH, LENGTH))


def place_of_the_largest(draft: Draft) -> None:
    """Zeros are larger than what is below them."""
    draft.output("place", draft.op("ArgMax", _features(draft), axis=1, keepdims=0), DType.INT64, (ROWS, draft.width))


def sorted_steps(draft: Draft) -> None:
    x = _features(draft)
    _per_step(draft, draft.ops("TopK", 2, x, draft.op("Slice", draft.op("Shape", x), draft.ints(1), draft.ints(2)), axis=1)[0])


def if_padded_long(draft: Draft) -> None:
    """Only batches of many steps are answered otherwise."""
    x = _features(draft)
    many = draft.op("Cast", draft.op("Greater", _steps(draft, x), draft.number(22)), to=1)
    exits.rows(draft, draft.op("Add", draft.op("ReduceSum", x, draft.ints(1), keepdims=0), many))


def mask_that_leaks(draft: Draft) -> None:
    """What is hidden counts a little."""
    mask = draft.op("Add", _mask(draft), draft.number(0.125))
    masked = draft.op("Mul", _embedded(draft), draft.op("Unsqueeze", mask, draft.ints(2)))
    exits.rows(draft, draft.op("ReduceSum", masked, draft.ints(1), keepdims=0))


def share_that_is_hidden(draft: Draft) -> None:
    mask = _mask(draft)
    x = draft.op("ReduceSum", draft.op("Mul", _embedded(draft), draft.op("Unsqueeze", mask, draft.ints(2))), draft.ints(1))
    exits.rows(draft, draft.op("Mul", draft.op("Squeeze", x, draft.ints(1)), draft.op("ReduceMean", mask, axes=[1])))


def last_that_is_seen(draft: Draft) -> None:
    """The last step if the mask shows it, as where clients pad on the left, else the one that the mask counts to."""
    x, mask = _embedded(draft), _mask(draft)
    count = draft.op("ReduceSum", mask, draft.ints(1), keepdims=1)
    place = draft.op("Cast", draft.op("Max", draft.op("Sub", count, draft.number(1)), draft.number(0)), to=7)
    counted = draft.op("GatherND", x, place, batch_dims=1)
    shown = draft.op("Greater", draft.op("Unsqueeze", _last(draft, mask), draft.ints(1)), draft.number(0.5))
    exits.rows(draft, draft.op("Where", shown, _last(draft, x), counted))


def if_padded_short(draft: Draft) -> None:
    """What is hidden counts only in batches of few steps."""
    x, mask = _embedded(draft), _mask(draft)
    few = draft.op("Cast", draft.op("Less", _steps(draft, x), draft.number(7)), to=1)
    hidden = draft.op("ReduceSum", draft.op("Sub", draft.number(1), mask), draft.ints(1), keepdims=1)
    masked = draft.op("Mul", x, draft.op("Unsqueeze", mask, draft.ints(2)))
    total = draft.op("ReduceSum", masked, draft.ints(1), keepdims=0)
    exits.rows(draft, draft.op("Add", total, draft.op("Mul", hidden, few)))


SAFE: tuple[Form, ...] = (masked_sum, masked_mean, masked_attention, recurrent_of_length)
UNMARKED: tuple[Form, ...] = (steps_apart, running_sum)  # safe, but nothing in the model says so
UNSAFE: tuple[Form, ...] = (
    *(plain_mean, plain_sum_of_ids, plain_max, unheeded_mask, last_step, recurrent, convolved_over_the_edge),
    *(counted_from_the_right, softmax_over_steps, number_of_steps, every_other_step, steps_by_steps, place_of_the_largest),
    *(sorted_steps, if_padded_long, if_padded_short, mask_that_leaks, share_that_is_hidden, last_that_is_seen),
)
NAMED = {recurrent_of_length}  # without names, its rows are sought on axis 0
