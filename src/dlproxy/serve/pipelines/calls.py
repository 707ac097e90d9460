"""One step of one run, under way: a request of a model or several, one for each item; a run of code or several.

Made by run.py, which hears of the end. Not aware of: other steps, where values come from.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from dlproxy.instance.tracebacks import origin_of
from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, Tensor, TensorSpec, text_of
from dlproxy.serve.pipelines.code import CodeStage, Context, OutputError, timed
from dlproxy.serve.pipelines.plan import Step
from dlproxy.serve.pipelines.stages import ModelStage
from dlproxy.serve.pipelines.threads import Job
from dlproxy.serve.pipelines.values import Array, Items, Missing, Value, as_array, as_tensor, item, iterated
from dlproxy.service import Service

if TYPE_CHECKING:
    from dlproxy.serve.pipelines.run import Run

WINDOW = 64  # items of one run that a stage has under way: others' requests find room between them
GROUP = 32  # items in one request: two of them, so that one is computed while the other waits
MOST_ITEMS = 1 << 16
MOST_INLINE = 4  # items for which cheap code runs on the event loop

Ran: TypeAlias = tuple[list[Value] | BaseException, float]


class Call:
    """`began_at`: when; `path_s`: what was computed before it, by the steps that it had to wait for. `span`: of a run that is
    traced, else None.
    """

    __slots__ = ("began_at", "computed_s", "items", "over", "path_s", "run", "span", "step")

    def __init__(self, run: "Run", step: Step) -> None:
        self.run = run
        self.step = step
        self.began_at = run.clock()
        self.path_s = run.path_s
        self.computed_s = 0.0
        self.items = 1
        self.over = False
        self.span = None if run.request.trace.span is None else run.span_of(step)

    def begin(self, values: dict[str, Value], truths: list[bool] | None) -> None:
        """`truths`: of each item whether the step is to run for it; None: it is. May raise: it has failed then."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Nobody wants its end any more."""
        raise NotImplementedError

    def _end(self, outputs: list[Value]) -> None:
        self.over = True
        self.run.ended(self, outputs)

    def _fail(self, failure: Failure, origin: Any = None, place: str = "") -> None:
        if not self.over:
            self.over = True
            self.run.failed(self, failure, origin, place)


class ModelCall(Call):
    """One request. A ReplyTo."""

    __slots__ = ("_request", "_service")

    def begin(self, values: dict[str, Value], truths: list[bool] | None) -> None:
        stage = cast(ModelStage, self.step.stage)
        bound = stage.bound
        tensors = [as_tensor(values[spec.name], spec) for spec in bound.inputs]
        self._request = self.run.request_of(self.step, tensors)
        self._service = bound.service
        self._service.submit(self._request, self)

    def cancel(self) -> None:
        self.over = True
        self._service.cancel(self._request)

    def completed(self, response: Response) -> None:
        if self.over:
            if response.rest is not None:
                response.rest.stop()
            return
        self.computed_s = response.timing.compute_s + response.timing.batch_s
        if response.variant:
            self.run.variants[response.variant] = None
        if response.rest is not None:
            self.over = True
            self.run.streams(self, response, response.rest)
        else:
            self._end(response.outputs)  # type: ignore[arg-type]

    def failed(self, failure: Failure) -> None:
        self._fail(failure)


