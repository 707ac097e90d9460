"""The cheap cluster beside `dlproxy simulate` with ten nodes: production lanes and the production balancer, the same load.

Called by __main__.py and tests: what differs is the cheap model's error. Not aware of: larger clusters.
"""

from collections.abc import Iterator

from msgspec import Struct

from benchmarks.scale.scenarios import WARM_S, Extent, Outcome, run
from benchmarks.scale.state import ANSWERED, LEAST, ROUND_ROBIN, TWO, rules
from dlproxy.config import ModelConfig
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.run import Scenario, build, make_calls, plan_model

NODES, CAPACITY = 10, 25 / 17.5e-3  # of a node: batches of 25 take 5 ms + 25 * 0.5 ms
SERVICE, OBJECTIVE = "base=5ms,row=0.5ms,cv=0.1", "p99=50ms"
LOADS = (0.5, 0.7, 0.9, 1.1)  # of the capacity
POLICIES = {"power-of-two": TWO, "peak-ewma": LEAST, "round-robin": ROUND_ROBIN}


class Lanes:
    """What production lanes make of a scenario after the warm-up, in which their batches grow from one row."""

    def __init__(self, scenario: Scenario) -> None:
        self.tally = Tally(WARM_S, scenario.duration_s)
        simulation = build(scenario, self.tally)
        simulation.run(make_calls(scenario))
        self.missed = 1.0 - self.tally.ok / self.tally.sent
        sizes = [
            instance.batch_sizes
            for node in simulation.nodes.values()
            for model in node.models.values()
            for instance in model.instances.values()
        ]
        rows = sum(rows * times for each in sizes for rows, times in each.items())
        self.mean_batch = rows / sum(sum(each.values()) for each in sizes)


class Pair(Struct):
    """One load under one balancer, both ways. Latencies in ms."""

    balancer: str
    load: float
    lanes: Lanes
    cheap: Outcome

    def off_by(self) -> dict[str, float]:
        """The cheap model's error: latencies and batches over the lanes', less 1; of the share missed, the difference."""
        lanes, cheap = self.lanes, self.cheap
        latency_ms = lanes.tally.latency_ms
        return {
            "p50": cheap.p50 / latency_ms["p50"] - 1.0,
            "p99": cheap.p99 / latency_ms["p99"] - 1.0,
            "p99.9": cheap.p999 / latency_ms["p99_9"] - 1.0,
            "batch": cheap.mean_batch / lanes.mean_batch - 1.0,
            "missed": 1.0 - cheap.share(ANSWERED) - lanes.missed,
        }


def pairs(extent: Extent, seed: int) -> Iterator[Pair]:
    """Each balancer at each load, for some five virtual seconds."""
    seconds = extent.seconds(5)
    model = plan_model("m", ModelConfig(path="m.onnx", run="thread", instances=1, slo=OBJECTIVE, max_batch=64), SERVICE)
    for balancer, policy in POLICIES.items():
        for load in LOADS:
            rate = load * CAPACITY * NODES
            scenario = Scenario(
                models={"m": model},
                arrivals=make_arrivals("poisson", rate=rate, seed=seed),
                duration_s=float(seconds),
                nodes=NODES,
                balancer=balancer,
                seed=seed,
            )
            lanes = Lanes(scenario)
            cheap = run(balancer, rules(nodes=NODES, fronts=1, rate=rate, policy=policy), seconds, seed)
            yield Pair(balancer, load, lanes, cheap)
