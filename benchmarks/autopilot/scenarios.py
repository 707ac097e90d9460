"""Random scenarios: a model on a machine, an objective, a bad start, and a shift of the load or of the machine half-way.

Called by benchmarks/autopilot. Not aware of: what is compared.
"""

import numpy as np

from dlproxy.lab.simulate.scenario import Phase, Scenario, Static, ways
from dlproxy.policy.batching import SLO_SHARE

PHASE_S = 120.0
SETTLED_S, MEASURED_S = 60.0, 90.0  # of a phase: the autopilot shall have found its way, and is compared until then


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
