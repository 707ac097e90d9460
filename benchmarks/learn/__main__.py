"""What learnt networks are worth, part by part: `python -m benchmarks.learn` (or `make bench-learn ARGS=...`).

`--only NAME,...` chooses parts; `--write` writes each part's page beside this file.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.harness.options import Names, options_of, positive
from benchmarks.harness.running import run

PARTS = (
    "networks",
    "combine",
    "robust",
    "forecast",
    "anomalies",
    "synthesis",
    "service",
    "agent",
    "pareto",
    "deploy",
    "parallel",
)
HERE = Path(__file__).parent


def measure(options: argparse.Namespace) -> None:
    for name in options.only:
        page = import_module(f"benchmarks.learn.{name}").measure(options)
        print(page)
        if options.write:
            (HERE / f"{name.upper()}.md").write_text(page, "utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("learn", __doc__)
    parser.add_argument("--only", action=Names, known=PARTS, help="parts")
    parser.add_argument("--seeds", type=positive(int), default=5, help="of each training (default 5)")
    parser.add_argument("--jobs", type=positive(int), default=2, help="processes that simulate scenarios (default 2)")
    parser.add_argument("--folder", type=Path, default=Path("learnt"), help="where trained networks are kept (default learnt)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="recorded arrivals, for the parts that learn from them")
    parser.add_argument("--write", action="store_true", help="write the parts' pages")
    options = parser.parse_args(arguments)
    return run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
