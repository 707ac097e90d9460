"""Known results, measured again by simulation: `python -m benchmarks.known_results` (or `make bench-known ARGS=...`).

Prints one table; ends with 1 if a figure is outside of its band and nobody said why. Needs no server, no network, no model.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import msgspec

from benchmarks.harness.checks import Outcome, as_text
from benchmarks.harness.options import Names, add_write, checked, minute, options_of, utc_now
from benchmarks.harness.running import EXIT_MISSED
from benchmarks.harness.running import run as run_benchmark
from benchmarks.known_results import closed_loops, early_drop, prequal, slow_backend, two_choices, waits
from benchmarks.known_results.page import Run, page

RESULTS: Mapping[str, Callable[[int], Outcome]] = {
    "waits": waits.run,
    "two-choices": two_choices.run,
    "slow-backend": slow_backend.run,
    "prequal": prequal.run,
    "early-drop": early_drop.run,
    "closed-loops": closed_loops.run,
}
PAGE = Path(__file__).parent / "RESULTS.md"


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("known_results", __doc__)
    parser.add_argument("--only", action=Names, known=RESULTS, help="results")
    parser.add_argument("--seed", type=int, default=1, help="of every random number (default 1)")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    add_write(parser, PAGE)
    return checked(parser, arguments, RESULTS)


def measure(options: argparse.Namespace, run: Run) -> None:
    for name in options.only:
        print(f"{name} ...", end=" ", flush=True, file=sys.stderr)
        began = perf_counter()
        outcome = RESULTS[name](options.seed)
        seconds = perf_counter() - began
        run.checks += outcome.checks
        run.requests += outcome.requests
        run.seconds += seconds
        print(f"{seconds:.0f} s, {outcome.requests / seconds:,.0f} requests per second", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    given = "python -m benchmarks.known_results" + "".join(
        f" --only {name}" for name in options.only if options.only != list(RESULTS)
    )
    run = Run(
        date=minute(utc_now()),
        command=f"{given} --seed {options.seed}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        seed=options.seed,
    )
    if code := run_benchmark(lambda: measure(options, run)):
        return code
    print(as_text(run.checks))
    missed = sum(check.missed for check in run.checks)
    print(f"\n{run.summary()}")
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(run.with_verdicts()), indent=1) + b"\n")
    if options.write:
        PAGE.write_text(page(run), "utf-8")
        print(f"page: {PAGE.name}")
    return EXIT_MISSED if missed else 0


if __name__ == "__main__":
    sys.exit(main())
