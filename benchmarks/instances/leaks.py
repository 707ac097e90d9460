"""Two hundred restarts of worker processes: what does the server hold afterwards that it did not hold before?

Called by __main__.py; the model is faulty.py.
"""

import asyncio
import os
import signal
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.instances import faulty
from benchmarks.instances.crowd import Crowd, Question, ask_for
from benchmarks.instances.watch import Holdings, Watch, children_of, holdings, until
from dlproxy.cli.control_port import ControlPort

TITLE = "Two hundred restarts"
INSTANCES, ROUNDS = 40, 5
ABOUT = f"""\
`dlproxy serve` with {INSTANCES} worker processes of a Python class under 64 clients, whose answers of 64 KiB lie in
shared memory. {ROUNDS} times all workers are killed and come back, after one round that is not counted. Compared once no
client is connected and the model was scaled to no instance: nothing may be left. Resident: the server's own memory."""

MODEL = "faulty"
CLIENTS, WIDTH, LOAD_S = 64, 16384, 0.5
GROWTH_MB = 5.0


def run(live: Live) -> Findings:
    """One server."""
    findings = Findings(TITLE)
    toml = f'[models.{MODEL}]\npath = "{Path(faulty.__file__)}:Faulty"\ninstances = {INSTANCES}\nthreads = 1\n'
    with live.serve(toml) as served:
        before, after = asyncio.run(_restart_all(served))
        restarts = served.child.log_path.read_text(errors="replace").count(": lost:") - INSTANCES
    findings.at_least("workers restarted", INSTANCES * ROUNDS, restarts, digits=0)
    findings.none("child processes left", after.children)
    findings.none("file descriptors more than before", after.descriptors - before.descriptors, f"of {after.descriptors}")
    findings.none("shared segments left", after.slots)
    findings.none("files in /dev/shm more than before", after.shared_files - before.shared_files)
    growth = after.resident_mb - before.resident_mb
    findings.at_most(
        "resident memory grown by", GROWTH_MB, growth, unit=" MB", digits=1, note=f"from {before.resident_mb:.0f} MB"
    )
    return findings


async def _restart_all(served: Served) -> tuple[Holdings, Holdings]:
    """What the server holds after the first round and after the last, without instances."""
    pid, control = served.child.process.pid, ControlPort(served.control_url)
    items = [np.full((1, WIDTH), 100.0 + number, np.float32) for number in range(CLIENTS)]
    questions = [ask_for(MODEL, item, 2 * item) for item in items]
    held: list[Holdings] = []
    for rounds in (1, ROUNDS):
        await asyncio.to_thread(control.scale, MODEL, INSTANCES)
        for _ in range(rounds):
            await _round(served, questions)
        await asyncio.to_thread(control.scale, MODEL, 0)
        served.child.wait_until_idle()  # it has closed what clients left
        held.append(holdings(pid))
    return held[0], held[1]


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
