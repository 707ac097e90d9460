"""`/generate`, `/generate_stream` and `/predict` in parts: JSON in and out, slow readers, those who leave, failures."""

import gc
import json
import weakref
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.message import DType, Failure, FailureKind, PartTo, Request, Response, Signature, Tensor
from dlproxy.service import ReplyTo
from dlproxy.tensors import to_array, to_bytes
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.generate import TOO_MANY, Generate
from dlproxy.wire.oip_http import OipApp

from .fixtures import HIGH_WATER, TIMING, EchoService, Wire, echo_signature, post, served, specs

TEXT = echo_signature(("text_input", DType.BYTES, (-1, 1)), text=True)
STREAMS = msgspec.structs.replace(TEXT, streams=True)


def app_of(service: EchoService, *, max_json_bytes: int = 1 << 20, server_timing: bool = False) -> OipApp:
    catalog = Catalog()
    catalog.add(served(service))
    generate = Generate(catalog, max_json_bytes=max_json_bytes, clock=lambda: 100.0)
    limits = HttpLimits(max_json_bytes=max_json_bytes)
    return OipApp(catalog, limits, clock=lambda: 100.0, server_timing=server_timing, more=generate.rows())


class Parts:
    """A Rest: gives each part when the test says so. `at_once`: all of them as they are asked for."""

    def __init__(self, parts: list[list[Tensor]], end: Failure | None = None, *, at_once: bool = False) -> None:
        self.left = parts
        self.asked = self.stopped = 0
        self._end = end
        self._at_once = at_once
        self._to: PartTo | None = None

    def ask(self, to: PartTo) -> None:
        assert self._to is None, "asked twice"
        self._to = to
        self.asked += 1
        if self._at_once:
            self.give()

    def stop(self) -> None:
        self.stopped += 1

    def give(self) -> None:
        to, self._to = self._to, None
        assert to is not None, "nobody has asked"
        if self.left:
            to.part(self.left.pop(0))
        elif self._end is None:
            to.ended()
        else:
            to.failed(self._end)


class StreamingService(EchoService):
    """Answers with the first part, then the rest."""

    def __init__(self, *texts: str | bytes, end: Failure | None = None, at_once: bool = False) -> None:
        super().__init__(STREAMS)
        self._first, *rest = [[text_of(text)] for text in texts]
        self.rest = Parts(rest, end, at_once=at_once)

    def echo(self, request: Request) -> Response:
        return Response(request.id, "m", "1", self._first, TIMING, self.rest)


def text_of(text: str | bytes) -> Tensor:
    array = np.array([[text]], object)
    return Tensor("out_text_input", DType.BYTES, (1, 1), to_bytes(DType.BYTES, array))


def asked(service: EchoService, path: str, body: Any, **headers: str) -> Wire:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    wire = Wire(app_of(service)).feed(post(path, data, **headers))
    service.answer_all()
    return wire


def taken(wire: Wire) -> bytes:
    written = bytes(wire.transport.written)
    wire.transport.written.clear()
    return written


def chunks(data: bytes) -> bytes:
    """The body of a chunked reply, which may go on."""
    body, data = b"", data.partition(b"\r\n\r\n")[2]
    while data:
        size, _, data = data.partition(b"\r\n")
        body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return body


def events(wire: Wire) -> list[Any]:
    *said, rest = chunks(bytes(wire.transport.written)).split(b"\n\n")
    assert rest == b""
    return [json.loads(event.removeprefix(b"data: ")) for event in said]


def spoken(*texts: str, **more: str) -> list[dict[str, str]]:
    return [{**more, "model_name": "m", "model_version": "1", "out_text_input": text} for text in texts]


# From JSON to tensors


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ((-1, 1), 7, (1, 1)),
        ((-1, 1), [7], (1, 1)),
        ((-1, 1), [7, 8, 9], (3, 1)),
        ((-1, -1), 7, (1, 1)),
        ((-1, -1), [7, 8, 9], (1, 3)),
        ((-1, 2), [1, 2, 3, 4], (2, 2)),
        ((-1, -1, 2), [1, 2, 3, 4], (1, 2, 2)),
        ((-1, -1), [[1, 2], [3, 4]], (2, 2)),
        ((-1,), 7, (1,)),
        ((-1,), [7, 8], (2,)),
    ],
)
def test_a_bare_value_or_a_flat_list_takes_the_shape_that_the_model_declares(
    shape: tuple[int, ...], value: Any, expected: tuple[int, ...]
) -> None:
    service = EchoService(echo_signature(("x", DType.INT64, shape)))
    wire = asked(service, "/v2/models/m/generate", {"x": value})
    (request,) = service.requests
    assert tuple(request.inputs[0].shape) == expected
    flat = np.ravel(value).tolist()
    assert to_array(DType.INT64, expected, request.inputs[0].data).ravel().tolist() == flat
    (reply,) = wire.replies
    assert reply.json() == {"model_name": "m", "model_version": "1", "out_x": flat if len(flat) > 1 else flat[0]}


