"""One backend of eleven turns slow (Buoyant's "Beyond Round Robin", 2016) or fails at once, with the production balancers.

Called by __main__.py and tests. Not aware of: batches, queues (backends answer any number of requests at once).
"""

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.harness.checks import Check, Outcome, around
from benchmarks.known_results.simulating import MODEL, Latencies, calls, instants, seeds, serial_lane
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate.engine import SimulatedModel, Simulation
from dlproxy.lab.simulate.faults import Fault, plan_fault
from dlproxy.lab.simulate.run import uniform
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import (
    Balancer,
    FastestResponse,
    LeastConnections,
    LeastPeakEwma,
    PowerOfTwo,
    Prequal,
    RoundRobin,
)

TITLE = "One slow backend of eleven: answers within a second"
ABOUT = """\
S. Jenson, *Beyond Round Robin: Load Balancing for Latency*, Buoyant, 16 March 2016
(<https://linkerd.io/2016/03/16/beyond-round-robin-load-balancing-for-latency/>): 11 backends with a latency of median 167 ms
and standard deviation 5 ms, one client at 1000 requests/s for a minute; from second 15 to 45 one backend takes 2 s. Its
figures (about 95, 99 and 99.9 % within 1 s) are read off a chart: "fast until the 95th, 99th, 99.9th percentile". Band: at
least that share and less than the next. Backends answer concurrently, so a node here is one instance of a capacity that is
never reached: latency, no queue; times are log-normal, as the recorded ones are not published. Two of the shares also follow
from arithmetic, with narrow bands. Round robin: 1 - (30/60)/11 = 95.45 %. Least loaded keeps n requests at each backend,
where 10 n / 0.167 + n / 2 = 1000, so n = 16.6; the slow one gets n at once and n / 2 per second from second 17 to 45, 248 in
all: 99.59 %. Finagle's own least-loaded and peak-EWMA balancers compare two backends drawn at random; `PowerOfTwo` does that,
the others look at all eleven. Fastest response and Prequal are not in the source. The former learns that its favourite has
become slow only 2 s later, from the first answer, and has sent it everything meanwhile."""

FAILING_TITLE = "One fast-failing backend of eleven: answers at all"
FAILING_ABOUT = """\
The same fleet and minute, but from second 15 to 45 one backend ends every request with an error after 0.5 ms: the sinkhole, as
whoever fails quickly has little in flight and short latencies. Only the balancer is measured, so an error reaches the client;
with ejection and retries in the Lane (which has one instance here) fewer do. Round robin fails (30/60)/11, by arithmetic. Least
loaded sends a request elsewhere only to a backend with none in flight: 10 / 0.167 s = 60 of 1000 per second, so 53.0 % over the
minute. dlproxy's rule for all that look at latency: a failure counts as 10
times the usual. Where nothing is published the bands hold what seeds 1 to 3 gave: findings, not confirmations."""

BACKENDS, RATE, SECONDS = 11, 1000.0, 60.0
NORMAL_S, DEVIATION_S, SLOW_S = 0.167, 0.005, 2.0
FAULT_FROM_S, FAULT_FOR_S = 15.0, 30.0
SLOW = Fault(kind="slow", node="node-0", at_s=FAULT_FROM_S, for_s=FAULT_FOR_S, factor=SLOW_S / NORMAL_S)
FAILING = Fault(kind="fail", node="node-0", at_s=FAULT_FROM_S, for_s=FAULT_FOR_S, after_s=0.0005)
TIMEOUT_S = 1.0
CAPACITY = 100_000  # requests at once in a backend: never reached