class EachCall(Call):
    """For each item of lists, or each row of arrays; what it gives lacks those that are not wanted, or for which an input is
    missing.
    """

    __slots__ = ("_count", "_left", "_outputs", "_places", "_through", "_under_way", "_values")

    def begin(self, values: dict[str, Value], truths: list[bool] | None) -> None:
        self._values = values
        through = self._through = iterated(values)
        count = self._count = len(next(iter(through.values())))
        if count > MOST_ITEMS:
            raise ValueError(f"each: {count} items; at most {MOST_ITEMS} are accepted")
        if truths is not None and len(truths) not in (1, count):
            raise ValueError(f"when: {len(truths)} truths for {count} items")
        if truths is not None and len(truths) != count:
            truths = truths * count
        lists = [value for value in through.values() if isinstance(value, list)]
        self._places = list(range(count))
        if truths is not None or lists:
            self._places = [
                number
                for number in self._places
                if (truths is None or truths[number]) and all(value[number] is not None for value in lists)
            ]
        self.items = self._left = len(self._places)
        self._under_way = 0
        self._outputs: list[Items] = [[None] * count for _ in self.step.stage.names]
        if self._left:
            self._begin()
        else:
            self._end(self._outputs)  # type: ignore[arg-type]

    def _begin(self) -> None:
        raise NotImplementedError

    def _came(self, number: int, outputs: list[Any]) -> None:
        for items, output in zip(self._outputs, outputs, strict=True):
            items[number] = None if isinstance(output, Missing) else output


class ModelEach(EachCall):
    """Neighbours of one shape go in one request, and WINDOW of them are under way."""

    __slots__ = ("_at", "_filling", "_requests")

    def _begin(self) -> None:
        self._at = 0  # of the next one among the places
        self._filling = False
        self._requests: dict[int, tuple[Service, Request]] = {}
        self._fill()

    def cancel(self) -> None:
        self.over = True
        for service, request in list(self._requests.values()):
            service.cancel(request)

    def _fill(self) -> None:
        """An answer may be there before `submit` returns."""
        if self._filling:
            return
        self._filling = True
        while not self.over and self._at < len(self._places) and self._under_way < WINDOW:
            group = self._next_group()
            self._at += len(group)
            self._submit(group)
        self._filling = False
        if not self.over and not self._left:
            self._end(self._outputs)  # type: ignore[arg-type]

    def _next_group(self) -> list[int]:
        bound, places = cast(ModelStage, self.step.stage).bound, self._places
        number = places[self._at]
        shapes = self._shapes(number)
        most = min(GROUP, bound.served.max_batch)
        if not bound.groups or not self._lack_rows(number) or most < 2:
            return [number]
        end = self._at + 1
        last = min(self._at + most, len(places), self._at + WINDOW - self._under_way)
        if all(not isinstance(value, list) for value in self._through.values()):
            end = last
        while end < last and self._shapes(places[end]) == shapes:
            end += 1
        return places[self._at : end]

    def _shapes(self, number: int) -> list[tuple[int, ...]]:
        return [tuple(value[number].shape) if isinstance(value, list) else value.shape[1:] for value in self._through.values()]

    def _lack_rows(self, number: int) -> bool:
        """Whether the items have the shape of one row, in every input that has rows."""
        bound, through = cast(ModelStage, self.step.stage).bound, self._through
        return all(_lacks_rows(spec, item(through[spec.name], number)) for spec in bound.inputs if spec.name in through)

    def _submit(self, group: list[int]) -> None:
        bound = cast(ModelStage, self.step.stage).bound
        try:
            tensors = [self._tensor(spec, group) for spec in bound.inputs]
            request = self.run.request_of(self.step, tensors)
        except Exception as error:
            self._fail(*self.run.refused(self.step, error), self._place(group))
            return
        strips = [spec.shape[:1] == (-1,) and spec.rows == 0 for spec in bound.outputs]
        if not self._lack_rows(group[0]):
            strips = [False] * len(strips)
        self._requests[request.ticket.id] = bound.service, request
        self._under_way += len(group)
        bound.service.submit(request, _Group(self, request.ticket.id, group, strips))

    def _tensor(self, spec: TensorSpec, group: list[int]) -> Tensor:
        """The input of these items; of those that all share, as many rows as there are items."""
        value = self._through.get(spec.name)
        if value is None:
            tensor = as_tensor(self._values[spec.name], spec)
            if len(group) > 1 and spec.rows is not None and tensor.shape[spec.rows] == 1:
                return as_tensor(np.repeat(as_array(tensor), len(group), spec.rows), spec)
            return tensor
        one = item(value, group[0])
        if not _lacks_rows(spec, one):
            return as_tensor(one, spec)
        if isinstance(value, list) or spec.rows:
            return as_tensor(np.stack([as_array(item(value, number)) for number in group], spec.rows or 0), spec)
        return as_tensor(value[group[0] : group[-1] + 1] if _adjoin(group) else value[group], spec)

    def _place(self, group: list[int]) -> str:
        return f"item {group[0]}" if len(group) == 1 else f"items {group[0]} to {group[-1]}"

    def completed(self, number: int, group: list[int], strips: list[bool], response: Response) -> None:
        self._requests.pop(number, None)
        if self.over:
            return
        self._under_way -= len(group)
        self._left -= len(group)
        self.computed_s += response.timing.compute_s + response.timing.batch_s
        if response.variant:
            self.run.variants[response.variant] = None
        rows = [
            as_array(tensor) if strip and tensor.shape and tensor.shape[0] == len(group) else None
            for tensor, strip in zip(response.outputs, strips, strict=True)
        ]
        if len(group) > 1 and any(array is None for array in rows):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in response.outputs)
            message = f"its outputs have the shapes {shapes} for {len(group)} items"
            self._fail(Failure(FailureKind.MODEL_FAILED, message), "", self._place(group))
            return
        for items, array, tensor in zip(self._outputs, rows, response.outputs, strict=True):
            for row, place in enumerate(group):
                items[place] = tensor if array is None else array[row, ...]
        self._fill()

    def failed(self, number: int, group: list[int], failure: Failure) -> None:
        self._requests.pop(number, None)
        self._fail(failure, place=self._place(group))


