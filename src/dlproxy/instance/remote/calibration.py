"""Calibrates a model that runs on an upstream: how long batches take there, network included, and whether rows are independent.

Called by fleet/upstreams.py before the model is announced. Not aware of: lanes.
"""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from dlproxy import tensors
from dlproxy.instance.batch import Array, BatchResult
from dlproxy.instance.evidence import Batching, UnsuitableError, examine
from dlproxy.instance.made_up import NORMAL, joined, row_of
from dlproxy.instance.remote.remote import RemoteInstance
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Request, Tensor, Ticket

SIZES = (1, 4, 16, 64)
ROUNDS = 10
BUDGET_S = 0.5  # no further round begins after it


class BlockingUpstream:
    """The upstream as a Runtime, for any thread but the one of `loop`, on which the instance lives."""

    def __init__(self, instance: RemoteInstance, loop: asyncio.AbstractEventLoop) -> None:
        self.signature = instance.model.signature
        self._instance = instance
        self._loop = loop

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Raises RuntimeError with the upstream's words."""
        result = asyncio.run_coroutine_threadsafe(self._result(inputs), self._loop).result()
        if result.error is not None:
            raise RuntimeError(result.error)
        return result.outputs

    async def _result(self, inputs: Sequence[Array]) -> BatchResult:
        given = [
            Tensor(spec.name, spec.dtype, array.shape, tensors.to_bytes(spec.dtype, array))
            for spec, array in zip(self.signature.inputs, inputs, strict=True)
        ]
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        request = Request(Ticket(0, 0.0, rows=inputs[0].shape[0] if inputs[0].shape else 1), "", given, ())
        self._instance.run([request], future.set_result)
        return await future


async def calibrate_upstream(instance: RemoteInstance, batching: Batching = "auto") -> Calibration:
    """Takes about a second, or two batches of each size if that is longer.

    Where made-up inputs do not suit the model, or the upstream goes meanwhile, its word on batching is taken. If its rows
    turn out to depend on one another, the instance goes over to single requests.
    """
    if instance.model.signature.streams:  # which may go on for ever
        return Calibration((), False)
    runtime = BlockingUpstream(instance, asyncio.get_running_loop())
    batched = instance.model.signature.batched
    try:
        calibration = await asyncio.to_thread(_calibrated, runtime, instance.model.max_batch, batching)
    except (UnsuitableError, RuntimeError) as error:
        reason = f"made-up inputs do not suit the model ({error})" if isinstance(error, UnsuitableError) else str(error)
        return Calibration((), batched, f"the upstream's latency is learned in service: {reason}")
    if batched and not calibration.independent_rows:
        instance.go_single()
    return calibration


def _calibrated(runtime: BlockingUpstream, max_batch: int | None, batching: Batching) -> Calibration:
    """Raises UnsuitableError, or RuntimeError if the upstream, which took inputs before, takes none now."""
    found = examine(runtime, batching=batching)
    rows_first = all(spec.rows == 0 for spec in (*found.signature.inputs, *found.signature.outputs))
    independent = found.signature.batched and rows_first
    most = min(max_batch or SIZES[-1], SIZES[-1]) if independent else 1
    row = row_of(runtime.signature.inputs, NORMAL, found.known)
    points = _points(runtime, row, [size for size in SIZES if size <= most])
    warning = f"{found.why}: batching is off" if found.why and batching != "off" else ""
    return Calibration(points, independent, warning)


def _points(runtime: BlockingUpstream, row: list[Array], sizes: list[int]) -> tuple[tuple[int, float], ...]:
    """The least time of each size; a larger batch bounds what a smaller one takes.

    Sizes take turns: noise of a network or a busy server outlasts a batch, and would else look like a slope.
    """
    least: dict[int, float] = {}
    began_at = perf_counter()
    for turn in range(ROUNDS):
        if turn > 1 and perf_counter() - began_at > BUDGET_S:
            break
        for rows in sizes:
            inputs = joined(runtime.signature.inputs, [row] * rows) if rows > 1 else row
            started_at = perf_counter()
            try:
                runtime.run(inputs)
            except RuntimeError:
                if rows == 1:
                    raise
                sizes = [size for size in sizes if size < rows]  # too large for the upstream; in service such a batch is halved
                break
            least[rows] = min(least.get(rows, float("inf")), perf_counter() - started_at)
    bound, points = float("inf"), []
    for rows in sorted(least, reverse=True):
        bound = min(bound, least[rows])
        points.append((rows, bound))
    return tuple(reversed(points))
