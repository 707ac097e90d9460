"""What a worker process costs a quick model: rates beside the same model on the event loop.

Called by __main__.py. The load is wrk's.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live, Served
from benchmarks.harness.processes import Cores, choose_cores
from benchmarks.harness.sample import sample_for
from benchmarks.harness.turns import in_turn, spread
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
CONNECTIONS, SECONDS = 64, 3
WARM_UP_SECONDS, PAIRS = 2, 5
GOAL = 0.6


def run(live: Live) -> Findings:
    """On one core and on all."""
    findings = Findings(TITLE)
    path = build_mlp(live.directory / f"{MODEL}.onnx")
    load = Load(CONNECTIONS, SECONDS, sample_for(path))
    tomls = [f'[models.{MODEL}]\npath = "{path}"\nrun = "{way}"\nthreads = 1\n' for way in ("process", "inline")]
    for where, cores in (("server and worker on one core", choose_cores()), ("nothing pinned", Cores(None, None))):
        compare(replace(live, cores=cores), tomls, load, findings, f"{where}: process / inline", GOAL)
    return findings


def compare(live: Live, tomls: Sequence[str], load: Load, findings: Findings, what: str, goal: float) -> None:
    """One more figure: the rate of the first of two servers over that of the second, which take turns."""
    with ExitStack() as stack:
        servers = [stack.enter_context(live.serve(toml)) for toml in tomls]
        for served in servers:
            rate(live, served, replace(load, seconds=WARM_UP_SECONDS))
        turns = [{side: rate(live, servers[side], load) for side in in_turn((0, 1), number)} for number in range(PAIRS)]
    ratios = [rates[0] / rates[1] for rates in turns]
    first, second = (statistics.median(rates[side] for rates in turns) for side in (0, 1))
    note = f"{spread(ratios)}; {first:,.1f}/s and {second:,.1f}/s"
    findings.at_least(what, goal, statistics.median(ratios), note=note)


def rate(live: Live, served: Served, load: Load) -> float:
    """Requests per second, none of which failed, of a model whose answer was checked just before. Raises BenchmarkError."""
    assert load.sample is not None
    load.sample.check_answer(port_of(served.url))
    served.child.wait_until_idle()
    return run_wrk(wrk_command(served.url + load.sample.path, load, live.cores, live.directory), load).requests_per_s
