"""What a worker process adds to a batch of 600 KB: from handing it over until its result is there, less the computing.

Called by __main__.py. A production ProcessInstance on the production event loop of this process, without a server.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from math import inf
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live
from benchmarks.harness.processes import BenchmarkError
from benchmarks.models import IR_VERSION, OPSET
from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.process.instance import ProcessInstance
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.message import DType, Request, Tensor, Ticket
from dlproxy.serve.event_loop import loop_factory

SHAPE = (3, 224, 224)
INPUT_KB = 4 * 3 * 224 * 224 / 1000
TITLE = "What a worker process adds to a batch of 600 KB"
ABOUT = f"""\
One request of one row [3, 224, 224] ({INPUT_KB:.0f} KB) at a time, to an ONNX model that gives the mean of each channel, one
thread. Round trip: from `run` of the instance to its `done`, on the event loop that the server uses, so with the copy into
shared memory and both wake-ups; less the time that the worker says its runtime took; medians. Batches come one after the
other, with nothing pinned or with both processes on one core, as in `make bench`; and, without a goal, a millisecond after the
last one ended. For comparison, what two wake-ups cost here by themselves: a byte to another process, which computes for 100 us
before it sends one back, less these. On a virtual machine, a core that idles is woken by way of the hypervisor."""

BATCHES, WARM_UP = 2000, 200
PAUSE_S = 0.001
GOAL_US = 150.0
ECHO_S, BETWEEN_S = 100e-6, 50e-6  # about what the worker takes for a batch, and the server to write the next
ECHO = """
import socket, sys, time
connection = socket.socket(fileno=int(sys.argv[1]))
while connection.recv(1):
    end_at = time.perf_counter() + float(sys.argv[2])
    while time.perf_counter() < end_at:
        pass
    connection.send(b"x")
"""


def run(live: Live) -> Findings:
    """Where the operating system places both processes, then on one core."""
    findings = Findings(TITLE)
    path = _build_means(live.directory / "means.onnx")
    usable = os.sched_getaffinity(0)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_measure(findings, path, "nothing pinned", ((0.0, GOAL_US), (PAUSE_S, inf))))
        os.sched_setaffinity(0, {min(usable)})
        try:
            runner.run(_measure(findings, path, "on one core", ((0.0, GOAL_US),)))
        finally:
            os.sched_setaffinity(0, usable)
    findings.at_most("nothing pinned: two wake-ups alone", inf, 1e6 * float(np.median(_wake_ups())), unit=" us", digits=0)
    return findings


async def _measure(findings: Findings, path: Path, where: str, paces: Sequence[tuple[float, float]]) -> None:
    """`paces`: seconds between batches, and the goal for them."""
    pinned = len(os.sched_getaffinity(0)) == 1
    process = ProcessInstance("means-0", PythonSpec("dlproxy.instance.runtime.formats:open_runtime", {"path": str(path)}))
    inline = InlineInstance("means-1", open_runtime(str(path)))
    await process.start()
    try:
        whole_us = float(np.median(1e6 * np.array(await _round_trips(inline, 0.0))[:, 0]))
        for pause_s, goal_us in paces:
            trips, computing = 1e6 * np.array(await _round_trips(process, pause_s)).T
            over, p99 = np.percentile(trips - computing, [50, 99])
            trip = float(np.median(trips))
            pace = "a millisecond apart" if pause_s else "one after the other"
            note = f"p99 {p99:.0f}; round trip {trip:.0f}, which is {trip - whole_us:.0f} more than a batch inline"
            differs = "" if pinned else "of it, waking idle cores takes what the last row says"
            what = f"{where}, {pace}: round trip less computing"
            findings.at_most(what, goal_us, over, unit=" us", digits=0, note=note, differs=differs)
    finally:
        await process.stop()
        await inline.stop()


async def _round_trips(instance: Instance, pause_s: float) -> list[tuple[float, float]]:
    """Seconds of each batch: until its result was there, and those of them that its runtime took."""
    loop = asyncio.get_running_loop()
    item = np.random.default_rng(1).random((1, *SHAPE), dtype=np.float32)
    tensor = Tensor("input", DType.FP32, item.shape, item.tobytes())
    seconds, outputs = [], []
    for number in range(WARM_UP + BATCHES):
        ended: asyncio.Future[tuple[BatchResult, float]] = loop.create_future()
        batch, done = [Request(Ticket(number, 0.0), "means", [tensor], (0,))], partial(_end, ended)
        began_at = perf_counter()
        instance.run(batch, done)
        result, ended_at = await ended
        if result.error is not None:
            raise BenchmarkError(f"a batch failed: {result.error}")
        outputs += result.outputs
        seconds.append((ended_at - began_at, result.compute_s))
        if pause_s:
            await asyncio.sleep(pause_s)
    if not np.allclose(outputs, item.mean(axis=(2, 3)), rtol=1e-4):
        raise BenchmarkError("a batch came back with other values than the means of its channels")
    return seconds[WARM_UP:]


def _end(ended: "asyncio.Future[tuple[BatchResult, float]]", result: BatchResult) -> None:
    ended.set_result((result, perf_counter()))


def _wake_ups() -> list[float]:
    """Seconds of the way to another process and back."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", ECHO, str(theirs.fileno()), str(ECHO_S)]
    seconds = []
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]):
        theirs.close()
        for _ in range(WARM_UP + BATCHES):
            sent_at = perf_counter()
            ours.send(b"x")
            ours.recv(1)
            back_at = perf_counter()
            seconds.append(back_at - sent_at - ECHO_S)
            while perf_counter() < back_at + BETWEEN_S:
                pass
        ours.shutdown(socket.SHUT_WR)
    return seconds[WARM_UP:]


def _build_means(path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["input"], ["means"]), helper.make_node("Flatten", ["means"], ["output"])],
        path.stem,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *SHAPE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", SHAPE[0]])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)
    return path
