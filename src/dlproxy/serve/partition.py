"""Splits requests of more rows than a part may have, so that several instances share them, and puts their answers together.

Stands before the driver of a model whose rows can be cut apart (serve/assemble.py). Not aware of: lanes, protocols, quotas.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from dlproxy.instance.batch import stacked
from dlproxy.message import (
    DType,
    Failure,
    FailureKind,
    Request,
    Response,
    Signature,
    Tensor,
    TensorSpec,
    Ticket,
    Timing,
    text_of,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.partition import part_size, split
from dlproxy.serve.traffic import BELOW
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import ModelStats
from dlproxy.tensors import elements_of, to_bytes

log = logging.getLogger(__name__)


def can_split(signature: Signature) -> bool:
    """Whether rows are independent, and requests can be cut into them without a copy."""
    return (
        signature.batched
        and not signature.streams
        and not signature.told_sequences
        and any(spec.rows == 0 for spec in signature.inputs)
        and not any(spec.rows for spec in signature.inputs)
        and all(spec.rows is not None or spec.counts for spec in signature.outputs)
    )


class PartitionLayer:
    """A Service around the driver of a model that `can_split`. `ids`: where ticket ids are drawn.

    `part_rows`: larger requests are split. `most_whole`: rows that one may have which is not, whatever
    `max_batch` is turned to meanwhile.
    """

    def __init__(
        self,
        inner: Service,
        signature: Signature,
        stats: ModelStats,
        *,
        ids: Iterator[int],
        clock: Callable[[], float],
        knobs: LaneKnobs,
        most_whole: int,
    ) -> None:
        self.inner = inner
        self.signature = signature
        self.stats = stats
        self.clock = clock
        self.part_rows = part_size(knobs)
        self.most_whole = most_whole
        self.under_way: dict[int, _Whole] = {}
        self._ids = ids
        self._splits = True

    def configure(self, knobs: LaneKnobs) -> None:
        """New values, for requests that come from now on."""
        if self._splits:
            self.part_rows = part_size(knobs)

    def end(self) -> None:
        """Rows have turned out to depend on each other: nothing is split any more, and what is too large is refused."""
        self._splits = False
        self.part_rows = self.most_whole

    def submit(self, request: Request, reply: ReplyTo) -> None:
        if request.ticket.rows <= self.part_rows:
            self.inner.submit(request, reply)
        elif self._splits and self._are_even(request):
            self._split(request, reply)
        elif request.ticket.rows <= self.most_whole:
            self.inner.submit(request, reply)
        else:
            self._refuse(request, reply)

    def cancel(self, request: Request) -> None:
        whole = self.under_way.get(request.ticket.id)
        if whole is None:
            self.inner.cancel(request)
        else:
            whole.cancel()

    def _are_even(self, request: Request) -> bool:
        """An input with another number of rows is broadcast by the model, to rows that it has to see."""
        rows = request.ticket.rows
        pairs = zip(request.inputs, self.signature.inputs, strict=True)
        return all(tensor.shape[0] == rows for tensor, spec in pairs if spec.rows is not None)

    def _split(self, request: Request, reply: ReplyTo) -> None:
        tickets = split(request.ticket, self.part_rows, self.ids_of(request.ticket))
        rows = [ticket.rows for ticket in tickets]
        self.begin(request, reply, cut(request, tickets, self.signature), rows)

    def ids_of(self, ticket: Ticket) -> Iterator[int]:
        """For the parts of such a request."""
        return self._ids if ticket.of_client else (BELOW - number for number in self._ids)

    def begin(self, request: Request, reply: ReplyTo, parts: list[Request], rows: Sequence[int]) -> None:
        """Submit its parts, of so many rows each."""
        whole = self.under_way[request.ticket.id] = _Whole(self, request, reply, parts, rows)
        whole.submit()

    def _refuse(self, request: Request, reply: ReplyTo) -> None:
        rows, model = request.ticket.rows, request.model
        message = f"inference request batch-size must be <= {self.most_whole} for '{model}', got {rows}: it cannot be split"
        failure = Failure(FailureKind.INVALID_ARGUMENT, message)
        if request.ticket.of_client:
            self.stats.failed(failure.kind, 0.0)
            self.stats.lost(request, failure, "too_many_rows", self.clock())
        try:
            reply.failed(failure)
        except Exception:  # submit never raises
            log.exception(
                "model %s: could not hand over the failure of request %d", model, request.ticket.id, extra=request.named
            )


class _Whole:
    """A request that was split: waits for all of its parts, or the first that fails."""

    __slots__ = ("_answers", "_layer", "_parts", "_reply", "_request", "_rows", "_variants", "_waiting")

    def __init__(
        self, layer: PartitionLayer, request: Request, reply: ReplyTo, parts: list[Request], rows: Sequence[int]
    ) -> None:
        self._layer = layer
        self._request = request
        self._reply = reply
        self._parts = parts
        self._rows = rows
        self._answers: dict[int, list[Tensor]] = {}  # by place
        self._variants: dict[str, None] = {}  # that answered some of them
        self._waiting: set[int] = set()  # places of those that were submitted and are not answered

    def submit(self) -> None:
        """Part by part, in one turn of the loop, for as long as none is refused."""
        service = self._layer.inner
        for place, part in enumerate(self._parts):
            if self._over:
                return
            self._waiting.add(place)
            service.submit(part, _Part(self, place))

    def cancel(self) -> None:
        """Each part; the first that ends by that ends the request."""
        for place in sorted(self._waiting):
            self._layer.inner.cancel(self._parts[place])

    @property
    def _over(self) -> bool:
        return self._layer.under_way.get(self._request.ticket.id) is not self

    def completed(self, place: int, response: Response) -> None:
        self._waiting.discard(place)
        if self._over:
            return
        self._answers[place] = response.outputs
        if response.variant:
            self._variants[response.variant] = None
        if len(self._answers) < len(self._parts):
            return
        layer, ticket = self._layer, self._request.ticket
        began_at, timing = layer.clock(), response.timing
        try:
            answers = [self._answers[place] for place in range(len(self._parts))]
            outputs = joined(answers, self._rows, self._request.outputs, layer.signature)
        except ValueError as error:
            self._end(Failure(FailureKind.MODEL_FAILED, text_of(error)))
            return
        del layer.under_way[ticket.id]
        now = layer.clock()
        response.timing = Timing(timing.queue_s, timing.batch_s + now - began_at, timing.compute_s)
        response.outputs = outputs
        response.variant = ", ".join(self._variants)
        if ticket.of_client:
            layer.stats.request_gathered(self._request, timing, now - began_at, now - ticket.arrived_at)
        self._reply.completed(response)

    def failed(self, place: int, failure: Failure) -> None:
        self._waiting.discard(place)
        if not self._over:
            self._end(failure)

    def _end(self, failure: Failure) -> None:
        layer, ticket = self._layer, self._request.ticket
        del layer.under_way[ticket.id]
        if self._waiting:  # later: a lane's commands may be in the midst of being carried out
            asyncio.get_running_loop().call_soon(self.cancel)
        if ticket.of_client:
            now = layer.clock()
            layer.stats.failed(failure.kind, now - ticket.arrived_at)
            layer.stats.lost(self._request, failure, "part", now)
        self._reply.failed(failure)


class _Part:
    """A ReplyTo, of the part at this place."""

    __slots__ = ("_place", "_whole")

    def __init__(self, whole: _Whole, place: int) -> None:
        self._whole = whole
        self._place = place

    def completed(self, response: Response) -> None:
        self._whole.completed(self._place, response)

    def failed(self, failure: Failure) -> None:
        self._whole.failed(self._place, failure)


def cut(request: Request, tickets: Sequence[Ticket], signature: Signature, rows: Sequence[int] = ()) -> list[Request]:
    """The parts of the request that these tickets are for: views of its inputs, all of what its rows share.

    `rows`: of each, where the tickets do not count them.
    """
    inputs = cut_tensors(request.inputs, signature.inputs, rows or [ticket.rows for ticket in tickets])
    return [
        Request(
            ticket,
            request.model,
            part,
            request.outputs,
            request.id,
            request.params,
            request.principal,
            request.trace,
            headers=request.headers,
        )
        for ticket, part in zip(tickets, inputs, strict=True)
    ]


def cut_tensors(tensors: Sequence[Tensor], specs: Sequence[TensorSpec], rows: Sequence[int]) -> list[list[Tensor]]:
    """Parts of so many rows each, as views; each has all of what the rows share."""
    parts: list[list[Tensor]] = [[] for _ in rows]
    for tensor, spec in zip(tensors, specs, strict=True):
        if spec.rows is None:
            for part in parts:
                part.append(tensor)
            continue
        data, tail = memoryview(tensor.data), tuple(tensor.shape[1:])
        ends = _row_ends(tensor)
        row = 0
        for part, count in zip(parts, rows, strict=True):
            start, row = ends(row), row + count
            part.append(Tensor(tensor.name, tensor.dtype, (count, *tail), data[start : ends(row)]))
    return parts


def _row_ends(tensor: Tensor) -> Callable[[int], int]:
    """Where in the tensor's bytes so many rows end."""
    rows = tensor.shape[0]
    if tensor.dtype is not DType.BYTES:
        row_bytes = len(tensor.data) // rows
        return lambda row: row * row_bytes
    ends = [0]
    for element in elements_of(tensor.data):
        ends.append(ends[-1] + 4 + len(element))
    elements = (len(ends) - 1) // rows
    return lambda row: ends[row * elements]


