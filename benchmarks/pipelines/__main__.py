"""Pipelines beside one Python class, and what a stage costs: `python -m benchmarks.pipelines`, or `make bench-pipelines`.

Exits with 1 if an answer is wrong or a goal is missed. `--write` writes RESULTS.md.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.harness.checks import Findings, as_page, as_text
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import Names, add_rounds, add_write, checked, minute, options_of, utc_now
from benchmarks.harness.running import EXIT_MISSED, run, workplace
from benchmarks.pipelines import embedding, ocr, overhead
from benchmarks.pipelines.packages import provide
from benchmarks.pipelines.sides import CLIENTS, NOT_PINNED, Stage

PAGE = Path(__file__).with_name("RESULTS.md")
PARTS: Mapping[str, ModuleType] = {"ocr": ocr, "embedding": embedding, "overhead": overhead}
LEAD = f"""\
Over HTTP, {CLIENTS} clients in a closed loop, servers and clients on all cores; sides take turns, figures are medians of the
rounds. The pipeline and the class answered every request before that, alone and {CLIENTS} at a time."""


def page(found: Sequence[Findings], machine: str, command: str) -> str:
    """RESULTS.md."""
    lead = ["# Pipelines", "", f"`{command}` on {minute(utc_now())}; {machine}.", "", LEAD]
    abouts = {part.TITLE: part.ABOUT for part in PARTS.values()}
    return as_page(lead, [(each.title, abouts[each.title], each.checks, each.details) for each in found])


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("pipelines", __doc__)
    add_rounds(parser, seconds=10, repeats=5)
    parser.add_argument("--only", action=Names, known=PARTS, help=f"parts: {', '.join(PARTS)}")
    add_write(parser, PAGE)
    options = checked(parser, arguments, PARTS)
    machine = summary(describe_machine(NOT_PINNED))
    print(machine, flush=True)
    found: list[Findings] = []

    def work() -> None:
        with workplace("pipelines") as (children, folder):
            provide(children)
            for name in options.only:
                print(name, flush=True)
                measure: Callable[[Stage], Findings] = PARTS[name].measure
                found.append(measure(Stage(children, folder, options.seconds, options.repeats)))

    code = run(work)
    for findings in found:
        print("\n".join([as_text(findings.checks), "", *findings.details]))
    if code:
        return code
    if options.write:
        command = f"python -m benchmarks.pipelines --seconds {options.seconds} --repeats {options.repeats}"
        PAGE.write_text(page(found, machine, command))
        print(f"page: {PAGE}")
    return EXIT_MISSED if any(check.missed for findings in found for check in findings.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
