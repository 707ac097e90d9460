"""The model that the parts `faults` and `leaks` serve, as `faulty.py:Faulty`: it does what the first value of a row says.

Loaded by dlproxy's worker processes. Not aware of: who asks.
"""

import ctypes
import os
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

OK, EXIT, SEGFAULT, HANG, HOG, RAISE = range(6)
"""What a row that begins with this number makes of its batch; all other numbers mean nothing either."""
EXIT_STATUS = 7
BATCH_S = 0.01  # so that clients meet in batches


class Faulty:
    """y = 2 x, some milliseconds later."""

    inputs = {"input": "FP32[-1,-1]"}  # noqa: RUF012 - as users write it
    outputs = {"output": "FP32[-1,-1]"}  # noqa: RUF012

    def predict(self, batch: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """Either the answer, or the first fault that a row asks for."""
        x = batch["input"]
        for fault, commit in FAULTS.items():
            if fault in x[:, 0]:
                sys.stdout.write(f"fault {fault} in a batch of {len(x)}\n")
                commit()
        time.sleep(BATCH_S)
        return {"output": 2 * x}


def _hog() -> None:
    hoard = []
    while True:
        hoard.append(np.ones(1 << 22, np.uint8))


def _raise() -> None:
    raise ValueError("this item is bad")


FAULTS: dict[int, Callable[[], object]] = {
    EXIT: lambda: os._exit(EXIT_STATUS),
    SEGFAULT: lambda: ctypes.string_at(0),
    HANG: lambda: time.sleep(3600),
    HOG: _hog,
    RAISE: _raise,
}
