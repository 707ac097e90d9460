"""Keys are equal where one answer suits both requests, and nowhere else."""

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.serve.caching.keys import Keys
from dlproxy.tensors import join_elements

SEED = 0x0123_4567_89AB_CDEF
ANY = (-1, -1)

Shape = tuple[int, ...]
Given = tuple[DType, Shape, bytes]


def signature(*inputs: tuple[DType, Shape], outputs: int = 1) -> Signature:
    """Inputs a, b, ... of these types and shapes."""
    specs = tuple(TensorSpec("abc"[place], dtype, shape) for place, (dtype, shape) in enumerate(inputs))
    return Signature(specs, tuple(TensorSpec(f"y{n}", DType.FP32, ANY) for n in range(outputs)), batched=False, platform="")


def request(*inputs: Given, outputs: Sequence[int] = (0,), tenant: str = "", number: int = 1) -> Request:
    tensors = [Tensor("abc"[place], dtype, shape, data) for place, (dtype, shape, data) in enumerate(inputs)]
    return Request(Ticket(number, float(number), tenant=tenant), "m", tensors, outputs, f"id-{number}")


def text(shape: Shape, *elements: bytes) -> Given:
    return DType.BYTES, shape, bytes(join_elements(list(elements)))


def byte(shape: Shape, data: bytes) -> Given:
    return DType.UINT8, shape, data


few_bytes = st.binary(max_size=3).map(lambda data: data.replace(b"\xff", b"\0"))
shapes = st.sampled_from([(), (0,), (1,), (2,), (6,), (2, 3), (3, 2), (1, 6), (0, 2), (2, 0), (1, 1)])


@st.composite
def tensors(draw: st.DrawFn) -> Given:
    """Of few different elements, so that two are often equal."""
    shape = draw(shapes)
    size = 1
    for length in shape:
        size *= length
    if draw(st.booleans()):
        return text(
            shape, *draw(st.lists(st.sampled_from([b"", b"\0", b"a", b"aa", b"\1\0\0\0a"]), min_size=size, max_size=size))
        )
    return byte(shape, bytes(draw(st.lists(st.sampled_from([0, 1]), min_size=size, max_size=size))))


requests = st.tuples(
    st.tuples(tensors(), tensors()),
    st.sampled_from([(0,), (1,), (0, 1), (1, 0), ()]),
    st.sampled_from(["", "a", "ab", "\0"]),
)


@given(requests, requests, st.booleans())
@example(((text((2,), b"a", b""), byte((0,), b"")), (0,), ""), ((text((2,), b"", b"a"), byte((0,), b"")), (0,), ""), False)
def test_two_keys_are_equal_if_all_that_an_answer_depends_on_is(
    one: tuple[tuple[Given, Given], tuple[int, ...], str],
    other: tuple[tuple[Given, Given], tuple[int, ...], str],
    per_tenant: bool,
) -> None:
    """An element's type is the model's own, so that two requests never differ in that alone."""
    keys = Keys(signature((DType.UINT8, ANY), (DType.UINT8, ANY), outputs=2), SEED, per_tenant=per_tenant)
    first = keys(request(*one[0], outputs=one[1], tenant=one[2]))
    second = keys(request(*other[0], outputs=other[1], tenant=other[2], number=2))
    same_inputs = [given[1:] for given in one[0]] == [given[1:] for given in other[0]]
    same = same_inputs and one[1] == other[1] and (one[2] == other[2] or not per_tenant)
    assert (first == second) == same
    assert len(first) == 16


@given(st.lists(st.binary(max_size=40), min_size=2, max_size=2, unique=True), st.integers(0, 2**64 - 1))
def test_of_one_input_the_bytes_are_enough_where_they_tell_the_shape(data: list[bytes], seed: int) -> None:
    keys = Keys(signature((DType.UINT8, (-1, 1))), seed)
    first, second = (keys(request(byte((len(each), 1), each))) for each in data)
    assert first != second
    assert first == keys(request(byte((len(data[0]), 1), data[0]), number=7, tenant="another"))