def test_a_scalar_of_a_model_without_rows_is_a_bare_value_too() -> None:
    service = EchoService(echo_signature(("x", DType.FP64, ()), batched=False))
    for value in (1.5, [1.5]):
        (reply,) = asked(service, "/v2/models/m/generate", {"x": value}).replies
        assert reply.json()["out_x"] == 1.5


def test_keys_that_are_no_inputs_are_parameters_and_inputs_may_stand_among_those() -> None:
    service = EchoService(echo_signature(("text_input", DType.BYTES, (-1, 1)), ("stream", DType.BOOL, (-1, 1)), text=True))
    body = {"text_input": "hi", "id": "7", "max_tokens": 5, "parameters": {"stream": False, "temperature": 0.5, "stop": "."}}
    (reply,) = asked(service, "/v2/models/m/versions/1/generate", body).replies
    (request,) = service.requests
    assert request.params == {"max_tokens": 5, "temperature": 0.5, "stop": "."}
    assert request.id == "7"
    assert reply.json() == {
        "id": "7", "model_name": "m", "model_version": "1", "out_text_input": "hi", "out_stream": False,
    }  # fmt: skip
    assert reply.headers["content-type"] == "application/json"


def test_inputs_named_id_and_parameters_are_inputs() -> None:
    service = EchoService(echo_signature(("id", DType.INT64, (-1,)), ("parameters", DType.INT64, (-1,))))
    (reply,) = asked(service, "/v2/models/m/generate", {"id": 3, "parameters": 4}).replies
    assert reply.json() == {"model_name": "m", "model_version": "1", "out_id": 3, "out_parameters": 4}


def test_an_output_cannot_take_the_place_of_what_the_answer_says_of_itself() -> None:
    signature = Signature(specs(("x", DType.INT64, (-1,))), specs(("model_name", DType.INT64, (-1,))), True, "fake")
    (reply,) = asked(EchoService(signature), "/v2/models/m/generate", {"x": 3}).replies
    assert reply.json() == {"model_name": "m", "model_version": "1"}


def test_terms_come_from_headers() -> None:
    service = EchoService(TEXT)
    headers = {"x-request-deadline-ms": "250", "x-request-priority": "2", "x-tenant-id": "shop"}
    asked(service, "/v2/models/m/generate_stream", {"text_input": "a", "timeout": 5.5, "priority": "high"}, **headers)
    (request,) = service.requests
    assert (request.ticket.answer_by, request.ticket.priority, request.ticket.tenant) == (100.25, 2, "shop")
    assert request.params == {"timeout": 5.5, "priority": "high"}, "the model's own"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not a generate request"),
        (b"[]", "not a generate request"),
        (b"[" * 100_000, "not a generate request"),
        ({}, "expected 1 inputs but got 0 inputs"),
        ({"text_input": "a", "id": 5}, "Unable to parse 'id': 5 is not a string"),
        ({"text_input": "a", "parameters": 5}, "Expected JSON object for keyword: 'parameters', got 5"),
        (
            {"text_input": "a", "parameters": {"text_input": "b"}},
            "Converting keyword: 'parameters': input 'text_input' already exists in request",
        ),
        (
            {"text_input": "a", "stop": ["."]},
            "parameter 'stop' has invalid type. It should be either 'int', 'bool', or 'string', or a float; it is ['.']",
        ),
        ({"text_input": "a", "stop": None}, "parameter 'stop' has invalid type"),
        ({"text_input": 5}, "input 'text_input': 5 is not a string"),
        ({"text_input": None}, "input 'text_input': None is not a string"),
        ({"text_input": {"a": "b"}}, "is not a string"),
        ({"text_input": []}, "has no rows"),
        ({"text_input": ["a", ["b"]]}, "['b'] is not a string"),
        ({"text_input": [["a"], ["b", "c"]]}, "ragged data"),
        ({"text_input": [["a", "b"]]}, "unexpected shape for input 'text_input'"),
    ],
)
@pytest.mark.parametrize("door", ["generate", "generate_stream"])
def test_what_makes_no_request_is_refused_before_it_is_one(body: Any, said: str, door: str) -> None:
    service = StreamingService("never")
    (reply,) = asked(service, f"/v2/models/m/{door}", body).replies
    assert (reply.status, reply.headers["content-type"]) == (400, "application/json")
    assert said in reply.error
    assert not service.requests


