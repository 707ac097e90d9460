"""One request on its way through the steps of a pipeline: what can begin does, until the outputs are there or something fails.

Made by instance.py. Everything is called on the event loop. Not aware of: lanes, protocols, who waits for the end.
"""

from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.tracebacks import origin_of
from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, Rest, Tensor, Ticket, text_of
from dlproxy.policy.pipelines import Pacing
from dlproxy.serve.pipelines.calls import Call, Ran, call_of
from dlproxy.serve.pipelines.code import CodeStage, Context
from dlproxy.serve.pipelines.parts import PipelineRest
from dlproxy.serve.pipelines.plan import Plan, Step
from dlproxy.serve.pipelines.stages import ModelStage
from dlproxy.serve.pipelines.threads import Job, Threads
from dlproxy.serve.pipelines.values import MISSING, Array, Missing, Value, checked, first, truths
from dlproxy.telemetry.stats import StepCounts
from dlproxy.tensors import to_array

if TYPE_CHECKING:
    from dlproxy.telemetry.tracing import Tracer

DEEPEST = 16  # steps that end at once, each in the midst of the one before: the next one waits for the loop's next turn
HURRY_S = 0.002  # a step that needs not all of its inputs begins so long before it must: timers and threads are not exact


class Site(Protocol):
    """What runs of one pipeline share: its fleet."""

    plan: Plan
    pacing: Pacing
    counts: dict[str, StepCounts]
    took: deque[tuple[int, str, float, float]]
    """What steps took that ended of late: of which request, and what they waited and computed."""
    threads: Threads
    ids: Iterator[int]
    clock: Callable[[], float]
    runs: "dict[int, Run]"
    tracer: "Tracer | None"

    def rank(self, step: str, ticket: Ticket, now: float, items: int = 0) -> float:
        """Of this step's code among what waits for a thread; the lowest is first."""
        ...

    def over(self, run: "Run") -> None:
        """It has ended."""
        ...


