"""Measures dlproxy beside a bare server, nginx and ONNX Runtime alone, in one run: `python -m benchmarks.serving`.

Prints one table, ratios last, and keeps every single run in a JSON file. Only ratios within a run mean anything.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import Names, add_json, minute, options_of, positive, utc_now
from benchmarks.harness.processes import BenchmarkError, Cores, choose_cores, stay_off_the_servers_core
from benchmarks.harness.report import Report
from benchmarks.harness.running import EXIT_MISSED, EXIT_UNUSABLE, run, workplace, wrk_is_missing
from benchmarks.harness.servers import Launcher
from benchmarks.harness.stolen import StolenTime
from benchmarks.harness.wrk import wrk_is_installed
from benchmarks.models import build_mlp, build_slow
from benchmarks.scenarios import SCENARIOS

HERE = Path(__file__).parent
PAGE = HERE / "SERVING.md"


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        share = float(text)
        if 0 <= share <= 1:
            return share
    raise argparse.ArgumentTypeError("must be a share of a core, 0 to 1")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("serving", __doc__)
    parser.add_argument("--seconds", type=positive(int), default=5, help="length of each measurement (default 5)")
    parser.add_argument("--pairs", type=positive(int), help="pairs of runs in each scenario (default 5, or 3)")
    parser.add_argument(
        "--max-stolen",
        type=_share,
        metavar="SHARE",
        help="measure anew if the hypervisor took more of a core for others, such as 0.03 (default: every round counts)",
    )
    parser.add_argument("--only", action=Names, known=SCENARIOS, help="scenarios, such as A,C")
    add_json(parser, "serving", utc_now())
    parser.add_argument(
        "--bare",
        type=Path,
        default=os.environ.get("BARE_SERVER", HERE / "bare_server.py"),
        help="another yardstick, run as `python PATH model.onnx PORT` (also BARE_SERVER=PATH)",
    )
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}; needs a run of everything")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    parsed = parser.parse_args(arguments)
    if not parsed.bare.is_file():
        parser.error(f"no such yardstick: {parsed.bare}")
    if parsed.write and list(parsed.only) != list(SCENARIOS):
        parser.error("--write needs a run of everything: leave out --only")
    return parsed


def _run_scenarios(bench: Bench, letters: list[str]) -> None:
    for letter in letters:
        try:
            SCENARIOS[letter](bench)
        except BenchmarkError as error:
            bench.report.failures.append(f"{letter}  {error}")
            print(f"{letter}  failed: {error}", flush=True)


def _measure(options: argparse.Namespace, cores: Cores, report: Report) -> None:
    stay_off_the_servers_core(cores)
    with workplace("serving") as (children, work_directory):
        launcher = Launcher(children, cores, work_directory, options.bare)
        mlp, slow = build_mlp(work_directory / "mlp.onnx"), build_slow(work_directory / "slow.onnx")
        bench = Bench(launcher, report, mlp, slow, options.seconds, options.pairs, options.max_stolen)
        _run_scenarios(bench, options.only)


def _page(report: Report, options: argparse.Namespace) -> str:
    pairs = f" --pairs {options.pairs}" if options.pairs else ""
    return (
        "# dlproxy beside a bare server, nginx and ONNX Runtime alone\n\n"
        f"`python -m benchmarks.serving --seconds {options.seconds}{pairs}` on {minute(utc_now())}. Written by `--write`.\n\n"
        f"{summary(report.machine)}\n\n```{report.table()}\n```\n"
    )


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if not wrk_is_installed():
        return wrk_is_missing()
    cores = choose_cores()
    if options.max_stolen is not None and StolenTime(cores).share() is None:
        print("--max-stolen needs Linux, taskset and two cores", file=sys.stderr)
        return EXIT_UNUSABLE
    report = Report(describe_machine(cores), vars(options))
    print(summary(report.machine), flush=True)
    code = run(lambda: _measure(options, cores, report))
    if code:
        report.notes.append("ended early: this is what had been measured")
    print(report.table())
    report.save(options.json)
    print(f"every run: {options.json}")
    if options.write and not code and not report.failures:
        PAGE.write_text(_page(report, options), "utf-8")
    return code or (EXIT_MISSED if report.failures or (options.strict and report.missed()) else 0)


if __name__ == "__main__":
    sys.exit(main())
