"""Measures dlproxy beside a bare server, nginx and ONNX Runtime alone, in one run: `python -m benchmarks.serving`.

Prints one table, ratios last, and keeps every single run in a JSON file. Only ratios within a run mean anything.
"""

import argparse
import contextlib
import datetime
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.interrupts import EXIT_INTERRUPTED, interrupt_once
from benchmarks.machine import describe_machine, summary
from benchmarks.models import build_mlp, build_slow
from benchmarks.processes import BenchmarkError, Children, Cores, choose_cores, stay_off_the_servers_core
from benchmarks.report import Report
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import Launcher
from benchmarks.stolen import StolenTime
from benchmarks.wrk import wrk_is_installed

HERE = Path(__file__).parent
EXIT_FAILED = 1
EXIT_UNUSABLE = 2


def _scenario_letters(text: str) -> list[str]:
    letters = [letter.strip().upper() for letter in text.split(",")]
    unknown = [letter for letter in letters if letter not in SCENARIOS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return [letter for letter in SCENARIOS if letter in letters]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        share = float(text)
        if 0 <= share <= 1:
            return share
    raise argparse.ArgumentTypeError("must be a share of a core, 0 to 1")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    now = datetime.datetime.now(datetime.UTC)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--seconds", type=_positive, default=5, help="length of each measurement (default 5)")
    parser.add_argument("--pairs", type=_positive, help="pairs of runs in each scenario (default 5, or 3)")
    parser.add_argument(
        "--max-stolen",
        type=_share,
        metavar="SHARE",
        help="measure anew if the hypervisor took more of a core for others, such as 0.03 (default: every round counts)",
    )
    parser.add_argument("--only", type=_scenario_letters, default=list(SCENARIOS), help="scenarios, such as A,C")
    parser.add_argument(
        "--json", type=Path, default=HERE / "results" / f"serving-{now:%Y-%m-%dT%H%M%SZ}.json", help="where to keep it"
    )
    parser.add_argument(
        "--bare",
        type=Path,
        default=os.environ.get("BARE_SERVER", HERE / "bare_server.py"),
        help="another yardstick, run as `python PATH model.onnx PORT` (also BARE_SERVER=PATH)",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    parsed = parser.parse_args(arguments)
    if not parsed.bare.is_file():
        parser.error(f"no such yardstick: {parsed.bare}")
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
    with tempfile.TemporaryDirectory(prefix="dlproxy-benchmark-") as directory, Children(Path(directory)) as children:
        work_directory = Path(directory)
        launcher = Launcher(children, cores, work_directory, options.bare)
        mlp, slow = build_mlp(work_directory / "mlp.onnx"), build_slow(work_directory / "slow.onnx")
        bench = Bench(launcher, report, mlp, slow, options.seconds, options.pairs, options.max_stolen)
        _run_scenarios(bench, options.only)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if not wrk_is_installed():
        print("wrk is not installed; on Debian: apt-get install wrk nginx-light", file=sys.stderr)
        return EXIT_UNUSABLE
    cores = choose_cores()
    if options.max_stolen is not None and StolenTime(cores).share() is None:
        print("--max-stolen needs Linux, taskset and two cores", file=sys.stderr)
        return EXIT_UNUSABLE
    interrupt_once()
    report = Report(describe_machine(cores), vars(options))
    print(summary(report.machine), flush=True)
    interrupted = False
    try:
        _measure(options, cores, report)
    except KeyboardInterrupt:
        interrupted = True
        report.notes.append("interrupted: this is what had been measured")
    print(report.table())
    report.save(options.json)
    print(f"every run: {options.json}")
    if interrupted:
        return EXIT_INTERRUPTED
    failed = bool(report.failures) or (options.strict and report.missed())
    return EXIT_FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
