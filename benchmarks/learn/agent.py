"""The agent: how near it comes to an optimum that is known, and how it does beside the rules on scenarios that it never saw.

A part of benchmarks/learn. What was trained and simulated before is taken from `--folder`; trained/ keeps it, seed by seed.
"""

import argparse
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import onnxruntime
from msgspec import Struct, structs

from benchmarks.autopilot.runs import run
from benchmarks.autopilot.scenarios import make
from dlproxy.lab.learn.experiment import Experiment, find
from dlproxy.lab.learn.train import Result, train
from dlproxy.policy.tuning.agent import Agent, Scores
from dlproxy.policy.tuning.pilot import RECENT_S, Order, Pilot
from dlproxy.policy.tuning.rules import Rules
from dlproxy.policy.tuning.window import Window, joined

SEED = 2  # of the scenarios: those of seed 1 are what the rules were made on
SCENARIOS = 200
ENOUGH, LEAST = 0.8, 0.95  # share of scenarios in which it must be no worse than the rules, and the least ratio in any
AGENTS = ("agent-dqn", "agent-ppo")
ABLATIONS: dict[str, dict[str, Any]] = {
    "agent-dqn": {},
    "without randomisation": {"randomised": False},
    "without the performance model": {"start": "rules"},
    "without either, from nothing": {"start": "none", "randomised": False},
    "without the rules' advice": {"advised": False, "start": "none"},
}


class Beside(Struct):
    """One scenario: answers in time in all, under the rules and under an agent."""

    number: int
    words: str
    rules: int
    agent: int

    @property
    def ratio(self) -> float:
        return self.agent / max(self.rules, 1)


class Unguarded(Pilot):
    """Turns whatever is proposed at once, and never back: what the guard rails are worth."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._seen: deque[Window] = deque()

    def look(self, window: Window, now: float) -> Order | None:
        self._seen.append(window)
        while self._seen[0].at <= now - RECENT_S:
            self._seen.popleft()
        proposal = self._policy.act(joined(self._seen), self.knobs, self.space, now)
        if proposal is None or not self.space.allows(proposal.knobs, self.knobs):
            return None
        self.knobs = dict(proposal.knobs)
        self._seen.clear()
        return Order("finish", self.knobs)


def scores_in(path: Path) -> Scores:
    """Those of an exported network."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)

    def scores(state: tuple[float, ...]) -> Sequence[float]:
        (found,) = session.run(["scores"], {"state": np.array([state], np.float32)})
        return [float(score) for score in found[0]]

    return scores


def good(number: int, network: Path | None, pilot: type[Pilot] = Pilot) -> int:
    """Answers in time in the scenario of this number, under the rules if there is no network."""
    outcome = run(make(number, SEED), Rules() if network is None else Agent(scores_in(network)), SEED, pilot=pilot)
    return sum([part.good for part in outcome.whole])


def all_good(options: argparse.Namespace, name: str, network: Path | None, pilot: type[Pilot] = Pilot) -> list[int]:
    """Of every scenario; what was simulated before is in the folder."""
    kept = options.folder / f"good-{name}-{SEED}.json"
    stamp = 0 if network is None else crc32(network.read_bytes())
    if kept.exists():
        before, found = msgspec.json.decode(kept.read_bytes(), type=tuple[int, list[int]])
        if before == stamp and len(found) >= options.scenarios:
            return found[: options.scenarios]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(pool.map(partial(good, network=network, pilot=pilot), range(1, options.scenarios + 1)))
    kept.write_bytes(msgspec.json.encode((stamp, found)))
    return found


def beside(rules: Sequence[int], agent: Sequence[int]) -> list[Beside]:
    return [
        Beside(number, make(number, SEED).words(), one, other)
        for number, (one, other) in enumerate(zip(rules, agent, strict=True), 1)
    ]


def row(name: str, found: Sequence[Beside]) -> str:
    ratios = [one.ratio for one in found]
    no_worse, ties = sum([ratio >= 1.0 for ratio in ratios]), sum([ratio == 1.0 for ratio in ratios])
    bad = sum([ratio < LEAST for ratio in ratios])
    total = sum([one.agent for one in found]) / max(sum([one.rules for one in found]), 1)
    counts = f"{no_worse / len(found):.1%} | {ties} | {bad}"
    return f"| {name} | {counts} | {min(ratios):.3f} | {median(ratios):.4f} | {max(ratios):.3f} | {total:.4f} |"


def is_better(found: Sequence[Beside]) -> bool:
    """Whether it may take the rules' place."""
    ratios = [one.ratio for one in found]
    return sum([ratio >= 1.0 for ratio in ratios]) >= ENOUGH * len(ratios) and min(ratios) >= LEAST


