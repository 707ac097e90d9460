"""Made-up inputs: like those that a model is made for, as far as names, types and shapes tell, and hostile ones beside them.

Called by evidence.py and warmup.py. Not aware of: what is done with them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import NUMPY, fp32_to_bf16, to_array

Array = NDArray[np.generic]
Numbers = NDArray[Any]

SIZES = (32, 224, 64, 512, 16, 8, 4, 2, 1)  # tried in turn for open axes; first what is usual for texts
IMAGE_SIZES = (224, *(size for size in SIZES if size != 224))
LARGE = 1e4  # of a float: far outside of what any scale was made for, yet within FP16
WORDS = ("the", "", "quick brown fox", "0", "ünïcode ☃", "1")  # where the model names none


class Kind(Struct, frozen=True):
    """A kind of row: how its floats are made of normal ones, and its integers of a range `below` and a random one in it."""

    name: str
    floats: Callable[[Numbers], Numbers]
    integers: Callable[[int, Numbers], Numbers]
    flag: bool | None = None


KINDS = (
    Kind("normal", lambda normal: normal, lambda below, drawn: drawn),
    Kind("another", lambda normal: normal[..., ::-1] * np.float32(0.7), lambda below, drawn: drawn[..., ::-1] // 2),
    Kind("zeros", lambda normal: normal * 0, lambda below, drawn: drawn * 0, flag=False),
    Kind("large", lambda normal: normal * LARGE, lambda below, drawn: drawn * 0 + (below - 1), flag=True),
    Kind("negative", lambda normal: -abs(normal), lambda below, drawn: drawn * 0 - 1),
    Kind("ones", lambda normal: normal * 0 + 1, lambda below, drawn: drawn * 0 + min(1, below - 1)),
    Kind("nan", lambda normal: normal * np.float32(np.nan), lambda below, drawn: drawn),
    Kind("small", lambda normal: normal * np.float32(1e-3), lambda below, drawn: drawn // 16),
    Kind("same", lambda normal: normal, lambda below, drawn: drawn),
)
NORMAL = KINDS[0]


class Known(Struct):
    """What is known of a model's inputs. `free`: a size for what is open; `below`: the ranges of integer inputs, 2 where there
    is none; `words`: texts that mean something to it.
    """

    free: int
    below: Mapping[str, int] = {}
    words: Sequence[str] = WORDS


def row_of(
    specs: Sequence[TensorSpec],
    kind: Kind,
    known: Known,
    sample: Mapping[str, Array] | None = None,
    *,
    crossed: int = 0,
    draw: int = 0,
) -> list[Array]:
    """One row of this kind, or `crossed`: of one that is so many further in the table for each input.

    `sample`: a real row, in place of what would be drawn. What all rows of a batch share is the same for every kind.
    """
    arrays = []
    free, below = known.free, known.below
    for number, spec in enumerate(specs):
        kept = KINDS[(KINDS.index(kind) + crossed * number) % len(KINDS)] if spec.rows is not None else NORMAL
        if spec.default is not None:
            arrays.append(to_array(spec.dtype, spec.shape, spec.default, text=spec.text))
        elif sample is not None and spec.name in sample:
            arrays.append(_varied(spec, kept, sample[spec.name], below.get(spec.name, 2)))
        else:
            shape = [free if size < 0 else size for size in spec.shape]
            if spec.rows is not None and spec.rows < len(shape) and spec.shape[spec.rows] < 0:
                shape[spec.rows] = 1
            seed = np.random.default_rng(
                (draw if spec.rows is not None else 0, number)
            )  # the same for all kinds, so that "same" is the same
            arrays.append(_made(spec, kept, tuple(shape), seed, known))
    return arrays


def joined(specs: Sequence[TensorSpec], rows: Sequence[Sequence[Array]]) -> list[Array]:
    """One batch of these rows."""
    return [
        np.concatenate([row[index] for row in rows], axis=spec.rows) if spec.rows is not None else rows[0][index]
        for index, spec in enumerate(specs)
    ]


def _made(spec: TensorSpec, kind: Kind, shape: tuple[int, ...], random: np.random.Generator, known: Known) -> Array:
    dtype, below = NUMPY[spec.dtype], known.below.get(spec.name, 2)
    if spec.dtype is DType.BYTES:
        array = np.empty(shape, object)
        word = known.words[(KINDS.index(kind) if kind.name != "same" else 0) % len(known.words)]
        array[...] = word if spec.text else word.encode()
        return array
    if spec.is_mask:
        return np.ones(shape, np.float32).astype(dtype) if spec.dtype is not DType.BF16 else fp32_to_bf16(np.ones(shape))
    if dtype.kind == "b":
        return np.full(shape, kind.flag, np.bool_) if kind.flag is not None else random.integers(0, 2, shape).astype(np.bool_)
    if spec.dtype is DType.BF16:
        return fp32_to_bf16(np.asarray(kind.floats(random.standard_normal(shape, np.float32)), np.float32))
    if dtype.kind == "f":
        return np.asarray(kind.floats(random.standard_normal(shape, np.float32))).astype(dtype)
    if "len" in spec.name.lower() and len(shape) < 2:  # as long as what it is the length of
        return np.full(shape, max(shape[0] if shape else 1, below - 1, 1)).astype(dtype)
    drawn = random.integers(0, below, shape)
    values = kind.integers(below, drawn)
    return np.asarray(np.maximum(values, 0) if dtype.kind == "u" else values).astype(dtype)


def _varied(spec: TensorSpec, kind: Kind, real: Array, below: int) -> Array:
    """A real row, or one of another kind of the same shape."""
    dtype = NUMPY[spec.dtype]
    if kind.name in ("normal", "same") or dtype.kind in "Ob" or spec.dtype is DType.BF16 or spec.is_mask:
        return real
    if dtype.kind == "f":
        return np.asarray(kind.floats(np.asarray(real, np.float32))).astype(dtype)
    values = kind.integers(max(below, int(np.max(real, initial=0)) + 1), np.asarray(real, np.int64))
    return np.asarray(np.maximum(values, 0) if dtype.kind == "u" else values).astype(dtype)