Maker = Callable[[Callable[[], float]], Balancer]
BALANCERS: dict[str, tuple[Maker, float, float]] = {
    "round robin": (lambda draw: RoundRobin(), 95.0, 99.0),
    "least loaded": (lambda draw: LeastConnections(), 99.0, 99.9),
    "least loaded of two": (PowerOfTwo, 99.0, 99.9),
    "peak-EWMA": (lambda draw: LeastPeakEwma(), 99.9, 100.0),
    "peak-EWMA of two": (lambda draw: PowerOfTwo(draw, latency_aware=True), 99.9, 100.0),
}
OURS: dict[str, tuple[Maker, float, float]] = {  # nothing is published
    "fastest response": (lambda draw: FastestResponse(), 96.0, 98.0),
    "Prequal": (Prequal, 99.7, 99.95),
}
FAILING_BANDS = {
    "least loaded of two": (90.5, 91.5),
    "peak-EWMA": (99.9, 100.0),
    "peak-EWMA of two": (99.9, 100.0),
    "fastest response": (99.9, 100.0),
    "Prequal": (99.9, 100.0),
}
_check = partial(Check, unit=" %", digits=3)


def run(seed: int, size: float = 1.0) -> Outcome:
    """All balancers; `size` is not used, a run takes two seconds."""
    makers = {name: make for name, (make, _, _) in (BALANCERS | OURS).items()}
    shares = {name: 100.0 * simulate(make, seed).share_within(TIMEOUT_S) for name, make in makers.items()}
    checks = [_check(f"{name} (published)", low, high, shares[name], TITLE, low) for name, (_, low, high) in BALANCERS.items()]
    round_robin = 100.0 * (1.0 - FAULT_FOR_S / SECONDS / BACKENDS)
    checks.append(
        _check("round robin (arithmetic)", *around(round_robin, absolute=0.05), shares["round robin"], TITLE, round_robin)
    )
    level = RATE / ((BACKENDS - 1) / NORMAL_S + 1.0 / SLOW_S)
    slow = level + level / SLOW_S * (FAULT_FOR_S - SLOW_S)
    least = 100.0 * (1.0 - slow / (RATE * SECONDS))
    checks.append(_check("least loaded (arithmetic)", *around(least, absolute=0.05), shares["least loaded"], TITLE, least))
    checks += [_check(f"{name} (finding)", low, high, shares[name], TITLE) for name, (_, low, high) in OURS.items()]
    checks += _failing(makers, seed)
    return Outcome(checks, int(2 * len(makers) * RATE * SECONDS))


def _failing(makers: Mapping[str, Maker], seed: int) -> list[Check]:
    shares = {name: 100.0 * simulate(make, seed, FAILING).share_within(TIMEOUT_S) for name, make in makers.items()}
    even = 100.0 * (1.0 - FAULT_FOR_S / SECONDS / BACKENDS)
    sinkhole = 100.0 * (1.0 - FAULT_FOR_S / SECONDS * (1.0 - (BACKENDS - 1) / NORMAL_S / RATE))
    checks = [
        _check("round robin (arithmetic)", *around(even, absolute=0.05), shares["round robin"], FAILING_TITLE, even),
        _check("least loaded (arithmetic)", *around(sinkhole, absolute=0.5), shares["least loaded"], FAILING_TITLE, sinkhole),
    ]
    for name, (low, high) in FAILING_BANDS.items():
        checks.append(_check(f"{name} (finding)", low, high, shares[name], FAILING_TITLE))
    return checks


def simulate(make: Maker, seed: int, fault: Fault = SLOW) -> Latencies:
    """The minute behind one balancer."""
    numbers = seeds(seed, 4)
    tally = Latencies()
    simulation = Simulation(tally, balancer=make(uniform(numbers[0]).__next__))
    times = Fitted(NORMAL_S, 0.0, cv=DEVIATION_S / NORMAL_S, seed=numbers[1])
    for number in range(BACKENDS):
        simulation.add(f"node-{number}", [SimulatedModel(MODEL, serial_lane(), times, ["pool"], capacity=CAPACITY)])
    plan_fault(simulation, fault)
    simulation.run(calls(instants(make_arrivals("constant", rate=RATE, seed=0), int(RATE * SECONDS))))
    return tally
