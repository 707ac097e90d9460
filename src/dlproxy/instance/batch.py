"""A batch on its way through a runtime: gather the rows of several requests, run them, cut the rows apart again.

Called by every instance kind, and by serve/driver.py to cut. Not aware of: threads, processes, who asked.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from traceback import TracebackException
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.instance.runtime import Runtime, StreamingRuntime, alone
from dlproxy.instance.tracebacks import origin_of
from dlproxy.message import Failure, InSequence, Request, Signature, Tensor, TensorSpec, text_of
from dlproxy.policy.hops import Load

Array = NDArray[np.generic]

NOTHING: dict[str, Any] = {}

log = logging.getLogger(__name__)


class BatchRest(Protocol):
    """What follows the first part of a batch's answers. Used on the event loop, as all of an instance is."""

    def ask(self, done: "Callable[[BatchResult], None]") -> None:
        """Compute the next part. `done` is called exactly once; without a rest it was the last call, and the instance is free.

        The end is known only after the last part, so that call has no outputs.
        """
        ...

    def stop(self) -> None:
        """No more is wanted. Whoever has asked is still told once, of something or nothing; then, or else at once, the instance
        takes its next batch. May be called again.
        """
        ...


class BatchResult(Struct):
    """Outputs in signature order, or the reason why there are none. Times in seconds.

    `failure`: the error with its kind, where another server said so; None is the model's own failure. `origin`:
    where the error was raised, for the log; text if that was in another process. `rest`: what may follow; None: that is all.
    `variant`: as a Response has it. `load`: what the node that gave the answer says of itself.
    """

    outputs: list[Array]
    compute_s: float
    batch_s: float
    error: str | None = None
    failure: Failure | None = None
    origin: TracebackException | str = ""
    rest: BatchRest | None = None
    variant: str = ""
    load: Load | None = None


def run_batch(runtime: Runtime, requests: Sequence[Request], sequences: Sequence[InSequence] = ()) -> BatchResult:
    """Gather, compute, check the outputs. Errors of the model become `error`: only the instance's own death raises.

    `sequences`: of each row, where the requests do not say it.
    """
    started_at = perf_counter()
    try:
        inputs = gather(runtime.signature, requests)
        compute_at = perf_counter()
        outputs = runtime.run(inputs, **_told(runtime.signature, requests, sequences))
        finished_at = perf_counter()
        _check_outputs(runtime.signature, outputs)
    except Exception as error:
        return BatchResult([], 0.0, perf_counter() - started_at, text_of(error), origin=origin_of(error))
    return BatchResult(outputs, finished_at - compute_at, compute_at - started_at)


class Steps:
    """A batch whose answers come in parts, where its model is: `next` and `close` are called by one thread at a time.

    `ended`: there is nothing more to come. `sequences`: as `run_batch` has them.
    """

    def __init__(self, runtime: StreamingRuntime, requests: Sequence[Request], sequences: Sequence[InSequence] = ()) -> None:
        self.ended = False
        self._runtime = runtime
        self._requests = requests
        self._sequences = sequences
        self._parts: Iterator[list[Array]] | None = None

    def next(self) -> BatchResult:
        """The next part; neither outputs nor an error at the end. As with `run_batch`, only the instance's own death raises."""
        began_at, first = perf_counter(), self._parts is None
        self.ended = True
        try:
            if self._parts is None:
                inputs = gather(self._runtime.signature, self._requests)
                told = _told(self._runtime.signature, self._requests, self._sequences)
                self._parts = self._runtime.steps(inputs, **told)
                self._requests = ()
            compute_at = perf_counter()
            outputs = next(self._parts, None)
            finished_at = perf_counter()
            if outputs is not None:
                _check_outputs(self._runtime.signature, outputs)
            elif first:
                raise ValueError("the model ended its answer before the first part")
        except Exception as error:
            self.close()
            return BatchResult([], 0.0, perf_counter() - began_at, text_of(error), origin=origin_of(error))
        self.ended = outputs is None
        return BatchResult(outputs or [], finished_at - compute_at, compute_at - began_at)

    def close(self) -> None:
        """Let the model end it. What it raises then is nobody's answer any more, and only logged."""
        self.ended = True
        close = getattr(self._parts, "close", None)
        if close is not None:
            try:
                close()
            except Exception:
                log.exception("a model failed when its answer was stopped")


def raised(error: BaseException) -> BatchResult:
    """The result where `run_batch` itself has raised, as by sys.exit() in a model's own code: whoever waits must hear of it."""
    text = f"the model raised {type(error).__name__}: {text_of(error)}"
    return BatchResult([], 0.0, 0.0, text, origin=origin_of(error))


def sequences_of(requests: Sequence[Request]) -> list[InSequence]:
    """Of each row; one of a request that is of none is a sequence of its own, which ends where it begins."""
    rows = [request.sequence for request in requests for _ in range(request.ticket.rows)]
    return [alone(place) if of is None else of for place, of in enumerate(rows)]


def _told(signature: Signature, requests: Sequence[Request], sequences: Sequence[InSequence]) -> dict[str, Any]:
    """What a runtime is given beside the inputs."""
    return {"sequences": sequences or sequences_of(requests)} if signature.told_sequences else NOTHING


def gather(signature: Signature, requests: Sequence[Request]) -> list[Array]:
    """The inputs of all requests, their rows stacked: one array per input, one copy of the bytes (none if alone).

    Shorter ones are padded to the length of the longest, where the signature says so.
    """
    arrays = []
    for index, spec in enumerate(signature.inputs):
        first = requests[0].inputs[index]
        if len(requests) == 1 or spec.rows is None:  # what a batch shares is the same in all of its requests
            arrays.append(tensors.to_array(spec.dtype, first.shape, first.data, text=spec.text))
            continue
        parts = [request.inputs[index] for request in requests]
        if spec.rows or differ_in_length(spec, parts):
            arrays.append(stacked(spec, parts))
            continue
        rows = sum([part.shape[0] for part in parts])
        data = b"".join([part.data for part in parts])
        arrays.append(tensors.to_array(spec.dtype, (rows, *first.shape[1:]), data, text=spec.text))
    return arrays


