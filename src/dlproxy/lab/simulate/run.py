"""A simulation from its description to its Result: plans the lanes as the server would, builds the nodes, sends the load.

Called by cli/simulate.py, benchmarks and tests. Not aware of: the command line, files of results.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from msgspec import Struct, field

from dlproxy.config import ConfigError, ModelConfig, parse_duration
from dlproxy.config.knobs import WAY
from dlproxy.cores import usable_cores
from dlproxy.fleet.autoscale import rule_of
from dlproxy.fleet.forecasts import forecast_of
from dlproxy.fleet.names import instance_names
from dlproxy.fleet.warm_model import stated_way, warm_up
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime.formats import ANY
from dlproxy.instance.trial import Measured as Tried
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.lab.load.arrivals import Arrivals
from dlproxy.lab.load.payload import picks
from dlproxy.lab.report.result import CacheUse, Result, Second, StepResult, Tally, make_result, model_result
from dlproxy.lab.report.wording import count, duration
from dlproxy.lab.simulate.autoscale import SimulatedAutoscaler
from dlproxy.lab.simulate.cache import SimulatedCache
from dlproxy.lab.simulate.engine import Call, LoopCosts, SimulatedModel, Simulation, utilisation
from dlproxy.lab.simulate.faults import Fault, FaultError, plan_fault
from dlproxy.lab.simulate.machine import PARALLEL, Machine
from dlproxy.lab.simulate.pipelines import CAPACITY, PipelinePlan, SimulatedPipeline, StepTimes, plan_steps
from dlproxy.lab.simulate.recording import Batches
from dlproxy.lab.simulate.service_times import Fitted, Measured, Sample, ServiceTimes
from dlproxy.lab.simulate.shared_core import separate
from dlproxy.lab.simulate.threads import SimulatedThreads
from dlproxy.message import FailureKind
from dlproxy.policy.balancing import Balancer, make_balancer
from dlproxy.policy.lane import Lane
from dlproxy.policy.partition import most_rows, part_size
from dlproxy.policy.pipelines import Pacing
from dlproxy.policy.plan import LanePlan, plan_lane
from dlproxy.policy.scaling import Bounds, ScalePolicy, make_policy
from dlproxy.serve.partition import can_split

LARGEST_CALIBRATED = 64  # rows; a described line is calibrated at 1 and at this size, as warm-up would
MANY_NODES = 64  # above, peak-EWMA compares two nodes drawn at random instead of all
DRAWS = 4096
SERVICE_EXAMPLE = "base=10ms,row=0.5ms,cv=0.1"
START_S = 5.0  # of an instance, where nobody says otherwise: a process with torch takes about so long
NO_TIME = Fitted(0.0, 0.0)  # a pipeline's own: what it takes is what its steps take
MOST_CV = 100.0  # of a log-normal spread: more is nothing that a model does, and at some point no longer a number


class Autoscaling(Struct, frozen=True):
    """How a model of a simulation scales. `policy`: a new one for each node."""

    policy: Callable[[], ScalePolicy]
    bounds: Bounds
    start_s: float


class ModelPlan(Struct):
    """One model of a simulation: its lane, and service times for a seed. `service` says where these come from, in words.

    `quantile`: the share of its answers that its objective is for. `autoscaling`: None where its instances stay. `splits`:
    requests of more rows than a part are split; `most_rows`: of one. `arrival_s`: what the loop does for a request, which the
    service times are without; None: nobody asked for that. `threads`: of each instance; the times are those on `timed_on`.
    `parallel`: the share of a batch's work that threads can divide, where it was measured. `capacity`: batches that an instance
    takes at a time. `pipeline`: of a model that is one.
    """

    plan: LanePlan
    times: Callable[[int], ServiceTimes]
    service: str
    share: float = 1.0
    quantile: float = 0.99
    arrival_s: float | None = None
    autoscaling: Autoscaling | None = None
    threads: int = 1
    timed_on: int = 1
    parallel: float | None = None
    capacity: int = 1
    splits: bool = False
    most_rows: int = 1
    pipeline: PipelinePlan | None = None


class Scenario(Struct, kw_only=True):
    """What is simulated. `timeout_s`: each request's deadline, unless its model's objective is earlier, as when served.

    `rows`: of each request; shares weigh the models. `objective_s`: what is good, for the share `objective_share` of the
    answers; None leaves each model its own. `cores`: of each node, 0 for as many as its batches need. `requests`: instead of
    made-up ones. `keys`: distinct requests of each model, picked in turn or, with `zipf`, by Zipf's law; 0: all are. `cache`:
    the policy and the answers that each model's cache has room for, on each node.
    """

    models: dict[str, ModelPlan]
    arrivals: Arrivals
    duration_s: float
    nodes: int = 1
    balancer: str = "peak-ewma"
    costs: LoopCosts = LoopCosts()
    rows: int = 1
    timeout_s: float = inf
    objective_s: float | None = None
    objective_share: float = 0.99
    faults: Sequence[Fault] = ()
    seed: int = 0
    cores: int = 0
    parallel: float = PARALLEL
    requests: Callable[[], Iterable[Call]] | None = None
    keys: int = 0
    zipf: float | None = None
    cache: tuple[str, int] | None = None
    setup: dict[str, Any] = field(default_factory=dict)


def plan_model(
    name: str,
    config: ModelConfig,
    service: str = "",
    *,
    without_loop: bool = False,
    start_s: float = START_S,
    trust: Trust = ANY,
) -> ModelPlan:
    """How a model would be served, and how long its batches take. Raises ConfigError, LogError, ModelError.

    `start_s`: how long a further instance takes to start, where the model scales. `trust`: by which it may be loaded.
    """
    plan = _planned(name, config, service, trust, without_loop=without_loop)
    plan.quantile = config.goal.quantile
    plan.threads = plan.timed_on = max(config.threads, plan.threads)
    plan.most_rows = most_rows(config, splits=True) if plan.splits else plan.plan.knobs.max_batch
    if config.autoscale != "off":
        if plan.plan.inline:
            raise ConfigError(f"model {name}: what runs on the event loop does not scale; set run = 'thread' or 'process'")
        most = config.max_instances or max(usable_cores() // max(config.threads, 1), 1)
        rule = rule_of(config.autoscale, config.target_in_flight)
        bounds = Bounds(min(config.min_instances, most), most, config.scale_to_zero_s)
        forecast = forecast_of(name, config.forecast, trust, most_s=inf)  # the same on a busy machine
        plan.autoscaling = Autoscaling(lambda: make_policy(rule, forecast), bounds, start_s)
    return plan


def _planned(name: str, config: ModelConfig, service: str, trust: Trust, *, without_loop: bool) -> ModelPlan:
    """As described, recorded or measured.

    `service`: "base=10ms,row=0.5ms,cv=0.1" describes a line, a path of an event log gives what was measured live, and
    nothing loads and calibrates the model itself. `without_loop`: what the live loop took of the batches' core is taken out of
    them, which needs a log.
    """
    config = config.begun(WAY)
    if service and (os.path.exists(service) or "=" not in service.partition(",")[0]):
        if not os.path.exists(service):
            raise ConfigError(f"service '{service}': there is no such event log; write times like {SERVICE_EXAMPLE}")
        batches = Batches(Path(service))
        calibration = Calibration(tuple(batches.header.prior), True)
        way = stated_way(config, calibration.single_s)
        batched = batches.header.knobs.max_batch > 1
        plan = _lane(name, config, calibration, way, batched=batched)
        samples, arrival_s = batches.samples, None
        if without_loop:
            arrival_s, samples = separate(samples, batches.arrivals)
        return ModelPlan(
            plan,
            lambda seed: Measured(samples, seed=seed),
            f"{len(samples)} batches of {Path(service).name}",
            arrival_s=arrival_s,
            splits=batched,
        )
    if without_loop:
        raise ConfigError(f"model {name}: only a recording tells what the loop costs; give it with --service {name}=EVENT.dlog")
    if service:
        base_s, row_s, cv = _line(service)
        points = tuple((rows, base_s + row_s * rows) for rows in (1, LARGEST_CALIBRATED))
        calibration = Calibration(points, True)
        plan = _lane(name, config, calibration, stated_way(config, calibration.single_s), batched=True)
        return ModelPlan(plan, lambda seed: Fitted(base_s, row_s, cv=cv, seed=seed), service, splits=True)
    warm = warm_up(config, trust=trust)
    signature, calibration = warm.runtime.signature, warm.calibration
    if not calibration.points:
        raise ConfigError(f"model {name}: {calibration.warning}; describe its times: --service {name}=base=10ms,row=0.5ms")
    plan = _lane(name, config, calibration, warm.way, batched=signature.batched)
    samples = [Sample(int(point[0]), point[-1]) for point in calibration.points]
    return ModelPlan(
        plan,
        lambda seed: Measured(samples, seed=seed),
        f"calibrated here at {len(samples)} batch sizes",
        splits=can_split(signature),
        threads=warm.way.threads,
        parallel=None if warm.found is None else parallel_share(warm.found),
    )


def plan_pipeline(name: str, config: ModelConfig, texts: Mapping[str, str], models: Iterable[str]) -> ModelPlan:
    """A pipeline over these models. `texts`: of steps, what is known of them, as plan_steps has it. Raises ConfigError."""
    steps = plan_steps(name, config, texts, models)
    plan = plan_lane(config, (), instances=instance_names(name, 1), inline=False, batched=False)
    quantile = config.goal.quantile
    return ModelPlan(plan, lambda seed: NO_TIME, "its steps", quantile=quantile, capacity=CAPACITY, pipeline=steps)


def parallel_share(found: Tried) -> float | None:
    """The share of a request's work that threads divide, by Amdahl's law, if all cores were tried for one request."""
    cores = usable_cores()
    if cores < 2 or not isfinite(found.wide_s):
        return None
    return min(max((1.0 - found.wide_s / found.narrow_s) / (1.0 - 1.0 / cores), 0.0), 1.0)


def _lane(name: str, config: ModelConfig, calibration: Calibration, way: Way, *, batched: bool) -> LanePlan:
    names = instance_names(name, way.instances)
    return plan_lane(config, calibration.points, instances=names, inline=way.inline, batched=batched)


def _line(text: str) -> tuple[float, float, float]:
    values = {"base": 0.0, "row": 0.0, "cv": 0.0}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in values:
            raise ConfigError(f"service '{text}': there is no option '{name}'; write it like {SERVICE_EXAMPLE}")
        try:
            values[name] = float(value) if name == "cv" else parse_duration(value)
        except (ConfigError, ValueError):
            raise ConfigError(f"service '{text}': {part} is not understood; write it like {SERVICE_EXAMPLE}") from None
    if not 0.0 < values["base"] + values["row"] < inf or not 0.0 <= values["cv"] <= MOST_CV:
        raise ConfigError(f"service '{text}': base or row must be above 0, and cv between 0 and {MOST_CV:g}")
    return values["base"], values["row"], values["cv"]


def simulate(scenario: Scenario, on_progress: Callable[[float], None] = lambda seconds: None) -> Result:
    """Run it. `on_progress` gets the virtual seconds that have passed. Raises FaultError.

    Ctrl-C ends it early: the result then covers what was simulated, and says `interrupted`.
    """
    tally = Tally(0.0, scenario.duration_s, scenario.objective_s)
    simulation = build(scenario, tally)
    last_due_s = 0.0

    def calls() -> Iterator[Call]:
        nonlocal last_due_s
        for call in make_calls(scenario, on_progress):
            last_due_s = call.due_at
            yield call

    interrupted = False
    try:
        simulation.run(calls())
    except KeyboardInterrupt:
        interrupted = True
        for each in (tally, *simulation.tallies.values()):
            each.cut(last_due_s)
    setup = {**_setup(scenario), **scenario.setup}
    target = ", ".join(scenario.models)
    result = make_result(tally, kind="simulation", started="", target=target, setup=setup)
    result.instances = utilisation(simulation.nodes, tally.duration_s)
    result.scaling = {name: scaler.result() for name, scaler in simulation.scalers.items()}
    result.batch_sizes = _batch_sizes(simulation)
    result.cache = _cache_use(simulation)
    result.steps = _steps(simulation)
    result.models = {name: model_result(each) for name, each in simulation.tallies.items()}
    result.faults = [_what_it_did(fault, result.timeline) for fault in scenario.faults]
    result.interrupted, result.objective_share = interrupted, scenario.objective_share
    return result


class ByModel(Simulation):
    """Counts what became of each model's requests too, in `tallies`, where there are several models."""

    def __init__(self, tally: Tally, tallies: Mapping[str, Tally], balancer: Balancer) -> None:
        super().__init__(tally, balancer=balancer)
        self.tallies = tallies
        self.scalers: dict[str, SimulatedAutoscaler] = {}
        self._counted: dict[int, Tally] = {}

    def send(self, call: Call, now: float) -> None:
        if self.tallies:
            tally = self._counted[self._count + 1] = self.tallies[call.model]
            tally.sent_one(call.due_at, now)
        super().send(call, now)

    def run(self, calls: Iterable[Call], *, drain_s: float = inf) -> None:
        super().run(calls, drain_s=drain_s)
        for number, tally in self._counted.items():
            due_at, _ = self._open[number]
            tally.failed("no answer", due_at, due_at)

    def _finished(self, number: int, failure: FailureKind | None, now: float) -> None:
        tally = self._counted.pop(number, None)
        if tally is not None:
            due_at, _ = self._open[number]
            if failure is None:
                tally.answered(due_at, now)
            else:
                tally.failed(failure.value, due_at, now)
        super()._finished(number, failure, now)


