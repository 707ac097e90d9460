"""Occlusion as arrays: which parts there are, what is asked, and what comes of the answers."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.wire.occlusion import attributions, box_shape, boxes, chunks, occluded, shares

SHAPES = st.lists(st.integers(1, 6), max_size=4).map(tuple)


@settings(deadline=None)
@given(SHAPES, st.integers(1, 300))
def test_the_parts_cover_every_element_once_and_are_no_more_than_allowed(shape: tuple[int, ...], most: int) -> None:
    parts = boxes(shape, box_shape(shape, most))
    seen = np.zeros(shape, int)
    for part in parts:
        seen[part] += 1
    assert (seen == 1).all()
    assert len(parts) <= most
    assert len(parts) == prod(shape) or prod(shape) > most


@pytest.mark.parametrize(
    ("shape", "most", "size"),
    [
        ((), 5, ()),
        ((7,), 7, (1,)),
        ((7,), 6, (2,)),
        ((3, 224, 224), 256, (1, 32, 32)),
        ((1, 8, 8), 256, (1, 1, 1)),
        ((0,), 3, (1,)),
    ],
)
def test_sizes_of_parts(shape: tuple[int, ...], most: int, size: tuple[int, ...]) -> None:
    assert box_shape(shape, most) == size


@settings(deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5), st.integers(1, 256))
def test_inputs_share_the_parts_by_their_sizes(sizes: list[int], most: int) -> None:
    found = shares(sizes, most)
    assert sum(found) <= most + len(sizes)
    assert all(0 <= share <= size for share, size in zip(found, sizes, strict=True))
    assert all(share for share, size in zip(found, sizes, strict=True) if size)


@settings(deadline=None)
@given(SHAPES.filter(bool), st.integers(1, 300), st.integers(0, 2**31))
def test_of_a_linear_model_each_element_adds_its_weight_times_its_distance_from_the_baseline(
    shape: tuple[int, ...], most: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    row, weights, baseline = draw.normal(size=(3, *shape))
    parts = boxes(shape, box_shape(shape, most))
    values = (occluded(row[None], baseline, parts) * weights).reshape(len(parts), -1).sum(axis=1)
    found = attributions(shape, parts, float((row * weights).sum()), values)
    each = weights * (row - baseline)
    assert np.allclose(found, _summed(each, parts))


def _summed(each: np.ndarray, parts: list[tuple[slice, ...]]) -> np.ndarray:
    expected = np.zeros(each.shape)
    for part in parts:
        expected[part] = each[part].sum()
    return expected


def test_a_row_that_is_one_number() -> None:
    (part,) = boxes((), box_shape((), 9))
    assert occluded(np.array([5.0]), np.array(1.0), [part]).tolist() == [1.0]
    assert attributions((), [part], 10.0, np.array([4.0])).tolist() == 6.0


def test_strings_are_features_too() -> None:
    row, baseline = np.array([b"a", b"bc"], object), np.array([b"", b""], object)
    assert occluded(row[None], baseline, boxes((2,), (1,))).tolist() == [[b"", b"bc"], [b"a", b""]]


def test_chunks() -> None:
    assert [(part.start, part.stop) for part in chunks(5, 2)] == [(0, 2), (2, 4), (4, 5)]