class Run:
    """`done` gets the result, once, but not before `begin` has returned. `path_s`: what the steps computed that those which
    begin now had to wait for. `variants`: that answered in place of stages' models. `ahead`: what code gave that ran before its
    step has begun, behind another's.
    """

    __slots__ = (
        *("_beginning", "_calls", "_done", "_loop", "_nested", "_site", "_state", "_timers", "_values"),
        *("ahead", "over", "path_s", "request", "variants"),
    )

    def __init__(self, site: Site, request: Request, done: Callable[[BatchResult], None], loop: Any) -> None:
        self.request = request
        self.over = False
        self.path_s = 0.0
        self.variants: dict[str, None] = {}
        self.ahead: dict[int, Ran] = {}
        self._site = site
        self._done = done
        self._loop = loop
        self._values: list[Value | None] = [*request.inputs, *[None] * (site.plan.places - len(request.inputs))]
        self._state: list[Failure | str] = [""] * len(site.plan.steps)  # begun, skipped, or why it has failed
        self._calls: dict[int, Call] = {}
        self._timers: dict[int, Any] = {}
        self._beginning = True
        self._nested = 0  # steps that have begun in the midst of another's end

    def begin(self) -> None:
        for step in self._site.plan.steps:
            if step.first and not self.over:
                self._consider(step)
        self._beginning = False

    def cancel(self) -> None:
        """Nobody waits for the end any more."""
        if not self.over:
            self._finish(_failed(Failure(FailureKind.CANCELLED, "the request was cancelled")))

    # What calls ask

    @property
    def clock(self) -> Callable[[], float]:
        return self._site.clock

    @property
    def threads(self) -> int:
        """How many code may run on."""
        return self._site.threads.most

    def request_of(self, step: Step, tensors: list[Tensor]) -> Request:
        """For the model of this step. Raises InferenceError."""
        site, stage, now = self._site, step.stage, self._site.clock()
        assert isinstance(stage, ModelStage)
        deadline_at = site.pacing.deadline_at(step.name, self.request.ticket, now, self._calls[step.number].items)
        request = stage.request(tensors, self.request, site.ids, now, deadline_at)
        span = self._calls[step.number].span
        if span is not None and site.tracer is not None:
            request.trace = site.tracer.within(span, request.trace)
        return request

    def span_of(self, step: Step) -> Any:
        """That of a step which begins now; the request is traced."""
        tracer, name = self._site.tracer, step.name
        return tracer and tracer.start(f"step {name}", self.clock(), self.request.trace, {"dlproxy.step": name})

    def _end_span(self, call: Call, failure: Failure | None = None) -> None:
        if call.span is not None and self._site.tracer is not None:
            self._site.tracer.end(call.span, self.clock(), failure)

    def put(self, step: Step, work: Callable[[], Any], done: Callable[[Any], None]) -> Job:
        """Have code run on a thread."""
        site, ticket = self._site, self.request.ticket
        job = Job(work, done, self._loop, ticket.deadline_at)
        items = self._calls[step.number].items
        site.threads.put(job, site.rank(step.name, ticket, site.clock(), items))
        return job

    def behind(self, step: Step, given: Ran) -> tuple[Step, dict[str, Value]] | None:
        """The step whose code may run right behind this one's, and its inputs. Called on threads."""
        values = given[0]
        if step.then is None or self.over or isinstance(values, BaseException) or any(map(_is_missing, values)):
            return None
        site = self._site
        if site.clock() >= self.request.ticket.deadline_at:
            return None
        then, places = site.plan.steps[step.then], dict(zip(step.outputs.values(), values, strict=True))
        return then, {name: places[source] for name, (source,) in then.inputs}

    def context(self, stage: CodeStage) -> Context | None:
        if not stage.takes_context:
            return None
        request = self.request
        sent = request.headers
        headers = {name: sent[name] for name in map(str.lower, stage.config.headers) if name in sent}
        return Context(request.params, headers, request.ticket.deadline_at, lambda: self.over)

    def too_late(self) -> Failure:
        """For code that no thread had time for."""
        ticket, now = self.request.ticket, self._site.clock()
        message = f"Request timeout expired: {(now - ticket.arrived_at) * 1e3:.1f} ms after it had arrived no thread was free"
        return Failure(FailureKind.LATE if ticket.answer_by <= now else FailureKind.DEADLINE, message)

    @staticmethod
    def refused(step: Step, error: Exception) -> tuple[Failure, Any]:
        """Why a step cannot be given what it was to get, as `failed` takes it: the client's fault only if that came from the
        client as it is.
        """
        foreseen = isinstance(error, ValueError | InferenceError)
        kind = FailureKind.INVALID_ARGUMENT if step.direct and foreseen else FailureKind.MODEL_FAILED
        if isinstance(error, InferenceError) and error.failure.kind is not FailureKind.INVALID_ARGUMENT:
            kind = error.failure.kind
        return Failure(kind, text_of(error)), "" if foreseen else origin_of(error)

    # What they tell

    def ended(self, call: Call, outputs: list[Value]) -> None:
        """With the values of those outputs that are taken."""
        step, site = call.step, self._site
        if self.over:
            return
        del self._calls[step.number]
        self._end_span(call)
        took_s = site.clock() - call.began_at
        computed_s = min(call.computed_s, took_s)
        site.counts[step.name].ended(waited_s=took_s - computed_s, computed_s=computed_s)
        site.took.append((self.request.ticket.id, step.name, took_s - computed_s, computed_s))
        site.pacing.observed(step.name, waited_s=took_s - computed_s, computed_s=computed_s, items=call.items)
        self.path_s = call.path_s + computed_s
        for place, value in zip(step.outputs.values(), outputs, strict=True):
            self._values[place] = value
        self._go_on(step)

    def failed(self, call: Call, failure: Failure, origin: Any = None, place: str = "") -> None:
        """`origin`: where the pipeline's own code has failed, or ""; None if that is not its own. `place`: which items."""
        if self.over:
            return
        step = call.step
        self._calls.pop(step.number, None)
        self._end_span(call, failure)
        self._site.counts[step.name].failed()
        said = f"{step}{', ' * bool(place)}{place}: {failure.message}"
        failure = Failure(failure.kind, said, failure.retry_after_s)
        if step.optional:
            self._state[step.number] = failure
            self.path_s = call.path_s
            self._lack(step)
        else:
            self._finish(_failed(failure, origin))

    def streams(self, call: Call, response: Response, rest: Rest) -> None:
        """The last step has the first part of its answer."""
        step, plan, site = call.step, self._site.plan, self._site
        del self._calls[step.number]
        self._end_span(call)
        names = [step.stage.names[list(step.outputs.values()).index(sources[0])] for _, sources in plan.outputs]
        places = [step.stage.names.index(name) for name in names]
        took_s = site.clock() - call.began_at
        computed_s = min(call.computed_s, took_s)
        site.counts[step.name].ended(waited_s=took_s - computed_s, computed_s=computed_s)
        site.took.append((self.request.ticket.id, step.name, took_s - computed_s, computed_s))
        site.pacing.observed(step.name, waited_s=took_s - computed_s, computed_s=computed_s)
        outputs = [_array(response.outputs[place]) for place in places]
        self._finish(BatchResult(outputs, call.path_s + computed_s, 0.0, rest=PipelineRest(rest, places, str(step))))

    # What follows

    def _go_on(self, step: Step) -> None:
        steps = self._site.plan.steps
        for number in step.after:
            if self.over:
                return
            if not self._state[number]:
                self._consider(steps[number])
        if step.feeds_outputs and not self.over:
            self._conclude()

    def _consider(self, step: Step, *, hurried: bool = False) -> None:
        """Begin it if all that it takes is there, skip it if something will not be."""
        values, condition = self._values, None
        if step.when is not None:
            condition = values[step.when[0]]
            if condition is None:
                return
            if isinstance(condition, Missing):
                self._skip(step)
                return
        taken: dict[str, Value] = {}
        try:
            wanted = None if condition is None else _wanted(step, condition)
        except Exception as error:
            self._begin(step, {}, None, error)
            return
        if wanted == [False] and not (step.each and _of_items(condition)):
            self._skip(step)
            return
        pending = missing = 0
        for name, sources in step.inputs:
            value = values[sources[0]] if len(sources) == 1 else first(values, sources)
            if value is None:
                pending += 1
            else:
                taken[name] = value
                missing += isinstance(value, Missing)
        need = step.need or len(step.inputs)
        there = len(taken) - missing
        if there + pending < need:
            self._skip(step)
        elif not pending:
            self._begin(step, taken, wanted)
        elif step.need and there >= need:
            if hurried:
                taken.update({name: MISSING for name, _ in step.inputs if name not in taken})
                self._begin(step, taken, wanted)
            elif step.number not in self._timers:
                self._hurry_later(step)

    def _begin(self, step: Step, taken: dict[str, Value], wanted: list[bool] | None, problem: Exception | None = None) -> None:
        self._state[step.number] = "begun"
        if self._nested >= DEEPEST:
            self._loop.call_soon(self._begin_nested, step, taken, wanted, problem)
        else:
            self._begin_nested(step, taken, wanted, problem)

    def _begin_nested(self, step: Step, taken: dict[str, Value], wanted: list[bool] | None, problem: Exception | None) -> None:
        if self.over:
            return
        timer = self._timers.pop(step.number, None)
        if timer is not None:
            timer.cancel()
        call = self._calls[step.number] = call_of(self, step)
        self._site.counts[step.name].began()
        self._site.pacing.begun(step.name)
        self._nested += 1
        try:
            if problem is not None:
                raise problem
            call.begin(taken, wanted)
        except Exception as error:  # numpy has many for values that it can make nothing of
            if not call.over:
                call.over = True
                self.failed(call, *self.refused(step, error))
        finally:
            self._nested -= 1

    def _skip(self, step: Step) -> None:
        self._state[step.number] = "skipped"
        self._site.counts[step.name].skipped += 1
        self._lack(step)

    def _lack(self, step: Step) -> None:
        """Its outputs will not be there."""
        for place in step.outputs.values():
            self._values[place] = MISSING
        self._go_on(step)

    def _hurry_later(self, step: Step) -> None:
        """It has enough of its inputs, and waits for the others only as long as it can still be in time."""
        site = self._site
        now = site.clock()
        deadline_at = site.pacing.deadline_at(step.name, self.request.ticket, now)
        if deadline_at < inf:
            delay_s = max(deadline_at - 2 * site.counts[step.name].usual_s - HURRY_S - now, 0.0)
            self._timers[step.number] = self._loop.call_later(delay_s, self._hurry, step)

    def _hurry(self, step: Step) -> None:
        if not self.over and not self._state[step.number]:
            self._consider(step, hurried=True)

    # The end

    def _conclude(self) -> None:
        """Answer if all outputs are there."""
        found: list[Value] = []
        for _, sources in self._site.plan.outputs:
            value = first(self._values, sources)
            if value is None:
                return
            found.append(value)
        outputs: list[Array] = []
        for number, ((spec, sources), value) in enumerate(zip(self._site.plan.outputs, found, strict=True)):
            if number not in self.request.outputs:
                outputs.append(_array(checked([], spec)))
                continue
            if isinstance(value, Missing):
                self._finish(_failed(self._why_missing(spec.name, sources)))
                return
            try:
                outputs.append(_array(value if isinstance(value, Tensor) else checked(value, spec)))
            except Exception as error:
                message = f"output '{spec.name}' of {self._giver(sources)} {text_of(error)}"
                self._finish(_failed(Failure(FailureKind.MODEL_FAILED, message), ""))
                return
        self._finish(BatchResult(outputs, self.path_s, 0.0, variant=", ".join(self.variants)))

    def _giver(self, sources: tuple[int, ...]) -> str:
        """Whose output this is, or the last of those that it might have been."""
        steps = self._site.plan.steps
        return next((str(step) for step in steps if sources[-1] in step.outputs.values()), "the pipeline itself")

    def _why_missing(self, output: str, sources: tuple[int, ...]) -> Failure:
        steps = [step for step in self._site.plan.steps if not set(sources).isdisjoint(step.outputs.values())]
        failures = [state for state in self._state if isinstance(state, Failure)]
        if failures:
            return failures[0]
        names = " and ".join(str(step) for step in steps)
        were = "was" if len(steps) == 1 else "were"
        return Failure(FailureKind.MODEL_FAILED, f"there is no output '{output}': {names} {were} skipped")

    def _finish(self, result: BatchResult) -> None:
        self.over = True
        for timer in self._timers.values():
            timer.cancel()
        calls = list(self._calls.values())
        self._calls.clear()
        counts = self._site.counts
        for call in calls:
            counts[call.step.name].in_flight -= 1
            self._end_span(call, Failure(FailureKind.CANCELLED, "the pipeline has ended without it"))
        if calls:  # later: a lane's commands may be in the midst of being carried out
            self._loop.call_soon(_cancel, calls)
        self._values.clear()
        self._site.over(self)
        if self._beginning:
            self._loop.call_soon(self._done, result)
        else:
            self._done(result)


def _wanted(step: Step, condition: Value) -> list[bool]:
    """Whether the step is to run or, with each, for which items. Raises ValueError."""
    assert step.when is not None
    wanted = [one is step.when[1] for one in truths(condition)]
    if not step.each and len(wanted) != 1:
        raise ValueError(f"when: {len(wanted)} truths, where one is wanted, or each = true")
    return wanted


def _is_missing(value: Value) -> bool:
    return isinstance(value, Missing)


def _of_items(condition: Value | None) -> bool:
    """Whether it has an axis: a truth for each item."""
    return isinstance(condition, list) or (isinstance(condition, Tensor | np.ndarray) and len(condition.shape) > 0)


def _cancel(calls: list[Call]) -> None:
    for call in calls:
        if not call.over:
            call.cancel()


def _array(tensor: Tensor) -> Array:
    return to_array(tensor.dtype, tensor.shape, tensor.data)


def _failed(failure: Failure, origin: Any = None) -> BatchResult:
    """`origin`: None for what is no failure of the pipeline itself."""
    own = origin is not None and failure.kind is FailureKind.MODEL_FAILED
    return BatchResult([], 0.0, 0.0, failure.message, failure=None if own else failure, origin=origin or "")
