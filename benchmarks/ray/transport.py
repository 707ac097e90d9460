"""How a batch gets to an actor and its answers back: over a connection, or by Ray's calls and object store.

Called by __main__.py. Decides what ADR 0034 says.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness.checks import Findings
from benchmarks.harness.turns import in_turn, spread
from dlproxy.instance.batch import BatchResult
from dlproxy.instance.ray.cluster import depart, enter
from dlproxy.instance.ray.instance import RayInstance
from dlproxy.instance.ray.messages import Demand
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.tensors import to_bytes
from tests.instance.ray_cluster import LocalCluster

TITLE = "A batch to an actor and back"
ABOUT = """\
A Ray cluster of two node processes on this machine, and a model that gives back the first 10 of 784 columns, which takes no
time: the figures are what the way there and back takes. direct: an instance of dlproxy, over its connection. argument:
`ray.get(actor.call.remote(batch))`. object store: the same with `ray.put(batch)` first. The ways take turns of 20 batches."""
COLUMNS, KEPT = 784, 10
SIZES = {"3 kB": 1, "1 MB": 334}  # rows of float32
WAYS = ("direct", "argument", "object store")
TURN = 20  # batches
Way = Callable[[Any], Awaitable[object]]


class Head:
    """The model, as dlproxy has it, and as an actor of Ray's own."""

    def __init__(self) -> None:
        self.signature = Signature(
            (TensorSpec("x", DType.FP32, (-1, COLUMNS)),),
            (TensorSpec("y", DType.FP32, (-1, KEPT)),),
            batched=True,
            platform="head",
        )

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        return [inputs[0][:, :KEPT].copy()]

    def call(self, x: Any) -> Any:
        return x[:, :KEPT].copy()


def measure(repeats: int) -> Findings:
    """Medians of so many turns of each way and size."""
    with LocalCluster(nodes=2, cpus=2) as cluster:
        return asyncio.run(_measured(cluster.address, repeats))


async def _measured(address: str, repeats: int) -> Findings:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="benchmark")
    actor = ray.remote(Head).options(num_cpus=1).remote()
    cluster = enter(address)
    instance = RayInstance("head-0", PythonSpec("benchmarks.ray.transport:Head"), cluster=cluster, demand=Demand())
    await instance.start()

    async def direct(x: Any) -> None:
        request = Request(
            Ticket(0, 0.0, rows=len(x)), "head", [Tensor("x", DType.FP32, x.shape, to_bytes(DType.FP32, x))], (0,)
        )
        done: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        instance.run([request], done.set_result)
        assert (await done).error is None

    async def argument(x: Any) -> None:
        ray.get(actor.call.remote(x))

    async def object_store(x: Any) -> None:
        ray.get(actor.call.remote(ray.put(x)))

    findings = Findings(TITLE)
    for size, rows in SIZES.items():
        x = np.random.default_rng(3).random((rows, COLUMNS), np.float32)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        sides: dict[str, Way] = dict(zip(WAYS, (direct, argument, object_store), strict=True))
        for number in range(-1, repeats):
            for way in in_turn(WAYS, number):
                took = [await _timed(sides[way], x) for _ in range(TURN)]
                if number >= 0:
                    times[way].append(statistics.median(took))
        for way in WAYS[1:]:
            ratios = [its / mine for mine, its in zip(times["direct"], times[way], strict=True)]
            what = f"{size}: time by {way}, by that of direct"
            findings.at_least(what, 1.0, statistics.median(ratios), digits=1, unit=" x", note=spread(ratios, 1))
        shown = ", ".join(f"{way} {statistics.median(times[way]) * 1e6:,.0f} us" for way in WAYS)
        findings.details.append(f"- {size} ({rows} row{'s' * (rows > 1)}): {shown}")
    await instance.stop()
    depart(cluster)
    await cluster.left()
    ray.shutdown()
    return findings


async def _timed(way: Way, x: Any) -> float:
    began_at = perf_counter()
    await way(x)
    return perf_counter() - began_at
