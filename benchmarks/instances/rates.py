"""What a worker process costs a quick model: rates beside the same model on the event loop.

Called by __main__.py. The load is wrk's.
"""

import statistics
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.harness.processes import Cores, choose_cores
from benchmarks.harness.sample import sample_for
from benchmarks.harness.turns import spread
from benchmarks.harness.wrk import Load, run_wrk, wrk_command
from benchmarks.instances.watch import port_of
from benchmarks.models import build_mlp

TITLE = "A worker process beside the event loop: MLP 784-256-128-10, 64 connections"
ABOUT = """\
Two servers, `run = "process"` and `run = "inline"`, one thread each, both warm; the one that is not measured idles. First
as `make bench` has it: the server on one core, wrk on another. The worker process inherits the server's core, as it does
by default, so both together have what the inline server has. Then with nothing pinned: server, worker and wrk share all
cores. The median of the ratios of pairs whose order alternates."""

MODEL = "mlp"
CONNECTIONS, SECONDS, PAIRS = 64, 3, 5
GOAL = 0.6


def run(live: Live) -> Findings:
    """On one core and on all."""
    findings = Findings(TITLE)
    path = build_mlp(live.directory / f"{MODEL}.onnx")
    for where, cores in (("server and worker on one core", choose_cores()), ("nothing pinned", Cores(None, None))):
        rates = _rates(replace(live, cores=cores), path)
        ratios = [process / inline for process, inline in rates]
        process, inline = (statistics.median(side) for side in zip(*rates, strict=True))
        note = f"{spread(ratios)}; {process:,.0f}/s and {inline:,.0f}/s"
        findings.at_least(f"{where}: process / inline", GOAL, statistics.median(ratios), note=note)
    return findings


def _rates(live: Live, path: Path) -> list[tuple[float, float]]:
    """Requests per second in a process and inline, a pair for each turn."""
    load = Load(CONNECTIONS, SECONDS, sample_for(path))
    with ExitStack() as stack:
        servers = {way: stack.enter_context(live.serve(_toml(path, way))) for way in ("process", "inline")}
        for served in servers.values():
            rate(live, served, replace(load, seconds=1))
        pairs = []
        for number in range(PAIRS):
            order = sorted(servers, reverse=bool(number % 2))
            rates = {way: rate(live, servers[way], load) for way in order}
            pairs.append((rates["process"], rates["inline"]))
    return pairs


def _toml(path: Path, way: str) -> str:
    return f'[models.{MODEL}]\npath = "{path}"\nrun = "{way}"\nthreads = 1\n'


def rate(live: Live, served: Served, load: Load) -> float:
    """Requests per second, none of which failed, of a model whose answer was checked just before. Raises BenchmarkError."""
    assert load.sample is not None
    load.sample.check_answer(port_of(served.url))
    served.child.wait_until_idle()
    return run_wrk(wrk_command(served.url + load.sample.path, load, live.cores, live.directory), load).requests_per_s
