"""Makes OpenTelemetry spans, and sends them to a collector by the SDK's own thread, which drops what it cannot send in time.

Imported by serve/tracing.py, which says what has a span. Needs the extra otel. Not aware of: requests' ways, lanes.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from math import inf, log1p
from threading import Thread
from time import monotonic, time_ns
from typing import Any

import requests
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from dlproxy import __version__
from dlproxy.config.tracing import AS_SAID, TracingConfig
from dlproxy.message import Failure, FailureKind, Trace, encodable

FLUSH_S = 3.0  # what a shutdown waits for the collector
QUIET_S = 10.0  # without trouble, before it is said that spans arrive again
MOST_WORDS = 300  # characters of a message
PATH = "/v1/traces"
Attributes = Mapping[str, str | int | float | bool]

log = logging.getLogger(__name__)


class Tracer:
    """Which requests without a traceparent are traced, and all spans. `at`: instants of `clock`. Called on the event loop."""

    def __init__(
        self,
        config: TracingConfig,
        *,
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self._clock = clock
        self._draw = draw or random.Random().random
        self._sample = config.sample
        self._most_per_s = config.most_per_s
        self._left, self._left_at = max(config.most_per_s, 1.0), clock()  # that may be traced now
        self.until = self._gap()
        """Requests without a traceparent until the next that is traced; each counts itself down."""
        self._offset_ns = 0
        self._news = _News(config.endpoint)
        url = None if config.endpoint == AS_SAID else _url(config.endpoint)
        self._exporter = _Exporter(OTLPSpanExporter(endpoint=url, session=_Session(self._news)), self._news)
        resource = Resource({"service.name": "dlproxy", "service.version": __version__}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._spans = self._provider.get_tracer("dlproxy", __version__)
        self._sdk_log = logging.getLogger("opentelemetry")
        self._sdk_log.addHandler(self._news)
        self._sdk_log.propagate = False

    def due(self) -> bool:
        """Whether `until` has come, and not too many did of late; then it is drawn anew, as if each request were by itself."""
        if self.until > 0:
            return False
        self.until = self._gap()
        now = self._clock()
        self._left = min(self._left + (now - self._left_at) * self._most_per_s, max(self._most_per_s, 1.0))
        self._left_at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def _gap(self) -> float:
        if self._sample >= 1.0:
            return 1
        return 1 + log1p(-self._draw()) // log1p(-self._sample) if self._sample > 0.0 else inf

    def start(
        self, name: str, at: float, below: Trace, attributes: Attributes, *, kind: str = "INTERNAL", links: Sequence[Any] = ()
    ) -> Any:
        """A span that has begun, below what the trace says last of ours, or else of others. `links`: other spans."""
        if below.span is None:
            self._offset_ns = min(self._look() for _ in range(3))[1]  # anew, as clocks are set at times
        return self._spans.start_span(
            name,
            _around(below),
            otel.SpanKind[kind],
            attributes,
            [otel.Link(span.get_span_context()) for span in links],
            self._ns(at),
        )

    def end(self, span: Any, at: float, failure: Failure | None = None) -> None:
        """Nothing, if it has ended. With the status of a failure."""
        if not span.is_recording():
            return
        if failure is not None:
            span.set_attribute("error.type", failure.kind.value)
            span.set_status(otel.StatusCode.ERROR, encodable(failure.message[:MOST_WORDS]))
        span.end(self._ns(at))

    def within(self, span: Any, trace: Trace) -> Trace:
        """The same request, of which what is done from now on belongs below this span."""
        return Trace(trace.request_id, traceparent(span), trace.state, span)

    def _look(self) -> tuple[float, int]:
        """At both clocks: how long that took, and by how much they differ."""
        before, wall_ns, after = self._clock(), time_ns(), self._clock()
        return after - before, wall_ns - round((before + after) * 5e8)

    def _ns(self, at: float) -> int:
        return self._offset_ns + round(at * 1e9)

    async def close(self) -> None:
        """Send what is left, for FLUSH_S seconds at most."""
        flushing = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_S)
        if flushing.is_alive():
            self._exporter.give_up()
            log.warning("traces: the last spans did not reach the collector within %g s", FLUSH_S)
        self._sdk_log.removeHandler(self._news)


def traceparent(span: Any) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def failure_in(error: str, failure: Failure | None) -> Failure:
    """Of a batch that has failed."""
    return failure or Failure(FailureKind.MODEL_FAILED, error)


def _around(trace: Trace) -> Context:
    if trace.span is not None:
        return otel.set_span_in_context(trace.span, Context())
    if not trace.parent:
        return Context()
    state = otel.TraceState.from_header([trace.state]) if trace.state else None
    number, parent = int(trace.parent[3:35], 16), int(trace.parent[36:52], 16)
    context = otel.SpanContext(number, parent, is_remote=True, trace_flags=otel.TraceFlags(1), trace_state=state)
    return otel.set_span_in_context(otel.NonRecordingSpan(context), Context())


def _url(endpoint: str) -> str:
    """As the protocol has it, unless a path is named."""
    scheme, _, place = endpoint.partition("://")
    return endpoint if place.partition("/")[2] else f"{scheme}://{place.rstrip('/')}{PATH}"


class _News(logging.Handler):
    """What the SDK says, in place of its own lines: one when spans are lost, and one when they arrive again. `reason`: why the
    last request to the collector failed.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(logging.WARNING)
        self.reason = ""
        self._where = "the collector" if endpoint == AS_SAID else endpoint
        self._troubled_at: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if said.startswith("Transient"):  # it tries again
            return
        if self._troubled_at is None:
            why = " ".join((self.reason or said).split())[:MOST_WORDS]
            log.warning("traces: spans are lost, as %s does not take them: %s", self._where, why)
        self.reason, self._troubled_at = "", monotonic()

    def arrived(self) -> None:
        if self._troubled_at is not None and monotonic() - self._troubled_at >= QUIET_S:
            self._troubled_at = None
            log.info("traces: %s takes spans again", self._where)


class _Session(requests.Session):
    """Of a collector's answer no more than its head is read, however much there is."""

    def __init__(self, news: _News) -> None:
        super().__init__()
        self._news = news

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            response = super().request(*args, **{**kwargs, "stream": True})
        except Exception as error:
            self._news.reason = _in_short(error)
            raise
        response.close()
        self._news.reason = "" if response.ok else f"it answers {response.status_code} {response.reason}"
        return response


def _in_short(error: BaseException) -> str:
    """What was the matter in the end, without the names of those who passed it on."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


class _Exporter(SpanExporter):  # type: ignore[misc]
    """On the SDK's thread."""

    def __init__(self, inner: SpanExporter, news: _News) -> None:
        self._inner = inner
        self._news = news
        self._given_up = False

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        if self._given_up:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            self._news.arrived()
        return result

    def give_up(self) -> None:
        self._given_up = True
        self._inner.shutdown()

    def shutdown(self) -> None:
        if not self._given_up:
            self._inner.shutdown()
