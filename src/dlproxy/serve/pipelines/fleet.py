"""What serves a pipeline: its plan, its one instance, and whether the models of its stages are served.

Made by Pipelines (this room's __init__), held by serve/assemble.py. Not aware of: protocols, other pipelines.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.pipelines import PIPELINE, Wiring, wired
from dlproxy.fleet.names import instance_name
from dlproxy.fleet.roster import Roster
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import signature_of
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Request, Signature, TensorSpec, Ticket
from dlproxy.policy.hops import VIA
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.pipelines import Pacing
from dlproxy.policy.queueing.ranked import due_at
from dlproxy.policy.why import StepTook
from dlproxy.serve.pipelines import matching
from dlproxy.serve.pipelines.code import CodeStage
from dlproxy.serve.pipelines.instance import PipelineInstance
from dlproxy.serve.pipelines.layer import PipelineLayer
from dlproxy.serve.pipelines.micro_batches import MicroBatchLayer
from dlproxy.serve.pipelines.plan import Plan, Step, planned, wanted
from dlproxy.serve.pipelines.run import Run
from dlproxy.serve.pipelines.stages import Bound, ModelStage
from dlproxy.serve.pipelines.threads import Threads
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats, StepCounts
from dlproxy.wire.catalog import Catalog, ServedModel

MOST_TOOK = 512  # steps that ended of which it is known what they took
if TYPE_CHECKING:
    from dlproxy.telemetry.tracing import Tracer

log = logging.getLogger(__name__)


class PipelineFleet:
    """A Fleet, and the Site of its runs. `stages_of`: the models that another pipeline asks, by its name."""

    run = PIPELINE
    most_rows: int | None = None
    plan: Plan

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        stages: Mapping[str, ModelStage | CodeStage],
        catalog: Catalog,
        threads: Threads,
        clock: Callable[[], float],
        stages_of: Callable[[str], frozenset[str]],
        on_stop: Callable[["PipelineFleet"], None],
    ) -> None:
        """Raises ConfigError, ModelError for steps that do not fit together, or stages that are not served."""
        self.name = name
        self.threads = threads
        self.clock = clock
        self.ids: Iterator[int] = catalog.ticket_ids
        self.calibration = Calibration((), independent_rows=False)
        self.way = Way(inline=False, instances=1, threads=0)
        self.stages = stages
        self.counts = {step: StepCounts() for step in stages}
        self.took: deque[tuple[int, str, float, float]] = deque(maxlen=MOST_TOOK)
        self._wiring: Wiring = wired(config.steps, config.inputs, config.outputs)
        self.pacing = Pacing(self._wiring)
        self._config = config
        self._catalog = catalog
        self._knobs = LaneKnobs()
        self._stages_of = stages_of
        self._on_stop = on_stop
        self.problem = ""
        self.tracer: Tracer | None = None
        self.objective_s: Callable[[], float | None] = lambda: None
        self._roster: Roster | None = None
        self._lives = 0
        self._instance: PipelineInstance | None = None
        self.runs: dict[int, Run] = {}  # by ticket
        bound = self._found()
        inputs = matching.inputs_of(self._wiring, config.inputs, config.steps, bound)
        self._inputs = {spec.name: spec for spec in inputs}
        outputs = matching.outputs_of(self._wiring, self._inputs, config.steps, stages, bound)
        self._check(bound)
        streams = any(model.served.signature.streams for model in bound.values())
        signature_of(inputs, outputs, platform=PIPELINE)  # which says what cannot be served
        self.signature = Signature(tuple(inputs), tuple(outputs), batched=False, platform=PIPELINE, streams=streams)
        self.plan = planned(self._wiring, config.steps, stages, self.signature.inputs, self.signature.outputs)
        self._use(bound)

    @property
    def models(self) -> frozenset[str]:
        """That it asks."""
        return frozenset(stage.model for stage in self.stages.values() if isinstance(stage, ModelStage))

    @property
    def headers(self) -> tuple[str, ...]:
        """Of the client's, those that steps name; and where it came through, as stages may be on other servers."""
        return tuple(dict.fromkeys([*(name for stage in self.stages.values() for name in stage.config.headers), VIA]))

    # A Fleet

    def attach(self, roster: Roster) -> None:
        self._roster = roster
        self._come_up()

    def before(self, driver: Service, stats: ModelStats, knobs: LaneKnobs) -> MicroBatchLayer:
        """Where requests come in."""
        stats.steps, self._knobs = self.counts, knobs
        inputs, outputs = (tuple(msgspec.structs.replace(spec, rows=0) for spec in specs) for specs in self._ends)
        rows = Signature(inputs, outputs, batched=True, platform=PIPELINE)
        inner = PipelineLayer(driver, self, stats)
        return MicroBatchLayer(inner, rows, stats, ids=self.ids, clock=self.clock, knobs=knobs, are_apart=self._rows_are_apart)

    @property
    def _ends(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        return self.signature.inputs, self.signature.outputs

    def _rows_are_apart(self) -> bool:
        """Whether each row of an answer is that of a row of the request: every step a model of independent rows."""
        if self.signature.streams or any(spec.shape[:1] != (-1,) for specs in self._ends for spec in specs):
            return False
        for stage in self.stages.values():
            if isinstance(stage, CodeStage) or stage.config.each or stage.config.when:
                return False
            bound, signature = stage.bound, stage.bound.served.signature
            if not signature.batched or any(spec.rows != 0 or spec.counts for spec in (*bound.inputs, *bound.outputs)):
                return False
        return True

    async def scale(self, count: int) -> None:
        raise ConfigError(f"model {self.name} is a pipeline: its stages are models, which have instances")

    def elsewhere_bytes(self) -> int:
        return 0

    async def stop(self) -> None:
        self._on_stop(self)
        for name, served in self._served():
            served.aim(f"{self.name}.{name}", None)
        for run in list(self.runs.values()):
            run.cancel()
        self._roster = None
        for stage in self.stages.values():
            if isinstance(stage, CodeStage):
                await asyncio.to_thread(stage.close)

    def describe(self) -> str:
        steps = " -> ".join(f"{name} ({stage.config.does})" for name, stage in self._in_order())
        return f"in other models: {steps}"

    # A Site

    def rank(self, step: str, ticket: Ticket, now: float, items: int = 0) -> float:
        return self._due_at(ticket, self.pacing.deadline_at(step, ticket, now, items))

    def _due_at(self, ticket: Ticket, deadline_at: float) -> float:
        return due_at(ticket, deadline_at, self._knobs.starvation_s, self._knobs.ageing_s)

    def over(self, run: Run) -> None:
        self.runs.pop(run.request.ticket.id, None)

    # How it is

    def steps_of(self, ticket_id: int) -> tuple[StepTook, ...]:
        """What they took of this request, as far as they have ended and not long ago."""
        found = []
        for number, name, waited_s, computed_s in self.took:
            if number == ticket_id:
                counts = self.counts[name]
                found.append(StepTook(name, waited_s, computed_s, counts.waited_s / max(counts.requests, 1), counts.usual_s))
        return tuple(found)

    def state(self) -> list[dict[str, Any]]:
        """JSON: every step, in order."""
        return [
            {"name": name, "does": stage.config.does, **msgspec.to_builtins(self.counts[name])}
            for name, stage in self._in_order()
        ]

    def follow(self) -> None:
        """Models have come, gone, or been replaced."""
        roster = self._roster
        if roster is None:
            return
        try:
            bound = self._found()
            self._check(bound)
            if any(model.served.signature.streams for model in bound.values()) != self.signature.streams:
                raise ModelError("whether it answers in parts has changed with its last stage: load it again")
        except ModelError as error:
            self.problem = str(error)
            if self._instance is not None:
                log.warning("model %s: %s", self.name, error)
                instance, self._instance = self._instance, None
                roster.suspend_instance(instance.name, str(error))
            return
        self._use(bound)
        if self._instance is None:
            self._come_up()

    def _come_up(self) -> None:
        roster = self._roster
        assert roster is not None
        self.problem = ""
        if self._lives:
            roster.retire_instance(instance_name(self.name, self._lives - 1))
        self._instance = PipelineInstance(instance_name(self.name, self._lives), self)
        self._lives += 1
        roster.add_instance(self._instance)

    def _found(self) -> dict[str, Bound]:
        """The models of its stages as they are served now. Raises ModelError."""
        found = {}
        for name, stage in self.stages.items():
            if isinstance(stage, ModelStage):
                if self.name in (stage.model, *self._asked_by(stage.model)):
                    raise ModelError(f"stage '{name}': {stage} asks this pipeline itself, which is a circle")
                found[name] = stage.found(self._catalog)
        return found

    def _asked_by(self, model: str) -> set[str]:
        """All models that this one asks, if it is a pipeline, and those that they ask."""
        known: set[str] = set()
        unseen = {model}
        while unseen:
            found = set(self._stages_of(unseen.pop())) - known
            known |= found
            unseen |= found
        return known

    def _check(self, bound: Mapping[str, Bound]) -> None:
        matching.check(self._wiring, self._inputs, self._config.steps, self.stages, bound)

    def _use(self, bound: Mapping[str, Bound]) -> None:
        for name, model in bound.items():
            stage = self.stages[name]
            assert isinstance(stage, ModelStage)
            stage.bound = model

    def _in_order(self) -> list[tuple[str, ModelStage | CodeStage]]:
        return [(name, self.stages[name]) for name in self._wiring.order]

    def waits(self, ticket: Ticket, now: float) -> dict[str, float]:
        if self.pacing.splits(now):
            asyncio.get_running_loop().call_soon(self._share_out)  # lanes may be in the midst of their commands
        waits = {name: served.would_wait_s(ticket, now) for name, served in self._served()}
        if self.threads.waiting:
            wait_s = self.threads.would_wait_s(self._due_at(ticket, ticket.deadline_at))
            for step in self.plan.steps:
                if isinstance(step.stage, CodeStage) and not step.stage.pace.inline and not self._is_carried_along(step):
                    waits[step.name] = wait_s
        return waits

    def _is_carried_along(self, step: Step) -> bool:
        """Its code runs behind another's, and waits for no thread of its own."""
        before = None if step.behind is None else self.plan.steps[step.behind].stage
        return isinstance(before, CodeStage) and not before.pace.inline

    def _share_out(self) -> None:
        """The models of the stages make their batches for what this pipeline's objective leaves them."""
        objective_s = self.objective_s()
        stages = {name: stage for name, served in self._served() if (stage := served.stage()) is not None}
        shares = {} if objective_s is None else self.pacing.split(objective_s, stages)
        for name, served in self._served():
            served.aim(f"{self.name}.{name}", shares.get(name))

    def _served(self) -> list[tuple[str, ServedModel]]:
        """By step, the models that it asks."""
        return [(name, stage.bound.served) for name, stage in self.stages.items() if isinstance(stage, ModelStage)]

    def cancel(self, request: Request) -> None:
        run = self.runs.get(request.ticket.id)
        if run is not None:
            asyncio.get_running_loop().call_soon(run.cancel)  # a lane's commands may be in the midst of being carried out


def stages_of(config: ModelConfig, wiring: Wiring, *, trusted: bool) -> dict[str, ModelStage | CodeStage]:
    """What does the steps, with the code imported and made. Blocks. Raises ModelError."""
    made: dict[str, ModelStage | CodeStage] = {}
    try:
        for name, names in wanted(wiring).items():
            step = config.steps[name]
            if step.model and step.need:
                raise ModelError(f"stage '{name}': need is for code, and model '{step.model}' takes all of its inputs")
            made[name] = ModelStage(name, step, names) if step.model else CodeStage(name, step, names, trusted=trusted)
    except BaseException:
        for stage in made.values():
            if isinstance(stage, CodeStage):
                stage.close()
        raise
    return made
