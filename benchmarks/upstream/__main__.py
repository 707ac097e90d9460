"""dlproxy in front of a real Triton, beside Triton asked directly: `python -m benchmarks.upstream`.

Triton is PyTriton's, with its Python backend and its own dynamic batching. All servers share one core, the load has another.
Exits with 1 if an answer is wrong or the ratio of the rates at 64 connections misses its goal.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import Names, add_rounds, options_of
from benchmarks.harness.processes import Children, Cores, choose_cores, stay_off_the_servers_core
from benchmarks.harness.running import EXIT_MISSED, run, workplace, wrk_is_missing
from benchmarks.harness.turns import in_turn
from benchmarks.harness.wrk import Figures, wrk_is_installed
from benchmarks.peers import venvs
from benchmarks.peers.registry import DLPROXY, PEERS, Launch, System
from benchmarks.peers.running import Running, question_for, run_system
from benchmarks.peers.workloads import WORKLOADS, Workload, model_path

GOAL = 1.0
GOAL_WORKLOAD = "mlp64"
WARM_UP_SECONDS = 1
TRITON = next(peer for peer in PEERS if peer.name == "pytriton")


def _front(port: int) -> System:
    """dlproxy over the Triton that listens on this port, whose own limit on a batch is dlproxy's too."""

    def command(launch: Launch) -> list[str]:
        model = f"model=http://127.0.0.1:{port}/v2/models/model"
        ports = ["--http-port", str(launch.port), "--control-port", "0"]
        return [sys.executable, "-m", "dlproxy", "serve", model, "--host", "127.0.0.1", *ports]

    return replace(DLPROXY, title="dlproxy before Triton", command=command)


def _load(side: Running, workload: Workload, seconds: int, cores: Cores, folder: Path) -> Figures:
    side.settle()
    return side.load(workload, seconds, cores, folder)


def _ratio(sides: Sequence[Running], workload: Workload, options: argparse.Namespace, cores: Cores, folder: Path) -> float:
    """Median over the pairs of the rate through dlproxy by the direct one; Triton, which both need, is never paused."""
    for side in sides:
        _load(side, workload, WARM_UP_SECONDS, cores, folder)
    ratios = []
    for number in range(options.repeats):
        figures = {side.port: _load(side, workload, options.seconds, cores, folder) for side in in_turn(sides, number)}
        direct, through = (figures[side.port] for side in sides)
        ratios.append(through.requests_per_s / direct.requests_per_s)
        print(f"  direct {_words(direct)}   through dlproxy {_words(through)}   ratio {ratios[-1]:.2f}", flush=True)
    return statistics.median(ratios)


def _words(figures: Figures) -> str:
    return f"{figures.requests_per_s:,.0f}/s, p50 {figures.p50_ms:.2f} ms, p99 {figures.p99_ms:.2f} ms"


def _measure(options: argparse.Namespace, cores: Cores, folder: Path, children: Children) -> list[str]:
    venvs.ensure(TRITON, children, fresh=False)
    versions = venvs.versions(TRITON)
    print(f"nvidia-pytriton {versions['nvidia-pytriton']}: {TRITON.batching}; dlproxy: defaults")
    stay_off_the_servers_core(cores)
    missed = []
    for name in options.workloads:
        workload = WORKLOADS[name]
        model = model_path(workload.model)
        question = question_for(model)
        with (
            run_system(TRITON, model, question, children, cores.server) as triton,
            run_system(_front(triton.port), model, question, children, cores.server) as front,
        ):
            apart = triton.check(), front.check()
            print(f"{workload.title}: answers differ from ONNX Runtime's by {apart[0]:.1g} direct, {apart[1]:.1g} through")
            ratio = _ratio([triton, front], workload, options, cores, folder)
        goal = f" (goal: more than {GOAL:g})" if name == GOAL_WORKLOAD else ""
        print(f"{workload.title}: through dlproxy / direct {ratio:.2f}{goal}", flush=True)
        if name == GOAL_WORKLOAD and ratio <= GOAL:
            missed.append(name)
    return missed


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("upstream", __doc__)
    parser.add_argument("--workloads", action=Names, known=WORKLOADS, help="such as mlp64,cnn64 (default mlp64)")
    add_rounds(parser, seconds=4, repeats=5, of="pairs of loads")
    parser.set_defaults(workloads=[GOAL_WORKLOAD])
    options = parser.parse_args(arguments)
    if not wrk_is_installed():
        return wrk_is_missing()
    cores = choose_cores()
    print(summary(describe_machine(cores)))
    missed: list[str] = []

    def measure() -> None:
        with workplace("upstream") as (children, folder):
            missed.extend(_measure(options, cores, folder, children))

    return run(measure) or (EXIT_MISSED if missed else 0)


if __name__ == "__main__":
    sys.exit(main())
