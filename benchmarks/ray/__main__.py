"""dlproxy on Ray beside Ray Serve, and what its transport takes: `python -m benchmarks.ray`, or `make bench-ray`.

Needs wrk and, of dlproxy's extras, ray. Exits with 1 if an answer is wrong or a goal is missed. `--write` writes RAY.md.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.options import Names, add_rounds, add_write, checked, minute, options_of, utc_now
from benchmarks.harness.processes import Children, Cores
from benchmarks.harness.running import find, wrk_is_missing
from benchmarks.harness.wrk import wrk_is_installed
from benchmarks.ray import beside_serve, transport

PAGE = Path(__file__).parents[1] / "RAY.md"
ABOUT = {part.TITLE: part.ABOUT for part in (transport, beside_serve)}
PARTS = ("transport", "serve")


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("ray", __doc__)
    add_rounds(parser, seconds=3, repeats=5)
    parser.add_argument("--only", action=Names, known=PARTS, help=f"parts: {', '.join(PARTS)}")
    add_write(parser, PAGE)
    options = checked(parser, arguments, PARTS)
    if not wrk_is_installed():
        return wrk_is_missing()

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        if "transport" in options.only:
            yield transport.measure(4 * options.repeats)
        if "serve" in options.only:
            yield beside_serve.measure(children, cores, folder, options.seconds, options.repeats)

    def page(found: list[Findings], machine: str) -> None:
        if options.write:
            command = f"python -m benchmarks.ray --seconds {options.seconds} --repeats {options.repeats}"
            lead = ["# Ray", "", f"`{command}` on {minute(utc_now())}; {machine}."]
            PAGE.write_text(as_page(lead, [(each.title, ABOUT[each.title], each.checks, each.details) for each in found]))
            print(f"page: {PAGE}")

    return find("ray", measure, page)


if __name__ == "__main__":
    sys.exit(main())
