"""One network by several workers beside one alone: PARALLEL.md. Called by __main__.py (`--only parallel`).

Each worker has one thread; the process alone is on one core. Not aware of: how gradients travel.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from benchmarks.harness.options import minute, utc_now
from benchmarks.placement.page import where
from dlproxy.cores import allowed_cores
from dlproxy.lab.learn.experiment import KINDS, Experiment, Place, Run
from dlproxy.lab.learn.parallel.workers import Parallel, opened

DIGITS: dict[str, Any] = {"data": "digits", "rate": 3e-3, "schedule": "cosine", "batch": 64, "epochs": 15}
NETWORKS: dict[str, dict[str, Any]] = {
    "MLP, 128 units": {**DIGITS, "network": "mlp", "sizes": [128]},
    "MLP, 2 x 1,024 units": {**DIGITS, "network": "mlp", "sizes": [1024, 1024], "rate": 1e-3},
    "CNN": {**DIGITS, "network": "cnn", "sizes": [32, 32, 64]},
}
WAYS = {
    "alone": Parallel(workers=1),
    "in step": Parallel(workers=2),
    "own pace, staleness 0": Parallel(workers=2, asynchronous=True, staleness=0),
    "own pace, staleness 2": Parallel(workers=2, asynchronous=True, staleness=2),
    "own pace, any": Parallel(workers=2, asynchronous=True, staleness=inf),
}
HEAD = """| network | two workers | examples/s | speed-up | training loss, end | held-out accuracy | staleness, mean | most |
|---|---|---|---|---|---|---|---|"""
ABOUT = """Each way trains the same network by batches of 64 for 15 epochs on the digits, with one seed. Alone: one process on
one core. In step: each batch is shared by two processes, all-reduce by gloo. Own pace: a parameter server on Ray applies the
gradient of each batch when it comes; staleness is how many updates came between the weights that a gradient is of and its own
update, bounded by how many steps a worker may be ahead of the other. It is one run: where the load average is above
the number of cores, others used the machine, and speeds say little. MPI is not beside gloo: PyTorch's wheels are built
without it."""


def measure(options: argparse.Namespace) -> str:
    lines = []
    for network, settings in NETWORKS.items():
        alone = 0.0
        for way, parallel in WAYS.items():
            run = _trained(Experiment(kind="network", about=network, seeds=1, settings=settings, name="digits"), parallel)
            speed = run.figures["examples a second"]
            alone = alone or speed
            stale = [
                f"{run.figures[name]:.2f}" if name in run.figures else "" for name in ("staleness, mean", "staleness, most")
            ]
            figures = [f"{speed:,.0f}", f"{speed / alone:.2f}", f"{run.curves['training loss'][-1]:.4f}"]
            lines.append("| " + " | ".join([network, way, *figures, f"{run.figures['accuracy']:.2%}", *stale]) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    made = f"`python -m benchmarks.learn --only parallel --write` on {minute(utc_now())}. {where()}"
    return "\n\n".join(["# Several workers on one network", made, ABOUT, "\n".join([HEAD, *lines])]) + "\n"


def _trained(experiment: Experiment, parallel: Parallel) -> Run:
    cores = allowed_cores()[:1] if parallel.workers == 1 else allowed_cores()
    with _on(cores), tempfile.TemporaryDirectory() as folder, opened(parallel, experiment, [1], 1, _nobody) as workers:
        place = Place(folder=Path(folder), seed=1, threads=1, tell=_nobody, workers=workers)
        return KINDS["network"].train()(experiment, place)


@contextmanager
def _on(cores: list[int]) -> Iterator[None]:
    before = allowed_cores()
    if before:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


def _nobody(_: str) -> None:
    """The table tells."""
