"""Measures dlproxy beside its peers, in one run: `python -m benchmarks.peers` (or `make bench-peers ARGS=...`).

A run of everything writes RESULTS.md; each run keeps its raw figures in a JSON file. Only ratios within a run mean anything.
"""

import argparse
import datetime
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import Names, add_json, minute, options_of, positive, utc_now
from benchmarks.harness.page import clean_reason
from benchmarks.harness.processes import BenchmarkError, Cores, choose_cores, stay_off_the_servers_core
from benchmarks.harness.running import EXIT_MISSED, run, workplace, wrk_is_missing
from benchmarks.harness.servers import Launcher, find_nginx
from benchmarks.harness.wrk import wrk_is_installed
from benchmarks.peers.comparison import Comparison
from benchmarks.peers.markdown import page
from benchmarks.peers.registry import DLPROXY, PEERS, System
from benchmarks.peers.results import Results
from benchmarks.peers.workloads import WORKLOADS

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"
YARDSTICK_WORKLOAD = "mlp64"
PEERS_BY_NAME: Mapping[str, System] = {peer.name: peer for peer in PEERS}
SYSTEMS: Mapping[str, System] = {system.name: system for system in (DLPROXY, *PEERS)}


def parse_options(arguments: list[str] | None, now: datetime.datetime) -> argparse.Namespace:
    parser = options_of("peers", __doc__)
    parser.add_argument("--only", action=Names, known=PEERS_BY_NAME, help="peers, such as litserve,ray")
    parser.add_argument("--workloads", action=Names, known=WORKLOADS, help="such as mlp64,cnn64")
    parser.add_argument("--seconds", type=positive(int), default=2, help="of each load; twice that for ResNet-50 (default 2)")
    parser.add_argument("--repeats", type=positive(int), default=3, help="pairs of loads of each peer and workload (default 3)")
    parser.add_argument("--fresh", action="store_true", help="remake the virtual environments")
    parser.add_argument("--list", action="store_true", help="list the peers and the workloads, and end")
    add_json(parser, "peers", now)
    parser.add_argument("--page", type=Path, help="where to write the page, also after a partial run (default: RESULTS.md)")
    return parser.parse_args(arguments)


def _list() -> None:
    for system in SYSTEMS.values():
        print(f"{system.name:10} {system.title}: {system.format.description}; {system.batching}")
    for workload in WORKLOADS.values():
        print(f"{workload.name:10} {workload.title}")


def _measure(options: argparse.Namespace, cores: Cores, results: Results) -> None:
    with workplace("peers") as (children, folder):
        comparison = Comparison(results, children, cores, folder, options.seconds, options.repeats)
        # before anything is measured or pinned, for pip takes what it gets
        usable = comparison.install([DLPROXY, *(PEERS_BY_NAME[name] for name in options.only)], fresh=options.fresh)
        stay_off_the_servers_core(cores)
        if YARDSTICK_WORKLOAD in options.workloads and find_nginx() is not None:
            try:
                comparison.measure_nginx(Launcher(children, cores, folder, HERE), WORKLOADS[YARDSTICK_WORKLOAD])
            except BenchmarkError as error:
                results.notes.append(f"No yardstick: {clean_reason(str(error))}.")
        for system in usable:
            if system is not DLPROXY:
                comparison.compare(system, [WORKLOADS[name] for name in options.workloads])


def _write(options: argparse.Namespace, results: Results, *, complete: bool) -> None:
    text = page(results, SYSTEMS)
    print("\n" + text)
    results.save(options.json)
    print(f"raw figures: {options.json}")
    everything = options.only == list(PEERS_BY_NAME) and options.workloads == list(WORKLOADS)
    if options.page or (complete and everything):
        (options.page or PAGE).write_text(text)
        print(f"page: {options.page or PAGE}")


def _command(options: argparse.Namespace) -> str:
    command = f"python -m benchmarks.peers --seconds {options.seconds} --repeats {options.repeats}"
    if options.only != list(PEERS_BY_NAME):
        command += f" --only {','.join(options.only)}"
    if options.workloads != list(WORKLOADS):
        command += f" --workloads {','.join(options.workloads)}"
    return command


def main(arguments: list[str] | None = None) -> int:
    now = utc_now()
    options = parse_options(arguments, now)
    if options.list:
        _list()
        return 0
    if not wrk_is_installed():
        return wrk_is_missing()
    cores = choose_cores()
    machine = {"date": minute(now)} | describe_machine(cores)
    results = Results(machine, _command(options), [DLPROXY.name, *options.only], options.workloads)
    print(summary(machine), flush=True)
    code = run(lambda: _measure(options, cores, results))
    if code:
        results.notes.append("Ended early: this is what had been measured.")
    _write(options, results, complete=not code)
    return code or (EXIT_MISSED if results.failures else 0)


if __name__ == "__main__":
    sys.exit(main())
