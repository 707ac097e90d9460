"""Two hundred restarts of worker processes: what does the server hold afterwards that it did not hold before?

Called by __main__.py; the model is faulty.py.
"""

import asyncio
import os
import signal
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.instances import faulty
from benchmarks.instances.crowd import Crowd, Question, ask_for
from benchmarks.instances.goals import Findings
from benchmarks.instances.watch import Holdings, Watch, children_of, holdings, until
from benchmarks.live import Live, Served

TITLE = "Two hundred restarts"
INSTANCES, ROUNDS = 40, 5
ABOUT = f"""\
`dlproxy serve` with {INSTANCES} worker processes of a Python class under 64 clients, whose answers of 64 KiB lie in
shared memory. {ROUNDS} times all workers are killed and come back, after one such round that is not counted: so many at a
time because the supervisor waits longer each time before it restarts the same one. Compared at rest, when all are up
again and no client is connected. Resident: the server's own memory."""

MODEL = "faulty"
CLIENTS, WIDTH, LOAD_S = 64, 16384, 0.5
GROWTH_MB = 5.0


def run(live: Live) -> Findings:
    """One server."""
    findings = Findings(TITLE)
    toml = f'[models.{MODEL}]\npath = "{Path(faulty.__file__)}:Faulty"\ninstances = {INSTANCES}\nthreads = 1\n'
    with live.serve(toml) as served:
        before, after = asyncio.run(_restart_all(served))
        restarts = served.child.log_path.read_text(errors="replace").count(": up after") - 2 * INSTANCES
    findings.at_least("workers restarted", INSTANCES * ROUNDS, restarts, digits=0)
    findings.none("child processes too many", after.children - INSTANCES, f"of {after.children}")
    findings.none("file descriptors more than before", after.descriptors - before.descriptors, f"of {after.descriptors}")
    findings.none("shared segments mapped more than before", after.slots - before.slots, f"of {after.slots}")
    findings.none("files in /dev/shm more than before", after.shared_files - before.shared_files)
    growth = after.resident_mb - before.resident_mb
    findings.at_most(
        "resident memory grown by", GROWTH_MB, growth, unit=" MB", digits=1, note=f"from {before.resident_mb:.0f} MB"
    )
    return findings


async def _restart_all(served: Served) -> tuple[Holdings, Holdings]:
    """What the server holds after the first round and after the last."""
    pid = served.child.process.pid
    items = [np.full((1, WIDTH), 100.0 + number, np.float32) for number in range(CLIENTS)]
    questions = [ask_for(MODEL, item, 2 * item) for item in items]
    held: list[Holdings] = []
    for _ in range(1 + ROUNDS):
        await _round(served, questions)
        served.child.wait_until_idle()  # it has closed what clients left
        held.append(holdings(pid))
    return held[0], held[-1]


async def _round(served: Served, questions: list[Question]) -> None:
    """Some load, then all workers are killed, and when all are up again, the clients leave."""
    async with Watch(served, MODEL, INSTANCES) as watch:
        async with Crowd(served.url, questions, CLIENTS):
            await asyncio.sleep(LOAD_S)
            killed_at = perf_counter()
            for worker in children_of(served.child.process.pid):
                os.kill(worker, signal.SIGKILL)
            await until(watch.complete, killed_at, holds=False)
        await until(watch.complete, killed_at)