def differing(found: Sequence[Beside], most: int = 10) -> str:
    """Where it did better and worse, the most of each."""
    ordered = sorted([one for one in found if one.ratio != 1.0], key=lambda one: one.ratio)
    shown = ordered if len(ordered) <= 2 * most else [*ordered[:most], *ordered[-most:]]
    return "\n".join([f"- {one.ratio:.3f} {one.words}" for one in shown]) or "Nowhere: it did as the rules did."


def trained(options: argparse.Namespace, experiment: Experiment) -> Result:
    experiment = structs.replace(experiment, seeds=options.seeds)
    return train(experiment, options.folder / experiment.name, threads=1, tell=lambda text: print(text, flush=True))


def figures(result: Result, *names: str) -> str:
    found = result.figures()
    return " | ".join([f"{found[name][0]:.3f} ± {found[name][1]:.3f}" for name in names])


def measure(options: argparse.Namespace) -> str:
    """The page."""
    options.scenarios = getattr(options, "scenarios", SCENARIOS)
    options.folder.mkdir(parents=True, exist_ok=True)
    optimum = []
    for name in ("batching-dqn", "batching-ppo"):
        result = trained(options, find(name))
        worst = min([one.figures["worst"] for one in result.runs])
        shown = figures(result, "of_optimum", "seen_of_optimum", "at_once")
        optimum.append(f"| {name} | {shown} | {worst:.3f} | {result.runs[0].figures['at_once_worst']:.3f} |")
    ablated = []
    for name, changed in ABLATIONS.items():
        base = find("agent-dqn")
        known = base if not changed else structs.replace(base, name=name.replace(" ", "-").replace(",", ""))
        result = trained(options, structs.replace(known, settings={**base.settings, **changed}))
        ablated.append(f"| {name} | {figures(result, 'gain_s', 'no_worse')} | {_worst(result):.2f} | {_cautions(result)} |")
    ppo = trained(options, find("agent-ppo"))
    ablated.append(f"| agent-ppo | {figures(ppo, 'gain_s', 'no_worse')} | {_worst(ppo):.2f} | {_cautions(ppo)} |")
    rules = all_good(options, "rules", None)
    rows, details = [], []
    for name in AGENTS:
        network = options.folder / name / "model.onnx"
        guarded = beside(rules, all_good(options, name, network))
        free = beside(rules, all_good(options, f"{name}-unguarded", network, Unguarded))
        rows += [row(name, guarded), row(f"{name}, without the pilot's guard rails", free)]
        verdict = "may take the rules' place" if is_better(guarded) else "does not take the rules' place"
        details.append(f"### {name}: {verdict}\n\n{differing(guarded)}")
    return PAGE.format(
        seeds=options.seeds,
        scenarios=options.scenarios,
        seed=SEED,
        optimum="\n".join(optimum),
        ablated="\n".join(ablated),
        rows="\n".join(rows),
        details="\n\n".join(details),
    )


def _worst(result: Result) -> float:
    return min([one.figures["worst_s"] for one in result.runs])


def _cautions(result: Result) -> str:
    return ", ".join(["the rules" if one.figures["caution"] >= 1e3 else f"{one.figures['caution']:g}" for one in result.runs])


PAGE = """# The agent

`python -m benchmarks.learn --only agent --seeds {seeds} --folder benchmarks/learn/trained --write`. What is trained, and
how, is in docs/learning.md.

## Beside the optimum

The batching problem: one instance, Poisson arrivals, batches of b take base + row b, requests that wait cost, and so does a
busy instance. Average cost of the optimum by that of the agent's policy, both exact, on 18 problems that no training has
seen; *seen*: on thirty-two that it learnt from. *At once*: serving whatever waits as soon as the instance is free. Means of
{seeds} seeds with 95 % intervals.

| agent | of the optimum | seen | at once | worst, any seed | at once: worst |
|---|---:|---:|---:|---:|---:|
{optimum}

## What the parts of the training are worth

Seconds' worth of requests in time more than under the rules, in a minute of scenarios that were drawn like those it learnt
from, randomised, and that neither training nor the choice of the caution has seen. *No worse*: the share of them with at
least as many. *Caution*: of each seed, by how much a move must score higher than what the rules advise; chosen on other
scenarios.

| agent | gained, s | no worse | worst, any seed | caution |
|---|---:|---:|---:|---|
{ablated}

## Beside the rules

The first seed's network on the {scenarios} scenarios of benchmarks/autopilot with seed {seed}: four minutes each, a bad start
and a shift half-way, both behind the production pilot. Answers in time in all, by those under the rules. An exact tie is a
scenario in which it decided as they did.

| policy | no worse than the rules | exact ties | below 0.95 | worst | median | best | all scenarios |
|---|---:|---:|---:|---:|---:|---:|---:|
{rows}

It is fit to take the rules' place where it is no worse in 80 % of the scenarios and nowhere below 0.95.

## Where it differs

{details}
"""
