"""Worker processes and upstreams broken and measured: `python -m benchmarks.instances` (`make bench-instances ARGS=...`).

Prints one table and, after a run of everything, writes RESULTS.md; ends with 1 if a goal is missed. Needs two cores, Linux, wrk
and about six minutes.
"""

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.harness.checks import Findings, as_page, as_text
from benchmarks.harness.live import Live
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import Names, minute, options_of, utc_now
from benchmarks.harness.processes import Cores, choose_cores
from benchmarks.harness.running import EXIT_MISSED, progress, run, workplace, wrk_is_missing
from benchmarks.harness.wrk import wrk_is_installed
from benchmarks.instances import faults, kills, leaks, overhead, rates, two_processes, upstreams

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


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("instances", __doc__)
    parser.add_argument("--only", action=Names, known=PARTS, help=", ".join(PARTS))
    parser.add_argument("--page", type=Path, help=f"where to write the page ({PAGE.name} after a run of everything)")
    options = parser.parse_args(arguments)
    if options.page is None and options.only == list(PARTS):
        options.page = PAGE
    return options


def measure(names: Sequence[str], found: dict[str, Findings]) -> None:
    """These parts, in order; `found` grows as they end. Raises BenchmarkError."""
    with workplace("instances") as (children, folder):
        live = Live(children, Cores(None, None), folder)
        for name in names:
            with progress(name):
                found[name] = PARTS[name].run(live)


def describe(machine: Mapping[str, Any]) -> str:
    """Machine and versions in a line."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    wrk = str(machine["wrk"]).partition(" [")[0]
    return f"{machine['cpu']}, {machine['cores']} cores, {platform.system()}; Python {machine['python']}, {packages}; {wrk}"


def page(found: Mapping[str, Findings], machine: str, command: str) -> str:
    """RESULTS.md."""
    checks = [check for findings in found.values() for check in findings.checks]
    lead = ["# Where models run: faults and costs", "", f"`{command}` on {minute(utc_now())}; {machine}.", ""]
    lead += [f"{sum(check.within for check in checks)} of {len(checks)} goals are reached."]
    sections = ((part.title, PARTS[name].ABOUT, part.checks, part.details) for name, part in found.items())
    return as_page(lead, sections)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if not wrk_is_installed() and {"rates", "two-processes"} & set(options.only):
        return wrk_is_missing()
    machine = describe(describe_machine(choose_cores()))
    print(machine)
    found: dict[str, Findings] = {}
    code = run(lambda: measure(options.only, found))
    print(_table(found))
    if code:
        return code
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