def joined(parts: Sequence[Sequence[Tensor]], rows: Sequence[int], wanted: Sequence[int], signature: Signature) -> list[Tensor]:
    """The outputs of all parts, which have so many rows, one after another. Raises ValueError if they do not fit together."""
    outputs = []
    for place, index in enumerate(wanted):
        spec = signature.outputs[index]
        tensors = [part[place] for part in parts]
        axis = spec.rows or 0
        _check(spec, tensors, rows)
        if axis:
            array = stacked(spec, tensors)
            outputs.append(Tensor(spec.name, spec.dtype, array.shape, to_bytes(spec.dtype, array)))
        else:
            count = sum([tensor.shape[0] for tensor in tensors])
            data = b"".join([tensor.data for tensor in tensors])
            outputs.append(Tensor(spec.name, spec.dtype, (count, *tensors[0].shape[1:]), data))
    return outputs


def _check(spec: TensorSpec, tensors: Sequence[Tensor], rows: Sequence[int]) -> None:
    """Raises ValueError if these are no parts of one output."""
    axis, first = spec.rows or 0, tensors[0].shape
    for tensor, count in zip(tensors, rows, strict=True):
        shape = tensor.shape
        fits = len(shape) == len(first) > axis and all(
            here == there for place, (here, there) in enumerate(zip(shape, first, strict=True)) if place != axis
        )
        if not fits or (shape[axis] != count and not spec.counts):
            shown = f"{list(shape)} for {count} rows, {list(first)} for {rows[0]}"
            raise ValueError(f"output '{spec.name}' cannot be put together from the parts of a request: its shape is {shown}")
