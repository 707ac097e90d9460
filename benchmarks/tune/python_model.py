"""A model written in Python, as `python_model.py:Scorer`: arrays, and a loop over the rows. Loaded by dlproxy's workers."""

import numpy as np
from numpy.typing import NDArray

WIDTH = 64
ROUNDS = 2000  # of Python's own work for each row: a tenth of a millisecond


class Scorer:
    """Scores rows by a small network, and ranks each row's scores in Python."""

    inputs = {"input": f"FP32[-1,{WIDTH}]"}  # noqa: RUF012 - as users write it
    outputs = {"output": "FP32[-1]"}  # noqa: RUF012

    def __init__(self) -> None:
        random = np.random.default_rng(64)
        self._weights = [random.standard_normal((WIDTH, WIDTH)).astype(np.float32) * 0.1 for _ in range(8)]

    def predict(self, batch: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        rows = batch["input"]
        for weights in self._weights:
            rows = np.maximum(rows @ weights, 0.0)
        return {"output": np.array([self._score(row) for row in rows.tolist()], np.float32)}

    def _score(self, row: list[float]) -> float:
        total = 0.0
        for number in range(ROUNDS):
            total += row[number % WIDTH] / (1.0 + number)
        return total
