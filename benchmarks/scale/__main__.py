"""A thousand nodes and a million requests a second, in virtual time: `python -m benchmarks.scale` (or `make bench-scale`).

A cheap model of a node, whose error beside production lanes is measured first; balancers as in `dlproxy.policy`. `--write`
writes RESULTS.md and the pictures of docs/scaling.md. Half an hour with Numba; `--small` takes seconds and shows the way.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.checks import Findings, as_text
from benchmarks.harness.options import Names, add_write, checked, minute, options_of, utc_now
from benchmarks.harness.running import EXIT_MISSED, progress, run

if TYPE_CHECKING:
    from benchmarks.scale.scenarios import Extent, Outcome

PARTS = ("fidelity", "sizes", "policies", "staleness", "caches", "region", "storm")
PAGE = Path(__file__).parent / "RESULTS.md"
PICTURES = Path(__file__).parents[2] / "docs" / "images"
FIDELITY = (
    "The cheap model beside production lanes",
    "Ten nodes, one front, virtual seconds 1 to 5: the cheap model's figures over those of `dlproxy simulate`. Load is of the "
    "capacity with batches of 25.",
)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("scale", __doc__)
    parser.add_argument("--only", action=Names, known=PARTS, help="parts")
    parser.add_argument("--seed", type=int, default=1, help="of every random number (default 1)")
    parser.add_argument("--small", action="store_true", help="twenty nodes and short runs, without Numba")
    add_write(parser, PAGE)
    options = checked(parser, arguments, PARTS)
    if options.write and options.small:
        parser.error("--write needs the whole size: leave out --small")
    return options


def quick() -> bool:
    """Make loops quick, if Numba is installed: it has to be imported before them."""
    for option in ("NUMBA_LOOP_VECTORIZE", "NUMBA_SLP_VECTORIZE"):  # nothing here is a vector, and compiling takes half as long
        os.environ.setdefault(option, "0")
    try:
        import_module("numba")
    except ModuleNotFoundError:
        return False
    return True


def kept(outcomes: Iterable[Any], name: str, into: list[Any]) -> None:
    for outcome in outcomes:
        into.append(outcome)
        label = getattr(outcome, "name", getattr(outcome, "balancer", ""))
        print(f"  {name}: {label}, {getattr(outcome, 'took_s', 0.0):.0f} s", file=sys.stderr)


def measure(options: argparse.Namespace, extent: "Extent", found: dict[str, list["Outcome"]], pairs: list[Any]) -> None:
    from benchmarks.scale import fidelity
    from benchmarks.scale.scenarios import SCENARIOS

    for name in options.only:
        with progress(name):
            if name == "fidelity":
                kept(fidelity.pairs(extent, options.seed), name, pairs)
            else:
                kept(SCENARIOS[name](extent, options.seed), name, found.setdefault(name, []))


def findings(found: dict[str, list["Outcome"]], pairs: list[Any]) -> tuple[list[Findings], dict[str, str]]:
    """The parts that were run to their end or not, with their figures; what each is about."""
    from benchmarks.scale import page

    made, abouts = [], {}
    titles: dict[str, tuple[str, str, Callable[..., None]]] = {"fidelity": (*FIDELITY, page.fidelity), **page.PARTS}
    for name, (title, about, judge) in titles.items():
        outcomes = pairs if name == "fidelity" else found.get(name)
        if outcomes:
            one = Findings(title)
            judge(one, outcomes)
            made.append(one)
            abouts[title] = about
    return made, abouts


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    if not options.small and not quick():
        print("Numba is not installed, and without it a run would take hours: make bench-scale, or --small", file=sys.stderr)
        return 2
    from benchmarks.scale import page
    from benchmarks.scale.scenarios import FULL, SMALL

    found: dict[str, list[Outcome]] = {}
    pairs: list[Any] = []
    code = run(partial(measure, options, SMALL if options.small else FULL, found, pairs))
    if code:
        return code
    made, abouts = findings(found, pairs)
    outcomes = [one for part in found.values() for one in part]
    requests, took_s = sum(one.requests for one in outcomes), sum(one.took_s for one in outcomes)
    summary = f"{requests / 1e6:,.0f} million requests in {took_s:,.0f} s, compilation included."
    print(summary)
    for one in made:
        print("\n".join([as_text(one.checks), "", *one.details]))
    if options.write:
        text = page.text(made, abouts, command="python -m benchmarks.scale", date=minute(utc_now()), summary=summary)
        PAGE.write_text(text, "utf-8")
        page.pictures(found, PICTURES)
    return EXIT_MISSED if any(check.missed for one in made for check in one.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
