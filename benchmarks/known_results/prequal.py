"""A load ramp past the fleet's allocation, with unequal spare capacity: Prequal (NSDI 2024), section 5, with our balancers.

Called by __main__.py and tests. Not aware of: lanes, batches (servers share their cores among any number of requests).
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop, heappush

import numpy as np

from benchmarks.harness.checks import Check, Outcome
from benchmarks.known_results.simulating import Floats, seeds
from dlproxy.lab.simulate.engine import Heap
from dlproxy.lab.simulate.run import uniform
from dlproxy.policy.balancing import make_balancer

TITLE = "Prequal: 99.9th percentile over a load ramp from 0.75 to 1.74 of the allocation"
ABOUT = """\
B. Wydrowski, R. Kleinberg, S. Rumble and A. Archer, *Load is not what you should balance: Introducing Prequal*, NSDI 2024,
section 5: the load rises in nine steps of 10/9 from 0.75 to 1.74 times what the servers are allocated; machines have spare
capacity beyond it, which antagonists take unevenly; weighted round robin reaches the timeout of 5 s at 1.03, Prequal degrades
slowly. Here: 50 servers, one to a machine, each allocated 1 core. Antagonists leave a server only that on 30 % of the machines
and 1 to 4 cores (uniform) on the others, redrawn for each machine after an exponential time of 10 s on average; the mean is
2.05 cores, so 1.74 is 85 % of the true capacity. A request takes 20 ms of one core on average, normal with a deviation as large
as its mean before it is cut off at 0 (and scaled, so that the mean is 20 ms). The n requests on a server of c cores advance at
min(1, c / n) each. Poisson arrivals, 7 s a step. A request that takes 5 s is given up and its work with it; it counts as 5 s.
Requests, works and antagonists are the same for all. The claim is the ratio: Prequal's 99.9th percentile over the ramp is at
most a fifth of round robin's. The rest are findings, with bands of 3 standard deviations over seeds 1 to 5. One dlproxy sends
everything and so knows what is in flight everywhere, unlike the paper's 100 clients with their probes: that is why whoever
looks at all servers (peak-EWMA, least connections) is ahead of Prequal here. At 1.03 round robin is not at 5 s as in the paper,
because the step is over before the queues are that long."""

SERVERS, STEPS, STEP_S = 50, 9, 7.0
ALLOCATED, MOST_CORES, HOBBLED = 1.0, 4.0, 0.3
FIRST_LOAD, LOAD_FACTOR = 0.75, 10.0 / 9.0
WORK_S, TIMEOUT_S, ANTAGONIST_S = 0.020, 5.0, 10.0
QUANTILE = 0.999
ROUND_ROBIN, PREQUAL = "round-robin", "prequal"
# of the 99.9th percentile in ms: over the whole ramp, at its last step
BANDS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    ROUND_ROBIN: ((4900.0, 5000.0), (4900.0, 5000.0)),
    "power-of-two": ((80.0, 330.0), (95.0, 415.0)),
    "peak-ewma": ((75.0, 110.0), (80.0, 135.0)),
    "least-connections": ((105.0, 175.0), (125.0, 205.0)),
    PREQUAL: ((115.0, 220.0), (160.0, 235.0)),
}
LEAST_RATIO = 5.0

Finished = Callable[[str, int, float, bool], None]
_check = partial(Check, group=TITLE, unit=" ms", digits=0)


class Server:
    """One server on its machine: processor sharing with at most a core for each request."""

    def __init__(self, name: str, cores: float, heap: Heap, finished: Finished) -> None:
        self._name = name
        self._cores = cores
        self._heap = heap
        self._finished = finished
        self._served_s = 0.0  # core-seconds that each request present throughout has got
        self._at = 0.0
        self._ends: list[tuple[float, int]] = []  # when served so much, this request ends
        self._due: deque[tuple[float, int]] = deque()  # by arrival, to give up on
        self._open: set[int] = set()
        self._plan = 0

    def arrive(self, number: int, work_s: float, now: float) -> None:
        self._advance(now)
        self._open.add(number)
        heappush(self._ends, (self._served_s + work_s, number))
        self._due.append((now + TIMEOUT_S, number))
        self._plan_next(now)

    def left(self, cores: float, now: float) -> None:
        """The antagonists leave it so many cores from now on."""
        self._advance(now)
        self._cores = cores
        self._plan_next(now)

    def _advance(self, now: float) -> None:
        if self._open:
            self._served_s += (now - self._at) * min(1.0, self._cores / len(self._open))
        self._at = now

    def _plan_next(self, now: float) -> None:
        self._plan += 1
        if self._open:
            remaining_s = max(self._ends[0][0] - self._served_s, 0.0) * max(1.0, len(self._open) / self._cores)
            self._heap.at(min(now + remaining_s, self._due[0][0]), self._next, self._plan)

    def _next(self, plan: int, now: float) -> None:
        if plan != self._plan:  # something came between
            return
        self._advance(now)
        if now >= self._due[0][0]:
            number, ok = self._due.popleft()[1], False
            self._ends = [end for end in self._ends if end[1] != number]
            heapify(self._ends)
        else:
            number, ok = heappop(self._ends)[1], True
        self._open.remove(number)
        while self._due and self._due[0][1] not in self._open:
            self._due.popleft()
        self._finished(self._name, number, now, ok)
        self._plan_next(now)


class Ramp:
    """The requests, their works and the antagonists of one seed, the same for every balancer."""

    def __init__(self, seed: int, step_s: float = STEP_S) -> None:
        random = np.random.default_rng(seeds(seed, 5)[0])
        loads = FIRST_LOAD * LOAD_FACTOR ** np.arange(STEPS)
        counts = random.poisson(loads * SERVERS * ALLOCATED / WORK_S * step_s)
        self.due = np.concatenate([np.sort(random.random(n) + step) * step_s for step, n in enumerate(counts.tolist())])
        self.steps = np.repeat(np.arange(STEPS), counts)
        normal = random.normal(1.0, 1.0, 2 * len(self.due) + 100)
        works = normal[normal > 0.0][: len(self.due)]
        self.works = works / works.mean() * WORK_S
        self.end_s = STEPS * step_s
        self.cores = [self._cores(random) for _ in range(SERVERS)]

    def _cores(self, random: np.random.Generator) -> list[tuple[float, float]]:
        """Of one machine: (instant, cores left)."""
        changes, at = [], 0.0
        while at < self.end_s + TIMEOUT_S:
            free = random.random() >= HOBBLED
            changes.append((at, float(random.uniform(ALLOCATED, MOST_CORES)) if free else ALLOCATED))
            at += float(random.exponential(ANTAGONIST_S))
        return changes


def simulate(name: str, ramp: Ramp, seed: int) -> Floats:
    """Latency in seconds of each request behind this balancer."""
    heap, balancer = Heap(), make_balancer(name, draw=uniform(seeds(seed, 6)[0]).__next__)
    latencies = np.zeros(len(ramp.due))
    due_at = ramp.due.tolist()
    in_flight: dict[str, int] = {}

    def finished(server: str, number: int, now: float, ok: bool) -> None:
        in_flight[server] -= 1
        latencies[number] = latency_s = min(now - due_at[number], TIMEOUT_S)
        balancer.observe(server, latency_s, ok=ok, now=now)

    servers = {}
    for number, changes in enumerate(ramp.cores):
        server = servers[f"server-{number}"] = Server(f"server-{number}", changes[0][1], heap, finished)
        for at, cores in changes[1:]:
            heap.at(at, server.left, cores)
    for server_name in servers:
        in_flight[server_name] = 0
        balancer.add(server_name, 0.0)
    names = list(servers)
    for number, (at, work_s) in enumerate(zip(due_at, ramp.works.tolist(), strict=True)):
        heap.run_until(at)
        chosen = balancer.choose(names, in_flight, at)
        in_flight[chosen] += 1
        servers[chosen].arrive(number, work_s, at)
    heap.run_until(ramp.end_s + 2 * TIMEOUT_S)
    assert not any(in_flight.values()), "every request ends, or is given up"
    return latencies


def run(seed: int, size: float = 1.0) -> Outcome:
    """All balancers; `size` scales the time of a step."""
    ramp = Ramp(seed, size * STEP_S)
    whole: dict[str, float] = {}
    checks: list[Check] = []
    for name, (band, last_band) in BANDS.items():
        latencies = simulate(name, ramp, seed)
        whole[name] = tail_ms(latencies)
        steps = [tail_ms(latencies[ramp.steps == step]) for step in range(STEPS)]
        note = "by step " + ", ".join(f"{value:.0f}" for value in steps)
        checks.append(_check(f"{name}: whole ramp", *band, whole[name], note=note))
        checks.append(_check(f"{name}: at 1.74", *last_band, steps[-1]))
    ratio = whole[ROUND_ROBIN] / whole[PREQUAL]
    claim = "round robin over Prequal, whole ramp"
    checks.append(_check(claim, LEAST_RATIO, np.inf, ratio, unit="", digits=1))
    return Outcome(checks, len(BANDS) * len(ramp.due))


def tail_ms(latencies: Floats) -> float:
    """The 99.9th percentile."""
    return 1e3 * float(np.quantile(latencies, QUANTILE))