def test_a_value_that_does_not_fill_the_shape_is_refused_as_in_triton() -> None:
    service = EchoService(echo_signature(("x", DType.INT64, (-1, 3))))
    for value in (1, [1, 2], [1, 2, 3, 4]):
        (reply,) = asked(service, "/v2/models/m/generate", {"x": value}).replies
        assert reply.status == 400
        assert reply.error == "The schema can not convert input 'x' to tensor with proper shape [N,3]"
    fixed = EchoService(echo_signature(("x", DType.INT64, (2, 0)), batched=False))
    assert asked(fixed, "/v2/models/m/generate", {"x": [1, 2]}).replies[0].status == 400


def test_a_body_that_is_too_large_is_not_read() -> None:
    service = EchoService(TEXT)
    app = app_of(service, max_json_bytes=100)
    (reply,) = Wire(app).feed(post("/v2/models/m/generate", b'{"text_input":"%b"}' % (b"a" * 100))).replies
    assert reply.status == 413
    assert "at most 100 are accepted" in reply.error


def test_models_that_are_not_there_and_other_methods_are_refused_as_everywhere() -> None:
    wire = Wire(app_of(EchoService(TEXT)))
    wire.feed(post("/v2/models/nobody/generate_stream", b"{}"), post("/v2/models/m/versions/9/generate", b"{}"))
    assert [reply.status for reply in wire.take()] == [404, 404]
    (reply,) = wire.feed(b"GET /v2/models/m/generate HTTP/1.1\r\nHost: test\r\n\r\n").take()
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["x", "t", "id", "parameters", "n"]) | st.text(max_size=3)


@given(
    body=st.binary(max_size=60)
    | st.dictionaries(KEYS, json_values, max_size=5).map(lambda value: json.dumps(value).encode())
    | st.dictionaries(KEYS, json_values, max_size=5).map(lambda value: json.dumps({"x": [1, 2], "t": "a", **value}).encode()),
    door=st.sampled_from(["/v2/models/m/generate", "/v2/models/m/generate_stream", "/predict/m"]),
)
def test_any_body_is_answered_or_refused(body: bytes, door: str) -> None:
    service = EchoService(echo_signature(("x", DType.INT16, (-1, -1, 2)), ("t", DType.BYTES, (-1, 1)), text=True))
    wire = Wire(app_of(service)).feed(post(door, body))
    service.answer_all()
    written = bytes(wire.transport.written)
    assert written.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ")), written[:300]
    assert bool(service.requests) is written.startswith(b"HTTP/1.1 200 ")


# From parts to JSON


def test_each_part_is_an_event_that_leaves_when_it_comes() -> None:
    service = StreamingService("one", "two", "three")
    wire = asked(service, "/v2/models/m/generate_stream", {"text_input": "go", "id": "7"})
    head = taken(wire)
    assert b"content-type: text/event-stream; charset=utf-8\r\n" in head
    assert b"cache-control: no-cache\r\n" in head
    assert chunks(head) == b'data: {"id":"7","model_name":"m","model_version":"1","out_text_input":"one"}\n\n'
    assert service.rest.asked == 1
    service.rest.give()
    assert b'"out_text_input":"two"}\n\n\r\n' in taken(wire)
    service.rest.give()
    assert b'"three"' in taken(wire)
    service.rest.give()
    assert taken(wire) == b"0\r\n\r\n"
    assert not wire.ended
    assert service.rest.stopped == 0


def test_a_model_that_answers_at_once_is_a_stream_of_one_event() -> None:
    wire = asked(EchoService(TEXT), "/v2/models/m/generate_stream", {"text_input": "hi"})
    assert events(wire) == spoken("hi")
    assert wire.transport.written.endswith(b"\r\n0\r\n\r\n")


