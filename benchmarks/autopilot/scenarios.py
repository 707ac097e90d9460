"""Random scenarios: a model on a machine, an objective, a bad start, and a shift of the load or of the machine half-way.

Called by benchmarks/autopilot. Not aware of: what is compared.
"""

from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.policy.batching import SLO_SHARE

PHASE_S = 120.0
SETTLED_S, MEASURED_S = 60.0, 90.0  # of a phase: the autopilot shall have found its way, and is compared until then

Static = tuple[int, int, int, float]
"""Instances, threads of each, max_batch and max_wait_s."""


class Phase(Struct, frozen=True):
    """How things are for a while. `heavy`: share of requests with eight rows instead of one. `slow`: times of every batch."""

    rate: float
    arrivals: str
    heavy: float
    slow: float
    cores: int


class Scenario(Struct, frozen=True):
    """`base_s`, `row_s`: of a batch on one thread; `start`: what it begins with."""

    number: int
    base_s: float
    row_s: float
    cv: float
    objective_s: float
    start: Static
    shift: str
    phases: tuple[Phase, Phase]

    @property
    def cores(self) -> int:
        return self.phases[0].cores

    def words(self) -> str:
        first, second = self.phases
        return (
            f"#{self.number}: L(b) = {self.base_s * 1e3:.3g} + {self.row_s * 1e3:.3g} b ms on {first.cores} cores, "
            f"p99 = {self.objective_s * 1e3:.3g} ms, {first.rate:.0f}/s {first.arrivals}, then {self.shift} "
            f"({second.rate:.0f}/s), from {self.start}"
        )


def ways(cores: int) -> list[tuple[int, int]]:
    """(instances, threads) that fit."""
    sizes = [size for size in (1, 2, 4, 8) if size <= cores]
    return [(instances, threads) for threads in sizes for instances in sizes if instances * threads <= cores]


def statics(scenario: Scenario) -> list[Static]:
    """All that are compared."""
    return [(*way, batch, wait_s) for way in ways(scenario.cores) for batch in (1, 4, 16, 256) for wait_s in (0.0, 0.005)]


def make(number: int, seed: int) -> Scenario:
    """The scenario of this number."""
    random = np.random.default_rng((seed, number))
    cores = int(random.choice([2, 4]))
    single_s = float(np.exp(random.uniform(np.log(0.003), np.log(0.03))))
    fixed = random.uniform(0.1, 0.95)  # of a single row's time
    base_s, row_s = single_s * fixed, single_s * (1.0 - fixed)
    objective_s = single_s * float(np.exp(random.uniform(np.log(4.0), np.log(20.0))))
    batch = max(min(int((SLO_SHARE * objective_s - base_s) / row_s), 256), 1)
    capacity = cores * batch / (base_s + row_s * batch)
    rate = capacity * random.uniform(0.15, 0.75)
    shift = str(random.choice(["3 x the load", "bursts", "large requests", "a model twice as slow", "a core less"]))
    first = Phase(rate, "poisson", 0.0, 1.0, cores)
    second = {
        "3 x the load": Phase(3.0 * rate, "poisson", 0.0, 1.0, cores),
        "bursts": Phase(rate, "gamma:cv=4.5", 0.0, 1.0, cores),
        "large requests": Phase(rate / 2.0, "poisson", 0.25, 1.0, cores),
        "a model twice as slow": Phase(rate, "poisson", 0.0, 2.0, cores),
        "a core less": Phase(rate, "poisson", 0.0, 1.0, cores - 1),
    }[shift]
    starts: list[Static] = [(1, 1, 1, 0.0), (1, 1, 512, 0.0), (1, 1, 256, 0.05), (1, cores, 1, 0.05), (cores, 1, 256, 0.0)]
    start = starts[int(random.integers(len(starts)))]
    return Scenario(number, base_s, row_s, 0.1, objective_s, start, shift, (first, second))


def calls(scenario: Scenario, phase: int, seed: int, since_s: float, until_s: float) -> Iterator[tuple[float, int]]:
    """(when it is due from the phase's beginning, rows) of every request in a part of a phase."""
    kind = scenario.phases[phase]
    random = np.random.default_rng((seed, scenario.number, phase, 1))
    for chunk in make_arrivals(kind.arrivals, rate=kind.rate, seed=seed * 1000 + phase).chunks(until_s):
        rows = np.where(random.random(chunk.size) < kind.heavy, 8, 1)
        for at_s, number in zip(chunk.tolist(), rows.tolist(), strict=True):
            if at_s >= since_s:
                yield at_s, number
