"""Answers in parts: one batch is read by several clients, each at its own pace, and goes on when all who still read have asked.

Made by serve/driver.py when the first part of a batch is there. Not aware of: lanes, instances, protocols.
"""

import logging
from collections.abc import Callable, Sequence

from dlproxy.instance.batch import BatchRest, BatchResult, Cutter
from dlproxy.message import Failure, FailureKind, PartTo, Request, Response, Signature, Tensor, text_of
from dlproxy.service import ReplyTo
from dlproxy.telemetry.stats import ModelStats

log = logging.getLogger(__name__)

LEFT = Failure(FailureKind.CANCELLED, "the client has gone")


class Stream:
    """The rest of a batch, and who reads it. `check` gives a part as it is, or as an error if it cannot be cut apart.

    `on_end` gets the last result, once, when the instance is free; not if `lose` was called before. `compute_s`: of the first
    part.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        signature: Signature,
        rest: BatchRest,
        check: Callable[[BatchResult], BatchResult],
        on_end: Callable[[BatchResult], None],
        stats: ModelStats,
        clock: Callable[[], float],
        compute_s: float,
    ) -> None:
        self._requests = requests
        self._signature = signature
        self._rest = rest
        self._check = check
        self._on_end = on_end
        self._stats = stats
        self._counts = stats.streaming()
        self._clock = clock
        self._compute_s = compute_s  # of the part that is handed out
        self._number = 0  # its place in the answers
        self._given = 0  # answers that got it
        self._came_at = self._sent_at = clock()  # the part that is handed out, and the one before
        self._readers: dict[int, Reader] = {}
        self._idle: set[int] = set()  # readers that have not asked for the next part
        self._busy = True  # a part is on its way, from the instance or to the readers
        self._over: Failure | None = None  # for whoever asks after the end

    def reader(self, request: Request) -> "Reader":
        """The rest of this request's answer."""
        ticket_id = request.ticket.id
        reader = self._readers[ticket_id] = Reader(self, ticket_id)
        self._idle.add(ticket_id)
        self._counts.open += 1
        self._given += 1
        return reader

    def handed_out(self) -> None:
        """All who get this part have it: on to the next, as soon as all wait for it, or to the end if nobody reads."""
        now = self._clock()
        split_s, after_s = now - self._came_at, now - self._sent_at
        self._counts.sent(self._number, self._given, compute_s=self._compute_s, split_s=split_s, after_s=after_s)
        self._number, self._given, self._sent_at = self._number + 1, 0, now
        self._busy = False
        self._go_on()

    def asked(self, ticket_id: int, reader: "Reader") -> None:
        if self._over is not None:
            reader.fail(self._over)
        else:
            self._idle.discard(ticket_id)
            self._go_on()

    def leave(self, ticket_id: int) -> None:
        """This one reads no further."""
        reader = self._readers.pop(ticket_id, None)
        if reader is not None:
            self._idle.discard(ticket_id)
            self._counts.open -= 1
            self._counts.place(self._number).left += 1
            if not self._readers:
                self._rest.stop()
            self._go_on()
            reader.fail(LEFT)

    def lose(self, failure: Failure) -> None:
        """The instance is gone, or shall be: whoever reads is told so, now or when they ask."""
        if self._over is None:
            self._over = failure
            self._rest.stop()
            readers, self._readers = self._readers, {}
            for reader in readers.values():
                self._break_off(reader, failure)

    def _go_on(self) -> None:
        if self._busy or self._over is not None:
            return
        if not self._readers:
            self._end(LEFT, BatchResult([], 0.0, 0.0))
        elif not self._idle:
            self._busy = True
            self._rest.ask(self._arrived)

    def _arrived(self, result: BatchResult) -> None:
        if self._over is not None:
            return
        self._came_at, self._compute_s = self._clock(), result.compute_s
        if result.rest is not None and self._readers:
            result = self._check(result)
        if result.error is not None:
            self._end(result.failure or Failure(FailureKind.MODEL_FAILED, result.error), result)
        elif result.rest is None or not self._readers:
            self._end(None, result)
        else:
            self._hand_out(result)
            self.handed_out()

    def _hand_out(self, result: BatchResult) -> None:
        cutter, end = Cutter(self._signature, result.outputs, requests=len(self._requests)), 0
        for request in self._requests:
            start, end = end, end + request.ticket.rows
            reader = self._readers.get(request.ticket.id)
            if reader is None:
                continue
            self._idle.add(request.ticket.id)
            try:
                outputs = cutter.cut(start, request.ticket.rows, request.outputs)
            except Exception as error:  # the model gave elements that are none of the declared type
                log.error(
                    "request %d: a part of its answer cannot be sent: %s",
                    request.ticket.id,
                    text_of(error),
                    extra=request.named,
                )
                del self._readers[request.ticket.id]
                self._idle.discard(request.ticket.id)
                self._break_off(reader, Failure(FailureKind.MODEL_FAILED, text_of(error)))
            else:
                self._given += 1
                reader.give(outputs)

    def _end(self, failure: Failure | None, result: BatchResult) -> None:
        """`failure`: None where the answers are complete."""
        readers, self._readers = list(self._readers.values()), {}
        self._over = failure or LEFT
        self._rest.stop()
        self._on_end(result)
        for reader in readers:
            if failure is None:
                self._counts.open -= 1
                self._counts.place(self._number).ended += 1
                reader.end()
            else:
                self._break_off(reader, failure)

    def _break_off(self, reader: "Reader", failure: Failure) -> None:
        self._counts.open -= 1
        self._counts.place(self._number).failed += 1
        self._stats.broke_off(failure.kind)
        reader.fail(failure)


class Reader:
    """The rest of one request's answer. A Rest."""

    def __init__(self, stream: Stream, ticket_id: int) -> None:
        self._stream = stream
        self._ticket_id = ticket_id
        self._to: PartTo | None = None

    def ask(self, to: PartTo) -> None:
        self._to = to
        self._stream.asked(self._ticket_id, self)

    def stop(self) -> None:
        self._stream.leave(self._ticket_id)

    def give(self, outputs: list[Tensor]) -> None:
        to, self._to = self._to, None
        if to is not None:
            self._hand(lambda: to.part(outputs))

    def end(self) -> None:
        to, self._to = self._to, None
        if to is not None:
            self._hand(to.ended)

    def fail(self, failure: Failure) -> None:
        to, self._to = self._to, None
        if to is not None:
            self._hand(lambda: to.failed(failure))

    def _hand(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            log.exception("could not hand over a part of the answer to request %d", self._ticket_id)
            self.stop()


class FirstPartTo:
    """In place of a ReplyTo: its answer has a rest."""

    def __init__(self, reply: ReplyTo, stream: Stream, request: Request) -> None:
        self._reply = reply
        self._stream = stream
        self._request = request

    def completed(self, response: Response) -> None:
        response.rest = self._stream.reader(self._request)
        self._reply.completed(response)

    def failed(self, failure: Failure) -> None:
        self._reply.failed(failure)
