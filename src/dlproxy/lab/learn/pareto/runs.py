"""One simulated model under a policy of knobs that aims here or there, or under a configuration that stays as it is.

Used by search.py and benchmarks/learn/pareto.py. Not aware of: fronts.
"""

from typing import Any

from msgspec import Struct, structs

from dlproxy.lab.learn.pareto.front import Point
from dlproxy.lab.simulate.autopilot import SimulatedPilot
from dlproxy.lab.simulate.scenario import DRAIN_S, Scenario, Stage, Static, both
from dlproxy.policy.tuning.protocol import KnobPolicy, Knobs, Proposal, Space, cores_of
from dlproxy.policy.tuning.window import Window

LONGEST = 4.0  # objectives: a longer p99 counts as this
REFERENCE = (1.0, LONGEST, 1.0)
NAMES = ("missed or late", "p99 in objectives", "cores")


class Aim(Struct, frozen=True):
    """What a policy is told to want: the objective times `sooner`, and what else matters."""

    sooner: float
    prefers: str


AIMS = tuple(Aim(sooner, prefers) for prefers in ("", "cores") for sooner in (1.0, 0.7, 0.5, 0.35))


class _Counted(SimulatedPilot):
    """Adds up what was seen and what it took."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[tuple[Window, int]] = []

    def told(self, window: Window, now: float) -> None:
        self.seen.append((window, cores_of(self._pilot.holding)))
        super().told(window, now)


class _Still:
    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        return None

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        """Nothing comes of nothing."""


def outcome(scenario: Scenario, policy: KnobPolicy | Static, seed: int, *, phase_s: float, aim: Aim = AIMS[0]) -> Point:
    """Share of the requests that were refused or later than the objective, mean p99 of half a second in objectives, and part of
    the cores. The objective is the scenario's, whatever the policy aims at: by its windows' latencies it is the policy's own.
    """
    told = structs.replace(scenario, objective_s=scenario.objective_s * aim.sooner, prefers=aim.prefers)
    static = policy if isinstance(policy, tuple) else None
    stage = Stage(scenario, seed, start=static)
    stage.scenario = told  # of which its space and telemetry are made; requests have the scenario's objective
    _, host = stage.fly(_Still() if isinstance(policy, tuple) else policy, 2.0 * phase_s, _Counted)
    stage.shift_at(phase_s)
    latencies = stage.model.hears = _Latencies(stage.model.hears, scenario.objective_s)
    stage.simulation.run(both(scenario, seed, phase_s), drain_s=DRAIN_S)
    assert isinstance(host, _Counted)
    seconds = sum([window.seconds for window, _ in host.seen])
    p99 = sum([min(window.p99_s / scenario.objective_s, LONGEST) * window.seconds for window, _ in host.seen]) / seconds
    cores = sum([cores * window.seconds for window, cores in host.seen]) / seconds / scenario.cores
    return 1.0 - latencies.good / max(latencies.sent, 1), p99, min(cores, 1.0)


class _Latencies:
    """Counts by the scenario's own objective what another one hears, too."""

    def __init__(self, hears: Any, objective_s: float) -> None:
        self._hears = hears
        self._objective_s = objective_s
        self.sent = self.good = 0

    def arrived(self, now: float) -> None:
        self.sent += 1
        self._hears.arrived(now)

    def batch(self, rows: int, seconds: float) -> None:
        self._hears.batch(rows, seconds)

    def ended(self, ticket: Any, failure: Any, now: float) -> None:
        self.good += failure is None and now - ticket.arrived_at <= self._objective_s
        self._hears.ended(ticket, failure, now)