def build(scenario: Scenario, tally: Tally) -> ByModel:
    """The nodes, each with a lane per model, and the faults to come."""
    seeds = iter(np.random.SeedSequence(scenario.seed).generate_state(1 + scenario.nodes * len(scenario.models)).tolist())
    name = scenario.balancer
    if name == "peak-ewma" and scenario.nodes > MANY_NODES:
        name = "power-of-two"
    balancer = make_balancer(name, draw=uniform(next(seeds)).__next__)
    tallies = {}
    asked = {name: model for name, model in scenario.models.items() if model.share}
    if len(asked) > 1:
        for model_name, model in asked.items():
            objective_s = model.plan.knobs.slo_s if scenario.objective_s is None else scenario.objective_s
            tallies[model_name] = Tally(tally.start_at, tally.end_at, objective_s)
    simulation = ByModel(tally, tallies, balancer)
    for number in range(scenario.nodes):
        models = [
            SimulatedModel(
                name,
                Lane(model.plan.knobs, model.plan.prior),
                model.times(next(seeds)),
                model.plan.instances,
                inline=model.plan.inline,
                capacity=model.capacity,
                part_rows=part_size(model.plan.knobs) if model.splits else None,
            )
            for name, model in scenario.models.items()
        ]
        threads = SimulatedThreads(scenario.cores)
        for simulated in models:
            pipeline = scenario.models[simulated.name].pipeline
            if pipeline is not None:
                pacing = Pacing(pipeline.wiring)
                simulated.pipeline = SimulatedPipeline(
                    pipeline.wiring, pipeline.steps, pacing, threads, seed=scenario.seed + number
                )
        if scenario.cache is not None:
            for simulated in models:
                simulated.cache = SimulatedCache(*scenario.cache)
        _give_cores(scenario, models)
        node = simulation.add(f"node-{number}", models, scenario.costs)
        for simulated in models:
            plan = scenario.models[simulated.name]
            if plan.autoscaling is not None:
                label = simulated.name if scenario.nodes == 1 else f"{node.name}/{simulated.name}"
                simulation.scalers[label] = SimulatedAutoscaler(
                    node,
                    simulated,
                    simulation.heap,
                    plan.autoscaling.policy(),
                    plan.autoscaling.bounds,
                    times=plan.times(scenario.seed),
                    start_s=plan.autoscaling.start_s,
                    since=tally.start_at,
                    until=tally.end_at,
                )
    for fault in scenario.faults:
        if fault.kind == "die" and simulation.scalers:
            raise FaultError(f"fault '{fault.text}': instances of a model that scales come and go anyway; take slow or fail")
        plan_fault(simulation, fault)
    return simulation


