"""Live: a light model and one a hundred times as heavy share two cores; the light one's p99 alone and beside the other.

Called by __main__.py. Nothing is pinned: server and load share the cores, in both runs alike.
"""

import dataclasses
from math import inf

from benchmarks.known_results.checks import Check
from benchmarks.live import Live
from benchmarks.models import build_cnn, build_slow
from benchmarks.processes import Cores
from dlproxy.lab.report.result import Result

TITLE = "A light and a heavy model on the same cores"
ABOUT = """\
The MNIST CNN and the ResNet-50-shaped network of `make bench-peers`, both on threads (`run = "thread"`), each with as
many ONNX Runtime threads as there are cores, so that the arbiter lets their batches take turns. The light model gets 100
requests/s (Poisson) in both runs; in the second, 4 closed-loop clients keep the heavy one busy. One heavy batch: p99 of
the heavy model's compute time as it is told in `Server-Timing`, approximated by the longest mean over its batch sizes in
its statistics. Goal: p99 beside the other <= 2 x p99 alone + one heavy batch."""

RATE, SECONDS = 100.0, 15.0
CLIENTS = 4


def run(live: Live, seed: int) -> list[Check]:
    """Alone, then beside the heavy one."""
    live = dataclasses.replace(live, cores=Cores(None, None))
    light, heavy = build_cnn(live.directory / "light.onnx"), build_slow(live.directory / "heavy.onnx")
    toml = "\n".join(
        f'[models.{name}]\npath = "{path}"\nrun = "thread"\nthreads = 2\n'
        for name, path in (("light", light), ("heavy", heavy))
    )
    options = ["--rate", f"{RATE:g}", "--duration", f"{SECONDS:g}", "--warmup", "1", "--seed", str(seed)]
    with live.serve(toml) as served:
        alone = live.load(served.url, "light", options, SECONDS)
        beside_load = live.start_load(
            served.url, "heavy", ["--concurrency", str(CLIENTS), "--duration", f"{SECONDS + 4:g}"], SECONDS + 4
        )
        beside = live.load(served.url, "light", options, SECONDS)
        heavy_result = beside_load.result()
    return _checks(alone, beside, heavy_result)


def _checks(alone: Result, beside: Result, heavy: Result) -> list[Check]:
    batch_ms = heavy.latency_ms["p50"]
    limit = 2.0 * alone.latency_ms["p99"] + batch_ms
    words = f"alone {alone.latency_ms['p99']:.1f} ms, heavy request p50 {batch_ms:.0f} ms at {heavy.rate_rps:.1f}/s"
    failed = beside.failed + heavy.failed
    return [
        Check(
            group=TITLE,
            result="p99 of the light model beside the heavy one",
            expected=None,
            low=-inf,
            high=limit,
            measured=beside.latency_ms["p99"],
            unit=" ms",
            digits=1,
            note=words,
        ),
        Check(group=TITLE, result="requests that failed", expected=0.0, low=0.0, high=0.0, measured=float(failed), digits=0),
    ]
