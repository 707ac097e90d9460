"""Machine code for loops over numbers, by Numba if whoever runs has imported it; else the functions as Python runs them.

Used by state.py, balancers.py, nodes.py and cluster.py. Not aware of: what they compute.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
Class = TypeVar("Class", bound=type)


def compiled(function: Function) -> Function:
    """The function, some 100 times as quick if Numba was imported before: `__main__.py` does, tests do not."""
    numba = sys.modules.get("numba")
    return function if numba is None else numba.njit(function)  # type: ignore[no-any-return]


def compiled_class(fields: Mapping[str, tuple[Any, int]]) -> Callable[[Class], Class]:
    """The class whose attributes are these: each a number of a NumPy type, or an array of so many axes of it."""

    def compile_class(plain: Class) -> Class:
        numba = sys.modules.get("numba")
        if numba is None:
            return plain
        spec = []
        for name, (kind, axes) in fields.items():
            scalar = numba.from_dtype(np.dtype(kind))
            spec.append((name, numba.types.Array(scalar, axes, "C") if axes else scalar))
        return import_module("numba.experimental").jitclass(spec)(plain)  # type: ignore[no-any-return]

    return compile_class
