"""What would have been: the same load through production lanes with other knobs, instances, threads, cores or at another rate.

Called by cli/what_if.py and lab/simulate/capacity.py. Not aware of: how results are shown.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from dlproxy.config import ConfigError, LaneSettings, ModelConfig, parse_duration
from dlproxy.config.reading import override
from dlproxy.config.table import knobs
from dlproxy.fleet.names import instance_names
from dlproxy.fleet.warm_model import stated_way
from dlproxy.lab.load.arrivals import Arrivals
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.engine import LoopCosts
from dlproxy.lab.simulate.machine import PARALLEL
from dlproxy.lab.simulate.recorded_run import RecordedRun, RecordedRuns
from dlproxy.lab.simulate.run import ModelPlan, Scenario, simulate
from dlproxy.lab.simulate.service_times import Measured
from dlproxy.lab.simulate.shared_core import separate
from dlproxy.policy.plan import LanePlan, longest_s

LOADS = ("rate", "speed")
MOST_CORES = 4096
KNOBS = (*knobs(LaneSettings), "slo", "instances", "threads")
NAMES = (*KNOBS, "cores", *LOADS)
BANDS = {"rate": 0.05, "p50": 0.15, "p99": 0.15}  # how far a simulation may be off (docs/internals/fidelity.md)
EXAMPLE = "instances=4,max_batch=32"


class Load(Struct, frozen=True):
    """How much load: so many `times` today's, or so many requests per second."""

    times: float | None = 1.0
    rate: float | None = None

    def factor(self, base_rate: float) -> float:
        """Over a load of this rate. Raises ConfigError."""
        if self.times is not None:
            return self.times
        if base_rate <= 0.0:
            raise ConfigError("today's load has no rate: say how many times it there shall be, as in 3x")
        assert self.rate is not None
        return self.rate / base_rate


class Change(Struct, frozen=True):
    """One --what-if. `knobs`: values as text. `models`: those of one model by its name. `cores`: None as they are."""

    text: str
    knobs: Mapping[str, str] = {}
    models: Mapping[str, Mapping[str, str]] = {}
    cores: int | None = None
    load: Load = Load()


