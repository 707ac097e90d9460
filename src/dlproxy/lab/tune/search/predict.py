"""What the simulator says of a point: its outcome at a rate, or the highest rate at which it meets the objective.

Called by evolve.py, trials.py and benchmarks/tune. Not aware of: how batch times were measured, servers.
"""

from collections.abc import Mapping
from math import exp, sqrt

import msgspec
import numpy as np

from dlproxy.fleet.names import instance_names
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.run import ModelPlan, Scenario, build, make_calls
from dlproxy.lab.simulate.service_times import Measured
from dlproxy.lab.tune.search.problem import NEVER_S, Layout, Outcome, Point, Problem
from dlproxy.lab.tune.search.times import Times
from dlproxy.policy.plan import plan_lane

REQUESTS = 1500  # of a simulation that compares points: seconds of service, not minutes
LEAST_OBJECTIVES = 30  # a simulation lasts so many objectives at least: in less no queue gets long
MOST_TIMES = 3.0  # as long as so many times the requests asked for
WARM_SHARE = 0.1  # of it passes before anything counts: batches begin at one row
STEPS = 7  # of the search for the highest rate: to about 3 %
SPAN = 30.0  # that rate is looked for down to this part of what all instances can compute


class Predictor:
    """Values points by simulation, each the same way every time. `requests`: of each simulation."""

    def __init__(self, problem: Problem, times: Mapping[Layout, Times], *, requests: int = REQUESTS) -> None:
        self.problem = problem
        self.requests = requests
        self.times = dict(times)
        self.off_by: dict[Layout, float] = {}
        """By how much (a logarithm) live runs of a layout turned out slower at p99 than was simulated."""

    def at(self, point: Point, rate: float, *, objective_s: float | None = None) -> Outcome:
        """At so many requests a second. `objective_s`: another than the problem's."""
        problem, layout = self.problem, point.layout
        slo_s = objective_s or problem.objective_s
        config = msgspec.structs.replace(point.on(problem.config), slo=f"p99={slo_s * 1e6:.6f}us")
        times = self.times[layout]
        plan = plan_lane(
            config,
            times.prior,
            instances=instance_names(problem.name, layout.instances),
            inline=layout.run == "inline",
            batched=times.batched,
        )
        arrivals = problem.load.arrivals(rate)
        length_s = self.requests / arrivals.rate
        length_s = min(max(length_s, LEAST_OBJECTIVES * slo_s), MOST_TIMES * length_s)
        if arrivals.duration_s is not None:
            length_s = arrivals.duration_s
        model = ModelPlan(plan, lambda number: Measured(times.samples, seed=number), "")
        scenario = Scenario(models={problem.name: model}, arrivals=arrivals, duration_s=length_s, costs=times.costs)
        tally = Tally(WARM_SHARE * length_s, length_s)
        simulation = build(scenario, tally)
        machine = times.machine(layout.instances)
        for instance in next(iter(simulation.nodes.values())).models[problem.name].instances.values():
            instance.machine = machine
        simulation.run(make_calls(scenario))
        return self._outcome(tally, layout, arrivals.rate, slo_s)

    def peak(self, point: Point) -> float:
        """The highest rate at which this point meets the objective, 0 if there is none."""
        high = self.most(point.layout, point.max_batch)
        low, found = high / SPAN, 0.0
        for _ in range(STEPS):
            rate = sqrt(low * high)
            if self.at(point, rate).meets(self.problem.objective_s):
                low = found = rate
            else:
                high = rate
        return found

    def most(self, layout: Layout, max_batch: int = 1 << 30) -> float:
        """Rows per second that all instances can compute, in batches of the best size that was measured, and the loop carry."""
        times = self.times[layout]
        sizes = [(rows, seconds) for rows, seconds in times.prior if rows <= max_batch] or times.prior[:1]
        computed = max(rows / seconds for rows, seconds in sizes) * layout.instances / times.slowdown
        loop_s = times.costs.read_s + times.costs.write_s
        if layout.run == "inline":
            return 1.0 / (1.0 / computed + loop_s)
        return min(computed, 1.0 / loop_s) if loop_s else computed

    def single_s(self, layout: Layout) -> float:
        """Seconds of a batch of one row."""
        return self.times[layout].prior[0][1]

    def _outcome(self, tally: Tally, layout: Layout, rate: float, slo_s: float) -> Outcome:
        if not tally.latency_ms:
            return Outcome(rate, 0.0, NEVER_S)
        seconds, counts = zip(*tally.histogram.steps(), strict=True)
        latencies = self.times[layout].with_path(np.repeat(seconds, counts)) * exp(self.off_by.get(layout, 0.0))
        good = float((latencies <= slo_s).sum()) / max(tally.sent, 1)
        return Outcome(rate, good, float(np.quantile(latencies, 0.99)))
