"""A day of ten minutes on a real server that scales worker processes, beside the same requests in the simulator.

Called by __main__.py. Not aware of: the policies of the simulated day.
"""

import json
import threading
import urllib.request
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.autoscaling.days import BURST, MOST, OBJECTIVE, RATE, SERVICE, Floats, Outcome, simulate
from benchmarks.harness.live import Live
from benchmarks.harness.processes import Children, Cores
from dlproxy.lab.report.result import Result
from dlproxy.policy.scaling import Rule, make_policy

SECONDS = 600
BURST_S, BURST_COUNT = 15, 4
START_S = 0.6  # of a worker process with the sleep model, here


def instants(seed: int) -> Floats:
    """As those of a day, in ten minutes."""
    random = np.random.default_rng(seed)
    seconds = np.arange(SECONDS)
    rate = RATE * (1.0 - 0.5 * np.cos(2 * np.pi * seconds / SECONDS))
    for start in random.choice(SECONDS // BURST_S, BURST_COUNT, replace=False) * BURST_S:
        rate[start : start + BURST_S] *= BURST
    counts = random.poisson(rate)
    return np.sort(np.repeat(seconds, counts) + random.random(counts.sum()))


def compare(children: Children, folder: Path, seed: int) -> list[Outcome]:
    """Live, and simulated."""
    requests = instants(seed)
    trace = folder / "day.csv"
    trace.write_text("".join(f"{instant:.6f}\n" for instant in requests))
    line = SERVICE.partition(",cv")[0]
    toml = f'[models.m]\npath = "sleep:{line}"\nrun = "process"\ninstances = 1\nslo = "{OBJECTIVE}"\n'
    toml += f'autoscale = "in-flight"\nmax_instances = {MOST}\n'
    live = Live(children, Cores(None, None), folder)
    with live.serve(toml) as served, Watch(f"{served.control_url}/models/m") as watch:
        result = live.load(served.url, "m", ["--trace", str(trace)], SECONDS)
    simulated = simulate(
        "simulated", lambda: make_policy(Rule()), requests, 0.0, float(SECONDS), seed, start_s=START_S, service=line
    )
    return [_outcome(result, watch.counts), simulated]


def _outcome(result: Result, counts: list[int]) -> Outcome:
    return Outcome(
        name="live",
        instances=sum(counts) / len(counts),
        missed=1.0 - result.goodput_rps * result.duration_s / result.sent,
        p99_ms=result.latency_ms["p99"],
        most=max(counts),
        changes=sum(before != after for before, after in pairwise(counts)),
    )


class Watch(threading.Thread):
    """Asks twice a second how many instances there are, those that start included."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._over = threading.Event()
        self.counts: list[int] = []

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.5):
            with urllib.request.urlopen(self._url, timeout=5) as reply:
                self.counts.append(len(json.load(reply)["instances"]))