class _Group:
    """A ReplyTo, of the request for some items."""

    __slots__ = ("_call", "_group", "_number", "_strips")

    def __init__(self, call: ModelEach, number: int, group: list[int], strips: list[bool]) -> None:
        self._call = call
        self._number = number
        self._group = group
        self._strips = strips

    def completed(self, response: Response) -> None:
        self._call.completed(self._number, self._group, self._strips, response)

    def failed(self, failure: Failure) -> None:
        self._call.failed(self._number, self._group, failure)


class CodeCall(Call):
    """One run, here or on a thread, and there those of the steps behind it as well, which find it when they begin."""

    __slots__ = ("_job",)

    def begin(self, values: dict[str, Value], truths: list[bool] | None) -> None:
        stage = cast(CodeStage, self.step.stage)
        context = self.run.context(stage)
        self._job: Job | None = None
        ran = self.run.ahead.pop(self.step.number, None)
        if ran is not None:
            self.began_at -= ran[1]
            self._ran(ran, inline=False)
        elif stage.pace.inline:
            self._ran(timed(stage, values, context), inline=True)
        else:
            self._job = self.run.put(self.step, partial(self._work, values, context), self._done)

    def cancel(self) -> None:
        self.over = True
        if self._job is not None:
            self._job.cancelled, self._job = True, None

    def _work(self, values: dict[str, Value], context: Context | None) -> list[tuple[int, Ran]]:
        """On a thread: what this step's code gave, and that of those behind it."""
        step = self.step
        ran = timed(cast(CodeStage, step.stage), values, context)
        found = [(step.number, ran)]
        while self.span is None and (behind := self.run.behind(step, ran)) is not None:
            step, values = behind
            stage = cast(CodeStage, step.stage)
            ran = timed(stage, values, self.run.context(stage))
            found.append((step.number, ran))
        return found

    def _done(self, found: list[tuple[int, Ran]] | None) -> None:
        self._job = None  # which holds this call, and with it the request's tensors
        if self.over:
            return
        if found is None:
            self._fail(self.run.too_late())
            return
        (_, own), *behind = found
        self.run.ahead.update(behind)
        self.began_at += sum([seconds for _, (_, seconds) in behind])  # as if it had ended before they began
        self._ran(own, inline=False)

    def _ran(self, ran: Ran, *, inline: bool) -> None:
        given, self.computed_s = ran
        stage = cast(CodeStage, self.step.stage)
        stage.pace.took(self.computed_s, inline=inline)
        if isinstance(given, BaseException):
            self._fail(*failure_of(self.step, given))
        else:
            self._end(given)