def _give_cores(scenario: Scenario, models: Iterable[SimulatedModel]) -> None:
    """One machine for the models of a node."""
    machine = Machine(scenario.cores or inf, scenario.parallel)
    for simulated in models:
        plan = scenario.models[simulated.name]
        if not scenario.cores and plan.threads == plan.timed_on:
            continue
        for instance in simulated.instances.values():
            instance.machine, instance.threads, instance.timed_on = machine, plan.threads, plan.timed_on


def make_calls(scenario: Scenario, on_progress: Callable[[float], None] = lambda seconds: None) -> Iterator[Call]:
    """The scenario's requests in the order in which they are due."""
    if scenario.requests is not None:
        for number, call in enumerate(scenario.requests()):
            yield call
            if number % DRAWS == 0:
                on_progress(call.due_at)
        return
    names = list(scenario.models)
    rows = scenario.rows
    timeouts_s = {name: min(scenario.timeout_s, model.plan.knobs.slo_s or inf) for name, model in scenario.models.items()}
    shares = np.cumsum([scenario.models[name].share for name in names])
    random = np.random.default_rng((scenario.seed, 1))
    keys = {name: iter(_keys(scenario, number)) for number, name in enumerate(names)}
    for chunk in scenario.arrivals.chunks(scenario.duration_s):
        if len(names) == 1:
            chosen = [names[0]] * chunk.size
        else:
            indices = np.searchsorted(shares / shares[-1], random.random(chunk.size), side="right")
            chosen = [names[index] for index in indices.tolist()]
        for due_at, name in zip(chunk.tolist(), chosen, strict=True):
            yield Call(name, rows, timeouts_s[name], due_at, patience_s=scenario.timeout_s, key=next(keys[name]))
        if chunk.size:
            on_progress(float(chunk[-1]))


