"""Real inputs that a user puts beside a model, or Triton's configuration names, to warm it up with what it is made for.

Called wherever models are loaded. Not aware of: what is done with them.
"""

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import described, fits, written
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import NUMPY, to_array

MOST = 16  # rows: with more the start takes longer and learns nothing
MOST_ELEMENTS = 1 << 26  # of one input that is drawn

Array = NDArray[np.generic]

log = logging.getLogger(__name__)


class WarmupInput(Struct, frozen=True, omit_defaults=True):
    """One input of a row, under Triton's names. `dims`: with the axis of the rows."""

    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    zero_data: bool = False
    random_data: bool = False
    input_data_file: str = ""


Warmup = Mapping[str, WarmupInput]  # by the input's name


def warmup_samples(warmups: Sequence[Warmup]) -> str:
    """As the knob `samples` has them in place of a path."""
    return msgspec.json.encode(warmups).decode() if warmups else ""


def sample_files(samples: str) -> list[str]:
    """What is read for this value of the knob."""
    if samples.startswith("["):
        return [one.input_data_file for warmup in _warmups(samples) for one in warmup.values() if one.input_data_file]
    place = Path(samples)
    return [] if not samples else [str(file) for file in sorted(place.glob("*.npz"))] if place.is_dir() else [samples]


def _warmups(samples: str) -> list[Warmup]:
    return [*msgspec.json.decode(samples, type=list[dict[str, WarmupInput]])]


def read_samples(path: str, specs: Sequence[TensorSpec]) -> list[Mapping[str, Array]]:
    """Single rows from an .npz file or a folder of them, in the order of their names; none for the empty path.

    A file holds an array for each input; of several rows each is a sample. Raises ModelError, but leaves out rows of Triton's
    configuration that do not fit, with a warning.
    """
    if path.startswith("["):
        return [row for warmup in _warmups(path)[:MOST] if (row := _row(warmup, specs)) is not None]
    files = [Path(file) for file in sample_files(path)]
    if path and not files:
        raise ModelError(f"samples: the folder {path} holds no .npz file")
    rows: list[Mapping[str, Array]] = []
    for file in files:
        rows += _rows(file, specs)
        if len(rows) >= MOST:
            break
    return rows[:MOST]


def _row(warmup: Warmup, specs: Sequence[TensorSpec]) -> dict[str, Array] | None:
    """Without files it tells shapes alone: what is drawn for them shows more of a model than zeros do."""
    real = any(one.input_data_file for one in warmup.values())
    row: dict[str, Array] = {}
    try:
        for name in warmup.keys() - {spec.name for spec in specs}:
            raise ValueError(f"the model has no input '{name}'")
        for spec in specs:
            if spec.name in warmup:
                row[spec.name] = _array(warmup[spec.name], spec, real=real)
            elif spec.default is None:
                raise ValueError(f"it says nothing of the input '{spec.name}'")
    except (OSError, ValueError) as error:
        log.warning("an entry of model_warmup is left out: %s", error)
        return None
    return row


def _array(one: WarmupInput, spec: TensorSpec, *, real: bool) -> Array:
    """Raises OSError, ValueError."""
    dtype = one.data_type.removeprefix("TYPE_").replace("STRING", DType.BYTES.value)
    rows = _axis(spec, len(one.dims))
    if dtype != spec.dtype.value or not fits(one.dims, spec.shape) or (rows is not None and one.dims[rows] != 1):
        raise ValueError(f"'{spec.name}' is {dtype}{list(one.dims)}, the model takes {written(spec)}")
    if one.input_data_file:
        data = Path(one.input_data_file).read_bytes()
        if spec.dtype is not DType.BYTES and len(data) != prod(one.dims) * spec.dtype.itemsize:
            raise ValueError(f"{one.input_data_file} has {len(data)} bytes, '{spec.name}' is {dtype}{list(one.dims)}")
        return to_array(spec.dtype, one.dims, data, text=spec.text)
    if not 0 <= prod(one.dims) <= MOST_ELEMENTS or min(one.dims, default=0) < 0:
        raise ValueError(f"'{spec.name}' is {dtype}{list(one.dims)}, of which at most {MOST_ELEMENTS} elements are drawn")
    if spec.dtype is DType.BYTES:
        array = np.empty(one.dims, object)
        array[...] = "" if spec.text else b""
        return array
    array = np.zeros(one.dims, NUMPY[spec.dtype])
    if array.dtype.kind == "f" and (one.random_data or not real):
        array = np.random.default_rng(0).standard_normal(one.dims).astype(array.dtype)
    return array


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
    counts = {name: array.shape[rows] for name, array in arrays.items() if (rows := _axis(known[name], array.ndim)) is not None}
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


def _axis(spec: TensorSpec, axes: int) -> int | None:
    """Where its rows stand; None for an input that has none."""
    open_there = spec.rows is not None and spec.shape[spec.rows : spec.rows + 1] == (-1,)
    return spec.rows if open_there and spec.rows is not None and spec.rows < axes else None


def _checked(file: Path, spec: TensorSpec, array: Array) -> Array:
    if spec.dtype is DType.BYTES and array.dtype.kind in "SU":
        array = array.astype(object)
    if array.dtype != NUMPY[spec.dtype] or not fits(array.shape, spec.shape):
        raise ModelError(f"samples: '{spec.name}' in {file} is {described(array)}, the model takes {written(spec)}")
    return array
