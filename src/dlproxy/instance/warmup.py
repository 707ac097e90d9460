"""Warm-up: runs a freshly loaded model on made-up inputs to learn how long batches take and whether rows are independent.

Called by serve/assemble.py, in a thread, before the model is announced as ready. Not aware of: lanes, requests.
"""

from collections.abc import Sequence
from time import perf_counter

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.runtime import Runtime
from dlproxy.instance.runtime.declared import one_line
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import NUMPY, bf16_to_fp32, fp32_to_bf16

SIZES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 5  # the least of five: what a batch costs when nothing else disturbs it
BUDGET_S = 0.25  # larger sizes are left to learning in service once this much time has gone
FREE_DIMS = (1, 8, 32, 224)  # tried in turn for dimensions that the model leaves open
TOLERANCE = 1e-3  # relative; kernels for different batch sizes sum in different orders


class Calibration(Struct, frozen=True):
    """What warm-up found. `points`: (rows, seconds) or (rows, length, seconds). `warning`: for the operator, empty if none."""

    points: tuple[tuple[int | float, ...], ...]
    independent_rows: bool
    warning: str = ""

    @property
    def single_s(self) -> float | None:
        """Seconds for a batch of one row, None if the model could not be run on made-up inputs."""
        return self.points[0][-1] if self.points else None


def calibrate(runtime: Runtime) -> Calibration:
    """Run the model on made-up inputs for at most about BUDGET_S, or one run if that takes longer."""
    free, error = _working_size(runtime)
    if error is not None:
        why = f"made-up inputs do not suit the model ({one_line(error)})"
        return Calibration((), False, f"{why}: latency is learned in service, batching is off")
    if not runtime.signature.batched:
        return Calibration(((1, _least_time(runtime, 1, free)),), False)
    if not _rows_independent(runtime, free):
        warning = "a row's answer depends on its neighbours in the batch: batching is off"
        return Calibration(((1, _least_time(runtime, 1, free)),), False, warning)
    points = []
    started_at = perf_counter()
    for rows in SIZES:
        try:
            points.append((rows, _least_time(runtime, rows, free)))
        except Exception:  # too large for the model or the memory; in service such a batch is halved
            break
        if perf_counter() - started_at + 2 * REPEATS * points[-1][1] > BUDGET_S and rows > 1:
            break
    return Calibration(tuple(points), True)


def made_up(specs: Sequence[TensorSpec], rows: int, free: int) -> list[NDArray[np.generic]]:
    """Inputs of the declared shapes with `free` for open dimensions: random floats, integers and texts of 0 and 1.

    Neighbouring rows differ, or a model that compares them would look as if it did not.
    """
    random = np.random.default_rng(0)
    arrays: list[NDArray[np.generic]] = []
    for spec in specs:
        shape = [free if size < 0 else size for size in spec.shape]
        if spec.shape and spec.shape[0] < 0:
            shape[0] = rows
        dtype = NUMPY[spec.dtype]
        if spec.dtype is DType.BYTES:
            arrays.append(np.full(shape, "0", dtype=object))
            if shape:
                arrays[-1][1::2] = "1"
        elif spec.dtype is DType.BF16:
            arrays.append(fp32_to_bf16(random.random(shape, np.float32)))
        elif dtype.kind == "f":
            arrays.append(random.random(shape).astype(dtype))
        else:
            bits = random.integers(0, 2, shape)
            if shape and bits.size:
                bits.reshape(shape[0], -1)[:, 0] = np.arange(shape[0]) % 2
            arrays.append(bits.astype(dtype))
    return arrays


def _working_size(runtime: Runtime) -> tuple[int, Exception | None]:
    """A size for open dimensions that the model takes, or the last of them and what the model said to it."""
    last: Exception | None = None
    for free in FREE_DIMS:
        try:
            runtime.run(made_up(runtime.signature.inputs, 1, free))
        except Exception as error:  # whatever the model raises, the next size may suit it
            last = error
            continue
        return free, None
    return FREE_DIMS[-1], last


def _rows_independent(runtime: Runtime, free: int) -> bool:
    """Does a batch of two rows give what its rows give alone?"""
    pair = made_up(runtime.signature.inputs, 2, free)
    try:
        together = runtime.run(pair)
        alone = [runtime.run([array[row : row + 1] for array in pair]) for row in (0, 1)]
        return all(
            whole.shape[:1] == (2,) and all(_close(whole[row : row + 1], alone[row][index], spec) for row in (0, 1))
            for index, (spec, whole) in enumerate(zip(runtime.signature.outputs, together, strict=True))
        )
    except Exception:  # a model that declares a free batch axis and cannot run two rows is served row by row
        return False


def _close(a: NDArray[np.generic], b: NDArray[np.generic], spec: TensorSpec) -> bool:
    if a.shape != b.shape:
        return False
    if spec.dtype is DType.BF16:
        a, b = bf16_to_fp32(a), bf16_to_fp32(b)
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    scale = float(np.max(np.abs(a), initial=0.0)) if np.isfinite(a).all() else 1.0
    tolerance = 16 * TOLERANCE if spec.dtype in (DType.FP16, DType.BF16) else TOLERANCE
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _least_time(runtime: Runtime, rows: int, free: int) -> float:
    inputs = made_up(runtime.signature.inputs, rows, free)
    least = float("inf")
    for repeat in range(REPEATS):
        started_at = perf_counter()
        runtime.run(inputs)
        least = min(least, perf_counter() - started_at)
        if repeat and least > BUDGET_S:
            break
    return least
