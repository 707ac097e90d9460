"""How dlproxy does under pressure: `python -m benchmarks.pressure` (or `make bench-pressure ARGS=...`).

Prints one table; ends with 1 if a figure is outside of its band. The live parts need two cores and about nine minutes.
"""

import argparse
import datetime
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from types import ModuleType

from benchmarks.interrupts import EXIT_INTERRUPTED, interrupt_once
from benchmarks.known_results.checks import Check, as_markdown, as_text
from benchmarks.live import Live
from benchmarks.machine import describe_machine, summary
from benchmarks.pressure import bad_instance, deadlines, overload, scheduling, unequal_models
from benchmarks.processes import BenchmarkError, Children, Cores, choose_cores, stay_off_the_servers_core

PARTS: Mapping[str, tuple[ModuleType, Callable[[Live, int], list[Check]]]] = {
    "scheduling": (scheduling, lambda live, seed: scheduling.run(seed)),
    "deadlines": (deadlines, lambda live, seed: deadlines.run(seed)),
    "bad-instance": (bad_instance, lambda live, seed: bad_instance.run(seed)),
    "overload": (overload, overload.run),
    "unequal-models": (unequal_models, unequal_models.run),
}
PAGE = Path(__file__).parent / "RESULTS.md"
EXIT_MISSED = 1
EXIT_FAILED = 2


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pressure", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(PARTS), help="one part; may be given several times")
    parser.add_argument("--seed", type=int, default=1, help="of every random number (default 1)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}; needs a run of everything")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("--write needs a run of everything: leave out --only")
    return options


def measure(options: argparse.Namespace, cores: Cores, checks: list[Check]) -> None:
    """Every part that was asked for, in order; `checks` grows as they end."""
    with tempfile.TemporaryDirectory(prefix="dlproxy-pressure-") as directory, Children(Path(directory)) as children:
        live = Live(children, cores, Path(directory))
        for name in options.only or PARTS:
            print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
            began = perf_counter()
            checks += PARTS[name][1](live, options.seed)
            print(f"{perf_counter() - began:.0f} s", file=sys.stderr)


def page(checks: list[Check], machine: str, command: str) -> str:
    """RESULTS.md."""
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    lines = ["# Under pressure", "", f"`{command}` on {date}; {machine}.", ""]
    lines += [f"{sum(check.within for check in checks)} of {len(checks)} figures are within their bands."]
    for module, _ in PARTS.values():
        group = [check for check in checks if check.group == module.TITLE]
        lines += ["", f"## {module.TITLE}", "", module.ABOUT, "", as_markdown(group)]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    interrupt_once()
    cores = choose_cores()
    machine = f"{summary(describe_machine(cores))}, {platform.system()}"
    print(machine)
    stay_off_the_servers_core(cores)
    checks: list[Check] = []
    try:
        measure(options, cores, checks)
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(as_text(checks))
        return EXIT_INTERRUPTED
    print(as_text(checks))
    if options.write:
        PAGE.write_text(page(checks, machine, f"python -m benchmarks.pressure --seed {options.seed} --write"))
    return EXIT_MISSED if any(check.missed for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
