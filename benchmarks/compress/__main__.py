"""What compression gives on models with real weights, through the server: `python -m benchmarks.compress`.

Parts may be run apart, each within some ten minutes: what they find is kept, and `--write` writes RESULTS.md from all that
there is. Exits with 1 if a goal is missed.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from benchmarks.compress import overload, recipes, starts
from benchmarks.compress.models import CACHE, MODELS, obtain
from benchmarks.compress.overload import Overload
from benchmarks.compress.recipes import Compressed
from benchmarks.harness.checks import Check, Findings, as_page, as_text
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import BENCHMARKS, Names, minute, options_of, positive, utc_now
from benchmarks.harness.processes import BenchmarkError, Cores
from benchmarks.harness.running import EXIT_MISSED, run, workplace

PAGE = Path(__file__).with_name("RESULTS.md")
KEPT = BENCHMARKS / "results" / "compress.json"
PARTS = ("recipes", "overload", "starts")
STARTS = "Starts"
STEPS = ", then ".join(f"{times:g} of its capacity for {seconds:g} s" for times, seconds in overload.STEPS)
ABOUT = {
    recipes.TITLE: f"""\
Each model went through `dlproxy compress` with every recipe that applies to it. Then one server had the original and all that
was accepted, one thread each, and one client asked them the held-out examples in turn: all of them alone, and {recipes.BATCHES}
times some {recipes.LARGE} in a request. *Accuracy* is of those alone. *L* are medians of such requests, the way through the
server included; *times as quick* is the median of the original's time by its own in the same turn, alone and together.""",
    overload.TITLE: f"""\
MiniLM with its quickest accepted variant, and without: the server on one core, the client on the other. Open loop of Poisson
arrivals, real sentences: {STEPS}. Capacity: what {overload.CLIENTS} clients in a closed loop get from MiniLM alone, just
before. Each request has the objective as its deadline, and only answers within it count. With and without take turns, in a
server of their own each time.""",
    STARTS: """\
Heavy models with random weights. A *session load* is that of ONNX Runtime alone, from the file and from the graph that it
optimised before; a *start* is that of `dlproxy serve` until it is ready. Sides take turns, each in a process of its own; ratios
are medians over the turns.""",
}


class Kept(Struct):
    """What has been measured. `how`: of each part, or model, when, where and by which command."""

    compressed: dict[str, Compressed] = {}
    overload: Overload | None = None
    starts: list[Check] = []
    how: dict[str, str] = {}


def measure(options: argparse.Namespace, kept: Kept, how: str) -> None:
    failed = []
    with workplace("compress") as (children, folder):
        names = options.models if "recipes" in options.parts else []
        for name in names:
            try:
                made = obtain(MODELS[name], children)
                out = CACHE / f"{name}-compressed"
                more = ["--recipes", options.recipes] if options.recipes else []
                kept.compressed[name] = recipes.measure(made, out, children, folder, more, options.minutes * 60)
                kept.how[name] = how
                _keep(kept, options.json)
                print("\n".join(["", *recipes.page(kept.compressed[name]), ""]), flush=True)
            except BenchmarkError as error:
                failed.append(f"{name}: {error}")
                print(f"{name} failed: {error}", flush=True)
        if "overload" in options.parts:
            made = obtain(MODELS[overload.MODEL], children)
            out = CACHE / f"{overload.MODEL}-compressed"
            objective_s = options.objective_ms / 1e3
            kept.overload = overload.measure(made, out, children, folder, objective_s, options.repeats)
            kept.how["overload"] = how
            _keep(kept, options.json)
        if "starts" in options.parts:
            kept.starts = starts.measure(children, folder, list(starts.MODELS), options.repeats)
            kept.how["starts"] = how
            _keep(kept, options.json)
    if failed:
        raise BenchmarkError("\n".join(failed))


def _keep(kept: Kept, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(msgspec.to_builtins(kept), indent=1), "utf-8"
    )  # bands have no end, which msgspec has no JSON for


def read(path: Path) -> Kept:
    """What was kept; nothing yet where there is no file."""
    return msgspec.convert(json.loads(path.read_text("utf-8")), Kept) if path.exists() else Kept()


def findings_of(kept: Kept) -> Iterator[Findings]:
    """Of all that there is."""
    if kept.compressed:
        yield recipes.judged(list(kept.compressed.values()))
    if kept.overload is not None:
        yield overload.judged(kept.overload)
    if kept.starts:
        yield Findings(STARTS, kept.starts)


def page(kept: Kept) -> str:
    sections: list[tuple[str, str, Any, Any]] = []
    for findings in findings_of(kept):
        details = list(findings.details)
        if findings.title == recipes.TITLE:
            for name, one in kept.compressed.items():
                model = MODELS[name]
                details += [f"### {name}", "", f"{model.title}: {model.task}.", "", *recipes.page(one), ""]
        sections.append((findings.title, ABOUT[findings.title], findings.checks, details))
    how = [f"- {what}: {said}" for what, said in kept.how.items()]
    lead = ["# Compressed models", "", "Written by `python -m benchmarks.compress --write`; how: [README](../README.md).", ""]
    return as_page([*lead, *how], sections)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("compress", __doc__)
    parser.add_argument("--part", dest="parts", action=Names, known=PARTS, help="these (default: all)")
    parser.add_argument("--models", action=Names, known=MODELS, help="of part recipes (default: all)")
    parser.add_argument("--recipes", default="", metavar="NAME,...", help="only these, of part recipes (default: all)")
    parser.add_argument("--minutes", type=positive(float), default=8.0, help="budget of the search for each model (8)")
    parser.add_argument("--objective-ms", type=positive(float), default=150.0, help="of part overload (150)")
    parser.add_argument("--repeats", type=positive(int), default=2, help="turns of parts overload and starts (2)")
    parser.add_argument("--show", action="store_true", help="measure nothing; show what is there")
    parser.add_argument("--json", type=Path, default=KEPT, help="where to keep the figures")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    return parser.parse_args(arguments)


def command(options: argparse.Namespace) -> str:
    """As it was given, as far as it decides what is measured."""
    said = f"python -m benchmarks.compress --part {','.join(options.parts)}"
    if "recipes" in options.parts:
        said += f" --models {','.join(options.models)} --minutes {options.minutes:g}"
        said += f" --recipes {options.recipes}" if options.recipes else ""
    said += f" --objective-ms {options.objective_ms:g}" if "overload" in options.parts else ""
    said += f" --repeats {options.repeats}" if options.parts != ["recipes"] else ""
    return said


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    kept = read(options.json)
    machine = summary(describe_machine(Cores(None, None)))
    print(machine, flush=True)
    how = f"`{command(options)}` on {minute(utc_now())}; {machine}"
    code = 0 if options.show else run(lambda: measure(options, kept, how))
    missed = False
    for findings in findings_of(kept):
        print("\n".join([as_text(findings.checks), "", *findings.details]))
        missed |= any(check.missed for check in findings.checks)
    if options.write:
        PAGE.write_text(page(kept), "utf-8")
        print(f"page: {PAGE}")
    return code or (EXIT_MISSED if missed else 0)


if __name__ == "__main__":
    sys.exit(main())
