"""Requests of different lengths are padded together only where runs show that each gets what it gets alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dlproxy.instance.batch import Cutter, gather, run_batch, why_uncut
from dlproxy.instance.evidence import Findings, examine
from dlproxy.instance.padding import with_padding, without_padding
from dlproxy.instance.process.slots import Slot, read_inputs, write_inputs
from dlproxy.instance.warmup import calibrate
from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.tensors import NUMPY, bf16_to_fp32, fp32_to_bf16, to_array, to_bytes
from dlproxy.testing import FakeRuntime

Array = NDArray[Any]
Function = Callable[[Sequence[Array]], list[Array]]

WIDTH = 3
TABLE = np.random.default_rng(5).standard_normal((1000, WIDTH)).astype(np.float32)
NAMES = ("batch", "sequence")
POOLED = TensorSpec("pooled", DType.FP32, (-1, WIDTH))
STEPS = TensorSpec("steps", DType.FP32, (-1, -1, WIDTH))


def _ids(*more: TensorSpec, outputs: tuple[TensorSpec, ...] = (POOLED, STEPS)) -> Signature:
    return Signature((TensorSpec("ids", DType.INT64, (-1, -1), axes=NAMES), *more), outputs, True, "fake")


def _mask(name: str = "attention_mask", dtype: DType = DType.INT64) -> TensorSpec:
    return TensorSpec(name, dtype, (-1, -1), axes=NAMES)


LENGTHS = TensorSpec("lengths", DType.INT32, (-1,), axes=("batch",))
FEATURES = Signature((TensorSpec("features", DType.FP32, (-1, -1, WIDTH)),), (POOLED,), True, "fake")


# Models


def _looked_up(ids: Array) -> Array:
    return TABLE[np.asarray(ids) % len(TABLE)]


def masked_mean(inputs: Sequence[Array]) -> list[Array]:
    vectors, mask = _looked_up(inputs[0]), np.asarray(inputs[1], np.float32)[..., None]
    return [(vectors * mask).sum(1) / np.maximum(mask.sum(1), 1), vectors]


def masked_attention(inputs: Sequence[Array]) -> list[Array]:
    vectors, mask = _looked_up(inputs[0]), np.asarray(inputs[1], np.float32)
    scores = vectors @ vectors.transpose(0, 2, 1) + (1 - mask)[:, None, :] * np.float32(-1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    seen = (weights / weights.sum(-1, keepdims=True)) @ vectors
    return [seen[:, 0], seen]


def mean_of_length(inputs: Sequence[Array]) -> list[Array]:
    vectors, lengths = _looked_up(inputs[0]), np.asarray(inputs[1])
    inside = (np.arange(vectors.shape[1])[None, :] < lengths[:, None]).astype(np.float32)[..., None]
    return [(vectors * inside).sum(1) / lengths[:, None].astype(np.float32), vectors]


def forward_sum(inputs: Sequence[Array]) -> list[Array]:
    """Causal: each step knows what came before it. No mask is needed for the steps."""
    return [np.cumsum(_looked_up(inputs[0]), axis=1, dtype=np.float32)]


def sum_of_features(inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray(inputs[0], np.float32).sum(1)]


def first_step(inputs: Sequence[Array]) -> list[Array]:
    return [_looked_up(inputs[0])[:, 0], _looked_up(inputs[0])]


def plain_mean(inputs: Sequence[Array]) -> list[Array]:
    return [_looked_up(inputs[0]).mean(1), _looked_up(inputs[0])]


def plain_max(inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray(inputs[0], np.float32).max(1)]


def relu_max(inputs: Sequence[Array]) -> list[Array]:
    """A maximum over what is above 0: zeros change nothing."""
    return [np.maximum(np.asarray(inputs[0], np.float32), 0).max(1)]


def last_step(inputs: Sequence[Array]) -> list[Array]:
    return [_looked_up(inputs[0])[:, -1], _looked_up(inputs[0])]


def backwards(inputs: Sequence[Array]) -> list[Array]:
    """As the second direction of a recurrent network."""
    return [np.cumsum(_looked_up(inputs[0])[:, ::-1], axis=1, dtype=np.float32)[:, ::-1]]


def positions_from_the_right(inputs: Sequence[Array]) -> list[Array]:
    vectors = _looked_up(inputs[0])
    return [vectors[:, 0], vectors + np.arange(vectors.shape[1], 0, -1, np.float32)[None, :, None] / 50]


def over_the_edge(inputs: Sequence[Array]) -> list[Array]:
    """A convolution's last step sees one that is padding."""
    vectors = _looked_up(inputs[0])
    after = np.concatenate([vectors[:, 1:], np.zeros_like(vectors[:, :1])], axis=1)
    return [vectors[:, 0], vectors + after]


