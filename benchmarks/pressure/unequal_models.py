"""Live: a light model and one several hundred times as heavy share two cores; the light one's p99 alone and beside the other.

Called by __main__.py. Nothing is pinned: server and load share the cores, in all runs alike.
"""

import dataclasses
import json
import urllib.request
from math import inf

from benchmarks.harness.checks import Check
from benchmarks.harness.live import Live
from benchmarks.harness.processes import Cores, on_all_cores
from benchmarks.models import build_cnn, build_slow

TITLE = "A light and a heavy model on the same cores"
ABOUT = """\
A small CNN and a network of some 20 ms a row, both on threads (`run = "thread"`), each with 2 ONNX Runtime threads. The
light model gets 100 requests/s (Poisson), alone and while 4 closed-loop clients keep the heavy one busy; once with the
cores shared by the operating system (`arbiter = "off"`, the default) and once by turns (`arbiter = "on"`). One heavy
batch: the mean compute time of the heavy model's slowest batch size, from its statistics. Goal: p99 beside the other <= 2
x p99 alone + one heavy batch."""

RATE, SECONDS = 100.0, 12.0
CLIENTS = 4
SETTINGS = 'run = "thread"\nthreads = 2\n'


def run(live: Live, seed: int) -> list[Check]:
    """Without turns, then with them."""
    live = dataclasses.replace(live, cores=Cores(None, None))
    light, heavy = build_cnn(live.directory / "light.onnx"), build_slow(live.directory / "heavy.onnx")
    toml = f'[models.light]\npath = "{light}"\n{SETTINGS}[models.heavy]\npath = "{heavy}"\n{SETTINGS}'
    checks: list[Check] = []
    with on_all_cores():
        for arbiter in ("off", "on"):
            checks += _beside(live, toml, arbiter, seed)
    return checks


def _beside(live: Live, toml: str, arbiter: str, seed: int) -> list[Check]:
    options = ["--rate", f"{RATE:g}", "--duration", f"{SECONDS:g}", "--warmup", "1", "--seed", str(seed)]
    with live.serve(toml, [f'arbiter = "{arbiter}"']) as served:
        alone = live.load(served.url, "light", options, SECONDS)
        busy_s = SECONDS + 4.0
        heavy_load = live.start_load(served.url, "heavy", ["--concurrency", str(CLIENTS), "--duration", f"{busy_s:g}"], busy_s)
        beside = live.load(served.url, "light", options, SECONDS)
        heavy = heavy_load.result()
        batch_ms = _slowest_batch_ms(served.url, "heavy")
    alone_ms = alone.latency_ms["p99"]
    words = f"alone {alone_ms:.1f} ms, heavy batch {batch_ms:.0f} ms, heavy model {heavy.rate_rps:.1f}/s"
    label = f"arbiter {arbiter}: "
    return [
        Check(
            group=TITLE,
            result=f"{label}p99 of the light model beside the heavy one",
            low=-inf,
            high=2.0 * alone_ms + batch_ms,
            measured=beside.latency_ms["p99"],
            unit=" ms",
            digits=1,
            note=words,
            differs="" if arbiter == "off" else "a turn is not interrupted, and heavy batches may be longer than their mean",
        ),
        Check(
            group=TITLE,
            result=f"{label}requests that failed",
            expected=0.0,
            low=0.0,
            high=0.0,
            measured=float(beside.failed + heavy.failed),
            digits=0,
        ),
    ]


def _slowest_batch_ms(url: str, model: str) -> float:
    with urllib.request.urlopen(f"{url}/v2/models/{model}/stats") as answer:
        (stats,) = json.load(answer)["model_stats"]
    means = [size["compute_infer"]["ns"] / size["compute_infer"]["count"] for size in stats["batch_stats"]]
    return float(max(means)) * 1e-6
