"""A model that takes as long as its input says, and fails or stalls once, on one instance, or while it is loaded."""

import threading
import time
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

PLAIN, FAIL_ONCE, STALL_ONCE = 1, 2, 3
STALL_S = 0.6


class Sleeper:
    """y = x, after as long as `value` has put into the largest x.

    The first thread that runs it takes `slower_s` longer. One that is made while there is a `hog` waits for a batch to begin,
    and lets nobody else run then.
    """

    thread_safe = True
    inputs: ClassVar[dict[str, str]] = {"x": "FP32[-1,1]"}
    outputs: ClassVar[dict[str, str]] = {"y": "FP32[-1,1]"}
    slower_s = 0.0
    hog: ClassVar[threading.Event | None] = None
    done: ClassVar[set[int]] = set()
    first: ClassVar[set[int]] = set()

    def __init__(self) -> None:
        hog = self.hog
        if hog is not None:
            hog.wait(10.0)
            sum(range(20_000_000))  # a loop in C, which holds the interpreter

    def predict(self, inputs: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        what, ms = divmod(int(np.nan_to_num(inputs["x"]).max()), 1000)
        if what not in (PLAIN, FAIL_ONCE, STALL_ONCE):  # warm-up made it up
            what = 0
        seconds = ms / 1e3 if what else 0.0
        if what > PLAIN and what not in self.done:
            self.done.add(what)
            if what == FAIL_ONCE:
                time.sleep(seconds)
                raise RuntimeError("the disk is full")
            seconds = STALL_S
        if what and self.hog is not None:
            self.hog.set()
        if what and self.slower_s:
            if not self.first:
                self.first.add(threading.get_ident())
            seconds += self.slower_s * (threading.get_ident() in self.first)
        time.sleep(seconds)
        return {"y": inputs["x"]}

    @classmethod
    def reset(cls) -> None:
        cls.slower_s, cls.hog = 0.0, None
        cls.done.clear()
        cls.first.clear()


class Wide:
    """An answer of 16 MB, which no socket holds."""

    inputs: ClassVar[dict[str, str]] = {"x": "FP32[-1,1]"}
    outputs: ClassVar[dict[str, str]] = {"y": "FP32[-1,4000000]"}

    def predict(self, inputs: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        return {"y": np.zeros((len(inputs["x"]), 4_000_000), np.float32)}


def value(seconds: float, what: int = PLAIN) -> float:
    """Of a row that takes so long, at most 0.999."""
    return 1000.0 * what + round(seconds * 1e3)
