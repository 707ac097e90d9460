"""A model made of a Python function, for tests that need a Runtime without ONNX Runtime.

Not aware of: threads, batches, requests.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.message import Signature

Array = NDArray[np.generic]
Function = Callable[[Sequence[Array]], Any]
"""Gives the outputs or, of a signature that streams, yields them part by part."""


class FakeRuntime:
    """A Runtime with a given signature. `errors`: what the first runs raise, one entry each, None where a run succeeds."""

    def __init__(self, signature: Signature, function: Function, *, errors: Iterable[Exception | None] = ()) -> None:
        self.signature = signature
        self._function = function
        self._errors = list(errors)
        self.rows: list[int] = []
        """Rows of every run so far, in order: the size of axis 0 of the first input (1 for a scalar)."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The function's answer, or the next scripted error."""
        self.rows.append(inputs[0].shape[0] if inputs[0].shape else 1)
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error
        outputs: list[Array] = self._function(inputs)
        return outputs

    def steps(self, inputs: Sequence[Array]) -> Iterator[list[Array]]:
        """The function's answer part by part."""
        self.rows.append(inputs[0].shape[0])
        yield from self._function(inputs)