def differ_in_length(spec: TensorSpec, parts: Sequence[Tensor]) -> bool:
    """Whether these must be padded to be stacked."""
    axis = spec.padded
    if axis is None:
        return False
    length = parts[0].shape[axis]
    return any(part.shape[axis] != length for part in parts)


def stacked(spec: TensorSpec, parts: Sequence[Tensor]) -> Array:
    """The rows of several tensors of one input, wherever they stand, padded to the length of the longest."""
    each = [tensors.to_array(spec.dtype, part.shape, part.data, text=spec.text) for part in parts]
    rows, axis = spec.rows or 0, spec.padded
    if axis is None:
        return np.concatenate(each, axis=rows)
    shape = list(each[0].shape)
    shape[rows] = sum([array.shape[rows] for array in each])
    shape[axis] = max([array.shape[axis] for array in each])
    whole = np.full(shape, tensors.filler(spec.dtype, spec.pad), tensors.NUMPY[spec.dtype])
    place, end = [slice(None)] * len(shape), 0
    for array in each:
        start, end = end, end + array.shape[rows]
        place[rows], place[axis] = slice(start, end), slice(array.shape[axis])
        whole[tuple(place)] = array
    return whole


class Cutter:
    """Cuts each request's rows out of a finished batch, in the order in which they were gathered, back to their own length.

    Without copying where rows stand on axis 0. A batch of one request is not cut at all: it gets everything.
    """

    def __init__(self, signature: Signature, outputs: Sequence[Array], *, requests: int) -> None:
        self._whole = requests == 1
        self._parts = [
            (
                spec,
                array.shape[1:],
                array,
                *(
                    (None, 0)
                    if spec.rows or spec.counts or spec.padded is not None
                    else tensors.bytes_per_row(spec.dtype, array)
                ),
            )
            for spec, array in zip(signature.outputs, outputs, strict=True)
        ]
        self._ends = {
            spec.counts: np.cumsum(_counts(spec, signature, outputs))
            for spec in signature.outputs
            if spec.counts and not self._whole
        }

    def cut(self, start: int, rows: int, wanted: Sequence[int], length: int = 0) -> list[Tensor]:
        """The wanted outputs (by index) of `rows` rows from row `start`, which are so long where there is a padded axis."""
        cut = []
        for index in wanted:
            spec, row_shape, array, data, row_bytes = self._parts[index]
            if self._whole:
                view = tensors.to_bytes(spec.dtype, array) if data is None else data
                cut.append(Tensor(spec.name, spec.dtype, array.shape, view))
            elif data is not None:
                view = data[start * row_bytes : (start + rows) * row_bytes]
                cut.append(Tensor(spec.name, spec.dtype, (rows, *row_shape), view))
            else:
                part = self._part(spec, array, start, start + rows, length)
                cut.append(Tensor(spec.name, spec.dtype, part.shape, tensors.to_bytes(spec.dtype, part)))
        return cut

    def _part(self, spec: TensorSpec, array: Array, start: int, end: int, length: int) -> Array:
        """Of an output whose rows differ in length, or do not stand on axis 0."""
        if spec.counts:
            ends = self._ends[spec.counts]
            return array[int(ends[start - 1]) if start else 0 : int(ends[end - 1])]
        place = [slice(None)] * array.ndim
        place[spec.rows or 0] = slice(start, end)
        if spec.padded is not None:
            place[spec.padded] = slice(length)
        return array[tuple(place)]


def why_uncut(signature: Signature, outputs: Sequence[Array], rows: int, longest: int = 0) -> str:
    """Why a batch of so many rows, padded to `longest`, cannot be cut apart by its outputs; empty if it can."""
    for spec, array in zip(signature.outputs, outputs, strict=True):
        if spec.counts:
            counts = _counts(spec, signature, outputs)
            if array.ndim and counts.size == rows and counts.min() >= 0 and counts.sum() == len(array):
                continue
            said = f"{array.shape[0] if array.ndim else 0} elements where '{spec.counts}' counts {counts.sum()}"
            return f"output '{spec.name}' has {said} for a batch of {_counted(rows)}"
        axis = spec.rows
        if axis is None or axis >= array.ndim or array.shape[axis] != rows:
            return f"output '{spec.name}' has shape {list(array.shape)} for a batch of {_counted(rows)}"
        if longest and spec.padded is not None and (spec.padded >= array.ndim or array.shape[spec.padded] != longest):
            return f"output '{spec.name}' has shape {list(array.shape)} for a batch padded to {longest}"
    return ""


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _counts(spec: TensorSpec, signature: Signature, outputs: Sequence[Array]) -> NDArray[np.int64]:
    """What the output that counts this one's elements says."""
    found = next(array for other, array in zip(signature.outputs, outputs, strict=True) if other.name == spec.counts)
    return found.astype(np.int64).ravel()


def _check_outputs(signature: Signature, outputs: Sequence[Array]) -> None:
    """As many outputs as declared, of the declared types. Raises ValueError."""
    if len(outputs) != len(signature.outputs):
        raise ValueError(f"the model gave {len(outputs)} outputs where it declares {len(signature.outputs)}")
    for spec, array in zip(signature.outputs, outputs, strict=True):
        if array.dtype != tensors.NUMPY[spec.dtype]:
            raise ValueError(f"output '{spec.name}' is {array.dtype} where the model declares {spec.dtype.value}")
