"""How dlproxy does under pressure: `python -m benchmarks.pressure` (or `make bench-pressure ARGS=...`).

Prints one table; ends with 1 if a figure is outside of its band. The live parts need two cores and about nine minutes.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from benchmarks.harness.checks import Check, as_page, as_text
from benchmarks.harness.live import Live
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import Names, add_write, checked, minute, options_of, utc_now
from benchmarks.harness.processes import Cores, choose_cores, stay_off_the_servers_core
from benchmarks.harness.running import EXIT_MISSED, progress, run, workplace
from benchmarks.pressure import bad_instance, deadlines, overload, scheduling, unequal_models

PARTS: Mapping[str, tuple[ModuleType, Callable[[Live, int], list[Check]]]] = {
    "scheduling": (scheduling, lambda live, seed: scheduling.run(seed)),
    "deadlines": (deadlines, lambda live, seed: deadlines.run(seed)),
    "bad-instance": (bad_instance, lambda live, seed: bad_instance.run(seed)),
    "overload": (overload, overload.run),
    "unequal-models": (unequal_models, unequal_models.run),
}
PAGE = Path(__file__).parent / "RESULTS.md"


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("pressure", __doc__)
    parser.add_argument("--only", action=Names, known=PARTS, help="parts")
    parser.add_argument("--seed", type=int, default=1, help="of every random number (default 1)")
    add_write(parser, PAGE)
    return checked(parser, arguments, PARTS)


def measure(options: argparse.Namespace, cores: Cores, checks: list[Check]) -> None:
    """Every part that was asked for, in order; `checks` grows as they end."""
    with workplace("pressure") as (children, folder):
        live = Live(children, cores, folder)
        for name in options.only:
            with progress(name):
                checks += PARTS[name][1](live, options.seed)


def page(checks: list[Check], machine: str, command: str) -> str:
    """RESULTS.md."""
    lead = ["# Under pressure", "", f"`{command}` on {minute(utc_now())}; {machine}.", ""]
    lead += [f"{sum(check.within for check in checks)} of {len(checks)} figures are within their bands."]
    modules = [module for module, _ in PARTS.values()]
    groups = {module.TITLE: [check for check in checks if check.group == module.TITLE] for module in modules}
    return as_page(lead, ((module.TITLE, module.ABOUT, groups[module.TITLE], ()) for module in modules))


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    cores = choose_cores()
    machine = f"{summary(describe_machine(cores))}, {platform.system()}"
    print(machine)
    stay_off_the_servers_core(cores)
    checks: list[Check] = []
    code = run(lambda: measure(options, cores, checks))
    print(as_text(checks))
    if code:
        return code
    if options.write:
        PAGE.write_text(page(checks, machine, f"python -m benchmarks.pressure --seed {options.seed} --write"))
    return EXIT_MISSED if any(check.missed for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
