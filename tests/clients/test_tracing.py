"""One request seen in a collector, from the client through two real servers to the model; and a pipeline's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests import models
from tests.clients.server import ServerProcess, asked
from tests.telemetry.collector import Collector, Span

TRACE_ID, CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{CLIENT}-01"
PICTURE = {"inputs": {"image": np.zeros((1, 1, 8, 8)).tolist()}}
BACK = """
[server]
grpc_port = 0

[tracing]
endpoint = "{endpoint}"
sample = 0.0

[models.digits]
path = "{digits}"

[models.lookup]
path = "{lookup}"
"""
FRONT = """
[server]
grpc_port = 0

[tracing]
endpoint = "{endpoint}"
sample = 0.0

[models.rest]
path = "http://{back}/v2/models/digits"

[models.grpc]
path = "grpc://{back_grpc}/v2/models/digits"

[models.lookup]
path = "http://{back}/v2/models/lookup"

[pipelines.read]
inputs = {{ image = "FP32[-1,1,8,8]" }}
outputs = {{ label = "best.label" }}

[pipelines.read.steps.net]
model = "rest"
inputs = {{ image = "image" }}

[pipelines.read.steps.best]
call = "code.py:best"
inputs = {{ scores = "net.probabilities" }}
"""
CODE = """
def best(scores):
    return scores.argmax(axis=1)


best.outputs = {"label": "INT64[-1]"}
"""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def front(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Before another server, which has the models."""
    folder = tmp_path_factory.mktemp("tracing")
    (folder / "code.py").write_text(CODE)
    lookup = models.save(models.lookup(), folder / "lookup.onnx")
    back, front = folder / "back.toml", folder / "front.toml"
    back.write_text(BACK.format(endpoint=collector.endpoint, digits=models.DIGITS, lookup=lookup))
    quick = {"BSP_SCHEDULE_DELAY": "20", "EXPORTER_OTLP_HEADERS": "x-key=abc"}

    def started(config: Path, **variables: str) -> ServerProcess:
        with pytest.MonkeyPatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(f"OTEL_{name}", value)
            return ServerProcess("--config", config)

    with started(back, SERVICE_NAME="back", **quick) as behind:
        text = FRONT.format(endpoint=collector.endpoint, back=behind.address, back_grpc=behind.grpc_address)
        front.write_text(text)
        with started(front, **quick) as before:
            yield before


def traced(collector: Collector, trace_id: str, count: int) -> dict[str, Span]:
    """The spans of one trace, by service and name, when so many are there."""
    spans = collector.wait(lambda seen: sum(span.trace_id == trace_id for span in seen.spans) >= count)
    found = {f"{span.service}: {span.name}": span for span in spans if span.trace_id == trace_id}
    assert len(found) == count, sorted(found)
    return found


def parents(spans: dict[str, Span]) -> dict[str, str]:
    """Of each span the one above it."""
    names = {span.span_id: name for name, span in spans.items()}
    return {name: names.get(span.parent_id, span.parent_id) for name, span in spans.items()}


@pytest.mark.parametrize("model", ["rest", "grpc"])
def test_one_trace_from_the_client_to_the_model(front: ServerProcess, collector: Collector, model: str) -> None:
    trace_id = TRACE_ID[:-4] + model.encode().hex()[:4]
    headers = {"traceparent": f"00-{trace_id}-{CLIENT}-01", "tracestate": "rojo=1", "x-request-id": "one"}
    told = asked(f"http://{front.address}/predict/{model}", PICTURE, **headers)
    assert told.status == 200, told.body
    spans = traced(collector, trace_id, 8)
    ask = next(name for name in spans if ": ask " in name)
    assert parents(spans) == {
        f"dlproxy: infer {model}": CLIENT,
        "dlproxy: queue": f"dlproxy: infer {model}",
        f"dlproxy: batch {model}": f"dlproxy: infer {model}",
        ask: f"dlproxy: batch {model}",
        "back: infer digits": ask,
        "back: queue": "back: infer digits",
        "back: batch digits": "back: infer digits",
        "back: compute": "back: batch digits",
    }
    kinds = {name: span.kind for name, span in spans.items() if span.kind != "INTERNAL"}
    assert kinds == {f"dlproxy: infer {model}": "SERVER", ask: "CLIENT", "back: infer digits": "SERVER"}
    for name, span in spans.items():
        assert span.begin <= span.end
        above = spans.get(parents(spans)[name])
        if above is not None:
            assert above.begin - 0.02 <= span.begin <= span.end <= above.end + 0.02, (name, span, above)
    door, batch = spans[f"dlproxy: infer {model}"], spans[f"dlproxy: batch {model}"]
    assert (batch.links, batch.attributes["dlproxy.batch.rows"]) == ([door.span_id], 1)
    assert door.attributes == {
        "dlproxy.model": model,
        "dlproxy.version": "1",
        "dlproxy.request_id": "one",
    }
    assert not any(span.failed for span in spans.values())
    assert collector.headers[0]["x-key"] == "abc"


def test_a_pipeline_s_steps_are_below_it(front: ServerProcess, collector: Collector) -> None:
    trace_id = TRACE_ID[:-4] + "aaaa"
    told = asked(f"http://{front.address}/predict/read", PICTURE, traceparent=f"00-{trace_id}-{CLIENT}-01")
    assert told.status == 200, told.body
    above = parents(traced(collector, trace_id, 11))
    assert above["dlproxy: infer read"] == CLIENT
    assert above["dlproxy: step net"] == above["dlproxy: step best"] == "dlproxy: infer read"
    assert above["dlproxy: infer rest"] == "dlproxy: step net"
    assert above["dlproxy: batch rest"] == "dlproxy: infer rest"
    assert above["back: batch digits"] == "back: infer digits"


def test_a_failure_is_told_at_each_place(front: ServerProcess, collector: Collector) -> None:
    trace_id = TRACE_ID[:-4] + "bbbb"
    lookup = {"inputs": {"index": [99]}}
    told = asked(f"http://{front.address}/predict/lookup", lookup, traceparent=f"00-{trace_id}-{CLIENT}-01")
    assert told.status == 500, told.body
    spans = traced(collector, trace_id, 7)
    failed = {name.partition(" 127")[0] for name, span in spans.items() if span.failed}
    assert failed == {
        *("dlproxy: infer lookup", "dlproxy: batch lookup", "dlproxy: ask"),
        *("back: infer lookup", "back: batch lookup"),
    }
    door = spans["dlproxy: infer lookup"]
    assert door.attributes["error.type"] == "model_failed"
    assert door.failed in told.json["error"]


def test_what_is_not_sampled_has_no_span(front: ServerProcess, collector: Collector) -> None:
    """Neither without a traceparent, of which this server samples none, nor with one that says so; over gRPC as well."""
    trace_id, last = TRACE_ID[:-4] + "cccc", TRACE_ID[:-4] + "dddd"
    url = f"http://{front.address}/predict/rest"
    for headers in ({}, {"traceparent": f"00-{trace_id}-{CLIENT}-00"}):
        assert asked(url, PICTURE, **headers).status == 200
    with triton.InferenceServerClient(front.grpc_address) as client:
        given = triton.InferInput("image", [1, 1, 8, 8], "FP32")
        given.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
        client.infer("rest", [given], headers={"traceparent": f"00-{last}-{CLIENT}-01"})
    traced(collector, last, 8)
    known = {TRACE_ID[:-4] + end for end in ("7265", "6772", "aaaa", "bbbb", "dddd")}
    assert {span.trace_id for span in collector.spans} <= known
