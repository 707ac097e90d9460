"""What an agent is trained on: random models, machines, loads, bad starts and shifts, and all that a simulator may have wrong.

Called by environment.py. Not aware of: agents.
"""

from collections.abc import Callable

import numpy as np

from dlproxy.lab.simulate.machine import PARALLEL
from dlproxy.lab.simulate.scenario import Phase, Scenario, Static
from dlproxy.policy.batching import SLO_SHARE

MOST_RATE = 120.0  # requests per second: a model as slow as that shows the same in less time, as features have no scale
TRAINING = 0x7A1  # of the random numbers: no benchmark's scenario is among them

Draw = Callable[[int], Scenario]
"""The scenario of a number."""


def randomised(number: int) -> Scenario:
    """All that a live server may do otherwise than the simulator varies too: the times' spread, what threads bring, starts.

    A simulated p99 is within 15 % of the server's, the machine itself within 21 % of its own a minute later
    (docs/internals/fidelity.md): so batch times vary by 5 to 35 %, and by up to 21 % from what was promised.
    """
    random = np.random.default_rng((TRAINING, number))
    drift = float(random.uniform(0.79, 1.21))
    return _scenario(
        number,
        random,
        cv=float(random.uniform(0.05, 0.35)),
        parallel=float(random.uniform(0.4, 0.95)),
        start_s=float(random.uniform(0.2, 3.0)),
        drift=drift,
    )


def plain(number: int) -> Scenario:
    """The same models and loads on the one machine that the simulator assumes: what randomisation is compared with."""
    return _scenario(number, np.random.default_rng((TRAINING, number)), cv=0.1, parallel=PARALLEL, start_s=0.5, drift=1.0)


def _scenario(
    number: int, random: np.random.Generator, *, cv: float, parallel: float, start_s: float, drift: float
) -> Scenario:
    cores = int(random.choice([2, 4]))
    single_s = float(np.exp(random.uniform(np.log(0.003), np.log(0.03))))
    fixed = float(random.uniform(0.1, 0.95))  # of a single row's time
    objectives = float(np.exp(random.uniform(np.log(4.0), np.log(20.0))))
    load = float(random.uniform(0.15, 0.9))
    batch = max(min(int((SLO_SHARE * objectives - fixed) / (1.0 - fixed)), 256), 1)
    capacity = cores * batch / (fixed + (1.0 - fixed) * batch)  # in rows per time of a single one
    shift = str(random.choice(["more", "bursts", "large requests", "slower", "a core less", "less"]))
    peak = load * (3.0 if shift == "more" else 1.0) * capacity
    single_s = max(single_s, min(peak, capacity) / MOST_RATE)
    rate = load * capacity / single_s
    first = Phase(rate, str(random.choice(["poisson", "poisson", "gamma:cv=2"])), 0.0, drift, cores)
    second = {
        "more": Phase(float(random.uniform(1.5, 3.0)) * rate, "poisson", 0.0, drift, cores),
        "bursts": Phase(rate, f"gamma:cv={random.uniform(3.0, 6.0):.2f}", 0.0, drift, cores),
        "large requests": Phase(rate / 2.0, "poisson", float(random.uniform(0.1, 0.4)), drift, cores),
        "slower": Phase(rate, "poisson", 0.0, drift * float(random.uniform(1.3, 2.5)), cores),
        "a core less": Phase(rate, "poisson", 0.0, drift, cores - 1),
        "less": Phase(rate / 3.0, "poisson", 0.0, drift, cores),
    }[shift]
    starts: list[Static] = [(1, 1, 1, 0.0), (1, 1, 512, 0.0), (1, 1, 256, 0.05), (1, cores, 1, 0.05), (cores, 1, 256, 0.0)]
    start = starts[int(random.integers(len(starts)))]
    row_s, base_s = single_s * (1.0 - fixed), single_s * fixed
    return Scenario(
        number, base_s, row_s, cv, single_s * objectives, start, shift, (first, second), parallel=parallel, start_s=start_s
    )