def test_predict_gives_lines_or_events_and_whole_answers_as_ever() -> None:
    body = {"inputs": [["go"]]}
    wire = asked(StreamingService("one", "two", at_once=True), "/predict/m", body)
    assert b"content-type: application/x-ndjson\r\n" in wire.transport.written
    lines = chunks(bytes(wire.transport.written)).decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"model": "m", "version": "1", "outputs": {"out_text_input": [[text]]}} for text in ("one", "two")
    ]
    wire = asked(StreamingService("one", "two", at_once=True), "/predict/m", body, Accept="application/json, Text/Event-Stream")
    assert [event["outputs"] for event in events(wire)] == [{"out_text_input": [["one"]]}, {"out_text_input": [["two"]]}]
    wire = asked(EchoService(TEXT), "/predict/m", body, Accept="text/event-stream")
    assert [event["outputs"] for event in events(wire)] == [{"out_text_input": [["go"]]}]
    (reply,) = asked(EchoService(TEXT), "/predict/m", body).replies
    assert (reply.status, reply.json()["outputs"]) == (200, {"out_text_input": [["go"]]})


def test_streams_say_how_long_the_first_part_took() -> None:
    service = StreamingService("one", at_once=True)
    wire = Wire(app_of(service, server_timing=True)).feed(post("/predict/m", b'{"inputs":[["go"]]}'))
    service.answer_all()
    assert b"server-timing: queue;dur=1.000, " in wire.transport.written


def test_generate_wants_exactly_one_part() -> None:
    (reply,) = asked(StreamingService("one", at_once=True), "/v2/models/m/generate", {"text_input": "go"}).replies
    assert (reply.status, [reply.json()]) == (200, spoken("one"))
    service = StreamingService("one", "two", "three")
    wire = asked(service, "/v2/models/m/generate", {"text_input": "go"})
    assert not wire.transport.written, "more may come"
    service.rest.give()
    (reply,) = wire.replies
    assert (reply.status, reply.error) == (501, TOO_MANY)
    assert service.rest.stopped == 1


# What goes wrong


@pytest.mark.parametrize("path", ["/v2/models/m/generate_stream", "/v2/models/m/generate", "/predict/m"])
def test_a_failure_before_the_first_part_has_its_status(path: str) -> None:
    service = StreamingService("never")
    body = {"inputs": [["go"]]} if "predict" in path else {"text_input": "go"}
    wire = Wire(app_of(service)).feed(post(path, json.dumps(body).encode()))
    service.waiting.pop()[1].failed(Failure(FailureKind.QUEUE_FULL, "full", retry_after_s=1.0))
    (reply,) = wire.replies
    assert (reply.status, reply.error, reply.headers["retry-after"]) == (503, "full", "1")


def test_a_failure_in_mid_stream_is_the_last_event() -> None:
    broken = Failure(FailureKind.UNAVAILABLE, "the answer breaks off: it died")
    service = StreamingService("one", "two", end=broken, at_once=True)
    wire = asked(service, "/v2/models/m/generate_stream", {"text_input": "go"})
    assert events(wire) == [*spoken("one", "two"), {"error": "the answer breaks off: it died"}]
    assert wire.transport.written.endswith(b"\r\n0\r\n\r\n")
    service = StreamingService("one", end=broken, at_once=True)
    (reply,) = asked(service, "/v2/models/m/generate", {"text_input": "go"}).replies
    assert (reply.status, reply.error) == (503, "the answer breaks off: it died")


def test_bytes_that_are_no_text_fail_first_by_status_and_later_by_event() -> None:
    for path, body in (("generate_stream", b'{"text_input":"go"}'), ("generate", b'{"text_input":"go"}')):
        service = StreamingService(b"\xff", at_once=True)
        (reply,) = asked(service, f"/v2/models/m/{path}", body).replies
        assert reply.status == 500
        assert "not valid UTF-8" in reply.error
    service = StreamingService("one", b"\xff", "three", at_once=True)
    wire = asked(service, "/v2/models/m/generate_stream", b'{"text_input":"go"}')
    said = events(wire)
    assert said[:1] == spoken("one")
    assert "not valid UTF-8" in said[1]["error"]
    assert len(said) == 2
    assert service.rest.stopped


