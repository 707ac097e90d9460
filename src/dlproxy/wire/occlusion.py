"""What an answer owes to each feature of an input, by occlusion: how it changes when a baseline takes the feature's place.

As Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014), and Captum's FeatureAblation.
Called by explain_http.py. Not aware of: models, requests. Arrays in, arrays out.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.tensors import Array

Box = tuple[slice, ...]
"""A part of a row, by its sizes along each axis."""


def box_shape(shape: Sequence[int], most: int) -> tuple[int, ...]:
    """The size of equal parts, at most `most` of them, of a row of this shape: single elements if there are so few.

    Else the axis with the most parts gets half as many, again and again: of 3 colours and 224 x 224 pixels, with at most 256
    parts, each colour of 32 x 32 pixels is one.
    """
    counts = list(shape)
    while prod(counts) > most:
        axis = counts.index(max(counts))
        counts[axis] = ceil(counts[axis] / 2)
    return tuple(ceil(size / count) if count else 1 for size, count in zip(shape, counts, strict=True))


def boxes(shape: Sequence[int], size: Sequence[int]) -> list[Box]:
    """All parts of this size, the last ones of an axis cut off; the one part of a scalar."""
    along = [[slice(at, min(at + step, end)) for at in range(0, end, step)] for end, step in zip(shape, size, strict=True)]
    return list(product(*along))


def shares(sizes: Sequence[int], most: int) -> list[int]:
    """Of `most` parts, how many each input of a row may be divided into, by its elements; at least one."""
    whole = sum(sizes)
    return [min(size, max(1, most * size // whole)) if whole else 0 for size in sizes]


def occluded(row: Array, baseline: Array, parts: Sequence[Box]) -> Array:
    """The row, which has an axis of one before its own, once for each part, with the baseline there."""
    rows = np.repeat(row, len(parts), axis=0)
    for number, part in enumerate(parts):
        index: tuple[Any, ...] = (number, *part)
        rows[index] = baseline[part]
    return rows


def attributions(shape: Sequence[int], parts: Sequence[Box], base: float, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a row: each element has what its part adds, so 0 where it changes nothing."""
    found = np.zeros(shape)
    for part, value in zip(parts, values, strict=True):
        found[part] = base - value
    return found


def chunks(count: int, size: int) -> Iterator[slice]:
    """`count` in slices of at most `size`."""
    return (slice(at, min(at + size, count)) for at in range(0, count, size))
