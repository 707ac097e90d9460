"""One scenario in virtual time: under the autopilot, without it, and under each static configuration.

Called by benchmarks/autopilot. Not aware of: how scenarios are made, pages.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from benchmarks.autopilot.scenarios import MEASURED_S, PHASE_S, SETTLED_S, Scenario, Static, calls, statics, ways
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.autopilot import SimulatedPilot, Telemetry, Ways
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.machine import Machine
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.tuning.pilot import Decision, Pilot
from dlproxy.policy.tuning.protocol import KnobPolicy, Space

START_S = 0.5  # of instances that run in another way
WARM_S = 3.0  # before a static configuration is measured
MOST_BATCH = 256
LOOK_S = 5.0  # for which every static configuration is tried
FINALISTS = 6  # of them that are measured for the whole time


class Part(Struct):
    """Requests of a stretch of time: those that came, and those that were answered in time."""

    sent: int = 0
    good: int = 0

    @property
    def missed(self) -> float:
        return 1.0 - self.good / max(self.sent, 1)


class Outcome(Struct):
    """Of one run: each phase as a whole, and when it has settled."""

    whole: tuple[Part, Part]
    settled: tuple[Part, Part]
    log: list[Decision]


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


def _build(
    scenario: Scenario, seed: int, simulation: Simulation, first: Static, phase: int
) -> tuple[SimulatedModel, Ways, Machine]:
    knobs = LaneKnobs(max_batch=min(first[2], MOST_BATCH), max_wait_s=first[3], slo_s=scenario.objective_s)
    prior = [(rows, scenario.base_s + scenario.row_s * rows) for rows in (1, 64)]
    times = Fitted(scenario.base_s, scenario.row_s, cv=scenario.cv, seed=seed)
    model = SimulatedModel("m", Lane(knobs, prior), times, [])
    node = simulation.add("node-0", [model])
    machine = Machine(scenario.phases[phase].cores)
    found = Ways(node, model, times, machine)
    found.slow_down(scenario.phases[phase].slow)
    found.run(first[0], first[1], 0.0)
    return model, found, machine


def run_static(scenario: Scenario, static: Static, phase: int, seed: int, until_s: float = MEASURED_S) -> Part:
    """The part of a phase in which it has settled."""
    part = Part()
    simulation = _Counted(scenario, [(SETTLED_S, until_s, part)])
    _build(scenario, seed, simulation, static, phase)
    objective_s = scenario.objective_s
    found = calls(scenario, phase, seed, SETTLED_S - WARM_S, until_s)
    simulation.run(Call("m", rows, objective_s, at_s) for at_s, rows in found)
    return part


def best_static(scenario: Scenario, phase: int, seed: int) -> tuple[Part, Static]:
    """By exhaustive search in two passes: all for a short time, the best of them for the whole."""
    looks = [(run_static(scenario, static, phase, seed, SETTLED_S + LOOK_S).good, static) for static in statics(scenario)]
    looks.sort(key=lambda one: -one[0])
    found = [(run_static(scenario, static, phase, seed), static) for _, static in looks[:FINALISTS]]
    return max(found, key=lambda one: one[0].good)


def run(scenario: Scenario, policy: KnobPolicy | None, seed: int, start: Static | None = None) -> Outcome:
    """Both phases, one after the other. Without a policy all stays as it begins."""
    whole, settled = (Part(), Part()), (Part(), Part())
    bounds = [(0.0, PHASE_S, whole[0]), (SETTLED_S, MEASURED_S, settled[0])]
    bounds += [(PHASE_S, 2 * PHASE_S, whole[1]), (PHASE_S + SETTLED_S, PHASE_S + MEASURED_S, settled[1])]
    simulation = _Counted(scenario, bounds)
    first = start or scenario.start
    model, found, machine = _build(scenario, seed, simulation, first, 0)
    pilot = None if policy is None else _fly(scenario, policy, simulation, model, found, first, 2 * PHASE_S)

    def shift(_: None, now: float) -> None:
        found.slow_down(scenario.phases[1].slow)
        machine.cores = scenario.phases[1].cores

    simulation.heap.at(PHASE_S, shift, None)
    simulation.run(_both(scenario, seed), drain_s=10.0)
    return Outcome(whole, settled, [] if pilot is None else list(pilot.log))


def run_steady(scenario: Scenario, policy: KnobPolicy, seed: int, until: float) -> list[Decision]:
    """What it decides while the load stays that of the first phase."""
    simulation = _Counted(scenario, [])
    model, found, _ = _build(scenario, seed, simulation, scenario.start, 0)
    pilot = _fly(scenario, policy, simulation, model, found, scenario.start, until)
    simulation.run(Call("m", rows, scenario.objective_s, at_s) for at_s, rows in calls(scenario, 0, seed, 0.0, until))
    return list(pilot.log)


def _fly(
    scenario: Scenario,
    policy: KnobPolicy,
    simulation: Simulation,
    model: SimulatedModel,
    found: Ways,
    first: Static,
    until: float,
) -> Pilot:
    knobs = {
        "max_batch": min(first[2], MOST_BATCH),
        "max_wait_s": first[3],
        "instances": first[0],
        "threads": first[1],
        "discipline": "edf",
    }
    space = Space(
        cores=scenario.cores, max_batch=MOST_BATCH, ways=tuple(ways(scenario.cores)), objective_s=scenario.objective_s
    )
    pilot = Pilot(policy, space, knobs, 0.0)
    telemetry = model.hears = Telemetry(scenario.objective_s)
    SimulatedPilot(simulation.nodes["node-0"], model, found, pilot, telemetry, start_s=START_S, until=until)
    return pilot


def _both(scenario: Scenario, seed: int) -> Iterator[Call]:
    for phase in (0, 1):
        for at_s, rows in calls(scenario, phase, seed, 0.0, PHASE_S):
            yield Call("m", rows, scenario.objective_s, phase * PHASE_S + at_s)
