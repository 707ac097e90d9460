"""How quick the simulator is: `python -m benchmarks.simulator`. One node at several loads, then a thousand nodes.

Simulated requests per second of one core, through the same call as `dlproxy simulate`. Exits with 1 below the goal.
"""

import sys
import time
from math import inf

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import options_of
from benchmarks.harness.processes import Cores
from dlproxy.config import ModelConfig
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.engine import LoopCosts
from dlproxy.lab.simulate.run import Scenario, plan_model, simulate

GOAL_RPS = 60_000
SERVICE = "base=10ms,row=0.5ms,cv=0.05"
CAPACITY_RPS = 1500.0  # of one node, with batches of 64


def _run(nodes: int, load: float, requests: int, *, deadline_s: float, costs: LoopCosts) -> tuple[Result, float]:
    config = ModelConfig(path="sleep:base=10ms,row=0.5ms", slo="p99=100ms" if deadline_s < inf else "", max_batch=64)
    rate = load * CAPACITY_RPS * nodes
    scenario = Scenario(
        models={"m": plan_model("m", config, SERVICE)},
        arrivals=make_arrivals("poisson", rate=rate, seed=1),
        duration_s=requests / rate,
        nodes=nodes,
        costs=costs,
        timeout_s=deadline_s,
    )
    started_at = time.perf_counter()
    result = simulate(scenario)
    return result, time.perf_counter() - started_at


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("simulator", __doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the run with a thousand nodes (default 1,000,000)")
    args = parser.parse_args(arguments)
    print(summary(describe_machine(Cores(None, None))))
    lowest = inf
    loop = LoopCosts(15e-6, 15e-6, 100e-6)
    for load, deadline_s, costs in (
        (0.3, inf, LoopCosts()),
        (0.7, inf, LoopCosts()),
        (0.9, 0.1, LoopCosts()),
        (1.2, 0.1, LoopCosts()),
        (0.9, 0.1, loop),
    ):
        result, seconds = _run(1, load, 200_000, deadline_s=deadline_s, costs=costs)
        lowest = min(lowest, result.sent / seconds)
        extras = f"{'deadlines' if deadline_s < inf else 'no deadlines'}, {'loop costs' if costs.read_s else 'no loop costs'}"
        print(f"1 node, load {load}, {extras}: {result.sent / seconds:,.0f} simulated requests/s, {result.failed:,} shed")
    result, seconds = _run(1000, 0.8, args.requests, deadline_s=0.1, costs=LoopCosts())
    print(
        f"1000 nodes, load 0.8: {result.sent:,} requests in {seconds:.1f} s, {result.sent / seconds:,.0f} simulated requests/s"
    )
    print(f"lowest on one node: {lowest:,.0f} (goal {GOAL_RPS:,})")
    return 0 if lowest >= GOAL_RPS else 1


if __name__ == "__main__":
    sys.exit(main())
