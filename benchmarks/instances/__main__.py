"""Worker processes and upstreams broken and measured: `python -m benchmarks.instances` (`make bench-instances ARGS=...`).

Prints one table and, after a run of everything, writes RESULTS.md; ends with 1 if a goal is missed. Needs two cores, Linux, wrk
and about six minutes.
"""

import argparse
import datetime
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from benchmarks.instances import faults, kills, leaks, overhead, rates, two_processes, upstreams
from benchmarks.instances.goals import Findings
from benchmarks.interrupts import EXIT_INTERRUPTED, interrupt_once
from benchmarks.known_results.checks import as_markdown, as_text
from benchmarks.live import Live
from benchmarks.machine import describe_machine
from benchmarks.processes import BenchmarkError, Children, Cores, choose_cores
from benchmarks.wrk import wrk_is_installed

PARTS: Mapping[str, ModuleType] = {
    "kills": kills,
    "faults": faults,
    "leaks": leaks,
    "rates": rates,
    "two-processes": two_processes,
    "overhead": overhead,
    "upstreams": upstreams,
}
PAGE = Path(__file__).parent / "RESULTS.md"
EXIT_MISSED = 1
EXIT_FAILED = 2


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instances", description=__doc__)
    parser.add_argument("--only", type=_names, default=list(PARTS), metavar="NAME,...", help=", ".join(PARTS))
    parser.add_argument("--page", type=Path, help=f"where to write the page ({PAGE.name} after a run of everything)")
    options = parser.parse_args(arguments)
    if options.page is None and options.only == list(PARTS):
        options.page = PAGE
    return options


def _names(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if name in text.split(",")]


def measure(names: Sequence[str], found: dict[str, Findings]) -> None:
    """These parts, in order; `found` grows as they end. Raises BenchmarkError."""
    with tempfile.TemporaryDirectory(prefix="dlproxy-instances-") as directory, Children(Path(directory)) as children:
        live = Live(children, Cores(None, None), Path(directory))
        for name in names:
            print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
            began = perf_counter()
            found[name] = PARTS[name].run(live)
            print(f"{perf_counter() - began:.0f} s", file=sys.stderr)


def describe(machine: Mapping[str, Any]) -> str:
    """Machine and versions in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    wrk = str(machine["wrk"]).partition(" [")[0]
    return f"{machine['cpu']}, {machine['cores']} cores, {platform.system()}; Python {machine['python']}, {packages}; {wrk}"


def page(found: Mapping[str, Findings], machine: str, command: str) -> str:
    """RESULTS.md."""
    checks = [check for findings in found.values() for check in findings.checks]
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    lines = ["# Where models run: faults and costs", "", f"`{command}` on {date}; {machine}.", ""]
    lines += [f"{sum(check.within for check in checks)} of {len(checks)} goals are reached."]
    for name, findings in found.items():
        lines += ["", f"## {findings.title}", "", PARTS[name].ABOUT, "", as_markdown(findings.checks)]
        lines += ["", *findings.details] if findings.details else []
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if not wrk_is_installed() and {"rates", "two-processes"} & set(options.only):
        print("wrk is not installed; on Debian: apt-get install wrk", file=sys.stderr)
        return EXIT_FAILED
    interrupt_once()
    machine = describe(describe_machine(choose_cores()))
    print(machine)
    found: dict[str, Findings] = {}
    try:
        measure(options.only, found)
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    finally:
        print(_table(found))
    if options.page is not None:
        only = [] if options.only == list(PARTS) else ["--only", ",".join(options.only)]
        options.page.write_text(page(found, machine, " ".join(["python -m benchmarks.instances", *only])))
    return EXIT_MISSED if any(check.missed for findings in found.values() for check in findings.checks) else 0


def _table(found: Mapping[str, Findings]) -> str:
    """For a terminal; empty if nothing was found."""
    lines = [as_text([check for findings in found.values() for check in findings.checks])] if found else []
    return "\n".join([*lines, *("\n".join(["", *findings.details]) for findings in found.values() if findings.details)])


if __name__ == "__main__":
    sys.exit(main())
