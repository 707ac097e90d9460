"""What it takes to hand tensors to a worker process and back, measured with a real one whose model takes no time.

Called by search.py. Not aware of: what is cut.
"""

import asyncio
from statistics import median

import numpy as np
from msgspec import Struct

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.message import DType, Request, Tensor, Ticket

SMALL, LARGE = 1, 1 << 20  # FP32 elements
TRIPS = {SMALL: 100, LARGE: 20}
NO_WORK = PythonSpec("dlproxy.instance.runtime.formats:open_runtime", {"path": "sleep:base=1us"})


class Handing(Struct, frozen=True):
    """`hop_s`: of a process that is asked and answers; `byte_s`: of each byte that it takes or gives."""

    hop_s: float
    byte_s: float

    def seconds(self, size_bytes: float) -> float:
        """Of one process with so many bytes in all."""
        return self.hop_s + size_bytes * self.byte_s


def measured_handing() -> Handing:
    """Raises ModelError where no process can be started."""
    return asyncio.run(_measured())


async def _measured() -> Handing:
    instance = ProcessInstance("handing", NO_WORK, WorkerSettings(threads=1))
    await instance.start()
    try:
        took = {rows: median([await _trip(instance, rows) for _ in range(trips)]) for rows, trips in TRIPS.items()}
    finally:
        await instance.stop()
    return Handing(took[SMALL], max(took[LARGE] - took[SMALL], 0.0) / (2 * 4 * (LARGE - SMALL)))


async def _trip(instance: ProcessInstance, rows: int) -> float:
    answered = asyncio.get_running_loop().create_future()
    data = np.zeros((rows, 1), np.float32).data.cast("B")
    request = Request(Ticket(0, 0.0, rows=rows), "handing", [Tensor("x", DType.FP32, (rows, 1), data)], (0,))
    instance.run([request], answered.set_result)
    result: BatchResult = await answered
    return result.batch_s
