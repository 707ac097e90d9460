"""Measures dlproxy on models with real weights: `python -m benchmarks.real` (or `make bench-real ARGS=...`).

Prints a table, keeps every run in a JSON file, and with --write the page RESULTS.md. Only ratios within a run mean anything.
"""

import argparse
import datetime
import os
import sys
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import add_json, minute, options_of, positive, utc_now
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.report import Report
from benchmarks.harness.running import EXIT_MISSED, run, workplace
from benchmarks.real.catalog import CATALOG
from benchmarks.real.comparison import NOT_PINNED, Comparison, Findings, spent
from benchmarks.real.embedding import NAME, Embedding
from benchmarks.real.page import page

PAGE = Path(__file__).parent / "RESULTS.md"
TIME_IS_UP = "the time for everything was up; ask for it alone with --only"


def _names(text: str) -> list[str]:
    """Of models, or of kinds of them."""
    wanted = [name.strip().lower() for name in text.split(",")]
    known = {*CATALOG, *(model.kind for model in CATALOG.values())}
    if unknown := [name for name in wanted if name not in known]:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [name for name, model in CATALOG.items() if name in wanted or model.kind in wanted]


def parse_options(arguments: list[str] | None, now: datetime.datetime) -> argparse.Namespace:
    parser = options_of("real", __doc__)
    parser.add_argument("--only", type=_names, help="models or kinds, such as minilm,tabular (default: all, and --minilm)")
    parser.add_argument("--minilm", action="store_true", help="MiniLM beside other servers; alone unless --only is given too")
    parser.add_argument("--seconds", type=positive(float), default=1.0, help="of each measurement; slow models take longer (1)")
    parser.add_argument("--pairs", type=positive(int), default=3, help="rounds in which all sides take turns (default 3)")
    parser.add_argument(
        "--minutes", type=positive(float), default=15.0, help="after which no further model is begun (default 15)"
    )
    parser.add_argument("--list", action="store_true", help="list the models, and end")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a goal is missed")
    add_json(parser, "real", now)
    parser.add_argument("--write", action="store_true", help="write RESULTS.md")
    parsed = parser.parse_args(arguments)
    if parsed.only is None:
        parsed.only = [] if parsed.minilm else list(CATALOG)
        parsed.minilm = True
    return parsed


def _measure(options: argparse.Namespace, report: Report, findings: Findings) -> None:
    started_at = monotonic()
    with workplace("real") as (children, folder):
        os.environ["XDG_CACHE_HOME"] = str(folder)  # dlproxy must find out about each model, not remember it from another run
        comparison = Comparison(report, findings, children, folder, options.seconds, options.pairs)
        for name in options.only:
            if spent(started_at, options.minutes * 60):
                report.failures.append(f"{name}  {TIME_IS_UP}")
                continue
            try:
                comparison.compare(CATALOG[name])
            except BenchmarkError as error:
                report.failures.append(f"{name}  {error}")
                print(f"{name}  failed: {error}", flush=True)
        if options.minilm:
            try:
                Embedding(report, findings, children, folder, options.seconds, options.pairs).compare()
            except BenchmarkError as error:
                report.failures.append(f"{NAME}  {error}")


def command(options: argparse.Namespace) -> str:
    said = f"python -m benchmarks.real --seconds {options.seconds:g} --pairs {options.pairs}"
    if options.only and options.only != list(CATALOG):
        said += f" --only {','.join(options.only)}"
    return said + (" --minilm" if options.minilm and options.only != list(CATALOG) else "")


def main(arguments: list[str] | None = None) -> int:
    now = utc_now()
    options = parse_options(arguments, now)
    if options.list:
        for model in CATALOG.values():
            print(f"{model.name:18} {model.kind:8} {model.title}; {model.package or 'trained here'}")
        return 0
    report, findings = Report({"date": minute(now)} | describe_machine(NOT_PINNED), vars(options)), Findings()
    print(summary(report.machine), flush=True)
    code = run(lambda: _measure(options, report, findings))
    if code:
        report.notes.append("ended early: this is what had been measured")
    print(report.table())
    report.save(options.json, {"models": asdict(findings)})
    print(f"every run: {options.json}")
    if options.write:
        PAGE.write_text(page(report, findings, command(options)))
        print(f"page: {PAGE}")
    return code or (EXIT_MISSED if report.failures or (options.strict and report.missed()) else 0)


if __name__ == "__main__":
    sys.exit(main())