def _keys(scenario: Scenario, number: int) -> Iterable[int | None]:
    return picks(scenario.keys, scenario.zipf, (scenario.seed, 2, number)) if scenario.keys else repeat(None)


def uniform(seed: int) -> Iterator[float]:
    """Endless uniform numbers in [0, 1)."""
    random = np.random.default_rng(seed)
    while True:
        yield from random.random(DRAWS).tolist()


def _what_it_did(fault: Fault, timeline: Sequence[Second]) -> str:
    """The fault, and the run's seconds while it lasted beside the others."""
    inside, outside = (
        [second for second in timeline if (fault.at_s <= second.at_s < fault.at_s + fault.for_s) is lasted]
        for lasted in (True, False)
    )
    return f"{fault.text}: while it lasted, {_typical(inside)}; otherwise {_typical(outside)}"


def _typical(seconds: Sequence[Second]) -> str:
    known = [second.p99_ms for second in seconds if second.ok]
    p99 = f"p99 {duration(median(known))} in the median second" if known else "no answers"
    return f"{p99}, {count(sum(second.failed for second in seconds), 'failure')}"


def _batch_sizes(simulation: Simulation) -> dict[int, int]:
    sizes: Counter[int] = Counter()
    for node in simulation.nodes.values():
        for model in node.models.values():
            for instance in model.instances.values():
                sizes.update(instance.batch_sizes)
    return dict(sorted(sizes.items()))