@pytest.mark.parametrize(
    ("dtype", "shape", "by_bytes_alone"),
    [
        (DType.UINT8, (-1, 3), True),
        (DType.UINT8, (), True),
        (DType.UINT8, (2, 3), True),
        (DType.UINT8, (-1, -1), False),
        (DType.UINT8, (-1, 0), False),
        (DType.BYTES, (-1,), False),
    ],
)
def test_shapes_that_the_bytes_do_not_tell_are_part_of_the_key(dtype: DType, shape: Shape, by_bytes_alone: bool) -> None:
    keys = Keys(signature((dtype, shape)), SEED)
    one, other = (keys(request((dtype, given, b"\0" * 24))) for given in ((2, 3), (3, 2)))
    assert (one == other) == by_bytes_alone, "for a model that takes but one shape of so many bytes the second is none"


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.BYTES])
def test_equal_bytes_of_different_shapes_are_different_questions(dtype: DType) -> None:
    keys = Keys(signature((dtype, ANY)), SEED)
    data = b"\0" * (6 if dtype is DType.UINT8 else 24)
    made = [keys(request((dtype, shape, data))) for shape in ((2, 3), (3, 2), (6,), (1, 6), (6, 1), (1, 2, 3))]
    empty = [keys(request((dtype, shape, b""))) for shape in ((0,), (0, 2), (2, 0), (0, 0))]
    assert len({*made, *empty}) == len(made) + len(empty)


def test_empty_texts_and_scalars() -> None:
    keys = Keys(signature((DType.BYTES, (-1,))), SEED)
    made = [
        keys(request(each))
        for each in (
            text((), b""),
            text((1,), b""),
            text((2,), b"", b""),
            text((0,)),
            text((1,), b"\0\0\0\0"),
            text((2,), b"", b"a"),
            text((2,), b"a", b""),
            text((1,), b"a"),
            text((), b"a"),
        )
    ]
    assert len(set(made)) == len(made)


def test_what_belongs_to_which_input_counts() -> None:
    keys = Keys(signature((DType.UINT8, (-1,)), (DType.UINT8, (-1,))), SEED)
    splits = [keys(request(byte((n,), b"\1" * n), byte((4 - n,), b"\1" * (4 - n)))) for n in range(5)]
    order = [keys(request(byte((1,), one), byte((1,), two))) for one, two in ((b"\1", b"\2"), (b"\2", b"\1"))]
    assert len({*splits, *order}) == len(splits) + len(order)


@given(st.binary(max_size=200), st.sampled_from([(1, 0), (0,), (1,), (), (0, 1, 1)]))
def test_a_key_with_a_head_is_none_without(data: bytes, outputs: tuple[int, ...]) -> None:
    """A client could send as bytes what stands in a head: of another choice of outputs."""
    keys = Keys(signature((DType.UINT8, (-1,)), outputs=2), SEED)
    plain = keys(request(byte((len(data),), data), outputs=(0, 1)))
    assert plain == keys(request(byte((len(data),), data), outputs=[0, 1]))
    assert plain != keys(request(byte((len(data),), data), outputs=outputs))
    head = (0, len(outputs), *outputs, 1, len(data), len(data))
    forged = b"".join(number.to_bytes(8, "little") for number in head) + data
    assert keys(request(byte((len(forged),), forged), outputs=(0, 1))) != keys(
        request(byte((len(data),), data), outputs=outputs)
    )


def test_tenants_have_keys_of_their_own_if_they_are_to() -> None:
    apart, shared = (Keys(signature((DType.UINT8, (-1,))), SEED, per_tenant=each) for each in (True, False))
    for one, other in combinations(["", "a", "b", "ab", "a\0", "é"], 2):
        asked = [request(byte((1,), b"\1"), tenant=tenant) for tenant in (one, other)]
        assert len({apart(each) for each in asked}) == 2
        assert len({shared(each) for each in asked}) == 1


def test_another_seed_gives_other_keys() -> None:
    for inputs in ([(DType.UINT8, (-1,))], [(DType.BYTES, (-1,))]):
        given = text((1,), b"a") if inputs[0][0] is DType.BYTES else byte((1,), b"a")
        assert len({Keys(signature(*inputs), seed)(request(given)) for seed in (0, 1, 2, 3, 2**64 - 1, 2**64 - 2)}) == 6
