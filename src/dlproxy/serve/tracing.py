"""Which spans a traced request has: its own, one for each batch that it was in, those of what it asked of others.

Made by serve/assemble.py where [tracing] asks for it; nobody else imports it. Not aware of: collectors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult
from dlproxy.instance.remote import RemoteInstance
from dlproxy.message import Failure, FailureKind, Request, Response, Trace, encodable
from dlproxy.policy.events import Dispatch
from dlproxy.serve.layers import WatchedRest
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import AnsweredBatch
from dlproxy.telemetry.tracing import Attributes, Tracer, failure_in, traceparent

MOST_CHARS = 128  # of what clients say


class TraceLayer:
    """The first layer of a model: gives requests that are traced a span, from their arrival until their answers have left.
    As an Observer it hears why they failed, and of those that were refused before they came here.
    """

    def __init__(self, inner: Service, tracer: Tracer, name: str, version: str, clock: Callable[[], float]) -> None:
        self._submit = inner.submit
        self._tracer = tracer
        self._span_name = f"infer {name}"
        self._about: dict[str, str | int | float | bool] = {"dlproxy.model": name, "dlproxy.version": version}
        self._clock = clock
        self.cancel = inner.cancel

    def submit(self, request: Request, reply: ReplyTo) -> None:
        trace, tracer = request.trace, self._tracer
        if trace.parent:
            traced = trace.sampled
        else:
            tracer.until -= 1
            traced = tracer.until <= 0 and tracer.due() and request.ticket.of_client and not request.charged
        if not traced:  # a stage without a parent follows its pipeline
            self._submit(request, reply)
            return
        ticket = request.ticket
        attributes = dict(self._about)  # few: each costs as much as half a span
        if ticket.rows > 1:
            attributes["dlproxy.rows"] = ticket.rows
        for name, value in (("request_id", trace.request_id), ("id", request.id), ("tenant", ticket.tenant)):
            if value:
                attributes[f"dlproxy.{name}"] = encodable(value[:MOST_CHARS])
        kind = "INTERNAL" if request.charged else "SERVER"
        span = tracer.start(self._span_name, ticket.arrived_at, trace, attributes, kind=kind)
        request.trace = tracer.within(span, trace)
        self._submit(request, _TracedReply(reply, request, tracer, self._clock))

    def answered(self, batch: AnsweredBatch) -> None:
        """Its requests have told already."""

    def failed(self, request: Request, failure: Failure, reason: str, at: float) -> None:
        trace = request.trace
        if trace.span is not None:
            trace.span.set_attribute("dlproxy.reason", reason)
        elif trace.sampled:
            span = self._tracer.start(self._span_name, at, trace, {**self._about, "dlproxy.reason": reason}, kind="SERVER")
            self._tracer.end(span, at, failure)


class _TracedReply:
    """In place of the ReplyTo of a traced request: ends its span when the answer has left."""

    __slots__ = ("_clock", "_reply", "_span", "_tracer")

    def __init__(self, reply: ReplyTo, request: Request, tracer: Tracer, clock: Callable[[], float]) -> None:
        self._reply = reply
        self._span = request.trace.span
        self._tracer = tracer
        self._clock = clock

    def completed(self, response: Response) -> None:
        for name, value in (("cache", response.cache), ("variant", response.variant)):
            if value:
                self._span.set_attribute(f"dlproxy.{name}", value)
        if response.rest is not None:
            self._span.add_event("first part")
            response.rest = WatchedRest(response.rest, self._end)
            self._reply.completed(response)
            return
        try:
            self._reply.completed(response)
        finally:
            self._end()

    def failed(self, failure: Failure) -> None:
        try:
            self._reply.failed(failure)
        finally:
            self._end(failure)

    def _end(self, failure: Failure | None = None) -> None:
        self._tracer.end(self._span, self._clock(), failure)


class Runs:
    """Hears of each batch of one model: its driver calls this. A batch with traced requests has a span below the first of
    them, linked to all, and one for what it asks of an upstream, which is what that is told.
    """

    def __init__(self, tracer: Tracer, name: str, clock: Callable[[], float]) -> None:
        self._tracer = tracer
        self._name = name
        self._clock = clock
        self._open: dict[int, _Run] = {}

    def began(
        self, command: Dispatch, requests: Sequence[Request], instance: Instance, at: float, done: Callable[[BatchResult], None]
    ) -> Callable[[BatchResult], None]:
        """What to call when it is done."""
        traced = [request for request in requests if request.trace.span is not None]
        if not traced:
            return done
        tracer, first, spans = self._tracer, traced[0], [request.trace.span for request in traced]
        if command.reason in ("idle", "turn"):  # else they have waited before
            for request in traced:
                arrived_at = request.ticket.arrived_at
                tracer.end(tracer.start("queue", arrived_at, request.trace, {}), at)
        attributes: Attributes = {
            "dlproxy.instance": instance.name,
            "dlproxy.batch.number": command.batch_id,
            "dlproxy.batch.rows": sum([request.ticket.rows for request in requests]),
            "dlproxy.batch.reason": command.reason,
        }
        span = tracer.start(f"batch {self._name}", at, first.trace, attributes, links=spans)
        for other in spans[1:]:
            other.add_link(span.get_span_context())
        run = self._open[command.batch_id] = _Run(tracer, first, span, at)
        if isinstance(instance, RemoteInstance):
            run.ask(instance)
        return partial(self._done, command.batch_id, done)

    def _done(self, batch_id: int, done: Callable[[BatchResult], None], result: BatchResult) -> None:
        at = self._clock()
        done(result)  # first: answers are in a hurry, spans are not
        run = self._open.pop(batch_id, None)
        if run is not None:
            run.end(at, result)

    def lost(self, batch_id: int, reason: str) -> None:
        """Its instance has died: it will not be done."""
        run = self._open.pop(batch_id, None)
        if run is not None:
            run.fail(self._clock(), Failure(FailureKind.UNAVAILABLE, f"the instance was lost: {reason}"))


class _Run:
    """A batch that runs: its span, and that of what it asks of an upstream."""

    __slots__ = ("_asks", "_at", "_first", "_span", "_tracer")

    def __init__(self, tracer: Tracer, first: Request, span: Any, at: float) -> None:
        self._tracer = tracer
        self._first = first
        self._span = span
        self._at = at
        self._asks: Any = None

    def ask(self, instance: RemoteInstance) -> None:
        """`instance` takes what it tells the upstream from the request."""
        address, trace = instance.address, self._first.trace
        about: Attributes = {"server.address": address.host, "server.port": address.port, "url.path": address.path}
        below = self._tracer.within(self._span, trace)
        self._asks = self._tracer.start(f"ask {address.authority}", self._at, below, about, kind="CLIENT")
        self._first.trace = Trace(trace.request_id, traceparent(self._asks), trace.state, trace.span)

    def end(self, at: float, result: BatchResult) -> None:
        tracer = self._tracer
        if result.error is not None:
            self.fail(at, failure_in(result.error, result.failure))
            return
        if self._asks is None:
            began_at = min(self._at + result.batch_s, at)
            below = tracer.within(self._span, self._first.trace)
            tracer.end(tracer.start("compute", began_at, below, {}), min(began_at + result.compute_s, at))
        else:
            tracer.end(self._asks, at)
        tracer.end(self._span, at)

    def fail(self, at: float, failure: Failure) -> None:
        if self._asks is not None:
            self._tracer.end(self._asks, at, failure)
        self._tracer.end(self._span, at, failure)
