"""Which spans requests have, with a real driver: their own, those of their batches, and nothing where they are not traced."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from dlproxy.config.tracing import TracingConfig
from dlproxy.message import Failure, FailureKind, PartTo, Request, Response, Timing, Trace
from dlproxy.serve.tracing import Runs, TraceLayer
from dlproxy.service import ReplyTo
from dlproxy.telemetry.tracing import Tracer
from tests.serve.rig import KNOBS, Reply, Rig
from tests.telemetry.collector import Collector, Span

FIRST, SECOND = Trace(parent=f"00-{1:032x}-{1:016x}-01"), Trace(parent=f"00-{2:032x}-{2:016x}-01")
OFF = Trace(parent=f"00-{3:032x}-{3:016x}-00")


class Traced:
    """A tracer, and what came of it."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self.tracer = Tracer(TracingConfig(endpoint=collector.endpoint, sample=0.0))

    async def spans(self) -> list[Span]:
        """All of them, in the order in which they ended."""
        await self.tracer.close()
        return self._collector.spans


@pytest.fixture
async def traced() -> AsyncIterator[Traced]:
    with Collector() as collector:
        yield Traced(collector)


class TracedRig(Rig):
    def __init__(self, tracer: Tracer, **options: Any) -> None:
        super().__init__(**options)
        self.driver.trace_runs(Runs(tracer, "m", self.now))
        self.layer = TraceLayer(self.driver, tracer, "m", "1", self.now)
        self.stats.observers.append(self.layer)

    def traced(self, trace: Trace | None, **options: Any) -> Reply:
        reply = Reply(self.request(**options))
        if trace is not None:
            reply.request.trace = trace
        self.layer.submit(reply.request, reply)
        return reply


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


async def test_a_batch_is_below_the_first_and_linked_to_all(traced: Traced) -> None:
    rig = TracedRig(traced.tracer)
    for reply in [rig.traced(trace) for trace in (None, FIRST, OFF, SECOND)]:
        await reply.wait()
    spans = await traced.spans()
    first, second = sorted(named(spans, "infer m"), key=lambda span: span.trace_id)
    (batch,), (compute,) = named(spans, "batch m"), named(spans, "compute")
    assert [first.parent_id, second.parent_id] == [f"{1:016x}", f"{2:016x}"]
    assert (batch.parent_id, batch.links) == (first.span_id, [first.span_id, second.span_id])
    assert (first.links, second.links) == ([], [batch.span_id])
    assert sorted(span.parent_id for span in named(spans, "queue")) == sorted((first.span_id, second.span_id))
    assert compute.parent_id == batch.span_id
    assert compute.end - compute.begin == pytest.approx(0.010, abs=0.002)
    assert {key.removeprefix("dlproxy."): value for key, value in batch.attributes.items()} == {
        "instance": "m-0",
        "batch.number": 1,
        "batch.rows": 4,
        "batch.reason": "idle",
    }
    assert len(spans) == 6


async def test_a_lost_instance_and_the_run_after_it(traced: Traced) -> None:
    rig = TracedRig(traced.tracer, instances=2)
    reply = rig.traced(FIRST)
    while not any(fake.busy for fake in rig.fakes):
        await rig.rest(0.001)
    (busy,) = [fake for fake in rig.fakes if fake.busy]
    rig.driver.lose_instance(busy.name, "it has crashed", crashed=True)
    await reply.wait()
    assert reply.response is not None
    await busy.stop()
    spans = await traced.spans()
    (request,) = named(spans, "infer m")
    lost, again = named(spans, "batch m")
    assert (lost.failed, again.failed) == ("the instance was lost: it has crashed", "")
    assert again.attributes["dlproxy.batch.reason"] == "retry"
    assert lost.parent_id == again.parent_id == request.span_id
    assert len(named(spans, "queue")) == 1, "it had waited for the first one alone"


async def test_a_refusal_has_its_status(traced: Traced) -> None:
    rig = TracedRig(traced.tracer, knobs=KNOBS, instances=1, service_s=None)
    running = rig.traced(None)
    await rig.rest(0.001)
    late = await rig.traced(FIRST, timeout_s=0.005, promised=True).wait()
    rig.fakes[0].finish()
    await running.wait()
    (span,) = await traced.spans()
    assert late.failure is not None
    assert (span.name, span.failed) == ("infer m", late.failure.message)
    assert span.attributes["error.type"] == late.failure.kind.value
    assert span.attributes["dlproxy.reason"]


