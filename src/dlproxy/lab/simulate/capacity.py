"""How many instances a load needs to meet its objective, found by bisection with the simulator.

Called by cli/what_if.py. Not aware of: the command line, files.
"""

from collections.abc import Callable, Sequence

import numpy as np
from msgspec import Struct, structs

from dlproxy.config import ConfigError
from dlproxy.lab.report import wording
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.machine import stretch
from dlproxy.lab.simulate.run import ModelPlan, Scenario, simulate
from dlproxy.lab.simulate.service_times import ServiceTimes
from dlproxy.lab.simulate.what_if import Change, Load, Today, parse_load

SEEDS = 3
MOST_INSTANCES = 256  # what the knob takes
DRAWS = 2000  # of batches of one size, enough for their 99th percentile
SIZES = (1, 2, 4, 8, 16, 32)
RESTS_S = (0.0, 0.0005, 0.002, 0.01, 1.0)  # one of each kind that service times know


class Step(Struct):
    """One number of instances, over all seeds. `p99_ms`: of the worst, None without answers. `missed`: share not in time."""

    instances: int
    p99_ms: float | None
    missed: float
    passed: bool


class Capacity(Struct):
    """What was found. `instances`: the fewest that suffice, None if none does or the search was stopped.

    `nearest_s`: the nearest objective that any number could meet, where none meets this one.
    """

    kind: str
    rate_rps: float
    objective_ms: float
    threads: int
    instances: int | None
    steps: list[Step]
    sentence: str
    nearest_ms: float | None = None
    interrupted: bool = False


def find_capacity(
    today: Today, change: Change, text: str, *, seed: int, on_step: Callable[[int], None] = lambda instances: None
) -> Capacity:
    """The fewest instances that meet the objective at the load that `text` names, each with cores for its threads.

    Raises ConfigError.
    """
    load = parse_load(text, "--capacity")
    if change.load != Load() or change.cores is not None:
        raise ConfigError("--capacity says the load and finds the cores: leave rate, speed and cores out of --what-if")
    scenario = today.scenario(structs.replace(change, load=load), seed)
    if len(scenario.models) > 1:
        raise ConfigError("--capacity works with one model only; simulate several with --what-if instances=…")
    ((name, model),) = scenario.models.items()
    objective_s = scenario.objective_s
    if objective_s is None:
        raise ConfigError("--capacity needs an objective: --objective 20ms, or an slo of the model")
    if "instances" in change.knobs or "instances" in change.models.get(name, {}) or model.autoscaling is not None:
        raise ConfigError("--capacity finds the number of instances: leave it out, and autoscaling, too")
    search = _Search(today, structs.replace(change, load=load), objective_s, seed, on_step)
    rate = today.rate * load.factor(today.rate)
    capacity = Capacity("capacity", rate, objective_s * 1e3, model.threads, None, [], "")
    nearest_s = _nearest_s(model, scenario, today.rows[name][0])
    if nearest_s > objective_s:
        capacity.nearest_ms = nearest_s * 1e3
        capacity.sentence = (
            f"no number of instances meets p99 = {wording.duration(objective_s * 1e3)}: a request alone takes "
            f"{wording.duration(nearest_s * 1e3)} at p99, which is the nearest objective"
        )
        return capacity
    capacity.instances = search.fewest()
    capacity.steps = sorted(search.steps.values(), key=lambda step: step.instances)
    capacity.interrupted = search.interrupted
    capacity.sentence = _sentence(capacity, text)
    return capacity


