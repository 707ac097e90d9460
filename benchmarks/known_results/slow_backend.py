"""One backend of eleven turns slow: Buoyant's "Beyond Round Robin", 2016, with the production balancers.

Called by __main__.py and tests. Not aware of: batches, queues (backends answer any number of requests at once).
"""

from collections.abc import Callable

from benchmarks.known_results.checks import Check, Outcome, around
from benchmarks.known_results.simulating import MODEL, Latencies, calls, instants, seeds, serial_lane
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate.engine import SimulatedModel, Simulation, Usage
from dlproxy.lab.simulate.faults import Fault, plan_fault
from dlproxy.lab.simulate.run import uniform
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import Balancer, LeastLoaded, LeastPeakEwma, PowerOfTwo, RoundRobin
from dlproxy.policy.events import InstanceUp

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
the others look at all eleven."""

BACKENDS, RATE, SECONDS = 11, 1000.0, 60.0
NORMAL_S, DEVIATION_S, SLOW_S = 0.167, 0.005, 2.0
SLOW_FROM_S, SLOW_FOR_S = 15.0, 30.0
TIMEOUT_S = 1.0
CAPACITY = 100_000  # requests at once in a backend: never reached

BALANCERS: dict[str, tuple[Callable[[Callable[[], float]], Balancer], float, float]] = {
    "round robin": (lambda draw: RoundRobin(), 95.0, 99.0),
    "least loaded": (lambda draw: LeastLoaded(), 99.0, 99.9),
    "least loaded of two": (PowerOfTwo, 99.0, 99.9),
    "peak-EWMA": (lambda draw: LeastPeakEwma(), 99.9, 100.0),
    "peak-EWMA of two": (lambda draw: PowerOfTwo(draw, latency_aware=True), 99.9, 100.0),
}


def run(seed: int, size: float = 1.0) -> Outcome:
    """All balancers; `size` is not used, a run takes two seconds."""
    shares = {name: 100.0 * simulate(make, seed).share_within(TIMEOUT_S) for name, (make, _, _) in BALANCERS.items()}
    checks = [_check(f"{name} (published)", low, low, high, shares[name]) for name, (_, low, high) in BALANCERS.items()]
    round_robin = 100.0 * (1.0 - SLOW_FOR_S / SECONDS / BACKENDS)
    checks.append(_check("round robin (arithmetic)", round_robin, *around(round_robin, absolute=0.05), shares["round robin"]))
    level = RATE / ((BACKENDS - 1) / NORMAL_S + 1.0 / SLOW_S)
    slow = level + level / SLOW_S * (SLOW_FOR_S - SLOW_S)
    least = 100.0 * (1.0 - slow / (RATE * SECONDS))
    checks.append(_check("least loaded (arithmetic)", least, *around(least, absolute=0.05), shares["least loaded"]))
    return Outcome(checks, int(len(BALANCERS) * RATE * SECONDS))


def simulate(make: Callable[[Callable[[], float]], Balancer], seed: int) -> Latencies:
    """The minute behind one balancer."""
    numbers = seeds(seed, 4)
    tally = Latencies()
    simulation = Simulation(tally, balancer=make(uniform(numbers[0]).__next__))
    times = Fitted(NORMAL_S, 0.0, cv=DEVIATION_S / NORMAL_S, seed=numbers[1])
    for number in range(BACKENDS):
        model = SimulatedModel(MODEL, serial_lane(), times, ())
        node = simulation.add(f"node-{number}", [model])
        model.usage["pool"] = Usage()
        node.happen((model, InstanceUp("pool", capacity=CAPACITY)), 0.0)
    slow = Fault(kind="slow", node="node-0", at_s=SLOW_FROM_S, for_s=SLOW_FOR_S, factor=SLOW_S / NORMAL_S)
    plan_fault(simulation, slow)
    simulation.run(calls(instants(make_arrivals("constant", rate=RATE, seed=0), int(RATE * SECONDS))))
    return tally


def _check(result: str, expected: float, low: float, high: float, measured: float) -> Check:
    return Check(group=TITLE, result=result, expected=expected, low=low, high=high, measured=measured, unit=" %", digits=2)