@pytest.mark.parametrize("part", [0, 1])
def test_a_defect_closes_the_connection_and_frees_the_instance(part: int) -> None:
    service = StreamingService("one", "two", at_once=True)
    (service.rest.left[0] if part else service._first)[0].data = b""  # no element where there should be one
    wire = asked(service, "/v2/models/m/generate_stream", b'{"text_input":"go"}')
    assert service.rest.stopped
    if part:
        assert wire.ended
        assert not wire.transport.written.endswith(b"0\r\n\r\n")
    else:
        assert wire.replies[0].status == 500


# Slow readers, and those who leave


def test_a_reader_who_does_not_read_holds_the_model_back_until_it_does() -> None:
    service = StreamingService(*["x" * 10_000] * 50, at_once=True)
    wire = Wire(app_of(service)).feed(post("/v2/models/m/generate_stream", b'{"text_input":"go"}'))
    wire.transport.stuck = True
    service.answer_all()
    in_time = service.rest.asked
    assert in_time <= HIGH_WATER // 10_000 + 1
    wire.transport.unstick()
    assert service.rest.asked == 50
    assert len(events(wire)) == 50


def test_a_reader_who_reads_nothing_is_given_up_and_the_model_stopped() -> None:
    service = StreamingService(*["x" * 10_000] * 50, at_once=True)
    wire = Wire(app_of(service)).feed(post("/v2/models/m/generate_stream", b'{"text_input":"go"}'))
    wire.transport.stuck = True
    service.answer_all()
    wire.age(HttpLimits().write_timeout_s + 1)
    assert (wire.lost, service.rest.stopped) == (True, 1)


@pytest.mark.parametrize("end", ["read", "left", "failed"])
def test_a_stream_that_is_over_goes_without_the_garbage_collector(end: str) -> None:
    gc.disable()
    try:
        service = StreamingService("one", b"\xff" if end == "failed" else "two")
        wire = asked(service, "/v2/models/m/generate_stream", {"text_input": "go"})
        rest, service.rest = service.rest, Parts([])
        gone = weakref.ref(rest)
        exchange = wire.exchanges.pop()
        assert exchange.on_abandoned is not None
        if end == "left":
            wire.lose()
        rest.give()
        if end == "read":
            rest.give()
        assert exchange.on_abandoned is None
        del rest
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/v2/models/m/generate_stream", "/v2/models/m/generate", "/predict/m"])
def test_who_leaves_before_the_first_part_cancels_the_request(path: str) -> None:
    service = StreamingService("one")
    body = {"inputs": [["go"]]} if "predict" in path else {"text_input": "go"}
    wire = Wire(app_of(service)).feed(post(path, json.dumps(body).encode()))
    wire.lose()
    assert service.cancelled == service.requests
    assert len(service.cancelled) == 1


def test_who_leaves_in_mid_stream_stops_it_once_and_what_comes_late_goes_nowhere() -> None:
    service = StreamingService("one", "two")
    wire = asked(service, "/v2/models/m/generate_stream", {"text_input": "go"})
    wire.lose()
    assert service.rest.stopped == 1
    service.rest.give()
    assert service.rest.asked == 1


def test_an_answer_that_begins_after_its_client_has_gone_is_stopped() -> None:
    service = StreamingService("one", "two")
    wire = Wire(app_of(service)).feed(post("/v2/models/m/generate_stream", b'{"text_input":"go"}'))
    (request, reply) = service.waiting.pop()
    wire.lose()
    reply.completed(service.echo(request))
    assert (service.rest.stopped, service.rest.asked) == (1, 0)
    assert not wire.transport.written


def test_a_stream_behind_a_slower_reply_waits_for_its_turn() -> None:
    service = StreamingService("one", "two", at_once=True)
    wire = Wire(app_of(service))
    wire.feed(post("/v2/models/m/generate_stream", b'{"text_input":"a"}') + post("/predict/m", b'{"inputs":[["b"]]}'))
    replies: list[tuple[Request, ReplyTo]] = list(service.waiting)
    second = Parts([[text_of("four")]], at_once=True)
    replies[1][1].completed(Response("", "m", "1", [text_of("three")], TIMING, second))
    assert (second.asked, bytes(wire.transport.written)) == (0, b"")
    replies[0][1].completed(service.echo(replies[0][0]))
    assert second.asked == 2
    first, _, after = bytes(wire.transport.written).partition(b"0\r\n\r\n")
    assert [b"two" in first, b"three" in after, b"four" in after] == [True, True, True]
