"""The Python classes that the soak serves: one for worker processes, one that answers in parts. Loaded by dlproxy."""

import time
from typing import ClassVar

import numpy as np

TAKES_S = 0.004


class Twice:
    """y = 2 x, after some milliseconds, so that a kill meets a batch."""

    inputs: ClassVar = {"x": "FP32[-1,1]"}
    outputs: ClassVar = {"y": "FP32[-1,1]"}

    def predict(self, batch):
        time.sleep(TAKES_S)
        return {"y": 2 * batch["x"]}


class Count:
    """Of (first, parts, width): first, first + 1 and so on, each part so wide."""

    inputs: ClassVar = {"x": "FP32[-1,3]"}
    outputs: ClassVar = {"y": "FP32[-1,-1]"}
    streams = thread_safe = True

    def predict(self, batch):
        first, parts, width = np.nan_to_num(batch["x"][0])
        for part in range(max(1, min(int(abs(parts)), 10**6))):
            yield {"y": np.full((1, max(1, min(int(abs(width)), 10**5))), first + part, np.float32)}