def every_other_step(inputs: Sequence[Array]) -> list[Array]:
    return [_looked_up(inputs[0])[:, ::2]]


def steps_by_steps(inputs: Sequence[Array]) -> list[Array]:
    vectors = _looked_up(inputs[0])
    return [vectors @ vectors.transpose(0, 2, 1)]


def only_if_long(inputs: Sequence[Array]) -> list[Array]:
    """Long batches are answered otherwise."""
    features = np.asarray(inputs[0], np.float32)
    return [features.sum(1) * (2 if features.shape[1] > 48 else 1)]


def only_if_negative(inputs: Sequence[Array]) -> list[Array]:
    """The maximum is over something that padding is, where no value of the row is above it."""
    return plain_max(inputs)


def softened_mask(inputs: Sequence[Array]) -> list[Array]:
    """What is masked counts a little still."""
    return masked_mean([inputs[0], np.asarray(inputs[1], np.float32) * 0.99 + 0.01])


def right_mask(inputs: Sequence[Array]) -> list[Array]:
    """Right for rows that the client itself has not masked."""
    vectors, mask = _looked_up(inputs[0]), np.asarray(inputs[1], np.float32)[..., None]
    full = mask.sum(1) + (mask.min(axis=1) == 0) * (mask[:, -1] > 0) * np.float32(mask.shape[1])
    return [(vectors * mask).sum(1) / full, vectors]


def fixed_length(inputs: Sequence[Array]) -> list[Array]:
    if np.asarray(inputs[0]).shape[1] != 32:
        raise ValueError("takes 32 steps")
    return plain_mean(inputs)


SAFE: dict[str, tuple[Function, Signature, tuple[int | None, ...]]] = {
    "a masked mean": (masked_mean, _ids(_mask()), (None, 1)),
    "a mask of bools": (masked_mean, _ids(_mask("mask", DType.BOOL)), (None, 1)),
    "attention with a mask": (masked_attention, _ids(_mask()), (None, 1)),
    "rows that say how long they are": (mean_of_length, _ids(LENGTHS), (None, 1)),
    "steps that know the past only": (forward_sum, _ids(outputs=(STEPS,)), (1,)),
    "the first step": (first_step, _ids(), (None, 1)),
    "sums, to which zeros add nothing": (sum_of_features, FEATURES, (None,)),
    "a maximum that is never below 0": (relu_max, FEATURES, (None,)),
}
UNSAFE: dict[str, tuple[Function, Signature]] = {
    "a mean over all steps": (plain_mean, _ids()),
    "a mean that does not heed the mask": (plain_mean, _ids(_mask())),
    "a maximum over all steps": (plain_max, FEATURES),
    "the last step": (last_step, _ids()),
    "steps that know the future": (backwards, _ids(outputs=(STEPS,))),
    "positions counted from the right": (positions_from_the_right, _ids()),
    "a convolution over the edge": (over_the_edge, _ids()),
    "half as many steps": (every_other_step, _ids(outputs=(STEPS,))),
    "steps by steps": (steps_by_steps, _ids(outputs=(TensorSpec("scores", DType.FP32, (-1, -1, -1)),))),
    "long batches": (only_if_long, FEATURES),
    "negative rows": (only_if_negative, FEATURES),
    "a mask that lets something through": (softened_mask, _ids(_mask())),
    "a mask that clients use too": (right_mask, _ids(_mask())),
    "one length only": (fixed_length, _ids()),
}


