"""Two worker processes on two cores beside one: what a second copy of a compute-bound model is worth.

Called by __main__.py. The load is wrk's, and needs little of either core.
"""

import json
import sys
from pathlib import Path

from benchmarks.bench import ORT_LOOP
from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.sample import sample_for
from benchmarks.harness.wrk import Load
from benchmarks.instances.rates import compare
from benchmarks.models import build_slow

TITLE = "Two worker processes beside one: a network of 20 ms or more a row, one thread each"
ABOUT = """\
Two servers with `run = "process"`, one with one instance and one with two, 16 connections, nothing pinned: the operating
system places workers, server and wrk on the two cores. wrk counts from the end of the first round of answers to the last
answer. The median of the ratios of pairs whose order alternates. For comparison, what two processes of ONNX Runtime alone
do together beside one, in a loop without a server: cores that share caches or an arithmetic unit are not two whole ones."""

MODEL = "slow"
CONNECTIONS, SECONDS = 16, 6
GOAL, LEAST_ROW_S = 1.8, 0.020


def run(live: Live) -> Findings:
    """ONNX Runtime alone, then through dlproxy."""
    findings = Findings(TITLE)
    path = build_slow(live.directory / f"{MODEL}.onnx")
    (alone,), together = _loops(live, path, 1), _loops(live, path, 2)
    findings.at_least("milliseconds a row, ONNX Runtime alone", LEAST_ROW_S * 1e3, 1e3 / alone, digits=1)
    findings.at_least("ONNX Runtime alone: two loops / one", 0.0, sum(together) / alone, note="no goal")
    tomls = [f'[models.{MODEL}]\npath = "{path}"\nrun = "process"\ninstances = {count}\nthreads = 1\n' for count in (2, 1)]
    load = Load(CONNECTIONS, SECONDS, sample_for(path), "steady")
    compare(live, tomls, load, findings, "two instances / one", GOAL)
    return findings


def _loops(live: Live, path: Path, count: int) -> list[float]:
    """Rows per second of so many loops side by side."""
    command = [sys.executable, str(ORT_LOOP), str(path), "--seconds", str(SECONDS)]
    loops = [live.children.start("ort_loop", command) for _ in range(count)]
    rates = []
    for loop in loops:
        if loop.process.wait() != 0:
            raise BenchmarkError(f"the ONNX Runtime loop failed: {loop.log_tail()}")
        rates.append(float(json.loads(loop.log_tail().splitlines()[-1])["requests_per_s"]))
    return rates