async def test_what_is_refused_before_it_is_a_request_has_a_span_if_its_client_traces_it(traced: Traced) -> None:
    rig = TracedRig(traced.tracer)
    why = Failure(FailureKind.INVALID_ARGUMENT, "unexpected shape \ud800")
    for trace in (FIRST, OFF):
        refused = rig.request()
        refused.trace = trace
        rig.stats.lost(refused, why, "bad_request", rig.now())
    (span,) = await traced.spans()
    assert (span.parent_id, span.kind, span.failed) == (f"{1:016x}", "SERVER", "unexpected shape \\ud800")
    assert span.attributes["dlproxy.reason"] == "bad_request"


class Inner:
    """A Service that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[Request, ReplyTo]] = []

    def submit(self, request: Request, reply: ReplyTo) -> None:
        self.got.append((request, reply))

    def cancel(self, request: Request) -> None:
        """There is nothing to cancel."""


class Rest:
    """One part, and the end."""

    def __init__(self) -> None:
        self.parts = 1

    def ask(self, to: PartTo) -> None:
        if self.parts:
            self.parts -= 1
            to.part([])
        else:
            to.ended()

    def stop(self) -> None:
        """Nobody reads on."""


class Asking:
    """A ReplyTo and a PartTo, which asks for all."""

    def __init__(self) -> None:
        self.response: Response | None = None
        self.over = False

    def completed(self, response: Response) -> None:
        self.response = response

    def failed(self, failure: Failure) -> None:
        raise AssertionError(failure)

    def part(self, outputs: object) -> None:
        """More is wanted."""

    def ended(self) -> None:
        self.over = True


async def test_what_is_not_traced_goes_on_as_it_is(traced: Traced) -> None:
    """Not even a comparison of our own, or a stage of a pipeline that is not traced, were all requests to be."""
    every = Tracer(TracingConfig(endpoint="http://127.0.0.1:9", sample=1.0))
    for tracer, trace, number, charged in ((traced.tracer, OFF, 1, False), (every, None, -1, False), (every, None, 1, True)):
        inner, request, reply = Inner(), Rig.plain_request(), Asking()
        request.trace, request.ticket.id, request.charged = trace or request.trace, number, charged
        before = request.trace
        TraceLayer(inner, tracer, "m", "1", lambda: 0.0).submit(request, reply)
        assert inner.got == [(request, reply)]
        assert request.trace is before
    await every.close()
    assert await traced.spans() == []


async def test_answers_in_parts_last_until_their_end_and_what_gave_an_answer_is_named(traced: Traced) -> None:
    inner, request, reply, now = Inner(), Rig.plain_request(), Asking(), [0.0]
    request.trace = FIRST
    TraceLayer(inner, traced.tracer, "m", "1", lambda: now[0]).submit(request, reply)
    rest = Rest()
    response = Response("", "m", "1", [], Timing(0.0, 0.0, 0.0), rest, cache="hit", variant="small")
    inner.got[0][1].completed(response)
    assert response.rest is not None
    for now[0] in (1.0, 2.0):
        response.rest.ask(reply)
    assert reply.over
    now[0] = 3.0
    response.rest.stop()
    (span,) = await traced.spans()
    assert span.end - span.begin == pytest.approx(2.0)
    assert (span.attributes["dlproxy.cache"], span.attributes["dlproxy.variant"]) == ("hit", "small")


async def test_an_answer_that_cannot_be_handed_over_ends_its_span_all_the_same(traced: Traced) -> None:
    class Broken(Asking):
        def completed(self, response: Response) -> None:
            raise RuntimeError("no socket")

    inner, request = Inner(), Rig.plain_request()
    request.trace = FIRST
    TraceLayer(inner, traced.tracer, "m", "1", lambda: 0.0).submit(request, Broken())
    with pytest.raises(RuntimeError, match="no socket"):
        inner.got[0][1].completed(Response("", "m", "1", [], Timing(0.0, 0.0, 0.0)))
    assert len(await traced.spans()) == 1