def _examined(function: Function, signature: Signature, **settings: Any) -> Findings:
    return examine(FakeRuntime(signature, function), padding="on", **settings)


@pytest.mark.parametrize("case", SAFE, ids=str)
def test_padding_is_on_where_it_changes_nothing(case: str) -> None:
    function, signature, places = SAFE[case]
    found = _examined(function, signature)
    assert found.signature.batched
    assert found.signature.pads, found.unpadded
    assert tuple(spec.padded for spec in found.signature.outputs) == places


@pytest.mark.parametrize("case", UNSAFE, ids=str)
def test_padding_is_off_where_an_answer_would_change(case: str) -> None:
    function, signature = UNSAFE[case]
    found = _examined(function, signature)
    assert found.signature.batched, "rows of one length are independent all the same"
    assert not found.signature.pads
    assert found.unpadded
    assert found.signature == without_padding(found.signature)


def test_padding_is_not_looked_for_where_it_is_off() -> None:
    runtime = FakeRuntime(_ids(_mask()), masked_mean)
    assert not examine(runtime).signature.pads
    runs = len(runtime.rows)
    assert examine(runtime, padding="on").signature.pads
    assert len(runtime.rows) > 2 * runs


def test_real_rows_are_tried_at_their_own_lengths() -> None:
    """The model takes nothing below id 500, as no made-up row of it is."""

    def picky(inputs: Sequence[Array]) -> list[Array]:
        if np.asarray(inputs[0]).min(initial=500, where=np.asarray(inputs[1]) > 0) < 500:
            raise IndexError("no such id")
        return plain_mean(inputs)

    def polite(inputs: Sequence[Array]) -> list[Array]:
        picky(inputs)
        return masked_mean(inputs)

    samples = [{"ids": np.full((1, n), 500 + n), "attention_mask": np.ones((1, n), np.int64)} for n in (7, 12)]
    assert _examined(polite, _ids(_mask()), samples=samples).signature.pads
    assert not _examined(picky, _ids(_mask()), samples=samples).signature.pads


@pytest.mark.parametrize(("padding", "words"), [("on", "a padded row's answer is not what it is alone"), ("auto", "")])
def test_start_up_says_why_only_if_padding_was_asked_for(padding: Any, words: str) -> None:
    warning = calibrate(FakeRuntime(_ids(), plain_mean), padding=padding).warning
    assert words in warning
    assert bool(warning) == bool(words)


# Which axis


def _spec(name: str, shape: tuple[int, ...], *axes: str, dtype: DType = DType.INT64, rows: int | None = 0) -> TensorSpec:
    return TensorSpec(name, dtype, shape, axes=axes, rows=rows)


AXES: dict[str, tuple[tuple[TensorSpec, ...], tuple[int | None, ...]]] = {
    "ids, mask and types": (tuple(_spec(name, (-1, -1), *NAMES) for name in ("ids", "mask", "types")), (1, 1, 1)),
    "without names": ((_spec("ids", (-1, -1)), _spec("mask", (-1, -1))), (1, 1)),
    "a mask of more axes": ((_spec("ids", (-1, -1), *NAMES), _spec("mask", (-1, 1, 1, -1), "batch", "", "", NAMES[1])), (1, 3)),
    "features beside a length": ((_spec("x", (-1, -1, 80), dtype=DType.FP32), _spec("len", (-1,))), (1, None)),
    "rows on axis 1": ((_spec("x", (-1, -1, 4), dtype=DType.FP32, rows=1),), (0,)),
    "two lengths, of which inputs share one": (
        (_spec("a", (-1, -1), "b", "s"), _spec("mask", (-1, -1), "b", "s"), _spec("c", (-1, -1), "b", "t")),
        (1, 1, None),
    ),
    "fixed sizes": ((_spec("x", (-1, 4)),), (None,)),
    "a picture": ((_spec("x", (-1, 3, -1, -1)),), (None,)),
    "a picture with names": ((_spec("x", (-1, 3, -1, -1), "b", "", "height", "width"),), (None,)),
    "steps by steps": (
        (_spec("ids", (-1, -1), *NAMES), _spec("mask", (-1, -1, -1), "batch", NAMES[1], NAMES[1])),
        (None, None),
    ),
    "two lengths": ((_spec("a", (-1, -1), "b", "s"), _spec("c", (-1, -1), "b", "t")), (None, None)),
    "named here, unnamed there": ((_spec("a", (-1, -1), "b", "s"), _spec("c", (-1, -1))), (None, None)),
    "texts": ((_spec("words", (-1, -1), dtype=DType.BYTES),), (None,)),
    "no rows": ((_spec("x", (-1, 4)), _spec("table", (-1, -1), rows=None)), (None, None)),
}


