"""Autoscalers on one simulated day, beside fixed numbers of instances: `python -m benchmarks.autoscaling`.

All drive the production lane in virtual time; a start takes 10 s. `--trace FILE` replays recorded arrivals instead. `--write`
writes RESULTS.md and pareto.svg. About a minute for each policy.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.autoscaling.days import DAY_S, WARM_S, Outcome, model_of, policies, simulate, two_days
from benchmarks.autoscaling.live import compare
from benchmarks.autoscaling.page import as_table, page, picture
from benchmarks.harness.options import minute, options_of, utc_now
from benchmarks.harness.running import progress, run, workplace
from dlproxy.lab.load.arrivals import read_trace

PAGE = Path(__file__).parent / "RESULTS.md"
PICTURE = PAGE.with_name("pareto.svg")


def measure(options: argparse.Namespace, outcomes: list[Outcome]) -> None:
    if options.live:
        with workplace("autoscaling") as (children, folder):
            outcomes += compare(children, folder, options.seed)
        return
    instants, ends_at = two_days(options.seed), 2.0 * DAY_S
    if options.trace:
        chunks = list(read_trace(options.trace).chunks(float("inf")))
        instants, ends_at = np.concatenate(chunks), float(chunks[-1][-1])
    since = 0.0 if options.trace else float(DAY_S)
    for name, policy in policies(*model_of(options.seed)).items():
        if options.only and options.only not in name:
            continue
        learns = "daily" in name
        if learns and options.trace:
            continue
        begins_at = 0.0 if options.trace or learns else since - WARM_S
        with progress(name):
            shifted = instants[instants >= begins_at] - begins_at
            outcomes.append(simulate(name, policy, shifted, since - begins_at, ends_at - begins_at, options.seed))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("autoscaling", __doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", type=Path, metavar="FILE", help="recorded arrivals in place of the day")
    parser.add_argument("--live", action="store_true", help="ten minutes on a real server instead, beside the simulator")
    parser.add_argument("--only", metavar="TEXT", help="policies with this in their name")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and {PICTURE.name}; needs a run of everything")
    options = parser.parse_args(arguments)
    if options.write and (options.only or options.trace or options.live):
        parser.error("--write needs a run of everything: leave out --only, --trace and --live")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    outcomes: list[Outcome] = []
    if code := run(lambda: measure(options, outcomes)):
        return code
    print(as_table(outcomes))
    if options.write:
        command = f"python -m benchmarks.autoscaling --seed {options.seed}"
        PAGE.write_text(page(outcomes, date=minute(utc_now()), command=command), "utf-8")
        PICTURE.write_text(picture(outcomes), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
