"""Real inputs that a user puts beside a model, to warm it up with what it is made for.

Called wherever models are loaded. Not aware of: what is done with them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import described, fits, written
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import NUMPY

MOST = 16  # rows: with more the start takes longer and learns nothing

Array = NDArray[np.generic]


def read_samples(path: str, specs: Sequence[TensorSpec]) -> list[Mapping[str, Array]]:
    """Single rows from an .npz file or a folder of them, in the order of their names; none for the empty path.

    A file holds an array for each input; of several rows each is a sample. Raises ModelError.
    """
    if not path:
        return []
    place = Path(path)
    files = sorted(place.glob("*.npz")) if place.is_dir() else [place]
    if not files:
        raise ModelError(f"samples: the folder {path} holds no .npz file")
    rows: list[Mapping[str, Array]] = []
    for file in files:
        rows += _rows(file, specs)
        if len(rows) >= MOST:
            break
    return rows[:MOST]


def _rows(file: Path, specs: Sequence[TensorSpec]) -> list[Mapping[str, Array]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise ModelError(f"samples: {file} cannot be read as .npz, or holds pickles: {error}") from None
    known = {spec.name: spec for spec in specs}
    unknown = [name for name in arrays if name not in known]
    missing = [spec.name for spec in specs if spec.name not in arrays and spec.default is None]
    if unknown or missing:
        has = ", ".join(arrays) or "no arrays"
        raise ModelError(f"samples: {file} holds {has}; the model takes {', '.join(known)}")
    arrays = {name: _checked(file, known[name], array) for name, array in arrays.items()}
    counts = {name: array.shape[rows] for name, array in arrays.items() if (rows := _axis(known[name], array)) is not None}
    if len(set(counts.values())) > 1:
        raise ModelError(f"samples: {file} holds different numbers of rows: {counts}")
    count = next(iter(counts.values()), 1)
    return [
        {
            name: array if name not in counts else np.take(array, [row], axis=known[name].rows or 0)
            for name, array in arrays.items()
        }
        for row in range(min(count, MOST))
    ]


def _axis(spec: TensorSpec, array: Array) -> int | None:
    """Where its rows stand; None for an input that has none."""
    open_there = spec.rows is not None and spec.shape[spec.rows : spec.rows + 1] == (-1,)
    return spec.rows if open_there and spec.rows is not None and spec.rows < array.ndim else None


def _checked(file: Path, spec: TensorSpec, array: Array) -> Array:
    if spec.dtype is DType.BYTES and array.dtype.kind in "SU":
        array = array.astype(object)
    if array.dtype != NUMPY[spec.dtype] or not fits(array.shape, spec.shape):
        raise ModelError(f"samples: '{spec.name}' in {file} is {described(array)}, the model takes {written(spec)}")
    return array
