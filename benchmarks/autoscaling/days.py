"""The load of a day with bursts, and one simulation of it under one policy. Called by __main__.py."""

from collections.abc import Callable, Iterator
from math import ceil, pi

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from dlproxy.config import ModelConfig
from dlproxy.lab.load.arrivals import Arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.run import Autoscaling, Scenario, build, make_calls, plan_model
from dlproxy.policy.forecast import Forecast
from dlproxy.policy.lane import Lane
from dlproxy.policy.scaling import KNATIVE, RAY_SERVE, Bounds, Rule, ScalePolicy, Static, make_policy

DAY_S = 86400
WARM_S = 3600  # before the day that counts; a whole day for policies that learn one
SERVICE, OBJECTIVE = "base=320ms,row=80ms,cv=0.1", "p99=2s"
RATE = 10.0  # requests a second on average, 5 at the trough and 15 at the peak
BURST = 3.0  # times the rate
BURSTS = 12  # a day at the same times every day, and as many at others; of 20 to 120 s
MOST, START_S = 8, 10.0

Floats = NDArray[np.float64]


class Outcome(Struct, kw_only=True):
    """What one policy cost, and what it was worth."""

    name: str
    instances: float
    missed: float
    p99_ms: float
    most: int
    changes: int


def two_days(seed: int) -> Floats:
    """Instants of requests: rate 3:1 from peak to trough over the day, Poisson within each second."""
    random = np.random.default_rng(seed)
    seconds = np.arange(2 * DAY_S)
    rate = RATE * (1.0 - 0.5 * np.cos(2 * pi * seconds / DAY_S))
    usual = random.integers(0, DAY_S, BURSTS)
    for day in range(2):
        for start in [*usual, *random.integers(0, DAY_S, BURSTS)]:
            began = day * DAY_S + int(start)
            rate[began : began + int(random.integers(20, 120))] *= BURST
    counts = random.poisson(rate)
    return np.sort(np.repeat(seconds, counts) + random.random(counts.sum()))


def policies(batch: int, capacity: float) -> dict[str, Callable[[], ScalePolicy]]:
    """By name. `batch`: rows that batches aim at; an instance does `capacity` rows a second with them."""
    fitted = 0.7 * batch  # what their documentation asks the operator for, for this model
    mean = ceil(RATE / (0.7 * capacity))
    rules = {
        "Knative": KNATIVE,
        "Knative, target fitted": replace(KNATIVE, target=fitted),
        "Ray Serve": RAY_SERVE,
        "Ray Serve, target fitted": replace(RAY_SERVE, target=fitted),
        "utilisation": Rule(signal="utilisation", by_rate=False),
        "in-flight": Rule(),
    }
    return {
        **{_static(count, mean): lambda count=count: Static(count) for count in (mean, mean + 1, 5, 6, MOST)},
        **{name: lambda rule=rule: make_policy(rule) for name, rule in rules.items()},
        "in-flight + trend": lambda: make_policy(Rule(), "trend"),
        "in-flight + daily": lambda: make_policy(Rule(), "daily"),
    }


def _static(count: int, mean: int) -> str:
    return f"{count} always" + (" (mean)" if count == mean else " (most)" if count == MOST else "")


def ahead(forecast: Callable[[], Forecast] | None, counts: Floats, rule: Rule) -> Callable[[], ScalePolicy]:
    """The policy with a forecast that has seen these arrivals a second before it begins; None: without."""

    def make() -> ScalePolicy:
        if forecast is None:
            return make_policy(rule)
        learnt = forecast()
        for second, count in enumerate(counts.tolist(), 1 - len(counts)):
            learnt.observe(count, float(second))
        return make_policy(rule, lambda: learnt)

    return make


def model_of(seed: int) -> tuple[int, float]:
    """Rows that its batches aim at, and rows per second of one instance."""
    plan = _scenario(np.zeros(1), 1.0, lambda: Static(1), seed).models["m"].plan
    lane = Lane(plan.knobs, plan.prior)
    return lane.batching.goal, lane.capacity


def simulate(
    name: str,
    policy: Callable[[], ScalePolicy],
    instants: Floats,
    since: float,
    until: float,
    seed: int,
    *,
    start_s: float = START_S,
    service: str = SERVICE,
) -> Outcome:
    """The requests between the two count; those before warm the policy up."""
    scenario = _scenario(instants, until, policy, seed, start_s, service)
    tally = Tally(since, until, scenario.models["m"].plan.knobs.slo_s)
    simulation = build(scenario, tally)
    simulation.run(make_calls(scenario))
    scaling = simulation.scalers["m"].result()
    return Outcome(
        name=name,
        instances=scaling.instance_s / tally.duration_s,
        missed=1.0 - tally.in_time_by_end / tally.sent,
        p99_ms=tally.latency_ms["p99"],
        most=scaling.most,
        changes=scaling.changes,
    )


def _scenario(
    instants: Floats,
    until: float,
    policy: Callable[[], ScalePolicy],
    seed: int,
    start_s: float = START_S,
    service: str = SERVICE,
) -> Scenario:
    def draw() -> Iterator[Floats]:
        yield instants

    model = plan_model("m", ModelConfig(path="m.onnx", run="thread", instances=1, slo=OBJECTIVE), service)
    model.autoscaling = Autoscaling(policy, Bounds(1, MOST), start_s)
    return Scenario(models={"m": model}, arrivals=Arrivals("two days", RATE, draw), duration_s=until, seed=seed)
