"""Code that steps of the tests' pipelines run."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dlproxy.message import invalid

Array = NDArray[Any]


def plus_one(x: Array) -> Array:
    return x + np.float32(1)


plus_one.outputs = {"y": "FP32[-1,-1]"}  # type: ignore[attr-defined]


def split(x: Array) -> list[Array]:
    return list(x)


split.outputs = {"items": "FP32[-1,-1]"}  # type: ignore[attr-defined]


def gather(items: list[Array | None]) -> Array:
    """Zeros for those that are missing."""
    width = next((item.shape[-1] for item in items if item is not None), 2)
    return np.stack([np.zeros(width, np.float32) if item is None else item for item in items])


gather.outputs = {"y": "FP32[-1,-1]"}  # type: ignore[attr-defined]


def repeat(x: Array) -> list[Array]:
    """As many items as the first element says, each with its number."""
    return [np.full(2, number, np.float32) for number in range(int(x.flat[0]))]


def ragged(x: Array) -> list[Array]:
    """Items of lengths 1, 2, 2, 3, 3, 3."""
    return [np.full(length, number, np.float32) for number, length in enumerate((1, 2, 2, 3, 3, 3))]


def is_large(x: Array) -> dict[str, Array]:
    """Whether the first element is above 4."""
    return {"yes": np.array(x.flat[0] > 4)}


def are_large(items: list[Array | None]) -> dict[str, list[Array]]:
    return {"yes": [np.array(item is not None and bool(item.flat[0] > 4)) for item in items]}


def mean(**answers: Array) -> Array:
    return np.asarray(np.mean(list(answers.values()), axis=0), np.float32)


mean.outputs = {"y": "FP32[-1,-1]"}  # type: ignore[attr-defined]


def names(context: Any, x: Array) -> dict[str, Array]:
    said = [f"{key}={value}" for key, value in (*context.parameters.items(), *context.headers.items())]
    return {"text": np.array(sorted(said), object)}


names.outputs = {"text": "BYTES[-1]"}  # type: ignore[attr-defined]


def fail(x: Array) -> Array:
    raise ValueError("bad index")


def nothing(x: Array) -> dict[str, Any]:
    return {"y": None}


nothing.outputs = {"y": "FP32[-1,-1]"}  # type: ignore[attr-defined]


def refuse(x: Array) -> Array:
    raise invalid("no picture")


def lengths(items: list[Array]) -> dict[str, Array]:
    return {"n": np.array([item.size for item in items])}


lengths.outputs = {"n": "INT64[-1]"}  # type: ignore[attr-defined]


class Scale:
    outputs: ClassVar = {"y": "FP32[-1,-1]"}

    def __init__(self, by: float = 2.0) -> None:
        self.by = by
        self.closed = False

    def __call__(self, x: Array) -> Array:
        return x * np.float32(self.by)

    def close(self) -> None:
        self.closed = True


def same(x: Array) -> Array:
    return x


def odd(x: Array) -> dict[str, Any]:
    """What no model takes."""
    return {"odd": np.array([object(), object()]), "items": [np.array([object()])]}
