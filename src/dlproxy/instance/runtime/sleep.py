"""A model that only takes time, L(b) = base + row * b, and gives back what it got: a known capacity to test against.

Called by runtime/formats.py for a path like `sleep:base=10ms,row=0.5ms`. Not aware of: threads, batches, requests.
"""

import time
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config import SLEEP, ConfigError, parse_duration
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Signature, TensorSpec

EXAMPLE = "sleep:base=10ms,row=0.5ms"
MOST_S = 3600.0  # what the clock takes is limited, and whoever asks for more has the unit wrong


class Line(Struct, frozen=True):
    """Seconds of a batch of b rows: base_s + row_s * b."""

    base_s: float
    row_s: float


def parse(path: str) -> Line:
    """The line that such a path describes; what is not named is 0. Raises ModelError."""
    values = {"base": 0.0, "row": 0.0}
    for part in path.removeprefix(SLEEP).split(","):
        name, _, text = part.partition("=")
        if name not in values:
            raise ModelError(f"{path!r}: {part!r} is not understood; write it like {EXAMPLE}")
        try:
            values[name] = parse_duration(text)
        except ConfigError as error:
            raise ModelError(f"{path!r}: {error}") from None
        if values[name] > MOST_S:
            raise ModelError(f"{path!r}: {part!r} is more than an hour; write it like {EXAMPLE}")
    return Line(values["base"], values["row"])


class SleepRuntime:
    """Takes x FP32 [N,1] and, after its time, gives the same values as y. Releases the GIL, as real runtimes do."""

    def __init__(self, path: str) -> None:
        self.line = parse(path)
        self.signature = Signature(
            (TensorSpec("x", DType.FP32, (-1, 1)),), (TensorSpec("y", DType.FP32, (-1, 1)),), batched=True, platform="sleep"
        )

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        until = time.perf_counter() + self.line.base_s + self.line.row_s * len(inputs[0])
        while (left_s := until - time.perf_counter()) > 0.0:  # a virtual machine's timers may wake it some microseconds early
            time.sleep(left_s)
        return [inputs[0].copy()]
