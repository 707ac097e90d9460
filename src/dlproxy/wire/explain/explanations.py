"""Finds what each feature of some instances adds to an output of a model, by asking the model again with features occluded.

Its requests are ordinary ones at the lowest priority, a few at a time. Called by http.py, and asks occlusion.py what to ask.
Not aware of: HTTP, lanes.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.message import DType, Failure, FailureKind, InferenceError, TensorSpec, invalid
from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.tensors import Array
from dlproxy.wire.endpoint import Endpoint
from dlproxy.wire.explain.occlusion import Box, attributions, box_shape, boxes, chunks, occluded, shares
from dlproxy.wire.oip.codec import json_tensor
from dlproxy.wire.terms import Terms
from dlproxy.wire.tfs.json import PredictReader, read_object

MOST_PARTS = 256  # of one instance: the model computes so many rows for it, and one more
MOST_INSTANCES = 64
AT_A_TIME = 2  # requests under way of one explanation: one computes while the next is made
ROWS = 32  # of a request
PATIENCE_S = 60.0  # for all of it, where the client names no deadline
METHOD = "occlusion"
MIXED = "another model began, or ceased, to answer in place of this one: what either says does not explain the other"
RETRY_S = 5.0

Rows = dict[str, Array]
"""Inputs by name, all with as many rows, as Python callers have them: BF16 as float32, BYTES as bytes."""


class _Wish(Struct, forbid_unknown_fields=True):
    """What is asked for. `baseline`: a number for all, or a value or nested list, of each input by name if there are several.
    `output`: by name, else the first of floating-point numbers. `target`: which of its elements, counted through all axes; else
    the largest of each instance. `parts`: into how many an instance is divided at most.
    """

    instances: Any = None
    signature_name: str = "serving_default"
    baseline: Any = 0
    output: str = ""
    target: int | None = None
    parts: int = MOST_PARTS


class _Job(Struct):
    """Some parts of an input of one instance. `first`: where they stand among all of this input's parts."""

    instance: int
    input: str
    parts: Sequence[Box]
    first: int


