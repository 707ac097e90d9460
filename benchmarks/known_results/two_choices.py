"""Mean response of many servers behind the production balancers against the closed form of the power of two choices.

Called by __main__.py and tests. Not aware of: batches, deadlines.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf, sqrt

from benchmarks.harness.checks import Check, Outcome, around
from benchmarks.known_results.simulating import (
    MODEL,
    Latencies,
    batch_means,
    calls,
    instants,
    seeds,
    serial_lane,
    standard_error,
)
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate.engine import SimulatedModel, Simulation
from dlproxy.lab.simulate.run import uniform
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import Balancer, LeastConnections, PowerOfTwo

TITLE = "Power of two choices: the mean response"
ABOUT = """\
E[T] = sum over i >= 1 of lambda^((d^i - d) / (d - 1)) service times for d choices, so lambda^(2^i - 2) for two, as the number
of servers grows (Vvedenskaya, Dobrushin and Karpelevich 1996; Mitzenmacher, *The power of two choices in randomized load
balancing*, IEEE TPDS 12(10), 2001; d = 1 gives 1 / (1 - lambda) of M/M/1). 500 nodes of one exponential server each,
`PowerOfTwo` by in-flight requests; an empty system fills for so many service times before anything counts. Band: 3 %, about 3
standard errors of runs of this length, which were made four times longer for that (batch means, given beside each); that 500
nodes are not infinitely many adds less. Random choice leaves 500 separate M/M/1 queues: the band is 3 standard errors by
Daley's (1968) asymptotic variance of their mean wait. `LeastConnections` knows all nodes and must be below two choices. Lambda
0.99 is left out: the mean follows the load so steeply there that eight runs of 400,000 requests lay between 10 % below and 13
% above the closed form."""

NODES = 500
BAND = 0.03
PARTS = 20
# lambda: (warm-up, measured) in service times: the nearer to 1, the longer it takes to fill, and the longer a mean takes
TWO = {0.7: (40.0, 400.0), 0.9: (80.0, 800.0), 0.95: (150.0, 1200.0)}
ONE = {0.7: (60.0, 300.0), 0.9: (300.0, 400.0)}
LEAST = {0.7: (20.0, 60.0), 0.9: (40.0, 60.0), 0.95: (60.0, 60.0)}


class AtRandom:
    """Any node: the baseline, of which queueing theory knows everything."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw

    def add(self, instance: str, now: float, weight: float = 1.0) -> None:
        """Looks at who is ready only."""

    def choose(self, ready: Collection[str], in_flight: Mapping[str, int], now: float, affinity: str = "") -> str:
        assert isinstance(ready, list)
        name: str = ready[int(self._draw() * len(ready))]
        return name

    def observe(self, instance: str, service_s: float, *, ok: bool, now: float) -> None:
        """Looks at nothing."""

    def forget(self, instance: str) -> None:
        """Remembers nothing."""


def mean_response(load: float, choices: int = 2) -> float:
    """The closed form, in service times."""
    if choices == 1:
        return 1.0 / (1.0 - load)
    total, term, power = 0.0, 1.0, choices
    while term > 1e-12:
        term = load ** ((power - choices) // (choices - 1))
        total += term
        power *= choices
    return total


def run(seed: int, size: float = 1.0) -> Outcome:
    """All balancers at all loads; `size` scales the measured time."""
    checks: list[Check] = []
    requests = 0
    for load, (warm_up, measured) in TWO.items():
        tally = simulate(PowerOfTwo, load, warm_up, size * measured, seeds(seed, 2, int(100 * load)))
        means = batch_means(tally.values(), PARTS)
        note = f"standard error {100 * standard_error(means) / means.mean():.1f} %"
        band = around(mean_response(load), relative=BAND)
        checks.append(_check(f"two choices, lambda {load:g}", mean_response(load), *band, tally, note))
        least_warm_up, least_measured = LEAST[load]
        numbers = seeds(seed, 3, int(100 * load))
        least = simulate(lambda draw: LeastConnections(), load, least_warm_up, size * least_measured, numbers)
        below = float(tally.values().mean())
        checks.append(_check(f"least connections, lambda {load:g}: below two choices", None, -inf, below, least, ""))
        requests += _sent(load, warm_up, size * measured) + _sent(load, least_warm_up, size * least_measured)
    for load, (warm_up, measured) in ONE.items():
        tally = simulate(AtRandom, load, warm_up, size * measured, seeds(seed, 1, int(100 * load)))
        error, expected = _random_error(load, tally.ok), mean_response(load, 1)
        note = f"standard error {100 * error / expected:.1f} %"
        checks.append(_check(f"random, lambda {load:g}", expected, *around(expected, absolute=3.0 * error), tally, note))
        requests += _sent(load, warm_up, size * measured)
    return Outcome(checks, requests)


def simulate(
    balancer: Callable[[Callable[[], float]], Balancer],
    load: float,
    warm_up: float,
    measured: float,
    numbers: Sequence[int],
) -> Latencies:
    """Latencies of what is due after the warm-up."""
    tally = Latencies(warm_up)
    simulation = Simulation(tally, balancer=balancer(uniform(numbers[0]).__next__))
    times = Fitted(1.0, 0.0, exponential=True, seed=numbers[1])  # one stream for all: the draws are independent
    for number in range(NODES):
        simulation.add(f"node-{number}", [SimulatedModel(MODEL, serial_lane(), times, ["instance"])])
    count = _sent(load, warm_up, measured)
    simulation.run(calls(instants(make_arrivals("poisson", rate=load * NODES, seed=numbers[2]), count)))
    return tally


def _sent(load: float, warm_up: float, measured: float) -> int:
    return int(load * NODES * (warm_up + measured))


def _random_error(load: float, count: int) -> float:
    """Of the mean of `count` consecutive waits in M/M/1 (Daley 1968; Whitt, "Planning queueing simulations", 1989)."""
    variance = load * (2 + 5 * load - 4 * load**2 + load**3) / (1 - load) ** 4
    return sqrt(variance / count)


def _check(result: str, expected: float | None, low: float, high: float, tally: Latencies, note: str) -> Check:
    measured = float(tally.values().mean())
    return Check(result, low, high, measured, TITLE, expected, digits=3, note=note)
