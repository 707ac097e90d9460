"""What goes with a batch to an upstream: the ids of its requests, and the trace of the first that has one."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from dlproxy.instance.remote import RemoteInstance, RemoteSettings, parse_address
from dlproxy.instance.remote.channel import MOST_IDS, trace_fields
from dlproxy.message import NO_TRACE, Request, Trace
from dlproxy.testing import FakeRuntime
from tests.instance.remote_grpc import GrpcUpstream
from tests.instance.running import run
from tests.instance.test_remote import OIP, PAIR, double, echo, rows_of
from tests.instance.upstreams import QUICK, ScriptedUpstream

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FIRST, SECOND = Trace("a-1", PARENT, "rojo=1"), Trace("a-2", PARENT.replace("b7", "c8"))
OURS = Trace("b", PARENT.replace("b7", "d9"), span=object())
SAID = {"x-request-id": "a-1, a-2", "traceparent": PARENT, "tracestate": "rojo=1"}


def traced(*traces: Trace) -> list[Request]:
    requests = []
    for number, trace in enumerate(traces):
        made = rows_of(number)
        made.trace = trace
        requests.append(made)
    return requests


@pytest.mark.parametrize(
    ("traces", "fields"),
    [
        ((), {}),
        ((NO_TRACE, NO_TRACE), {}),
        ((FIRST, SECOND), SAID),
        ((NO_TRACE, FIRST, NO_TRACE, SECOND), SAID),
        ((Trace("b"), FIRST), {"x-request-id": "b, a-1", "traceparent": PARENT, "tracestate": "rojo=1"}),
        ((Trace(parent=PARENT), Trace("c")), {"x-request-id": "c", "traceparent": PARENT}),
        ((FIRST, OURS, SECOND), {"x-request-id": "a-1, b, a-2", "traceparent": OURS.parent}),
        ((FIRST, FIRST), {"x-request-id": "a-1", "traceparent": PARENT, "tracestate": "rojo=1"}),
    ],
)
def test_all_ids_and_one_trace(traces: tuple[Trace, ...], fields: dict[str, str]) -> None:
    assert dict(trace_fields(traced(*traces))) == fields


def test_the_ids_are_bounded() -> None:
    fields = dict(trace_fields(traced(*(Trace(f"{number:0128}") for number in range(100)))))
    assert MOST_IDS - 130 < len(fields["x-request-id"]) <= MOST_IDS


# On the wire


@pytest.fixture
async def rest() -> AsyncIterator[ScriptedUpstream]:
    upstream = ScriptedUpstream(OIP, echo)
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def grpc() -> AsyncIterator[GrpcUpstream]:
    upstream = GrpcUpstream(FakeRuntime(PAIR, double), max_batch=16)
    await upstream.start()
    yield upstream
    await upstream.stop()


async def asked(url: str, *traces: Trace, settings: RemoteSettings = QUICK) -> None:
    instance = RemoteInstance("u", parse_address(url), settings)
    await instance.start()
    result = await run(instance, *traced(*traces))
    assert result.failure is None
    await instance.stop()


async def test_over_http_as_headers(rest: ScriptedUpstream) -> None:
    url = f"http://127.0.0.1:{rest.port}/v2/models/m"
    await asked(url, FIRST, SECOND)
    await asked(url, NO_TRACE)
    first, second = rest.posts
    assert {name: first.header(name) for name in SAID} == SAID
    assert [second.header(name) for name in SAID] == ["", "", ""]
    assert first.head.count(b"\r\nhost:") == 1


async def test_what_an_operator_sets_for_all_holds(rest: ScriptedUpstream, grpc: GrpcUpstream) -> None:
    settings = msgspec.structs.replace(QUICK, headers={"X-Request-Id": "ours"})
    await asked(f"http://127.0.0.1:{rest.port}/v2/models/m", FIRST, settings=settings)
    assert rest.posts[0].head.lower().count(b"x-request-id") == 1
    assert rest.posts[0].header("x-request-id") == "ours"
    assert rest.posts[0].header("traceparent") == PARENT
    await asked(grpc.url, FIRST, settings=settings)
    metadata = _of_batch(grpc)
    assert (metadata["x-request-id"], metadata["traceparent"]) == ("ours", PARENT)


@pytest.mark.parametrize("protocol", ["v2", "v1"])
async def test_over_grpc_as_metadata(grpc: GrpcUpstream, protocol: str) -> None:
    await asked(grpc.address(protocol=protocol), FIRST, SECOND)
    metadata = _of_batch(grpc)
    assert {name: metadata[name] for name in SAID} == SAID
    assert "traceparent" not in grpc.asked[0][2], "a check is of no request"


def _of_batch(upstream: GrpcUpstream) -> dict[str, Any]:
    return next(asked[2] for asked in reversed(upstream.asked) if asked[0] in ("ModelInfer", "Predict"))