def parse_load(text: str, option: str) -> Load:
    """`3x`, or `1500/s`. Raises ConfigError."""
    text = text.strip()
    try:
        value = float(text.removesuffix("/s").removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 0.0 < value < inf:
        raise ConfigError(f"{option} {text!r} is not understood; write it like 3x (three times the load) or 1500/s")
    return Load(value) if text.endswith("x") else Load(None, value)


def parse_change(text: str, models: Sequence[str]) -> Change:
    """`instances=4,max_batch=32,rate=2x`; NAME.max_batch=32 is for one of several models. Raises ConfigError."""
    all_of_them: dict[str, str] = {}
    of_one: dict[str, dict[str, str]] = {}
    cores, load = None, Load()
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = (side.strip() for side in part.partition("="))
        model = next((model for model in models if name.startswith(f"{model}.")), None)
        values = all_of_them if model is None else of_one.setdefault(model, {})
        name = name if model is None else name.removeprefix(f"{model}.")
        if name not in NAMES or (model is not None and name not in KNOBS):
            near = get_close_matches(name, NAMES if model is None else KNOBS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(NAMES)}"
            raise ConfigError(f"--what-if {text}: there is no knob '{name}'; {hint}")
        if not equals or not value:
            raise ConfigError(f"--what-if {text}: {name} has no value; write it like {EXAMPLE}")
        if name in values or (name == "cores" and cores is not None) or (name in LOADS and load != Load()):
            raise ConfigError(f"--what-if {text}: {'rate and speed are' if name in LOADS else f'{name} is'} given twice")
        if name == "rate":
            load = parse_load(value, f"--what-if {text}: rate")
        elif name == "speed":
            load = parse_load(f"{value.removesuffix('x')}x", f"--what-if {text}: speed")
        elif name == "cores":
            cores = _cores(value, text)
        else:
            values[name] = value
    if not (all_of_them or of_one or cores or load != Load()):
        raise ConfigError(f"--what-if {text!r} changes nothing; write it like {EXAMPLE}")
    return Change(text, all_of_them, of_one, cores, load)


def _cores(value: str, text: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= MOST_CORES:
        raise ConfigError(f"--what-if {text}: cores {value!r} is out of range: give 1 to {MOST_CORES}")
    return int(value)


class Today:
    """A load and how it is served now: a scenario at so many times the load, with a seed, and objectives that have changed.

    `rows`: of the smallest and the largest request to each model. `recorded`: if it really was. `aims`: what is good is each
    model's own objective.
    """

    def __init__(
        self,
        at: Callable[[float, int, Mapping[str, float | None]], Scenario],
        *,
        rate: float,
        rows: Mapping[str, tuple[int, int]],
        aims: bool,
        recorded: RecordedRuns | None = None,
    ) -> None:
        self._at = at
        self.rate = rate
        self.rows = rows
        self._aims = aims
        self.recorded = recorded
        self.base = at(1.0, 0, {})

    def scenario(self, change: Change, seed: int) -> Scenario:
        """With the change. Raises ConfigError."""
        label = f"--what-if {change.text}: "
        models, slo_s = {}, {}
        for name, model in self.base.models.items():
            models[name] = changed(model, {**change.knobs, **change.models.get(name, {})}, label)
            lane_knobs = models[name].plan.knobs
            if self.rows[name][1] > lane_knobs.max_batch:
                raise ConfigError(f"{label}max_batch: requests to {name} have up to {self.rows[name][1]} rows")
            if lane_knobs.slo_s != model.plan.knobs.slo_s:
                slo_s[name] = lane_knobs.slo_s
        scenario = self._at(change.load.factor(self.rate), seed, slo_s)
        if change.cores is not None and any(model.autoscaling for model in models.values()):
            raise ConfigError(f"{label}cores: models that scale are simulated with as many as they need")
        cores = scenario.cores if change.cores is None else change.cores
        aims = {model.plan.knobs.slo_s for model in models.values()}
        objective_s = (aims.pop() if len(aims) == 1 else None) if self._aims else scenario.objective_s
        return structs.replace(scenario, models=models, cores=cores, objective_s=objective_s)


def changed(model: ModelPlan, texts: Mapping[str, str], label: str) -> ModelPlan:
    """The model with these knobs, given as text. Raises ConfigError."""
    if not texts:
        return model
    plan, now = model.plan, model.plan.knobs
    if model.autoscaling is not None and {"instances", "threads"} & texts.keys():
        raise ConfigError(f"{label}the model scales, so its instances are not given; set autoscale = 'off'")
    lane = {name: getattr(now, name) for name in knobs(LaneSettings)}
    config = ModelConfig(path="sleep:base=1ms", instances=max(len(plan.instances), 1), threads=model.threads, **lane)
    config = override(config, {name: _plain(name, text) for name, text in texts.items()}, lambda name: label + name)
    if config.max_batch > now.max_batch == 1 and "max_batch" in texts and len({point[0] for point in plan.prior}) < 2:
        raise ConfigError(f"{label}max_batch: only batches of one row were measured, so nobody knows how long larger ones take")
    if not config.threads or not config.instances:
        raise ConfigError(f"{label}instances and threads are at least 1 in a simulation")
    names, inline = plan.instances, plan.inline
    if config.instances != len(names):
        inline = plan.inline and stated_way(config, plan.prior[0][-1] if plan.prior else None).inline
        names = instance_names(names[0].rpartition("-")[0] if names else "m", config.instances)
    values = {name: getattr(config, name) for name in lane}
    slo_s = config.slo_s if "slo" in texts else now.slo_s
    lane_knobs = structs.replace(now, **values, slo_s=slo_s, max_batch_s=longest_s(inline=inline))
    return structs.replace(
        model,
        plan=LanePlan(lane_knobs, plan.prior, names, inline, max(plan.most_batch, lane_knobs.max_batch)),
        threads=config.threads,
    )


def _plain(name: str, text: str) -> Any:
    """The value as the knob takes it: durations in seconds, an objective with its quantile."""
    if name == "slo" and "=" not in text:
        return f"p99={text}"
    if name.endswith("_s") and text[-1].isalpha():
        return str(parse_duration(text))
    return {"on": "true", "off": "false"}.get(text, text) if knobs(ModelConfig)[name].type is bool else text


def from_logs(paths: Sequence[Path], *, objective_s: float | None, parallel: float | None, with_loop: bool) -> Today:
    """The recorded run of a server. `with_loop`: what the loop took is learnt and simulated. Raises ConfigError, LogError."""
    runs = RecordedRuns(paths)
    if with_loop and len(runs.runs) > 1:
        raise ConfigError("--loop recorded works with one model only, because each costs the loop a different time")
    models = {name: _recorded_model(run, with_loop=with_loop) for name, run in runs.runs.items()}
    loop_s = sum(model.arrival_s or 0.0 for model in models.values())
    cores = max(run.cores for run in runs.runs.values())
    rate = runs.count / runs.duration_s
    label = "as recorded"

    def at(speed: float, seed: int, slo_s: Mapping[str, float | None]) -> Scenario:
        arrivals = Arrivals(label if speed == 1.0 else f"{label}, {speed:g} times as fast", rate * speed, no_arrivals)
        return Scenario(
            models=models,
            arrivals=arrivals,
            duration_s=runs.duration_s / speed,
            costs=LoopCosts(read_s=loop_s, shares_core=True) if with_loop else LoopCosts(),
            objective_s=objective_s,
            seed=seed,
            cores=cores,
            parallel=PARALLEL if parallel is None else parallel,
            requests=lambda: runs.calls(speed, slo_s, loop_s=loop_s if with_loop else None),
        )

    rows = {name: run.rows for name, run in runs.runs.items()}
    return Today(at, rate=rate, rows=rows, aims=objective_s is None, recorded=runs)


def no_arrivals() -> Iterator[Any]:
    """Of a run whose requests are given."""
    return iter(())


def _recorded_model(run: RecordedRun, *, with_loop: bool) -> ModelPlan:
    samples, arrival_s = run.samples, None
    if with_loop and not run.inline:
        arrival_s, samples = separate(samples, run.arrivals)
    most = max(run.knobs.max_batch, run.rows[1])  # it may have been lowered when larger ones had come
    lane_knobs = structs.replace(run.knobs, arbitrated=False, max_batch=most)
    plan = LanePlan(lane_knobs, [*run.prior], instance_names(run.model, run.instances), run.inline, most)
    return ModelPlan(
        plan,
        lambda seed: Measured(samples, seed=seed),
        f"{len(samples)} batches of {run.path.name}",
        arrival_s=arrival_s,
        threads=run.threads,
        timed_on=run.threads,
        capacity=run.capacity,
    )


def columns(
    today: Today, changes: Sequence[Change], *, seed: int, on_progress: Callable[[float], None] = lambda share: None
) -> Iterator[tuple[str, Result]]:
    """What was recorded, if it was; simulated as it was; and with each change. Stops after one that was interrupted."""
    cases = [("simulated", Change("")), *((change.text, change) for change in changes)]
    scenarios = [(name, today.scenario(change, seed)) for name, change in cases]  # all mistakes before any work
    if today.recorded is not None:
        as_it_was = scenarios[0][1]
        yield "recorded", today.recorded.result(as_it_was.objective_s, as_it_was.costs.read_s)
    for number, (name, scenario) in enumerate(scenarios):
        result = simulate(scenario, partial(_tell, on_progress, number, len(scenarios), scenario.duration_s))
        result.kind = "what-if"
        yield name, result
        if result.interrupted:
            return


def _tell(on_progress: Callable[[float], None], number: int, of: int, length_s: float, at: float) -> None:
    """The share of all scenarios that is done."""
    on_progress((number + min(at / length_s, 1.0)) / of)


def off_by(recorded: Result, simulated: Result) -> dict[str, float]:
    """The simulator's own error, as a share of what was recorded; nothing where nothing was answered."""
    pairs = {"rate": (recorded.rate_rps, simulated.rate_rps)}
    pairs |= {name: (recorded.latency_ms.get(name, 0.0), simulated.latency_ms.get(name, 0.0)) for name in ("p50", "p99")}
    return {name: there / real - 1.0 for name, (real, there) in pairs.items() if real > 0.0 and isfinite(there)}
