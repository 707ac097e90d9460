"""Solvers of the placement problem beside each other: `python -m benchmarks.placement` (or `make bench-placement ARGS=...`).

Each search gets the same seconds, the exact solver a limit by size; costs are judged by one evaluator and compared with the
exact solver's bound, below which no placement can cost. `--write` writes RESULTS.md. Needs scipy (extra: tune).
"""

import argparse
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path

from benchmarks.harness.options import minute, options_of, utc_now
from benchmarks.harness.running import run
from benchmarks.placement.fleets import SIZES, fleet, size_of
from benchmarks.placement.page import OBJECTIVES, Line, as_table, page
from dlproxy.lab.tune.placement.annealing import anneal
from dlproxy.lab.tune.placement.ants import send_ants
from dlproxy.lab.tune.placement.evaluate import Objective
from dlproxy.lab.tune.placement.exact import solve_exactly
from dlproxy.lab.tune.placement.first_fit import first_fit
from dlproxy.lab.tune.placement.genetic import evolve
from dlproxy.lab.tune.placement.search import Budget, Solution

PAGE = Path(__file__).parent / "RESULTS.md"
EXACT_SHARE = 6.0  # the exact solver may take so many times as long as a search


def solvers(seconds: float, seed: int) -> dict[str, Callable[[Objective], Solution]]:
    budget = Budget(evaluations=inf, seconds=seconds)
    return {
        "exact": lambda objective: solve_exactly(objective, seconds=EXACT_SHARE * seconds),
        "first fit": first_fit,
        "annealing": lambda objective: anneal(objective, budget, seed=seed),
        "genetic": lambda objective: evolve(objective, budget, seed=seed),
        "ants": lambda objective: send_ants(objective, budget, seed=seed),
    }


def measure(options: argparse.Namespace, lines: list[Line]) -> None:
    for size in options.size or SIZES:
        problem = fleet(*size, options.fleet_seed)
        for name, make in OBJECTIVES.items():
            objective, bound = make(problem), -inf
            for solver, solve in solvers(options.seconds, options.seed).items():
                solution = solve(objective)
                bound = max(bound, solution.bound)
                lines.append(Line.of(size, name, solver, solution, bound))
                print(lines[-1].text(), file=sys.stderr)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("placement", __doc__)
    parser.add_argument("--size", action="append", type=size_of, help="models x nodes, as 20x10; may be given several times")
    parser.add_argument("--seconds", type=float, default=3.5, help="of each search (default 3.5)")
    parser.add_argument("--seed", type=int, default=1, help="of the searches (default 1)")
    parser.add_argument("--fleet-seed", type=int, default=1, help="of the problems (default 1)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}; needs a run of everything")
    options = parser.parse_args(arguments)
    if options.write and options.size:
        parser.error("--write needs a run of everything: leave out --size")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    date = minute(utc_now())
    command = f"python -m benchmarks.placement --seconds {options.seconds:g} --seed {options.seed}"
    command += f" --fleet-seed {options.fleet_seed}"
    lines: list[Line] = []
    if code := run(lambda: measure(options, lines)):
        return code
    print(as_table(lines))
    if options.write:
        PAGE.write_text(page(lines, date=date, command=command), "utf-8")
        print(f"page: {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