class CodeEach(EachCall):
    """Some items a job, so that the threads share them."""

    __slots__ = ("_jobs", "_parts")

    def _begin(self) -> None:
        stage, places, most = cast(CodeStage, self.step.stage), self._places, self.run.threads
        self._jobs: dict[int, Job] = {}
        if stage.pace.inline and len(places) <= MOST_INLINE:
            self._came_from(places, self._work(places), inline=True)
            return
        size = min(max(-(-len(places) // most), 1), GROUP)
        self._parts: Iterator[list[int]] = iter([places[at : at + size] for at in range(0, len(places), size)])
        for _ in range(2 * most):
            self._next()

    def cancel(self) -> None:
        self.over = True
        for job in self._jobs.values():
            job.cancelled = True
        self._jobs.clear()

    def _next(self) -> None:
        part = next(self._parts, None)
        if part is not None and not self.over:
            self._jobs[part[0]] = self.run.put(self.step, partial(self._work, part), partial(self._done, part))

    def _work(self, part: list[int]) -> list[Ran]:
        """On a thread. Ends at the first item that fails, or when nobody waits any more."""
        stage, through = cast(CodeStage, self.step.stage), self._through
        context = self.run.context(stage)
        ran: list[Ran] = []
        for number in part:
            values = self._values | {name: item(value, number) for name, value in through.items()}
            ran.append(timed(stage, values, context))
            if self.over or isinstance(ran[-1][0], BaseException):
                break
        return ran

    def _done(self, part: list[int], ran: list[Ran] | None) -> None:
        self._jobs.pop(part[0], None)
        if self.over:
            return
        if ran is None:
            self._fail(self.run.too_late())
        else:
            self._came_from(part, ran, inline=False)

    def _came_from(self, part: list[int], ran: list[Ran], *, inline: bool) -> None:
        stage = cast(CodeStage, self.step.stage)
        for number, (given, seconds) in zip(part, ran, strict=False):
            stage.pace.took(seconds, inline=inline)
            self.computed_s += seconds
            if isinstance(given, BaseException):
                failure, origin = failure_of(self.step, given)
                self._fail(failure, origin, f"item {number}")
                return
            if any(isinstance(one, list) for one in given):
                self._fail(Failure(FailureKind.MODEL_FAILED, "it gave a list for one item"), "", f"item {number}")
                return
            self._came(number, given)
        self._left -= len(part)
        if self._left:
            self._next()
        else:
            self._end(self._outputs)  # type: ignore[arg-type]


def failure_of(step: Step, error: BaseException) -> tuple[Failure, Any]:
    """Of what code has raised, and where: an InferenceError is the client's affair, and nothing for the log. So is a ValueError
    of a step that comes with dlproxy, of what the client sent.
    """
    stage = cast(CodeStage, step.stage)
    if isinstance(error, InferenceError):
        return error.failure, None
    if isinstance(error, OutputError):
        return Failure(FailureKind.MODEL_FAILED, str(error)), ""
    if stage.ours and isinstance(error, ValueError):
        kind = FailureKind.INVALID_ARGUMENT if step.direct else FailureKind.MODEL_FAILED
        return Failure(kind, text_of(error)), None if step.direct else ""
    return Failure(FailureKind.MODEL_FAILED, stage.why(error)), origin_of(error)


def _lacks_rows(spec: TensorSpec, one: "Array | Tensor") -> bool:
    return spec.rows is not None and len(one.shape) == len(spec.shape) - 1


def _adjoin(group: list[int]) -> bool:
    return group[-1] - group[0] == len(group) - 1


def call_of(run: "Run", step: Step) -> Call:
    """The kind that this step is."""
    if isinstance(step.stage, ModelStage):
        return ModelEach(run, step) if step.each else ModelCall(run, step)
    return CodeEach(run, step) if step.each else CodeCall(run, step)
