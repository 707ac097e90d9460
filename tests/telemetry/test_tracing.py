"""Which requests are traced, and what a collector that is dead, slow or lies does to whoever traces: next to nothing."""

import logging
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from dlproxy.config import Config, ConfigError, load
from dlproxy.config.tracing import TracingConfig
from dlproxy.message import NO_TRACE, Failure, FailureKind, Trace
from dlproxy.serve.server import Server
from dlproxy.telemetry import tracing
from dlproxy.telemetry.tracing import Tracer, traceparent
from tests.telemetry.collector import Collector

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual variables hold."""
    for name, value in {
        "BSP_SCHEDULE_DELAY": "10",
        "BSP_MAX_QUEUE_SIZE": "64",
        "BSP_MAX_EXPORT_BATCH_SIZE": "16",
        "EXPORTER_OTLP_TIMEOUT": "0.3",
    }.items():
        monkeypatch.setenv(f"OTEL_{name}", value)


class Lines(logging.Handler):
    """What is logged, from any thread, for as long as it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Condition()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        with self._came:
            self.lines.append(record.getMessage())
            self._came.notify_all()

    def wait(self, count: int) -> list[str]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.lines) >= count, 30.0), self.lines
            return list(self.lines)


@pytest.fixture
def lines() -> Iterator[Lines]:
    """The root logger's, which has all that anybody sees."""
    handler, root = Lines(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


def tracer(endpoint: str, sample: float = 1.0, **changes: Any) -> Tracer:
    return Tracer(TracingConfig(endpoint=endpoint, sample=sample, most_per_s=1e6), **changes)


def some(tracer: Tracer, count: int = 1) -> None:
    """Spans that begin and end."""
    for _ in range(count):
        tracer.end(tracer.start("infer m", monotonic(), NO_TRACE, {}), monotonic())


@contextmanager
def taken_port() -> Iterator[str]:
    """A place where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


# Which


def due(tracer: Tracer) -> bool:
    tracer.until -= 1
    return tracer.due()


@pytest.mark.parametrize(("sample", "least", "most"), [(0.0, 0, 0), (0.01, 60, 150), (0.5, 4800, 5200), (1.0, 10_000, 10_000)])
async def test_the_share_that_is_asked_for_is_traced(sample: float, least: int, most: int) -> None:
    drawn = tracer("http://127.0.0.1:9", sample, draw=random.Random(3).random)
    assert least <= sum(map(due, [drawn] * 10_000)) <= most
    await drawn.close()


async def test_each_by_itself() -> None:
    """No rhythm, which the requests might have, too: the gaps differ as those of independent draws do."""
    drawn = tracer("http://127.0.0.1:9", 0.1, draw=random.Random(5).random)
    at = [number for number in range(20_000) if due(drawn)]
    gaps = [after - before for before, after in pairwise(at)]
    assert sum(gap == 1 for gap in gaps) / len(gaps) == pytest.approx(0.1, abs=0.03)
    assert max(gaps) > 40
    await drawn.close()


async def test_never_more_than_so_many_a_second() -> None:
    now = [0.0]
    one = Tracer(TracingConfig(endpoint="http://127.0.0.1:9", sample=1.0, most_per_s=20.0), clock=lambda: now[0])
    assert sum(map(due, [one] * 1000)) == 20, "a second's at once"
    for now[0], more in ((0.5, 10), (0.51, 0), (100.0, 20)):
        assert sum(map(due, [one] * 1000)) == more
    slow = Tracer(TracingConfig(endpoint="http://127.0.0.1:9", sample=1.0, most_per_s=0.1), clock=lambda: now[0])
    assert [due(slow), due(slow)] == [True, False]
    now[0] += 10.0
    assert due(slow)
    for each in (one, slow):
        await each.close()


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_the_parent_s_word_is_understood(flags: str, sampled: bool) -> None:
    assert Trace(parent=PARENT[:-2] + flags).sampled is sampled
    assert not NO_TRACE.sampled


# What arrives


async def test_a_span_is_below_what_the_client_says_with_its_times_and_status() -> None:
    with Collector() as collector:
        one = tracer(collector.endpoint, clock=lambda: 100.0)
        span = one.start("infer m", 90.0, Trace("a", PARENT, "rojo=1"), {"rows": 3}, kind="SERVER")
        within = one.within(span, Trace("a", PARENT, "rojo=1"))
        assert (within.request_id, within.state, within.parent) == ("a", "rojo=1", traceparent(span))
        assert within.parent[:36] == PARENT[:36]
        inner = one.start("batch m", 95.0, within, {}, links=[span])
        one.end(inner, 96.0)
        one.end(span, 98.5, Failure(FailureKind.LATE, "too late"))
        one.end(span, 99.0)
        await one.close()
        below, above = collector.wait(lambda seen: len(seen.spans) >= 2)
    assert (above.name, above.kind, above.parent_id) == ("infer m", "SERVER", PARENT[36:52])
    assert above.end - above.begin == pytest.approx(8.5)
    assert (above.failed, above.attributes) == ("too late", {"rows": 3, "error.type": "late"})
    assert (below.parent_id, below.links) == (above.span_id, [above.span_id])
    assert below.begin - above.begin == pytest.approx(5.0)


@pytest.mark.parametrize(("endpoint", "url"), [
    ("http://h:4318", "http://h:4318/v1/traces"),
    ("http://h:4318/", "http://h:4318/v1/traces"),
    ("https://h/otlp/v1/traces", "https://h/otlp/v1/traces"),
])  # fmt: skip
def test_a_path_that_is_named_holds(endpoint: str, url: str) -> None:
    assert tracing._url(endpoint) == url


async def test_where_the_usual_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        one = tracer("auto")
        some(one)
        await one.close()
        (span,) = collector.wait(lambda seen: bool(seen.spans))
    assert span.service == "ours"


# Collectors that are none


async def test_a_dead_one_is_a_line_and_one_when_it_is_back(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "QUIET_S", 0.0)
    dead = threading.Event()
    dead.set()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if dead.is_set():
            handler.connection.close()
        else:
            handler.send_response(200)
            handler.end_headers()

    with Collector(answer) as collector:
        one = tracer(collector.endpoint)
        some(one)
        assert lines.wait(1)[0].startswith(f"traces: spans are lost, as {collector.endpoint} does not take them: ")
        before = collector.posts
        some(one, 500)
        collector.wait(lambda seen: seen.posts > before + 2)
        dead.clear()
        some(one)
        assert lines.wait(2)[1] == f"traces: {collector.endpoint} takes spans again"
        await one.close()
    assert len(lines.lines) == 2


async def test_where_nobody_listens_the_line_says_so(lines: Lines) -> None:
    with taken_port() as endpoint:
        one = tracer(endpoint)
        some(one, 50)
        assert lines.wait(1)[0].endswith("does not take them: connection refused")
        await one.close()
    assert len(lines.lines) == 1


def silent(handler: BaseHTTPRequestHandler) -> None:
    """It takes all, and never says anything."""
    threading.Event().wait(3.0)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def other(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xff SSH-2.0\r\n\r\n" * 10)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (silent, "timed out"),
        (endless, ""),
        (other(200, content_length="1000000000"), ""),
        (other(400), "it answers 400 bad request"),
        (other(500), "it answers 500 internal server error"),
        (other(429, retry_after="1000000"), "it answers 429 too many requests"),
        (other(503, retry_after="never"), "it answers 503 service unavailable"),
        (garbage, ""),
    ],
    ids=["silent", "endless", "short", "400", "500", "429", "503", "garbage"],
)
async def test_what_is_no_collector_costs_nobody_anything(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, answer: Callable[[BaseHTTPRequestHandler], None], said: str
) -> None:
    """Spans end at once, what is kept is bounded, the log has one line at most, and the end comes soon."""
    monkeypatch.setattr(tracing, "FLUSH_S", 1.0)
    with Collector(answer) as collector:
        one = tracer(collector.endpoint)
        slowest = 0.0
        for _ in range(5):
            began_at = monotonic()
            some(one, 200)
            slowest = max(slowest, monotonic() - began_at)
        if said:
            lines.wait(1)
        began_at = monotonic()
        await one.close()
        assert monotonic() - began_at < 3.0
    assert slowest < 1.0
    told = [line for line in lines.lines if "the last spans" not in line]
    assert len(told) <= 1
    assert all(line.startswith(f"traces: spans are lost, as {collector.endpoint} does not take them: ") for line in told)
    if said:
        others = ("queue full, dropping span.", "due to timeout, max retries or shutdown.")
        assert told[0].lower().endswith((said, *others))  # whichever comes first


# Where it is off


def test_a_server_that_traces_nothing_imports_nothing_of_it() -> None:
    code = (
        "import sys, dlproxy.cli, dlproxy.serve.server as s, dlproxy.config as c;"
        "s.Server(c.Config());"
        "print([name for name in sys.modules if 'opentelemetry' in name or name.endswith('.tracing')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['dlproxy.config.tracing']\n"


async def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlproxy.telemetry.tracing", None)
    with pytest.raises(ConfigError, match=r"pip install 'dlproxy\[otel\]'"):
        Server(Config(tracing=TracingConfig(endpoint="http://127.0.0.1:9")))


async def test_the_sdk_s_own_switch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Server(Config(tracing=TracingConfig(endpoint="http://127.0.0.1:9")))._tracer is None


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://h:4317", "http://", "http://h:99999", "http://[::1", "on"])
def test_an_endpoint_is_a_url(tmp_path: Path, endpoint: str) -> None:
    (tmp_path / "dlproxy.toml").write_text(f'[tracing]\nsample = 0.5\nendpoint = "{endpoint}"\n')
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "dlproxy.toml")
    assert f"dlproxy.toml:3: endpoint = '{endpoint}' is no URL; write it like http://127.0.0.1:4318" in str(raised.value)


def test_a_share_needs_an_endpoint(tmp_path: Path) -> None:
    (tmp_path / "dlproxy.toml").write_text("[tracing]\nsample = 0.5\n")
    with pytest.raises(ConfigError, match=r"dlproxy.toml:2: sample = 0.5 has no effect: it needs an endpoint"):
        load(tmp_path / "dlproxy.toml")
