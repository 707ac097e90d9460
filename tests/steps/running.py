"""Steps as pipelines make and call them: by name, with what they give compared with what they declare."""

import re
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.message import DType
from dlproxy.steps import STEPS
from dlproxy.tensors import NUMPY

DECLARED = re.compile(r"(\w+)\[((?:-1|\d+)(?:,(?:-1|\d+))*)\]")


def class_of(name: str) -> Any:
    module, _, attribute = STEPS[name].partition(":")
    return getattr(import_module(module), attribute)


def made(name: str, **options: Any) -> Any:
    return class_of(name)(**options)


def run(step: Any, **inputs: Any) -> dict[str, Any]:
    """What it gives, each of the declared type and shape."""
    found: dict[str, Any] = step(**inputs)
    assert list(found) == list(step.outputs)
    for name, values in found.items():
        for array in values if isinstance(values, list) else [values]:
            check_declared(step.outputs[name], array)
    return found


def check_declared(declared: str, array: NDArray[Any]) -> None:
    parts = DECLARED.fullmatch(declared)
    assert parts is not None, declared
    sizes = list(map(int, parts[2].split(",")))
    assert array.dtype == NUMPY[DType(parts[1])], (declared, array.dtype)
    assert len(sizes) == array.ndim, (declared, array.shape)
    assert all(size in (-1, actual) for size, actual in zip(sizes, array.shape, strict=True)), (declared, array.shape)


def texts(*elements: str | bytes) -> NDArray[Any]:
    """BYTES, as steps get them."""
    return np.array([element.encode() if isinstance(element, str) else element for element in elements], object)
