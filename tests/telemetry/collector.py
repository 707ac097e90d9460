"""An OpenTelemetry collector for tests: takes OTLP over HTTP, and hands out the spans that came."""

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

PATIENCE_S = 30.0


class Span(NamedTuple):
    """One that came. `links`: ids of other spans. `service`: who made it. Times in seconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    begin: float
    end: float
    attributes: dict[str, Any]
    links: list[str]
    failed: str
    service: str


class Collector:
    """Serves while entered. `answer` may do something else than say yes."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None] | None = None) -> None:
        self.spans: list[Span] = []
        self.posts = 0
        self.headers: list[dict[str, str]] = []
        self._came = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                collector._take(body, {name.lower(): value for name, value in self.headers.items()})
                (answer or _say_yes)(self)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        class Listener(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is none."""

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _take(self, body: bytes, headers: dict[str, str]) -> None:
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        found = list(_spans(ExportTraceServiceRequest.FromString(body)))
        with self._came:
            self.posts += 1
            self.headers.append(headers)
            self.spans += found
            self._came.notify_all()

    def wait(self, enough: Callable[["Collector"], bool]) -> list[Span]:
        """All spans, once what came is enough."""
        with self._came:
            assert self._came.wait_for(lambda: enough(self), PATIENCE_S), [span.name for span in self.spans]
            return list(self.spans)

    def __enter__(self) -> "Collector":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _say_yes(handler: BaseHTTPRequestHandler) -> None:
    said = ExportTraceServiceResponse().SerializeToString()
    handler.send_response(200)
    handler.send_header("content-type", "application/x-protobuf")
    handler.send_header("content-length", str(len(said)))
    handler.end_headers()
    handler.wfile.write(said)


def _spans(request: Any) -> Iterator[Span]:
    for of_service in request.resource_spans:
        service = _values(of_service.resource.attributes)["service.name"]
        for scope in of_service.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano / 1e9,
                    span.end_time_unix_nano / 1e9,
                    _values(span.attributes),
                    [link.span_id.hex() for link in span.links],
                    span.status.message if span.status.code == 2 else "",
                    service,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