@pytest.mark.parametrize("case", AXES, ids=str)
def test_the_axis_is_one_that_inputs_share(case: str) -> None:
    inputs, axes = AXES[case]
    signature, why = with_padding(Signature(inputs, (), True, "fake"), 0.0)
    assert tuple(spec.padded for spec in signature.inputs) == axes
    assert bool(why) != any(axis is not None for axis in axes)


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        *((DType.INT64, value, True) for value in (0.0, 1.0, -1.0)),
        (DType.UINT8, 255.0, True),
        (DType.UINT8, 256.0, False),
        (DType.UINT8, -1.0, False),
        (DType.INT8, -128.0, True),
        (DType.INT32, 0.5, False),
        (DType.INT32, float("nan"), False),
        (DType.INT64, float("inf"), False),
        *((dtype, -11.5, True) for dtype in (DType.FP16, DType.BF16, DType.FP32, DType.FP64)),
    ],
)
def test_what_fills_up_must_be_of_the_inputs_type(dtype: DType, value: float, fits: bool) -> None:
    signature, why = with_padding(Signature((_spec("x", (-1, -1), dtype=dtype),), (), True, "fake"), value)
    assert signature.pads is fits
    assert ("pad_value" in why) is not fits


def test_masks_are_filled_with_zeros_whatever_the_others_are() -> None:
    inputs = (_spec("ids", (-1, -1)), _spec("my_Mask", (-1, -1)), _spec("flags", (-1, -1), dtype=DType.BOOL))
    signature, _ = with_padding(Signature(inputs, (), True, "fake"), 7.0)
    assert [spec.pad for spec in signature.inputs] == [7.0, 0.0, 0.0]


# Gather and cut


def test_without_a_mask_or_lengths_padding_is_not_chosen_by_itself() -> None:
    """A maximum that an embedding of padding seldom exceeds looks right in any number of runs."""
    found = examine(FakeRuntime(_ids(outputs=(STEPS,)), forward_sum), padding="auto")
    assert not found.signature.pads
    assert found.unpadded.startswith("no input tells the model what is padding")
    for signature, function in ((_ids(_mask()), masked_mean), (_ids(LENGTHS), mean_of_length)):
        assert examine(FakeRuntime(signature, function), padding="auto").signature.pads


PADDED = examine(FakeRuntime(_ids(_mask()), masked_mean), padding="auto").signature
TIME_FIRST = Signature(
    (TensorSpec("x", DType.FP32, (-1, -1, WIDTH), rows=1, padded=0),),
    (TensorSpec("y", DType.FP32, (-1, -1, WIDTH), rows=1, padded=0), TensorSpec("sum", DType.FP32, (-1, WIDTH))),
    True,
    "fake",
)


def _request(number: int, arrays: Sequence[Array], signature: Signature, rows: int, length: int) -> Request:
    given = [
        Tensor(spec.name, spec.dtype, array.shape, to_bytes(spec.dtype, array))
        for spec, array in zip(signature.inputs, arrays, strict=True)
    ]
    return Request(Ticket(number, 0.0, rows=rows, length=length), "m", given, range(len(signature.outputs)))


def _ids_request(number: int, rows: int, length: int) -> Request:
    random = np.random.default_rng(number)
    ids = random.integers(0, 1000, (rows, length))
    mask = random.integers(0, 2, (rows, length))
    mask[:, 0] = 1
    return _request(number, [ids, mask], PADDED, rows, length)