class _Search:
    def __init__(self, today: Today, change: Change, objective_s: float, seed: int, on_step: Callable[[int], None]) -> None:
        self._today = today
        self._change = change
        self._objective_s = objective_s
        self._seed = seed
        self._on_step = on_step
        self.steps: dict[int, Step] = {}
        self.interrupted = False

    def fewest(self) -> int | None:
        """Doubles until it suffices, then halves the gap. None: none does, or it was interrupted."""
        failed, good = 0, 1
        while not self._passes(good):
            if self.interrupted or good == MOST_INSTANCES:
                return None
            failed, good = good, min(good * 2, MOST_INSTANCES)
        while good - failed > 1:
            middle = (good + failed) // 2
            passed = self._passes(middle)
            if self.interrupted:
                return None
            failed, good = (failed, middle) if passed else (middle, good)
        return good

    def _passes(self, instances: int) -> bool:
        self._on_step(instances)
        change = structs.replace(self._change, knobs={**self._change.knobs, "instances": str(instances)})
        results = []
        for seed in range(self._seed, self._seed + SEEDS):
            scenario = self._today.scenario(change, seed)
            (model,) = scenario.models.values()
            results.append(simulate(structs.replace(scenario, cores=instances * model.threads)))
            if results[-1].interrupted:
                self.interrupted = True
                return False
        self.steps[instances] = step = _step(instances, results)
        return step.passed


def _step(instances: int, results: Sequence[Result]) -> Step:
    in_time = [share for result in results if (share := wording.in_time(result)) is not None]
    share = float(np.mean(in_time)) if in_time else 0.0
    p99s = [result.latency_ms["p99"] for result in results if result.ok]
    return Step(instances, max(p99s, default=None), 1.0 - share, share >= results[0].objective_share)


def _nearest_s(model: ModelPlan, scenario: Scenario, rows: int) -> float:
    """The quantile of the objective of a batch of the smallest request alone, on cores of its own: no queue is shorter than none.

    Few such batches may have been recorded, in bad moments, so those of other sizes and after any rest speak, too: the least.
    """
    times = model.times(scenario.seed)
    factor = stretch(model.threads, scenario.parallel) / stretch(model.timed_on, scenario.parallel)
    return min(
        _alone_s(times, size, rest_s, factor, scenario.objective_share) / times.mean(size) * times.mean(rows)
        for size in SIZES
        for rest_s in RESTS_S
    )


def _alone_s(times: ServiceTimes, rows: int, rest_s: float, factor: float, share: float) -> float:
    drawn = (times.draw(rows, rest_s) for _ in range(DRAWS))
    return float(np.quantile([service_s * factor + hand_over_s for service_s, hand_over_s in drawn], share))


def _sentence(capacity: Capacity, text: str) -> str:
    what = f"{text} today's load ({wording.rate(capacity.rate_rps)})" if text.endswith("x") else wording.rate(capacity.rate_rps)
    aim = f"{what} at p99 = {wording.duration(capacity.objective_ms)}"
    if capacity.interrupted:
        return f"{aim}: stopped before the number of instances was found"
    steps = {step.instances: step for step in capacity.steps}
    if capacity.instances is None:
        most = steps[MOST_INSTANCES]
        missed = wording.share(most.missed, 1.0)
        return f"{aim}: even {MOST_INSTANCES} instances miss {missed}; what holds it up is not the instances"
    count, threads = capacity.instances, capacity.threads
    each = f" of {wording.count(threads, 'thread')}"
    fewer = steps.get(count - 1)
    would = f" ({fewer.instances} would miss {wording.share(fewer.missed, 1.0)})" if fewer is not None else ""
    cores = wording.count(count * threads, "core")
    return f"{aim} needs {cores}: {wording.count(count, 'instance')}{each}{would}"


def steps_table(capacity: Capacity) -> list[tuple[str, ...]]:
    """Each number that was tried, with headings."""
    rows: list[tuple[str, ...]] = [("instances", "cores", "p99", "missed", "")]
    for step in capacity.steps:
        p99 = "-" if step.p99_ms is None else wording.duration(step.p99_ms)
        missed = wording.share(max(step.missed, 0.0), 1.0)
        verdict = "enough" if step.passed else "too few"
        rows.append((str(step.instances), str(step.instances * capacity.threads), p99, missed, verdict))
    return rows
