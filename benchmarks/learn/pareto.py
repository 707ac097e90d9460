"""Fronts of three objectives on the same simulated models: policies of knobs steered by what they aim at, beside NSGA-II's.

A part of `python -m benchmarks.learn`. Agents join if `--folder` has agent-dqn or agent-ppo, trained.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.harness.options import utc_now
from dlproxy.autopilot.learnt import Learnt, read_network
from dlproxy.instance.integrity import Trust
from dlproxy.lab.learn.agent.scenarios import randomised
from dlproxy.lab.learn.pareto.front import Point, front, hypervolume
from dlproxy.lab.learn.pareto.runs import AIMS, REFERENCE, outcome
from dlproxy.lab.learn.pareto.search import search
from dlproxy.lab.learn.train import interval
from dlproxy.lab.report.chart import Chart, linear, standalone
from dlproxy.lab.simulate.scenario import Scenario
from dlproxy.policy.tuning.bandit import Bandit
from dlproxy.policy.tuning.protocol import KnobPolicy
from dlproxy.policy.tuning.rules import Rules

FIRST = 800_000  # of the scenarios: no agent was trained, chosen or measured on these
HELD_OUT = 1_000  # added to the seeds of the arrivals that fronts are measured on
TRIALS, PHASE_S = 60, 30.0
AGENTS = ("agent-dqn", "agent-ppo")
NSGA = "NSGA-II"
PICTURE = Path(__file__).with_name("pareto.svg")

Make = Callable[[int], KnobPolicy]
Fronts = Mapping[str, list[Point]]


def measure(options: argparse.Namespace) -> str:
    """Runs it, and returns the page."""
    policies = _policies(options.folder)
    found = [fronts(randomised(FIRST + seed), seed, policies) for seed in range(1, options.seeds + 1)]
    if options.write:
        PICTURE.write_text(picture(found[0]), "utf-8")
    return page(found)


def _policies(folder: Path) -> dict[str, Make]:
    made: dict[str, Make] = {"rules": lambda seed: Rules(), "bandit": lambda seed: Bandit()}
    for name in AGENTS:
        if (folder / name / "seed-1" / "model.onnx").exists():
            made[name] = lambda seed, name=name: agent(folder / name, seed)  # type: ignore[misc]
    return made


def agent(folder: Path, seed: int) -> KnobPolicy:
    """The one that was trained with this seed, or the first."""
    path = folder / f"seed-{seed}" / "model.onnx"
    return Learnt(read_network(str(path if path.exists() else folder / "seed-1" / "model.onnx"), Trust()))


def fronts(scenario: Scenario, seed: int, policies: Mapping[str, Make]) -> dict[str, list[Point]]:
    """Of each policy over its aims, and of what NSGA-II found; all on arrivals that nobody has seen. Beside it, of both."""
    found = {}
    for name, make in policies.items():
        points = [outcome(scenario, make(seed), seed + HELD_OUT, phase_s=PHASE_S, aim=aim) for aim in AIMS]
        found[name] = front(points)
    statics = search(scenario, seed, trials=TRIALS, phase_s=PHASE_S)
    found[NSGA] = front([outcome(scenario, static, seed + HELD_OUT, phase_s=PHASE_S) for static in statics])
    found[f"{NSGA} and rules"] = front(found[NSGA] + found["rules"])
    return found


def picture(found: Fronts) -> str:
    """What is missed over the cores, of the first seed."""
    highest = max(point[0] for points in found.values() for point in points)
    x = linear(0.0, 1.0, "part of the cores", lambda value: f"{value:g}")
    y = linear(0.0, max(100.0 * highest, 1.0), "requests late or refused, %", lambda value: f"{value:g}")
    chart = Chart(x, y)
    for number, (name, points) in enumerate(found.items(), 1):
        if " and " not in name:
            for place, (missed, _, cores) in enumerate(points):
                chart.dot(cores, 100.0 * missed, "" if place else name, f"s{number}")
    about = "requests that were late or refused over the part of the cores that was used, one model, each front's points"
    return standalone(chart.svg("pareto", "What cores buy", about))


def page(found: list[dict[str, list[Point]]]) -> str:
    lines = [
        "# Several objectives: fronts of policies beside NSGA-II's",
        "",
        f"Measured {utc_now():%Y-%m-%d} by `python -m benchmarks.learn --only pareto --seeds {len(found)} --write`:",
        f"{len(found)} simulated models with a shift of load half-way, 2 x {PHASE_S:g} s each. Three objectives, all to be",
        "small: the share of requests that are late or refused (so the rest is throughput), the p99 in objectives, and",
        f"the part of the cores. A policy runs once for each of {len(AIMS)} aims (the objective times 1, 0.7, 0.5 or 0.35,",
        f"with and without a preference for fewer cores) and adapts as it goes; NSGA-II searches {TRIALS} runs for",
        "configurations that stay as they are. All are measured on arrivals that were not searched on. Hypervolume beyond",
        "the worst case, as part of what is possible: mean and 95 % interval over the models.",
        "",
        "| | hypervolume | beside NSGA-II | points on the front |",
        "|---|---|---|---|",
    ]
    whole = REFERENCE[0] * REFERENCE[1] * REFERENCE[2]
    volumes = {name: [hypervolume(one[name], REFERENCE) / whole for one in found] for name in found[0]}
    for name, of_name in volumes.items():
        mean, half = interval(of_name)
        beside, beside_half = interval([one - other for one, other in zip(of_name, volumes[NSGA], strict=True)])
        points = sum([len(one[name]) for one in found]) / len(found)
        lines.append(f"| {name} | {mean:.3f} ± {half:.3f} | {beside:+.3f} ± {beside_half:.3f} | {points:.1f} |")
    lines += ["", "![What cores buy, of the first model](pareto.svg)", "", *_conclusion(volumes), ""]
    return "\n".join(lines)


def _conclusion(volumes: Mapping[str, list[float]]) -> list[str]:
    said = []
    for name, of_name in volumes.items():
        if " and " in name or name == NSGA:
            continue
        mean, half = interval([one - other for one, other in zip(of_name, volumes[NSGA], strict=True)])
        verdict = "more than" if mean > half else "less than" if mean < -half else "as much as, within what these seeds tell,"
        said.append(f"- {name} dominates {verdict} the configurations that NSGA-II finds.")
    start = "- A policy begins at a bad configuration and finds its way in the minute that counts; "
    said.append(start + "a search has had its runs before.")
    return [*said, "- Accuracy is no objective here: these models have no variants."]
