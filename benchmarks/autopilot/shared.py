"""Models of unequal weight and objective on two cores, and a third that comes later: turned shares beside every static split.

Called by benchmarks/autopilot. Not aware of: pages.
"""

from collections.abc import Callable, Iterator, Mapping
from heapq import merge
from itertools import product

import numpy as np
from msgspec import Struct

from benchmarks.autopilot.scenarios import MEASURED_S, PHASE_S, SETTLED_S
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.autopilot import SimulatedShares, Telemetry
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.tuning.pilot import Decision

CORES = 2
WARM_S = 3.0
SPLITS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98)
THIRDS = (0.02, 0.1, 0.25, 0.5, 0.75)


class Shared(Struct, frozen=True):
    """One model: `weight` of its answers; the third of three comes with the second phase."""

    name: str
    base_s: float
    row_s: float
    objective_s: float
    rate: float
    weight: float


class Outcome(Struct):
    """Sum of the weights of answers in time, in each phase once it has settled; `log`: of the shares."""

    good: list[float]
    offered: list[float]
    log: list[Decision]


def make(number: int, seed: int) -> list[Shared]:
    """Three models which together want 0.7 to 1.6 times what two cores give, the first two 0.6 to 1.4."""
    random = np.random.default_rng((seed, number, 7))
    models = []
    shares = random.dirichlet([2.0, 2.0]) * random.uniform(0.6, 1.4)
    for place, share in enumerate([*shares.tolist(), random.uniform(0.1, 0.5)]):
        single_s = float(np.exp(random.uniform(np.log(0.003), np.log(0.02))))
        fixed = random.uniform(0.1, 0.9)
        base_s, row_s, objective_s = single_s * fixed, single_s * (1.0 - fixed), single_s * random.uniform(6.0, 20.0)
        batch = max(min(int((0.46 * objective_s - base_s) / row_s), 256), 1)
        rate = share * CORES * batch / (base_s + row_s * batch)
        models.append(Shared("abc"[place], base_s, row_s, objective_s, rate, float(random.choice([1.0, 2.0, 5.0]))))
    return models


def in_words(models: list[Shared]) -> str:
    return "; ".join(
        [
            f"{model.name}: L(b) = {model.base_s * 1e3:.3g} + {model.row_s * 1e3:.3g} b ms, "
            f"p99 = {model.objective_s * 1e3:.3g} ms, {model.rate:.0f}/s, weight {model.weight:g}"
            for model in models
        ]
    )


def splits(models: int) -> list[tuple[float, ...]]:
    """Static shares, 1 in all."""
    if models == 2:
        return [(share, 1.0 - share) for share in SPLITS]
    found = [(one, two, 1.0 - one - two) for one, two in product(THIRDS, THIRDS)]
    return [split for split in found if split[2] > 0.0]


def run(models: list[Shared], seed: int, split: tuple[float, ...] | None = None, phase: int | None = None) -> Outcome:
    """Without a split the shares are turned. With a phase only that one, once it has settled."""
    outcome = Outcome([0.0, 0.0], [0.0, 0.0], [])
    simulation = Weighed(models, outcome)
    simulated = [_model(model, seed) for model in models]
    node = simulation.add("node-0", simulated, arbiter=Arbiter({"cores": CORES}))
    until = 2 * PHASE_S
    if split is None:
        telemetries = {model.name: Telemetry(model.objective_s) for model in models}
        for model in simulated:
            model.hears = telemetries[model.name]
        weights = {model.name: model.weight for model in models}
        scaler = SimulatedShares(node, telemetries, weights, CORES, until=until)
        simulation.run(_calls(models, seed, (0, 1)), drain_s=10.0)
        outcome.log = list(scaler.shared.pilot.log)
        return outcome
    for model, share in zip(simulated, split, strict=False):
        assert model.taker is not None
        model.taker.weight = share
    assert phase is not None
    simulation.run(_calls(models, seed, (phase,), SETTLED_S - WARM_S, MEASURED_S), drain_s=10.0)
    return outcome


def best_split(models: list[Shared], phase: int, seed: int) -> tuple[float, tuple[float, ...]]:
    """The sum of weighed answers of the best static split of a phase, and the split."""
    found = [(run(models, seed, split, phase).good[phase], split) for split in splits(2 + phase)]
    return max(found)


def _model(model: Shared, seed: int) -> SimulatedModel:
    knobs = LaneKnobs(slo_s=model.objective_s, arbitrated=True)
    prior = [(rows, model.base_s + model.row_s * rows) for rows in (1, 64)]
    times = Fitted(model.base_s, model.row_s, cv=0.1, seed=seed)
    names = [f"{model.name}-{number}" for number in range(CORES)]
    return SimulatedModel(model.name, Lane(knobs, prior), times, names, needs={"cores": 1.0})


def _calls(
    models: list[Shared], seed: int, phases: tuple[int, ...], since_s: float = 0.0, until_s: float = PHASE_S
) -> Iterator[Call]:
    for phase in phases:
        present = models[: 2 + phase]
        streams = [_stream(model, seed * 100 + phase * 10 + place, since_s, until_s) for place, model in enumerate(present)]
        for at_s, name, objective_s in merge(*streams):
            yield Call(name, 1, objective_s, phase * PHASE_S + at_s)


def _stream(model: Shared, seed: int, since_s: float, until_s: float) -> Iterator[tuple[float, str, float]]:
    for chunk in make_arrivals("poisson", rate=model.rate, seed=seed).chunks(until_s):
        for at_s in chunk.tolist():
            if at_s >= since_s:
                yield at_s, model.name, model.objective_s


def settled_phase(due_at: float) -> int | None:
    """None before it has settled, and after it is measured."""
    phase, at_s = divmod(due_at, PHASE_S)
    return int(phase) if SETTLED_S <= at_s < MEASURED_S else None


class Weighed(Simulation):
    """Counts the weight of what is answered in time, by `phase_of` the instants when requests were due; None: not at all."""

    def __init__(self, models: list[Shared], outcome: Outcome, phase_of: Callable[[float], int | None] = settled_phase) -> None:
        super().__init__(Tally(0.0, 1e9, 1.0), balancer=make_balancer("round-robin"))
        self._phase_of = phase_of
        self._models: Mapping[str, Shared] = {model.name: model for model in models}
        self._outcome = outcome
        self._asked: dict[int, str] = {}

    def send(self, call: Call, now: float) -> None:
        self._asked[self._count + 1] = call.model
        super().send(call, now)

    def _finished(self, number: int, failure: object, now: float) -> None:
        due_at, _ = self._open.pop(number)
        model = self._models[self._asked.pop(number)]
        phase = self._phase_of(due_at)
        if phase is not None:
            self._outcome.offered[phase] += model.weight
            if failure is None and now - due_at <= model.objective_s:
                self._outcome.good[phase] += model.weight
