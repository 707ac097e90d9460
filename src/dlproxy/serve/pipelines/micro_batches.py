"""Cuts a pipeline's requests of many rows into parts, so that its steps work on different parts at a time.

Stands before the layer of a pipeline with `part_rows`; made by fleet.py. Not aware of: which steps there are, lanes.
"""

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from dlproxy.message import Request, Signature, Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.partition import split
from dlproxy.serve.partition import PartitionLayer, cut
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import ModelStats

ANY = 1 << 31  # rows that a request may have which stays whole: each stage says what it takes


class MicroBatchLayer(PartitionLayer):
    """A Service around a pipeline's. `signature`: all tensors with their rows on axis 0; `are_apart`: whether the answers of
    all steps to a row are its own, now. To the pipeline's lane each part is one request, as is what is not cut.
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
        are_apart: Callable[[], bool],
    ) -> None:
        super().__init__(inner, signature, stats, ids=ids, clock=clock, knobs=knobs, most_whole=ANY)
        self._are_apart = are_apart
        self.configure(knobs)

    def configure(self, knobs: LaneKnobs) -> None:
        """A pipeline's lane makes no batches: max_batch is no bound here."""
        self.part_rows = knobs.part_rows

    def submit(self, request: Request, reply: ReplyTo) -> None:
        rows = min((tensor.shape[0] if tensor.shape else 0 for tensor in request.inputs), default=0)
        if not 0 < self.part_rows < rows or not self._evenly(request, rows) or not self._are_apart():
            self.inner.submit(request, reply)
            return
        tickets = split(replace(request.ticket, rows=rows), self.part_rows, self.ids_of(request.ticket))
        counts = [ticket.rows for ticket in tickets]
        parts = cut(request, [_one_of(ticket, len(tickets)) for ticket in tickets], self.signature, counts)
        self.begin(request, reply, parts, counts)

    def _evenly(self, request: Request, rows: int) -> bool:
        return all(tensor.shape[0] == rows for tensor in request.inputs)


def _one_of(ticket: Ticket, parts: int) -> Ticket:
    return replace(ticket, rows=1, whole_rows=parts)
