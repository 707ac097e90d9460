"""Requests that nothing but their length tells apart are of one family; what must not be padded is of none."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dlproxy.message import DType, InferenceError, Signature, Tensor, TensorSpec, Ticket
from dlproxy.tensors import to_bytes
from dlproxy.wire.checks import RequestChecker
from dlproxy.wire.oip.codec import InferDecoder
from tests.wire.fixtures import EchoService, served
from tests.wire.test_oip_codec import Body

Array = NDArray[Any]

IDS = TensorSpec("ids", DType.INT64, (-1, -1), padded=1)
MASK = TensorSpec("mask", DType.INT64, (-1, -1), padded=1)
LENGTHS = TensorSpec("lengths", DType.INT32, (-1,))
PICTURE = TensorSpec("picture", DType.FP32, (-1, -1, -1))
SHARED = TensorSpec("rate", DType.FP32, (1,), rows=None)
STEPS_FIRST = TensorSpec("x", DType.FP32, (-1, -1, 2), rows=1, padded=0)


def _checker(*specs: TensorSpec) -> RequestChecker:
    signature = Signature(specs, (), True, "fake", even=False)
    return RequestChecker(served(EchoService(signature), max_batch=64))


def _ticket(checker: RequestChecker, specs: tuple[TensorSpec, ...], *arrays: Any) -> Ticket:
    given = [np.asarray(array, "f4" if spec.dtype is DType.FP32 else None) for spec, array in zip(specs, arrays, strict=True)]
    given = [array.astype("i4") if spec.dtype is DType.INT32 else array for spec, array in zip(specs, given, strict=True)]
    inputs = [Tensor(s.name, s.dtype, a.shape, to_bytes(s.dtype, a)) for s, a in zip(specs, given, strict=True)]
    return checker.request(inputs, (), ticket_id=1, request_id="", params={}, now=0.0).ticket


def test_a_family_leaves_out_the_length_and_nothing_else() -> None:
    specs = IDS, MASK, PICTURE, SHARED
    checker = _checker(*specs)

    def ticket(length: int, side: int, rate: float, rows: int = 1) -> Ticket:
        ids = np.ones((rows, length), np.int64)
        return _ticket(checker, specs, ids, ids, np.zeros((rows, side, 4)), [rate])

    one, longer, wider, other = ticket(3, 8, 1.0), ticket(9, 8, 1.0, rows=2), ticket(3, 9, 1.0), ticket(3, 8, 2.0)
    assert (one.length, longer.length) == (3, 9)
    assert one.family == longer.family != ()
    assert one.shape_key != longer.shape_key
    assert len({one.family, wider.family, other.family}) == 3
    assert ticket(3, 8, 1.0, rows=5).shape_key == one.shape_key


def test_a_shape_that_was_right_once_is_looked_at_again_with_other_elements() -> None:
    checker = _checker(IDS)
    shape, right = (1, 3), bytes(24)

    def ask(dtype: DType, data: bytes) -> None:
        checker.request([Tensor("ids", dtype, shape, data)], (), ticket_id=1, request_id="", params={}, now=0.0)

    ask(DType.INT64, right)
    for dtype, data in ((DType.INT64, bytes(16)), (DType.FP64, right), (DType.BYTES, right)):
        with pytest.raises(InferenceError):
            ask(dtype, data)
        ask(DType.INT64, right)


def test_the_padded_axis_may_come_before_the_rows() -> None:
    checker = _checker(STEPS_FIRST)
    short, long = (_ticket(checker, (STEPS_FIRST,), np.zeros((length, 3, 2))) for length in (4, 7))
    assert (short.length, short.rows, long.length) == (4, 3, 7)
    assert short.family == long.family != ()


ALONE: dict[str, tuple[tuple[TensorSpec, ...], tuple[Any, ...]]] = {
    "inputs of unlike lengths, which a model may broadcast": ((IDS, MASK), ([[1, 2, 3]], [[1]])),
    "a row that is masked from end to end": ((IDS, MASK), ([[1, 2], [3, 4]], [[1, 0], [0, 0]])),
    "a row that says to be longer than it is": ((IDS, LENGTHS), ([[1, 2]], [3])),
    "a row that says to have no length": ((IDS, LENGTHS), ([[1, 2], [3, 4]], [2, 0])),
    "a row that says to have less than none": ((IDS, LENGTHS), ([[1, 2]], [-1])),
    "nothing at all": ((IDS,), (np.zeros((1, 0), np.int64),)),
    "inputs that differ in rows": ((IDS, MASK), ([[1, 2], [3, 4]], [[1, 1]])),
}


@pytest.mark.parametrize("case", ALONE, ids=str)
def test_what_padding_might_change_is_of_no_family(case: str) -> None:
    specs, arrays = ALONE[case]
    assert _ticket(_checker(*specs), specs, *arrays).family == ()


def test_what_must_not_be_padded_shares_no_line_with_what_may() -> None:
    checker = _checker(IDS, MASK)
    hidden, seen, again = (_ticket(checker, (IDS, MASK), [[1, 2]], [mask]) for mask in ([0, 0], [1, 1], [0, 0]))
    assert hidden.shape_key == again.shape_key != seen.shape_key
    assert hidden.family == again.family == ()


@pytest.mark.parametrize(("specs", "arrays"), [((IDS, MASK), ([[1, 2]], [[0, 1]])), ((IDS, LENGTHS), ([[1, 2]], [1]))])
def test_rows_that_hide_some_of_themselves_are_padded(specs: tuple[TensorSpec, ...], arrays: tuple[Any, ...]) -> None:
    assert _ticket(_checker(*specs), specs, *arrays).family != ()


def test_models_without_a_padded_axis_have_no_families() -> None:
    spec = TensorSpec("ids", DType.INT64, (-1, -1))
    assert _ticket(_checker(spec), (spec,), [[1, 2]]).family == ()


@pytest.mark.parametrize("specs", [(IDS,), (IDS, MASK)], ids=["ids", "ids and a mask"])
def test_a_head_that_repeats_makes_the_ticket_that_it_made_first(specs: tuple[TensorSpec, ...]) -> None:
    """A mask is looked into each time: the second request is hidden whole."""
    checker = _checker(*specs)
    decoder = InferDecoder(checker)

    def ticket(mask: list[int]) -> Ticket:
        body = Body().add("ids", DType.INT64, [1, 3], raw=np.array([5, 6, 7]).tobytes())
        if MASK in specs:
            body.add("mask", DType.INT64, [1, 3], raw=np.array(mask).tobytes())
        data, header_length = body.parts()
        return decoder.decode(data, header_length, ticket_id=1, now=0.0).request.ticket

    first, second = ticket([1, 1, 0]), ticket([0, 0, 0])
    assert first.family != ()
    assert (first.length, second.length) == (3, 3)
    assert second.family == (() if MASK in specs else first.family)