def _steps(simulation: Simulation) -> dict[str, StepResult]:
    """By step, on all nodes."""
    times: dict[str, StepTimes] = {}
    for node in simulation.nodes.values():
        for model in node.models.values():
            for name, step in model.pipeline.times.items() if model.pipeline is not None else ():
                all_of_it = times.setdefault(f"{model.name}.{name}", StepTimes())
                all_of_it.waited_s += step.waited_s
                all_of_it.computed_s += step.computed_s
    return {
        name: StepResult(ran=len(each.waited_s), waited_ms=_quantiles(each.waited_s), computed_ms=_quantiles(each.computed_s))
        for name, each in times.items()
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds or [0.0], [0.5, 0.99]).tolist()
    return {"p50": p50 * 1e3, "p99": p99 * 1e3}


def _cache_use(simulation: Simulation) -> dict[str, CacheUse]:
    """By model, on all nodes."""
    uses: dict[str, CacheUse] = {}
    for node in simulation.nodes.values():
        for model in node.models.values():
            if model.cache is not None:
                use = uses.setdefault(model.name, CacheUse(hits=0, joined=0, misses=0))
                use.hits += model.cache.hits
                use.joined += model.cache.joined
                use.misses += model.cache.misses
    return uses


def _setup(scenario: Scenario) -> Mapping[str, Any]:
    costs = scenario.costs
    return {
        "arrivals": scenario.arrivals.label,
        "rate": scenario.arrivals.rate,
        "duration_s": scenario.duration_s,
        "nodes": scenario.nodes,
        "balancer": scenario.balancer,
        "rows": scenario.rows,
        "timeout_s": None if scenario.timeout_s == inf else scenario.timeout_s,
        "loop_us": {
            name: round(seconds * 1e6, 1)
            for name, seconds in (("read", costs.read_s), ("write", costs.write_s), ("path", costs.path_s))
        },
        "loop_shares_core": costs.shares_core,
        "seed": scenario.seed,
        "models": {
            name: {
                "service": model.service,
                "share": model.share,
                "instances": len(model.plan.instances),
                "inline": model.plan.inline,
                "max_batch": model.plan.knobs.max_batch,
                "part_rows": part_size(model.plan.knobs) if model.splits else None,
                "slo_s": model.plan.knobs.slo_s,
            }
            for name, model in scenario.models.items()
        },
        "faults": [fault.text for fault in scenario.faults],
        **({"keys": scenario.keys, "zipf": scenario.zipf} if scenario.keys else {}),
        **({"cache": f"{scenario.cache[0]}, {scenario.cache[1]} answers"} if scenario.cache else {}),
    }
