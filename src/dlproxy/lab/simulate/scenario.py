"""A model on a machine with an objective, a start, and a shift half-way: what the autopilot and learnt policies are tried on.

Called by benchmarks/autopilot and lab/learn/agent, which make scenarios. Not aware of: which there are, what is compared.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from msgspec import Struct

from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.autopilot import SimulatedPilot, Telemetry, Ways
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.machine import PARALLEL, Machine
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.tuning.pilot import Pilot
from dlproxy.policy.tuning.protocol import KnobPolicy, Knobs, Space

MOST_BATCH = 256
DRAIN_S = 10.0

Static = tuple[int, int, int, float]
"""Instances, threads of each, max_batch and max_wait_s."""


class Phase(Struct, frozen=True):
    """How things are for a while. `heavy`: share of requests with eight rows instead of one. `slow`: times of every batch."""

    rate: float
    arrivals: str
    heavy: float
    slow: float
    cores: int


class Scenario(Struct, frozen=True, omit_defaults=True):
    """`base_s`, `row_s`: of a batch on one thread, of variation `cv`; `start`: what it begins with; `parallel`: part of a batch
    that threads share; `start_s`: that instances take to start. `prefers` as in Space.
    """

    number: int
    base_s: float
    row_s: float
    cv: float
    objective_s: float
    start: Static
    shift: str
    phases: tuple[Phase, Phase]
    parallel: float = PARALLEL
    start_s: float = 0.5
    prefers: str = ""

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


def calls(scenario: Scenario, phase: int, seed: int, since_s: float, until_s: float) -> Iterator[tuple[float, int]]:
    """(when it is due from the phase's beginning, rows) of every request in a part of a phase."""
    kind = scenario.phases[phase]
    random = np.random.default_rng((seed, scenario.number, phase, 1))
    for chunk in make_arrivals(kind.arrivals, rate=kind.rate, seed=seed * 1000 + phase).chunks(until_s):
        rows = np.where(random.random(chunk.size) < kind.heavy, 8, 1)
        for at_s, number in zip(chunk.tolist(), rows.tolist(), strict=True):
            if at_s >= since_s:
                yield at_s, number


def both(scenario: Scenario, seed: int, phase_s: float) -> Iterator[Call]:
    """The requests of the first phase, then those of the second, each of so many seconds."""
    for phase in (0, 1):
        for at_s, rows in calls(scenario, phase, seed, 0.0, phase_s):
            yield Call("m", rows, scenario.objective_s, phase * phase_s + at_s)


class Part(Struct):
    """Requests of a stretch of time: those that came, and those that were answered in time."""

    sent: int = 0
    good: int = 0

    @property
    def missed(self) -> float:
        return 1.0 - self.good / max(self.sent, 1)


class _Counted(Simulation):
    """Counts by the instant when requests were due."""

    def __init__(self, scenario: Scenario, parts: Iterable[tuple[float, float, Part]]) -> None:
        super().__init__(Tally(0.0, 1e9, scenario.objective_s), balancer=make_balancer("round-robin"))
        self._objective_s = scenario.objective_s
        self._parts = list(parts)

    def _finished(self, number: int, failure: object, now: float) -> None:
        due_at, _ = self._open.pop(number)
        good = failure is None and now - due_at <= self._objective_s
        for since, until, part in self._parts:
            if since <= due_at < until:
                part.sent += 1
                part.good += good


class Stage:
    """A scenario set up: its simulation, its model and how that runs. `parts`: (since, until, what is counted then)."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        start: Static | None = None,
        phase: int = 0,
        parts: Iterable[tuple[float, float, Part]] = (),
    ) -> None:
        self.scenario = scenario
        self._first = start or scenario.start
        self.simulation = _Counted(scenario, parts)
        instances, threads, rows, wait_s = self._first
        knobs = LaneKnobs(max_batch=min(rows, MOST_BATCH), max_wait_s=wait_s, slo_s=scenario.objective_s)
        prior = [(size, scenario.base_s + scenario.row_s * size) for size in (1, 64)]
        times = Fitted(scenario.base_s, scenario.row_s, cv=scenario.cv, seed=seed)
        self.model = SimulatedModel("m", Lane(knobs, prior), times, [])
        self.node = self.simulation.add("node-0", [self.model])
        self._machine = Machine(scenario.phases[phase].cores, scenario.parallel)
        self.ways = Ways(self.node, self.model, times, self._machine)
        self.ways.slow_down(scenario.phases[phase].slow)
        self.ways.run(instances, threads, 0.0)

    def shift_at(self, instant: float) -> None:
        """From then on the machine is that of the second phase."""

        self.simulation.heap.at(instant, self.become, 1)

    def become(self, phase: int, now: float) -> None:
        """The machine is that of this phase from now on."""
        self.ways.slow_down(self.scenario.phases[phase].slow)
        self._machine.cores = float(self.scenario.phases[phase].cores)

    @property
    def knobs(self) -> Knobs:
        """That it begins with."""
        instances, threads, rows, wait_s = self._first
        return {
            "max_batch": min(rows, MOST_BATCH),
            "max_wait_s": wait_s,
            "instances": instances,
            "threads": threads,
            "discipline": "edf",
        }

    @property
    def space(self) -> Space:
        scenario = self.scenario
        found = tuple(ways(scenario.cores))
        return Space(
            cores=scenario.cores,
            max_batch=MOST_BATCH,
            ways=found,
            objective_s=scenario.objective_s,
            prefers=scenario.prefers,
        )

    def fly(
        self,
        policy: KnobPolicy,
        until: float,
        host: type[SimulatedPilot] = SimulatedPilot,
        pilot: type[Pilot] = Pilot,
    ) -> tuple[Pilot, SimulatedPilot]:
        """Under this policy from now on, behind the production pilot or another."""
        flown = pilot(policy, self.space, self.knobs, 0.0)
        telemetry = self.model.hears = Telemetry(self.scenario.objective_s)
        return flown, host(self.node, self.model, self.ways, flown, telemetry, start_s=self.scenario.start_s, until=until)