class Explanation:
    """Of one request."""

    def __init__(self, endpoint: Endpoint, terms: Terms, body: bytes) -> None:
        """Raises InferenceError."""
        self._endpoint = endpoint
        self._terms = terms
        self._until = endpoint.clock() + min(terms.timeout_s, PATIENCE_S)
        self._wish = wish = _wish(body)
        signature = endpoint.model.signature
        if signature.sequences:
            message = f"model '{endpoint.model.name}' has sequences: what it answers depends on more than the request"
            raise InferenceError(Failure(FailureKind.UNSUPPORTED, message))
        self._output = self._output_index(wish.output)
        self._most_rows = self._rows_together()
        reader = PredictReader(signature.inputs, endpoint.checker, batched=signature.batched)
        _, given = reader.read({"instances": wish.instances})
        self._rows: Rows = {tensor.name: tensors.to_values(tensor, text=False) for tensor in given}
        self._count = len(wish.instances)
        if self._count > MOST_INSTANCES:
            raise invalid(
                f"{self._count} instances are too many to be explained at once; at most {MOST_INSTANCES} are accepted"
            )
        specs = [spec for spec in signature.inputs if spec.name in self._rows]
        self._occluded = {spec.name: spec for spec in specs if not spec.is_mask and not spec.is_length}
        self._baselines = {name: self._baseline(spec) for name, spec in self._occluded.items()}
        shapes = {name: self._rows[name].shape[1:] for name in self._occluded}
        most = shares([prod(shape) for shape in shapes.values()], wish.parts)
        self._part_sizes = {name: box_shape(shapes[name], count) for name, count in zip(shapes, most, strict=True)}
        self._parts = {name: boxes(shapes[name], size) for name, size in self._part_sizes.items()}
        self._values = {name: np.zeros((self._count, len(parts))) for name, parts in self._parts.items()}
        self._targets: list[int] = []
        self.variant: str | None = None
        """Who answered, as a Response has it; None before anybody has."""

    async def told(self) -> list[dict[str, Any]]:
        """An explanation for each instance. Raises InferenceError, also if the model and a variant of it answered in turns."""
        together = chunks(self._count, self._most_rows)
        flat = np.concatenate([await self._ask({name: rows[part] for name, rows in self._rows.items()}) for part in together])
        self._targets = [self._target(values) for values in flat]
        bases = [float(values[target]) for values, target in zip(flat, self._targets, strict=True)]
        jobs = self._jobs()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_A_TIME):
                    group.create_task(self._work(jobs))
        except* InferenceError as failures:
            error = failures.exceptions[0]
        else:
            return [self._explained(instance, base) for instance, base in enumerate(bases)]
        raise error

    # What the model is asked

    def _jobs(self) -> Iterator[_Job]:
        for instance in range(self._count):
            for name, parts in self._parts.items():
                for some in chunks(len(parts), self._most_rows):
                    yield _Job(instance, name, parts[some], some.start)

    async def _work(self, jobs: Iterator[_Job]) -> None:
        for job in jobs:  # each takes the next one that nobody has taken
            many = len(job.parts)
            one = {name: each[job.instance : job.instance + 1] for name, each in self._rows.items()}
            rows = {name: np.repeat(each, many, axis=0) for name, each in one.items()}
            rows[job.input] = occluded(one[job.input], self._baselines[job.input], job.parts)
            answer = await self._ask(rows)
            self._values[job.input][job.instance, job.first : job.first + many] = answer[:, self._targets[job.instance]]

    async def _ask(self, rows: Rows) -> NDArray[np.float64]:
        """The output, flat for each row. Raises InferenceError."""
        endpoint, specs = self._endpoint, self._endpoint.checker
        left_s = self._until - endpoint.clock()
        if left_s <= 0.0:
            raise InferenceError(Failure(FailureKind.LATE, "the explanation was not complete in time; ask for fewer parts"))
        given = [tensors.from_values(name, specs.spec_of(name).dtype, array) for name, array in rows.items()]
        terms = msgspec.structs.replace(self._terms, timeout_s=left_s, priority=LOWEST_LEVEL)
        response = await endpoint.infer(endpoint.request(given, [self._output]), terms)
        if self.variant not in (None, response.variant):
            raise InferenceError(Failure(FailureKind.OVERLOADED, MIXED, RETRY_S))
        self.variant = response.variant
        output = tensors.to_values(response.outputs[0], text=False)
        count = len(next(iter(rows.values())))
        if not output.shape or output.shape[0] != count:
            raise _unfit(f"output '{response.outputs[0].name}' does not have a row for each instance")
        return output.reshape(count, -1).astype(np.float64)

    # What is told

    def _target(self, values: NDArray[np.float64]) -> int:
        target = self._wish.target
        if not values.size or (target is not None and not 0 <= target < values.size):
            name = self._endpoint.model.signature.outputs[self._output].name
            raise invalid(f"target is {target}, but output '{name}' has {values.size} elements for an instance")
        return int(values.argmax()) if target is None else target

    def _explained(self, instance: int, base: float) -> dict[str, Any]:
        found = {
            name: attributions(self._rows[name].shape[1:], parts, base, self._values[name][instance]).tolist()
            for name, parts in self._parts.items()
        }
        sizes: dict[str, Any] = {name: list(size) for name, size in self._part_sizes.items()}
        bare = not isinstance(self._wish.instances[0], Mapping)
        return {
            "method": METHOD,
            "output": self._endpoint.model.signature.outputs[self._output].name,
            "target": self._targets[instance],
            "base": base,
            "baseline": self._wish.baseline,
            "part": next(iter(sizes.values()), None) if bare else sizes,
            "attributions": next(iter(found.values()), None) if bare else found,
        }

    # What the model allows

    def _rows_together(self) -> int:
        """Of different instances in one request. Raises InferenceError."""
        model = self._endpoint.model
        signature = model.signature
        if signature.streams:
            raise _unfit(f"model '{model.name}' answers in parts")
        if not signature.batched:
            if all(spec.shape[:1] in ((1,), (-1,)) for spec in (*signature.inputs, signature.outputs[self._output])):
                return 1
        elif all(spec.rows == 0 and not spec.counts for spec in (*signature.inputs, signature.outputs[self._output])):
            return min(ROWS, model.max_batch)
        raise _unfit(f"model '{model.name}' has no row for each instance on the first axis of every input and of the output")

    def _output_index(self, name: str) -> int:
        if name:
            index = self._endpoint.checker.output_index(name)
            if self._endpoint.model.signature.outputs[index].dtype is DType.BYTES:
                raise invalid(f"output '{name}' holds no numbers, so nothing can be said to add to it")
            return index
        outputs = self._endpoint.model.signature.outputs
        for index, spec in enumerate(outputs):
            if spec.dtype in (DType.FP32, DType.FP64, DType.FP16, DType.BF16):
                return index
        raise invalid("the model has no output of floating-point numbers; name another in 'output'")

    def _baseline(self, spec: TensorSpec) -> Array:
        """As a row of the input. Raises InferenceError."""
        given = self._wish.baseline
        if isinstance(given, Mapping):
            given = given.get(spec.name, 0)
        shape = self._rows[spec.name].shape[1:]
        if isinstance(given, list):
            tensor = json_tensor(spec.name, spec.dtype, None, given)
            if tuple(tensor.shape) != shape:
                raise invalid(
                    f"the baseline of '{spec.name}' has the shape {list(tensor.shape)}; an instance has {list(shape)}"
                )
            return tensors.to_values(tensor, text=False)
        if spec.dtype is DType.BYTES:
            given = given if isinstance(given, str) else ""
        elif spec.dtype is DType.BOOL:
            given = bool(given)
        one = tensors.to_values(json_tensor(spec.name, spec.dtype, (), given), text=False)
        return np.broadcast_to(one, shape)


def _wish(body: bytes) -> _Wish:
    """Raises InferenceError."""
    try:
        wish = msgspec.convert(read_object(body), _Wish)
    except msgspec.ValidationError as error:
        raise invalid(f'not a request for an explanation, such as {{"instances": [...], "target": 0}}: {error}') from None
    if not 1 <= wish.parts <= MOST_PARTS:
        raise invalid(f"parts is {wish.parts}; it must be from 1 to {MOST_PARTS}")
    return wish


def _unfit(why: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.UNSUPPORTED, f"it cannot be explained: {why}"))