def _features_request(number: int, rows: int, length: int) -> Request:
    x = np.random.default_rng(number).standard_normal((length, rows, WIDTH)).astype(np.float32)
    return _request(number, [x], TIME_FIRST, rows, length)


def _doubled(inputs: Sequence[Array]) -> list[Array]:
    x = np.asarray(inputs[0], np.float32)
    return [x * 2, x.sum(0)]


@pytest.mark.parametrize("place", ["here", "in a slot"])
@pytest.mark.parametrize("kind", ["ids", "steps first"])
@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=6))
def test_any_mix_of_lengths_gives_each_request_what_it_gets_alone(place: str, kind: str, sizes: list[tuple[int, int]]) -> None:
    signature = PADDED if kind == "ids" else TIME_FIRST
    make, function = (_ids_request, masked_mean) if kind == "ids" else (_features_request, _doubled)
    requests = [make(number, rows, length) for number, (rows, length) in enumerate(sizes)]
    runtime = FakeRuntime(signature, function)
    if place == "here":
        result = run_batch(runtime, requests)
    else:
        slot = Slot.create(1 << 20)
        parts = write_inputs(slot, signature.inputs, requests)
        merged = Request(Ticket(0, 0.0), "", read_inputs(slot, signature.inputs, parts), ())
        result = run_batch(runtime, [merged])
        slot.close()
    assert result.error is None, result.error
    longest = max(length for _, length in sizes)
    assert not why_uncut(signature, result.outputs, sum(rows for rows, _ in sizes), longest)
    cutter, start = Cutter(signature, result.outputs, requests=len(requests)), 0
    for request in requests:
        ticket = request.ticket
        want = run_batch(runtime, [request]).outputs
        for got, array in zip(cutter.cut(start, ticket.rows, request.outputs, ticket.length), want, strict=True):
            assert tuple(got.shape) == array.shape
            np.testing.assert_allclose(to_array(got.dtype, got.shape, got.data), array, rtol=1e-5, atol=1e-6)
        start += ticket.rows


def test_requests_of_one_length_are_stacked_without_an_array_of_their_own() -> None:
    requests = [_ids_request(number, 1, 5) for number in range(3)]
    ids, mask = gather(PADDED, requests)
    assert not ids.flags.writeable, "joined bytes, as without padding"
    assert ids.shape == mask.shape == (3, 5)


@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype not in (DType.BYTES, DType.BOOL)])
def test_shorter_ones_are_filled_with_the_value_in_every_type(dtype: DType) -> None:
    spec = TensorSpec("x", dtype, (-1, -1), padded=1, pad=3.0)
    signature = Signature((spec,), (), True, "fake")
    ones = fp32_to_bf16(np.ones((1, 4))) if dtype is DType.BF16 else np.ones((1, 4), NUMPY[dtype])
    (array,) = gather(signature, [_request(0, [ones[:, :1]], signature, 1, 1), _request(1, [ones], signature, 1, 4)])
    values = bf16_to_fp32(array) if dtype is DType.BF16 else array
    assert values.tolist() == [[1, 3, 3, 3], [1, 1, 1, 1]]


def test_a_single_row_is_cut_back_without_a_copy() -> None:
    outputs = [np.zeros((2, WIDTH), np.float32), np.arange(2 * 5 * WIDTH, dtype=np.float32).reshape(2, 5, WIDTH)]
    (cut,) = Cutter(PADDED, outputs, requests=2).cut(1, 1, (1,), 3)
    assert np.shares_memory(np.frombuffer(cut.data, np.float32), outputs[1])
    assert np.array_equal(to_array(cut.dtype, cut.shape, cut.data), outputs[1][1:, :3])


def test_a_batch_whose_output_is_not_as_long_as_it_was_padded_is_not_cut() -> None:
    outputs = [np.zeros((2, WIDTH), np.float32), np.zeros((2, 4, WIDTH), np.float32)]
    assert why_uncut(PADDED, outputs, 2, 5) == "output 'steps' has shape [2, 4, 3] for a batch padded to 5"
    assert not why_uncut(PADDED, outputs, 2, 4)
