"""Pipelines over models with real lanes and fake instances, on the test's event loop, whose (virtual) time is the clock."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
from msgspec.structs import replace

from dlproxy.config import ModelConfig
from dlproxy.config.pipelines import StepConfig, wired
from dlproxy.fleet.roster import Roster
from dlproxy.message import DType, Request, Signature, TensorSpec
from dlproxy.policy.jobs import JobQueue
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.serve.driver import Driver
from dlproxy.serve.failure_log import FailureLog
from dlproxy.serve.pipelines import PipelineFleet
from dlproxy.serve.pipelines.fleet import stages_of
from dlproxy.serve.pipelines.threads import Job
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats
from dlproxy.tensors import from_values, to_values
from dlproxy.testing import FakeInstance, FakeRuntime
from dlproxy.testing.fake_runtime import Function
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.checks import RequestChecker
from tests.policy.lane.fixtures import warmed
from tests.serve.rig import KNOBS, SIGNATURE, Array, Reply, double, pass_time, turns

TWO = Signature(
    (TensorSpec("a", DType.FP32, (-1, -1)), TensorSpec("b", DType.FP32, (-1, -1))),
    (TensorSpec("y", DType.FP32, (-1, -1)),),
    batched=True,
    platform="fake",
)
HERE = "tests.serve.pipelines.code"


class FakeThreads:
    """Code takes `work_s` seconds of virtual time, on `most` threads."""

    def __init__(self, most: int, clock: Callable[[], float], work_s: float = 0.001) -> None:
        self.most = most
        self.work_s = work_s
        self._clock = clock
        self._jobs: JobQueue[Job] = JobQueue()
        self._busy = 0

    @property
    def at_rest(self) -> bool:
        return not self._jobs and not self._busy

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def would_wait_s(self, rank: float) -> float:
        return self._jobs.would_wait_s(rank)

    def put(self, job: Job, rank: float) -> None:
        self._jobs.put(job, rank)
        self._go_on()

    def _go_on(self) -> None:
        while self._jobs and self._busy < self.most:
            job = self._jobs.take(self._clock())
            if job.cancelled:
                continue
            self._busy += 1
            late = self._clock() >= job.begin_by
            asyncio.get_running_loop().call_later(0.0 if late else self.work_s, self._end, job, late)

    def _end(self, job: Job, late: bool) -> None:
        self._busy -= 1
        job.done(None if late else job.work())
        self._go_on()


class Stage:
    """A served model of fakes."""

    def __init__(
        self,
        floor: "Floor",
        name: str,
        function: Function,
        signature: Signature,
        knobs: LaneKnobs,
        *,
        version: str,
        instances: int,
        service_s: float | None,
        known: bool,
    ) -> None:
        self.runtime = FakeRuntime(signature, function)
        self.stats = ModelStats()
        prior = ((1, service_s or 0.001), (64, service_s or 0.001)) if known else ()
        self.lane = warmed(Lane(knobs, prior)) if known else Lane(knobs, prior)
        self.driver = Driver(
            model=name, version=version, signature=signature, lane_on=self.lane.on, stats=self.stats, clock=floor.now
        )
        self._took = None if service_s is None else lambda rows: service_s
        self.fakes = [FakeInstance(f"{name}-{number}", self.runtime, service_s=self._took) for number in range(instances)]
        for fake in self.fakes:
            self.driver.add_instance(fake)
        self.served = ServedModel(
            name=name,
            version=version,
            signature=signature,
            service=self.driver,
            stats=self.stats,
            max_batch=knobs.max_batch,
            slo_s=None,
            view=self.lane.view,
        )

    def revive(self) -> None:
        """Whatever instance it has lost is there again, as another, and none fails any more."""
        up = {instance.name for instance in self.lane.view().instances}
        for number, fake in enumerate(self.fakes):
            fake._failures.clear()
            if fake.name not in up:
                self.fakes[number] = FakeInstance(f"{fake.name}-again", self.runtime, service_s=self._took)
                self.driver.add_instance(self.fakes[number])

    @property
    def at_rest(self) -> bool:
        view = self.lane.view()
        return not (self.driver.open_requests or view.queued_rows or view.running_batches)


class Floor:
    """Models and pipelines of one process."""

    def __init__(self, *, threads: int = 2, work_s: float = 0.001) -> None:
        self.now = asyncio.get_running_loop().time
        self.catalog = Catalog()
        self.threads = FakeThreads(threads, self.now, work_s)
        self.stages: dict[str, Stage] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.catalog.subscribe(self._follow)

    def model(
        self,
        name: str,
        function: Function = double,
        *,
        signature: Signature = SIGNATURE,
        knobs: LaneKnobs = KNOBS,
        version: str = "1",
        instances: int = 1,
        service_s: float | None = 0.010,
        known: bool = True,
    ) -> Stage:
        """`known`: its lane knows how long batches take."""
        stage = self.stages[name] = Stage(
            self, name, function, signature, knobs, version=version, instances=instances, service_s=service_s, known=known
        )
        self.catalog.add(stage.served)
        return stage

    def pipeline(self, steps: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, str], **settings: Any) -> "Pipeline":
        pipeline = Pipeline(self, steps, outputs, **settings)
        self.pipelines[pipeline.name] = pipeline
        self.catalog.add(pipeline.served)
        return pipeline

    def stages_of(self, name: str) -> frozenset[str]:
        return self.pipelines[name].fleet.models if name in self.pipelines else frozenset()

    def _follow(self) -> None:
        for pipeline in self.pipelines.values():
            pipeline.fleet.follow()

    async def rest(self) -> None:
        """Nothing is left of anything."""
        await pass_time(1.0)
        await turns()
        for name, stage in self.stages.items():
            assert stage.at_rest, name
        for pipeline in self.pipelines.values():
            assert not pipeline.fleet.runs
            assert pipeline.lane.view().running_batches == 0
            assert pipeline.driver.open_requests == 0
            assert all(counts.in_flight == 0 for counts in pipeline.fleet.counts.values())
        assert self.threads.at_rest


class Pipeline:
    """One that is up. `service`: where requests come in."""

    def __init__(
        self,
        floor: Floor,
        steps: Mapping[str, Mapping[str, Any]],
        outputs: Mapping[str, str],
        *,
        name: str = "p",
        inputs: Mapping[str, str] | None = None,
        knobs: LaneKnobs = KNOBS,
    ) -> None:
        self.name = name
        self.floor = floor
        config = ModelConfig(
            path="pipeline",
            inputs=dict({"x": "FP32[-1,-1]"} if inputs is None else inputs),
            outputs=dict(outputs),
            steps={step: StepConfig(**settings) for step, settings in steps.items()},
        )
        stages = stages_of(config, wired(config.steps, config.inputs, config.outputs), trusted=True)
        self.fleet = PipelineFleet(
            name,
            config,
            stages,
            floor.catalog,
            floor.threads,  # type: ignore[arg-type]
            floor.now,
            floor.stages_of,
            lambda fleet: None,
        )
        self.stats = ModelStats()
        self.lane = Lane(replace(knobs, max_batch=1), ())
        signature = self.fleet.signature
        self.driver = Driver(
            model=name,
            version="1",
            signature=signature,
            lane_on=self.lane.on,
            stats=self.stats,
            clock=floor.now,
            failure_log=FailureLog(name, of_stages=True),
        )
        self.roster = Roster(self.driver, self.stats, floor.now)
        self.fleet.attach(self.roster)
        self.service: Service = self.fleet.before(self.driver, self.stats, knobs)
        self.served = ServedModel(
            name=name,
            version="1",
            signature=signature,
            service=self.service,
            stats=self.stats,
            max_batch=1,
            slo_s=None,
            view=self.lane.view,
        )
        self._checker = RequestChecker(self.served)

    def request(
        self,
        values: Mapping[str, Any],
        *,
        outputs: Sequence[int] = (),
        timeout_s: float = inf,
        promised: bool = False,
        **terms: Any,
    ) -> Request:
        specs = {spec.name: spec for spec in self.fleet.signature.inputs}
        tensors = [from_values(name, specs[name].dtype, value) for name, value in values.items()]
        request = self._checker.request(
            tensors,
            outputs or self._checker.all_outputs,
            ticket_id=next(self.floor.catalog.ticket_ids),
            request_id=None,
            params={},
            now=self.floor.now(),
        )
        request.ticket = replace(request.ticket, deadline_at=self.floor.now() + timeout_s, **terms)
        if promised:
            request.ticket.answer_by = request.ticket.deadline_at
        return request

    def send(self, values: Mapping[str, Any], **terms: Any) -> "Answer":
        answer = Answer(self.request(values, **terms))
        self.service.submit(answer.request, answer)
        return answer

    async def ask(self, values: Mapping[str, Any], **terms: Any) -> dict[str, Array]:
        answer = self.send(values, **terms)
        await answer.wait()
        return answer.outputs


class Answer(Reply):
    """With the outputs by name."""

    async def wait(self) -> "Answer":
        await super().wait()
        return self

    @property
    def outputs(self) -> dict[str, Array]:
        assert self.response is not None, f"failed: {self.failure}"
        return {tensor.name: to_values(tensor, text=False) for tensor in self.response.outputs}

    @property
    def why(self) -> str:
        assert self.failure is not None, f"answered: {self.response}"
        return self.failure.message


def step(what: str, *, each: bool = False, when: str = "", need: int = 0, **inputs: Any) -> dict[str, Any]:
    """Of a model or, with a colon, of code of the tests."""
    does = {"call": f"{HERE}{what}"} if what.startswith(":") else {"model": what}
    return {**does, "inputs": inputs, "each": each, "when": when, "need": need}


def rows(*values: float, width: int = 2) -> Array:
    """One row for each."""
    return np.repeat(np.array(values, np.float32)[:, None], width, axis=1)


def times(factor: float) -> Function:
    """A model that multiplies."""
    return lambda inputs: [np.asarray(inputs[0], np.float32) * np.float32(factor)]


def total(inputs: Sequence[Array]) -> list[Array]:
    """Of two inputs."""
    return [np.asarray(inputs[0] + inputs[1], np.float32)]
