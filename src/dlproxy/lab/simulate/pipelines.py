"""A pipeline in virtual time: each request goes through its steps, which ask the lanes of the same simulated node.

Called by engine.py where a pipeline's lane dispatches; made by run.py, benchmarks and tests. Not aware of: values, lanes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from random import Random
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct, field, structs

from dlproxy.config import ConfigError, ModelConfig, parse_duration
from dlproxy.config.pipelines import NOT, Source, StepConfig, Wiring, wired
from dlproxy.config.values import nearest
from dlproxy.lab.simulate.threads import SimulatedJob, SimulatedThreads
from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.events import BatchDone, Dispatch, KnobsChanged
from dlproxy.policy.pipelines import Stage
from dlproxy.policy.queueing.ranked import due_at
from dlproxy.serve.pipelines.code import CHEAP_S

if TYPE_CHECKING:
    from dlproxy.lab.simulate.engine import Node, SimulatedModel

STEP_EXAMPLE = "items=1-20,chance=0.3,time=5ms"
MOST_ITEMS = 65536  # of one request, as when served
CAPACITY = 256  # requests that are on their way through one pipeline at a time; the others wait in its lane


class Paces(Protocol):
    """What gives steps their deadlines, and says who need not begin: policy.pipelines.Pacing, or what is compared with it."""

    def begun(self, step: str) -> None: ...

    def observed(self, step: str, *, waited_s: float, computed_s: float, items: int = 1) -> None: ...

    def deadline_at(self, step: str, ticket: Ticket, now: float, items: int = 1) -> float: ...

    def refusal(self, ticket: Ticket, waits: Mapping[str, float], now: float) -> Failure | None: ...

    def splits(self, now: float) -> bool: ...

    def split(self, objective_s: float, stages: Mapping[str, Stage]) -> Mapping[str, float]: ...


class StepPlan(Struct, frozen=True):
    """`model`: that it asks; empty for code, which takes `seconds`. `items`: how many it is run for, one of these numbers for
    each request. `like`: the step that it has as many items as; empty for none. `chance`: that its condition is true.
    """

    model: str = ""
    seconds: float = 0.0
    items: Sequence[int] = (1,)
    like: str = ""
    chance: float = 1.0

    @property
    def runs_once(self) -> bool:
        """Code that is run for one item."""
        return not self.model and not self.like and tuple(self.items) == (1,)


class PipelinePlan(Struct, frozen=True):
    """A pipeline of a simulation."""

    wiring: Wiring
    steps: Mapping[str, StepPlan]


class StepTimes(Struct):
    """What one step took, in seconds, of every request of which it ended well."""

    waited_s: list[float] = field(default_factory=list)
    computed_s: list[float] = field(default_factory=list)


class _Stage(Struct, eq=False):
    """One step of one request that is under way. `open`: tickets of it that wait or run, and which is to follow them. `job`:
    of code on a thread.
    """

    name: str
    began_at: float
    items: int
    open: set[int]
    job: SimulatedJob | None = None
    first_at: float = inf  # when one of its items began to run


class _Run(Struct, eq=False):
    """One request. `left`: of each step that has not begun, how many steps before it are not settled yet."""

    ticket: Ticket
    batch_id: int
    left: dict[str, int]
    skipped: set[str]
    items: dict[str, int]
    stages: dict[str, _Stage]
    path_s: dict[str, float]  # what was computed up to the end of each step, along the way that took longest


class SimulatedPipeline:
    """One pipeline of one node; a request of it is a batch of its lane, and items of a step are requests of their own."""

    _node: "Node"
    _model: "SimulatedModel"

    def __init__(
        self,
        wiring: Wiring,
        steps: Mapping[str, StepPlan],
        pacing: Paces,
        threads: SimulatedThreads | None = None,
        *,
        seed: int = 0,
    ) -> None:
        """`threads`: that code runs on, of its own if there are no other pipelines."""
        self.wiring = wiring
        self.steps = steps
        self.threads = threads or SimulatedThreads()
        self.times = {name: StepTimes() for name in steps}
        self.refused = 0
        """Requests that were told at the entrance that they would be late."""
        self._pacing = pacing
        self._random = Random(seed)
        self._before = {name: wiring.before(name) for name in wiring.order}
        self._on_threads = [name for name, step in steps.items() if not step.model and step.seconds >= CHEAP_S]
        behind = wiring.behind([name for name, step in steps.items() if step.runs_once])
        self._behind = {name for name, before in behind.items() if before in self._on_threads}

    def join(self, node: "Node", model: "SimulatedModel") -> None:
        """It is this model, and its steps ask others of the same node."""
        self._node, self._model = node, model
        self._knobs = model.lane.view().knobs
        asked = {name: node.models[step.model] for name, step in self.steps.items() if step.model}
        self._asked = asked
        self._aimed = {name: other for name, other in asked.items() if other.lane.view().knobs.slo_s is None}

    def refusal(self, ticket: Ticket, now: float) -> FailureKind | None:
        """Why the request need not begin."""
        if self._pacing.splits(now):
            self._split(ticket.deadline_at - ticket.arrived_at, now)
        failure = self._pacing.refusal(ticket, self._waits(ticket, now), now)
        self.refused += failure is not None
        return None if failure is None else failure.kind

    def run(self, batch: Dispatch, now: float) -> None:
        """Its one instance takes a request; its lane hears of the end."""
        left = {name: len(before) for name, before in self._before.items()}
        run = _Run(batch.tickets[0], batch.batch_id, left, set(), {}, {}, {})
        self._node.heap.at(now, self._begin_all, run)

    def _begin_all(self, run: _Run, now: float) -> None:
        self._go_on(run, [name for name, steps in self._before.items() if not steps], now)

    def _end(self, run: _Run, failure: FailureKind | None, now: float) -> None:
        computed_s = max(run.path_s.values(), default=0.0)
        why = None if failure is None else Failure(failure, "a step has failed")
        done = BatchDone(run.batch_id, computed_s, None if why is None else why.message, why)
        self._node.heap.at(now, self._node.happen, (self._model, done))

    def _waits(self, ticket: Ticket, now: float) -> dict[str, float]:
        waits = {name: model.lane.would_wait_s(ticket, now) for name, model in self._asked.items()}
        if self.threads.jobs:
            wait_s = self.threads.jobs.would_wait_s(self._rank(ticket, ticket.deadline_at))
            waits |= {name: wait_s for name in self._on_threads if name not in self._behind}
        return waits

    def _rank(self, ticket: Ticket, deadline_at: float) -> float:
        return due_at(ticket, deadline_at, self._knobs.starvation_s, self._knobs.ageing_s)

    def _split(self, objective_s: float, now: float) -> None:
        """As LaneControl.aim has it."""
        if objective_s == inf:
            return
        shares = self._pacing.split(objective_s, {name: model.lane.stage() for name, model in self._asked.items()})
        for name in shares.keys() & self._aimed.keys():
            model = self._aimed[name]
            model.aims[self._model.name, name] = shares[name]
            knobs, aim_s = model.lane.view().knobs, min(model.aims.values())
            if knobs.slo_s != aim_s:
                self._node.heap.at(now, self._node.happen, (model, KnobsChanged(structs.replace(knobs, slo_s=aim_s))))

    def _go_on(self, run: _Run, ready: list[str], now: float) -> None:
        """Begin these steps, or skip them; then what is ready by that."""
        while ready:
            name = ready.pop()
            if self._is_skipped(run, name):
                run.skipped.add(name)
                self._settle(run, name, ready)
            else:
                self._begin(run, name, now)
        if not run.stages:
            missing = any(all(source.step in run.skipped for source in sources) for sources in self.wiring.outputs.values())
            self._end(run, FailureKind.MODEL_FAILED if missing else None, now)

    def _is_skipped(self, run: _Run, name: str) -> bool:
        missing = any(_missing(sources, run.skipped) for sources in self.wiring.inputs[name].values())
        return missing or (self.steps[name].chance < 1.0 and self._random.random() >= self.steps[name].chance)

    def _settle(self, run: _Run, name: str, ready: list[str]) -> None:
        for after in self.wiring.after[name]:
            run.left[after] -= 1
            if not run.left[after]:
                ready.append(after)

    def _begin(self, run: _Run, name: str, now: float) -> None:
        step = self.steps[name]
        items = run.items[name] = run.items[step.like] if step.like else self._random.choice(step.items)
        self._pacing.begun(name)
        stage = run.stages[name] = _Stage(name, now, items, set())
        deadline_at = self._pacing.deadline_at(name, run.ticket, now, items)
        if not step.model and items and (name in self._on_threads or name in self._behind):
            stage.job = job = SimulatedJob(
                step.seconds, partial(self._code_ended, (run, stage)), partial(self._late, run), run.ticket.deadline_at
            )
            if name in self._behind:
                self.threads.put_behind(job)
            else:
                self.threads.put(job, self._rank(run.ticket, deadline_at), now, self._node.heap)
            return
        if not step.model or not items:
            self._node.heap.at(now + (step.seconds if items else 0.0), self._code_ended, (run, stage))
            return
        for _ in range(items):
            ticket = Ticket(next(self._node.numbers), run.ticket.arrived_at, deadline_at, priority=run.ticket.priority)
            stage.open.add(ticket.id)
            self._node.ask(self._asked[name], ticket, partial(self._item_ended, run, stage, ticket.id), now)

    def _code_ended(self, what: tuple[_Run, _Stage], now: float) -> None:
        run, stage = what
        if stage.name in run.stages:
            stage.first_at = stage.began_at if stage.job is None else stage.job.begun_at
            self._ended(run, stage, now)

    def _late(self, run: _Run, now: float) -> None:
        self._fail(run, FailureKind.DEADLINE, now)

    def _item_ended(
        self, run: _Run, stage: _Stage, number: int, failure: FailureKind | None, service_s: float, now: float
    ) -> None:
        stage.open.discard(number)
        if stage.name not in run.stages:  # the request has failed
            return
        if failure is not None:
            self._fail(run, failure, now)
            return
        stage.first_at = min(stage.first_at, now - service_s)
        if not stage.open:
            self._ended(run, stage, now)

    def _ended(self, run: _Run, stage: _Stage, now: float) -> None:
        name = stage.name
        del run.stages[name]
        waited_s, computed_s = stage.first_at - stage.began_at, now - stage.first_at
        self._pacing.observed(name, waited_s=waited_s, computed_s=computed_s, items=stage.items)
        self.times[name].waited_s.append(waited_s)
        self.times[name].computed_s.append(computed_s)
        run.path_s[name] = computed_s + max([run.path_s.get(step, 0.0) for step in self._before[name]], default=0.0)
        ready: list[str] = []
        self._settle(run, name, ready)
        self._go_on(run, ready, now)

    def _fail(self, run: _Run, failure: FailureKind, now: float) -> None:
        """Nobody waits for the rest."""
        stages, run.stages = run.stages, {}
        for stage in stages.values():
            if stage.job is not None:
                stage.job.cancelled = True
            if stage.open:
                self._node.leave(self._asked[stage.name], sorted(stage.open), now)
        self._end(run, failure, now)


def plan_steps(name: str, config: ModelConfig, texts: Mapping[str, str], models: Iterable[str]) -> PipelinePlan:
    """The steps of a pipeline over these models. `texts`: by step, such as "items=1-20,chance=0.3,time=5ms", of which time is
    for code. What is not said: one item, and as many as the first such step before it where items go on; true; no time.
    Raises ConfigError.
    """
    known = list(models)
    inputs = {source for step in config.steps.values() for source in _inputs(step)} | config.inputs.keys()
    wiring = wired(config.steps, inputs, config.outputs)
    steps: dict[str, StepPlan] = {}
    for step_name in wiring.order:
        step = config.steps[step_name]
        model = step.model.partition(":")[0] if step.model not in known else step.model
        if step.model and model not in known:
            raise ConfigError(f"pipelines.{name}: step '{step_name}' asks model '{step.model}'; {nearest(step.model, known)}")
        plan = _step_plan(f"--step {name}.{step_name}", texts.get(step_name, ""))
        if model and plan.seconds:
            raise ConfigError(f"--step {name}.{step_name}: time is for code; --service {model}=... says what the model takes")
        like = next((other for other in wiring.before(step_name) if config.steps[other].each), "") if step.each else ""
        steps[step_name] = structs.replace(plan, model=model, like="" if len(plan.items) > 1 else like)
    return PipelinePlan(wiring, steps)


def _inputs(step: StepConfig) -> Iterator[str]:
    """Those of the pipeline that it takes, or may: what has no dot."""
    for text in (*step.inputs.values(), step.when.removeprefix(NOT)):
        yield from (part.strip() for part in text.split("|") if part.strip() and "." not in part)


def _step_plan(label: str, text: str) -> StepPlan:
    values: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in ("items", "chance", "time"):
            raise ConfigError(f"{label}: there is no option '{key}'; write it like {STEP_EXAMPLE}")
        values[key] = value
    try:
        least, _, most = values.get("items", "1").partition("-")
        items = range(int(least), int(most or least) + 1)
        chance = float(values.get("chance", "1"))
        seconds = parse_duration(values["time"]) if "time" in values else 0.0
    except (ConfigError, ValueError):
        raise ConfigError(f"{label}={text} is not understood; write it like {STEP_EXAMPLE}") from None
    if not items or items[0] < 0 or items[-1] > MOST_ITEMS or not 0.0 <= chance <= 1.0:
        raise ConfigError(f"{label}={text}: items are 0 to {MOST_ITEMS:,}, the smaller number first, chance is 0 to 1")
    return StepPlan(seconds=seconds, items=items, chance=chance)


def _missing(sources: Sequence[Source], skipped: set[str]) -> bool:
    return all(source.step in skipped for source in sources)
