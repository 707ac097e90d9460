"""What goes from step to step: a tensor as a model gave it, an array, or a list of them, which are items.

Called by the rest of this room. Not aware of: steps, models, requests.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.instance.runtime.declared import described, fits, written
from dlproxy.message import DType, InferenceError, Tensor, TensorSpec

Array: TypeAlias = NDArray[np.generic]
Items: TypeAlias = list[Any]
"""Tensors or arrays; None stands for an item that is missing, as a step was skipped for it."""


class Missing:
    """In place of a value that there will not be."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()
Value: TypeAlias = Tensor | Array | Items | Missing


def as_array(value: Tensor | Array) -> Array:
    """For code: BYTES are objects, BF16 is float32."""
    return tensors.to_values(value, text=False) if isinstance(value, Tensor) else value


def as_argument(value: Value) -> Any:
    """For code: an array, a list of arrays, or None."""
    if isinstance(value, Missing):
        return None
    if isinstance(value, list):
        return [None if item is None else as_array(item) for item in value]
    return as_array(value)


def as_tensor(value: Value, spec: TensorSpec) -> Tensor:
    """What a model with this input, or a pipeline with this output, takes. Raises ValueError for what makes none."""
    if isinstance(value, list):
        value = joined(value, spec)
    if isinstance(value, Tensor):
        if value.dtype is spec.dtype:
            return Tensor(spec.name, spec.dtype, value.shape, value.data)
        value = as_array(value)
    try:
        return tensors.from_values(spec.name, spec.dtype, value)
    except InferenceError as error:
        raise ValueError(error.failure.message.removeprefix(f"input '{spec.name}' ")) from None


def checked(value: Value, spec: TensorSpec) -> Tensor:
    """The same, of a declared shape."""
    tensor = as_tensor(value, spec)
    if not fits(tensor.shape, spec.shape):
        raise ValueError(f"is {described(as_array(tensor))} where it is declared as {written(spec)}")
    return tensor


def joined(items: Items, spec: TensorSpec) -> Array:
    """One array of all of them, along the axis of the rows. Raises ValueError if they do not fit together."""
    axis, ndim = spec.rows or 0, len(spec.shape)
    lacking = next((number for number, item in enumerate(items) if item is None), None)
    if lacking is not None:
        raise ValueError(f"has no item {lacking} of {len(items)}: a step was skipped for it")
    arrays = [as_array(item) for item in items]
    if not arrays:
        sizes = [0 if place == axis else max(size, 0) for place, size in enumerate(spec.shape)]
        return np.empty(sizes, np.float32 if spec.dtype is DType.BF16 else tensors.NUMPY[spec.dtype])
    whole = arrays[0].ndim == ndim
    try:
        return np.concatenate(arrays, axis) if whole else np.stack(arrays, axis)
    except ValueError:
        shapes = ", ".join(dict.fromkeys(str(list(array.shape)) for array in arrays[:64]))
        raise ValueError(f"cannot be put together, as its items have the shapes {shapes}") from None


def truths(value: Value) -> list[bool]:
    """Of every element or item."""
    if isinstance(value, list):
        return [item is not None and bool(as_array(item).any()) for item in value]
    if isinstance(value, Missing):
        return []
    found: list[bool] = as_array(value).astype(bool).ravel().tolist()
    return found


def first(values: Sequence[Value | None], slots: Sequence[int]) -> Value | None:
    """The first that there is of these places, MISSING if none will be there; None if that cannot be told yet.

    Of lists with missing items, those of the next list are taken instead, or the rows of the next array.
    """
    found: Value = MISSING
    for slot in slots:
        value = values[slot]
        if value is None:
            return None
        if isinstance(value, Missing):
            continue
        if isinstance(found, Missing):
            found = value
        elif isinstance(found, list):
            found = _filled(found, value if isinstance(value, list) else as_array(value))
        if not isinstance(found, list) or all(item is not None for item in found):
            return found
    return found


def _filled(items: Items, others: Items | Array) -> Items:
    """With what the others have in the places of missing ones; as they are, if there are not as many others."""
    if (not isinstance(others, list) and not others.ndim) or len(others) != len(items):
        return items
    return [item(others, number) if one is None else one for number, one in enumerate(items)]


def iterated(values: dict[str, Value]) -> dict[str, "Items | Array"]:
    """Those that a step with `each` goes through: the lists or, if there are none, the rows of arrays. Raises ValueError."""
    found: dict[str, Items | Array] = {name: value for name, value in values.items() if isinstance(value, list)}
    if not found:
        arrays = {name: as_array(value) for name, value in values.items() if not isinstance(value, list | Missing)}
        found = {name: array for name, array in arrays.items() if array.ndim}
    if not found:
        raise ValueError("each: none of its inputs is a list or has rows")
    if len({len(value) for value in found.values()}) > 1:
        lengths = ", ".join(f"{name} {len(value)}" for name, value in found.items())
        raise ValueError(f"each: its inputs are not of one length: {lengths}")
    return found


def item(value: "Items | Array", number: int) -> Any:
    """An array or tensor, or None; of an array a row."""
    return value[number] if isinstance(value, list) else value[number, ...]
