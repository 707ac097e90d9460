"""One scenario in virtual time: under the autopilot, without it, and under each static configuration.

Called by benchmarks/autopilot and benchmarks/learn. Not aware of: how scenarios are made, pages.
"""

from msgspec import Struct

from benchmarks.autopilot.scenarios import MEASURED_S, PHASE_S, SETTLED_S, statics
from dlproxy.lab.simulate.engine import Call
from dlproxy.lab.simulate.scenario import DRAIN_S, Part, Scenario, Stage, Static, both, calls
from dlproxy.policy.tuning.pilot import Decision, Pilot
from dlproxy.policy.tuning.protocol import KnobPolicy

WARM_S = 3.0  # before a static configuration is measured
LOOK_S = 5.0  # for which every static configuration is tried
FINALISTS = 6  # of them that are measured for the whole time


class Outcome(Struct):
    """Of one run: each phase as a whole, and when it has settled."""

    whole: tuple[Part, Part]
    settled: tuple[Part, Part]
    log: list[Decision]


def run_static(scenario: Scenario, static: Static, phase: int, seed: int, until_s: float = MEASURED_S) -> Part:
    """The part of a phase in which it has settled."""
    part = Part()
    stage = Stage(scenario, seed, start=static, phase=phase, parts=[(SETTLED_S, until_s, part)])
    found = calls(scenario, phase, seed, SETTLED_S - WARM_S, until_s)
    stage.simulation.run(Call("m", rows, scenario.objective_s, at_s) for at_s, rows in found)
    return part


def best_static(scenario: Scenario, phase: int, seed: int) -> tuple[Part, Static]:
    """By exhaustive search in two passes: all for a short time, the best of them for the whole."""
    looks = [(run_static(scenario, static, phase, seed, SETTLED_S + LOOK_S).good, static) for static in statics(scenario)]
    looks.sort(key=lambda one: -one[0])
    found = [(run_static(scenario, static, phase, seed), static) for _, static in looks[:FINALISTS]]
    return max(found, key=lambda one: one[0].good)


def run(
    scenario: Scenario,
    policy: KnobPolicy | None,
    seed: int,
    start: Static | None = None,
    pilot: type[Pilot] = Pilot,
) -> Outcome:
    """Both phases, one after the other. Without a policy all stays as it begins."""
    whole, settled = (Part(), Part()), (Part(), Part())
    bounds = [(0.0, PHASE_S, whole[0]), (SETTLED_S, MEASURED_S, settled[0])]
    bounds += [(PHASE_S, 2 * PHASE_S, whole[1]), (PHASE_S + SETTLED_S, PHASE_S + MEASURED_S, settled[1])]
    stage = Stage(scenario, seed, start=start, parts=bounds)
    flown = None if policy is None else stage.fly(policy, 2 * PHASE_S, pilot=pilot)[0]
    stage.shift_at(PHASE_S)
    stage.simulation.run(both(scenario, seed, PHASE_S), drain_s=DRAIN_S)
    return Outcome(whole, settled, [] if flown is None else list(flown.log))


def run_steady(scenario: Scenario, policy: KnobPolicy, seed: int, until: float) -> list[Decision]:
    """What it decides while the load stays that of the first phase."""
    stage = Stage(scenario, seed)
    pilot, _ = stage.fly(policy, until)
    stage.simulation.run(Call("m", rows, scenario.objective_s, at_s) for at_s, rows in calls(scenario, 0, seed, 0.0, until))
    return list(pilot.log)
