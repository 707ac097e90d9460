"""Warm-up: runs a freshly loaded model to learn whether its rows are independent and how long batches take.

Called in a thread or worker process before the model is announced as ready. Not aware of: lanes, requests.
"""

from collections.abc import Mapping, Sequence
from time import perf_counter

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.evidence import Batching, Findings, UnsuitableError, examine
from dlproxy.instance.made_up import NORMAL, Known, joined, row_of
from dlproxy.instance.padding import Padding
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.trial import SHARED_ABOVE_S, alone, times
from dlproxy.message import TensorSpec

SIZES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 5  # the least of five: what a batch costs when nothing else disturbs it
BUDGET_S = 0.25  # larger sizes are left to learning in service once this much time has gone

Array = NDArray[np.generic]


class WarmUp(Struct, frozen=True):
    """How a model is to be warmed up, as the knobs have it. `samples`: a path, empty for made-up inputs."""

    batching: Batching = "auto"
    samples: str = ""
    padding: Padding = "off"
    pad_value: float = 0.0


class Calibration(Struct, frozen=True):
    """What warm-up found. `points`: (rows, seconds) or (rows, length, seconds). `warning`: for the operator, empty if none.

    `known`: of the inputs that it was run on, None if none suited.
    """

    points: tuple[tuple[int | float, ...], ...]
    independent_rows: bool
    warning: str = ""
    known: Known | None = None

    @property
    def single_s(self) -> float | None:
        """Seconds for a batch of one row, None if the model could not be run on made-up inputs."""
        return self.points[0][-1] if self.points else None


def calibrate(
    runtime: Runtime,
    *,
    batching: Batching = "auto",
    padding: Padding = "off",
    pad_value: float = 0.0,
    samples: Sequence[Mapping[str, Array]] = (),
) -> Calibration:
    """Run the model on samples or made-up inputs; what its rows turned out to be stands in `runtime.signature` then."""
    return warmed(runtime, WarmUp(batching, padding=padding, pad_value=pad_value), samples)[0]


def warmed(runtime: Runtime, how: WarmUp, samples: Sequence[Mapping[str, Array]]) -> tuple[Calibration, list[list[Array]]]:
    """The same, with requests of one row as far as is known what they are like: none if nothing suited the model."""
    notes = list(getattr(runtime, "notes", ()))
    if runtime.signature.streams:  # of which runs in warm-up see only the whole
        if how.padding == "on":
            notes.append("answers come in parts: requests of different lengths share no batch")
        how = msgspec.structs.replace(how, padding="off")
    try:
        found = examine(runtime, batching=how.batching, padding=how.padding, pad_value=how.pad_value, samples=samples)
    except UnsuitableError as error:
        runtime.signature = msgspec.structs.replace(runtime.signature, batched=False)
        notes.append(f"made-up inputs do not suit the model ({error}): latency is learned in service, batching is off")
        keep_graph(runtime, [])
        return Calibration((), False, "; ".join(notes)), []
    runtime.signature = found.signature
    if found.why and how.batching != "off":
        notes.append(f"{found.why}: batching is off")
    if found.unpadded and how.padding == "on":
        notes.append(f"{found.unpadded}: requests of different lengths share no batch")
    requests = requests_of(found.signature.inputs, found.known, samples)
    keep_graph(runtime, requests)
    points = _points(runtime, found, requests[0])
    return Calibration(points, found.signature.batched, "; ".join(notes), found.known), requests


def requests_of(specs: Sequence[TensorSpec], known: Known, samples: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    """One row for each sample, or a made-up one."""
    return [row_of(specs, NORMAL, known, sample) for sample in samples or (None,)]


def keep_graph(runtime: Runtime, requests: Sequence[Sequence[Array]]) -> None:
    """For the next start, where a runtime does that: `requests`, to compare answers by, need not be its only ones."""
    keep = getattr(runtime, "keep_graph", None)
    if keep is not None:
        keep(requests)


def _points(runtime: Runtime, found: Findings, row: Sequence[Array]) -> tuple[tuple[int, float], ...]:
    """Seconds of batches of more and more rows, for about BUDGET_S, or of one row if that takes longer."""
    points = [(1, _least_time(runtime, row))]
    started_at = perf_counter()
    for rows in SIZES[1:] if found.signature.batched else ():
        if perf_counter() - started_at + 2 * REPEATS * points[-1][1] > BUDGET_S and rows > 2:
            break
        try:
            points.append((rows, _least_time(runtime, joined(found.signature.inputs, [row] * rows))))
        except Exception:  # too large for the model or the memory; in service such a batch is halved
            break
    return tuple(points)


def _least_time(runtime: Runtime, inputs: Sequence[Array]) -> float:
    least = float("inf")
    for repeat in range(REPEATS):
        how = alone if least > SHARED_ABOVE_S else times  # quick ones are as quick as caches are warm
        least = min(least, how(runtime, inputs)[0])
        if repeat and least > BUDGET_S:
            break
    return least
