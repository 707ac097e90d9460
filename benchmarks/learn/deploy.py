"""Agents in a server, in virtual time: what becomes of challengers, and one agent for each model beside a central one.

A part of `python -m benchmarks.learn`. Agents join if `--folder` has agent-dqn or agent-ppo, trained.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from math import inf

import numpy as np
from msgspec import Struct

from benchmarks.harness.options import utc_now
from benchmarks.learn.central import Way, compare, ways
from benchmarks.learn.pareto import AGENTS, FIRST, agent
from dlproxy.lab.learn.agent.scenarios import randomised
from dlproxy.lab.learn.train import interval
from dlproxy.lab.simulate.engine import Call
from dlproxy.lab.simulate.scenario import Part, Scenario, Stage, calls
from dlproxy.policy.tuning.bandit import Bandit
from dlproxy.policy.tuning.climb import Climb
from dlproxy.policy.tuning.duel import Duel, Side
from dlproxy.policy.tuning.moves import MOVES, moved
from dlproxy.policy.tuning.protocol import KnobPolicy, Knobs, Proposal, Space
from dlproxy.policy.tuning.rules import Rules
from dlproxy.policy.tuning.window import Window

LONG_S, TURN_S = 2700.0, 90.0  # of a run, and of either load in it
ENDS = {"promotes": "promoted", "demotes": "turned down"}


class Random:
    """A policy that knows nothing: it proposes moves at random, as harmless."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        after = moved(knobs, MOVES[int(self._random.integers(len(MOVES)))], space, suiting=1)
        return None if after is None else Proposal(knobs=after, reason="by chance", harmless=True)

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        """Nothing."""


OTHERS: Mapping[str, Callable[[int], KnobPolicy]] = {
    "rules again": lambda seed: Rules(),
    "climb": lambda seed: Climb(),
    "bandit": lambda seed: Bandit(),
    "chance": Random,
}


class Fate(Struct):
    """Of a challenger of the rules. `missed`: share of the requests; `more`: than under the rules alone, of the same ones."""

    end: str
    minutes: float
    missed: float
    more: float


def measure(options: argparse.Namespace) -> str:
    """Runs it, and returns the page."""
    names = [*OTHERS, *[name for name in AGENTS if (options.folder / name / "seed-1" / "model.onnx").exists()]]
    fates: dict[str, list[Fate]] = {name: [] for name in names}
    for seed in range(1, options.seeds + 1):
        scenario = randomised(FIRST + 50 + seed)
        alone, _ = long_run(scenario, seed, Rules())
        for name in names:
            policy = agent(options.folder / name, seed) if name in AGENTS else OTHERS[name](seed)
            duel = Duel(Side("rules", Rules()), Side(name, policy))
            part, at = long_run(scenario, seed, duel)
            end = next((ENDS[one.kind] for one in duel.log if one.kind in ENDS), "undecided")
            fates[name].append(Fate(end, at / 60.0, part.missed, part.missed - alone.missed))
    return page(fates, [compare(seed) for seed in range(1, options.seeds + 1)])


def long_run(scenario: Scenario, seed: int, policy: KnobPolicy) -> tuple[Part, float]:
    """Both loads in turns for long: what was missed, and when a duel was decided."""
    part = Part()
    stage = Stage(scenario, seed, parts=[(0.0, inf, part)])
    stage.fly(policy, LONG_S)
    for turn in range(1, int(LONG_S / TURN_S)):
        stage.simulation.heap.at(turn * TURN_S, stage.become, turn % 2)
    stage.simulation.run(_in_turns(scenario, seed), drain_s=10.0)
    ends = [one.at for one in policy.log if one.kind in ENDS] if isinstance(policy, Duel) else []
    return part, ends[0] if ends else LONG_S


def _in_turns(scenario: Scenario, seed: int) -> Iterator[Call]:
    for turn in range(int(LONG_S / TURN_S)):
        for at_s, rows in calls(scenario, turn % 2, seed * 1000 + turn, 0.0, TURN_S):
            yield Call("m", rows, scenario.objective_s, turn * TURN_S + at_s)


def page(fates: Mapping[str, list[Fate]], shared: list[Mapping[Way, float]]) -> str:
    count = len(shared)
    lines = [
        "# Agents in a server",
        "",
        f"Measured {utc_now():%Y-%m-%d} in virtual time by `python -m benchmarks.learn --only deploy --seeds {count} --write`.",
        "",
        "## Challengers",
        "",
        f"Each challenges the rules on {count} random models for {LONG_S / 60.0:g} minutes, in which two loads take turns",
        f"every {TURN_S:g} s. `more`: the share of the requests that were missed beyond those that the rules alone miss of the",
        "same requests, which is what the challenge cost (mean and 95 % interval over the models). `chance` proposes moves at",
        "random, and says that they are harmless.",
        "",
        "| challenger | promoted | turned down | undecided | minutes | missed | more |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in fates.items():
        ends = [one.end for one in found]
        minutes, missed = sum([one.minutes for one in found]) / count, sum([one.missed for one in found]) / count
        more, half = interval([100.0 * one.more for one in found])
        counts = " | ".join(str(ends.count(end)) for end in ("promoted", "turned down", "undecided"))
        lines.append(f"| {name} | {counts} | {minutes:.0f} | {missed:.2%} | {more:+.2f} ± {half:.2f} % |")
    lines += [
        "",
        "## One agent for each model, or one for all",
        "",
        "Two models take turns on two cores. Each has a lane whose `max_batch` begins at 1, and a share of the cores. One",
        "agent for each model (the rules) turns its `max_batch`, and a coordinator the shares; or one central agent sees both",
        "models and turns all at once, in one trial. Both know the same: what batches cost, and how much comes. Of the",
        "requests, those that were answered in time, weighed:",
        "",
        "| | answers in time | beside one agent for each |",
        "|---|---|---|",
    ]
    for way in ways():
        mean, half = interval([100.0 * one[way] for one in shared])
        beside, beside_half = interval([100.0 * (one[way] - one["one for each"]) for one in shared])
        lines.append(f"| {way} | {mean:.1f} ± {half:.1f} % | {beside:+.1f} ± {beside_half:.1f} % |")
    return "\n".join([*lines, ""])
