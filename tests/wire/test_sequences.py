"""A request of a sequence is never answered as if it stood alone: on every route, and by heads that are remembered, it is
refused, or handed on with what it says.
"""

import json
from typing import Any

import msgspec
import pytest

from dlproxy.message import FailureKind, InSequence

from .fixtures import PLAIN, EchoService, Reply, Wire, app_of, post, served
from .test_generate import app_of as app_with_generate

OF_A_SEQUENCE = [
    *({"sequence_id": 5}, {"sequence_id": -1}, {"sequence_id": "session-5"}, {"sequence_id": 2**64 - 1}, {"sequence_id": "0"}),
    *({"sequence_start": True}, {"sequence_end": True}, {"sequence_id": 0, "sequence_start": 1}, {"sequence_id": [5]}),
    {"sequence_id": 5, "sequence_start": True, "sequence_end": False, "priority": 1},
]
OF_NONE: list[dict[str, Any]] = [
    *({}, {"sequence_id": 0}, {"sequence_id": ""}, {"sequence_id": None}, {"sequence_start": False, "sequence_end": False}),
    {"sequence_id": 0, "sequence_start": False, "sequence_end": False, "priority": 1},
]


def as_json(params: dict[str, Any]) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    return post("/v2/models/m/infer", json.dumps({"inputs": [tensor], "parameters": params}).encode())


def as_binary(params: dict[str, Any], request_id: str = "") -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    named = {"id": request_id} if request_id else {}
    head = json.dumps({**named, "inputs": [tensor], "parameters": {"binary_data_output": True, **params}}).encode()
    return post("/v2/models/m/versions/1/infer", head + bytes(8), **{"Inference-Header-Content-Length": str(len(head))})


def with_an_id(params: dict[str, Any]) -> bytes:
    return as_binary(params, "request-1")


def as_plain(params: dict[str, Any]) -> bytes:
    return post("/predict/m", json.dumps({"inputs": [[1, 2]], "parameters": params}).encode())


def as_keys(params: dict[str, Any]) -> bytes:
    return post("/v2/models/m/generate", json.dumps({"x": [1, 2], **params}).encode())


FORMS = [as_json, as_binary, with_an_id, as_plain]
STATEFUL = msgspec.structs.replace(PLAIN, sequences="oldest")


def answers(wire: Wire, service: EchoService, data: bytes) -> Reply:
    wire.feed(data)
    service.answer_all()
    (reply,) = wire.take()
    return reply


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("params", OF_A_SEQUENCE, ids=str)
def test_it_is_refused_however_often_it_is_asked(params: dict[str, Any], form: Any) -> None:
    service = EchoService(PLAIN)
    model = served(service)
    wire = Wire(app_of(model))
    for _ in range(3):
        assert answers(wire, service, form({})).status == 200
        reply = answers(wire, service, form(params))
        assert reply.status == 501
        assert "sequences are not supported; omit it in stateless requests" in reply.error
    assert len(service.requests) == 3
    assert model.stats.failures[FailureKind.UNSUPPORTED] == 3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("params", OF_NONE, ids=str)
def test_what_stands_for_no_sequence_is_served(params: dict[str, Any], form: Any) -> None:
    service = EchoService(PLAIN)
    wire = Wire(app_of(served(service)))
    assert [answers(wire, service, form(params)).status for _ in range(3)] == [200] * 3


def test_plain_json_takes_the_parameters_that_others_take() -> None:
    service = EchoService(PLAIN)
    wire = Wire(app_of(served(service)))
    assert answers(wire, service, as_plain({"priority": 2, "timeout": 1_000_000})).status == 200
    ticket = service.requests[0].ticket
    assert (ticket.priority, ticket.deadline_at) == (2, 101.0)
    assert answers(wire, service, as_plain({"priority": "high"})).status == 400


@pytest.mark.parametrize("form", [*FORMS, as_keys])
@pytest.mark.parametrize("sequence_id", [5, 2**64 - 1, "session-5"])
def test_a_model_with_sequences_hears_what_is_said(sequence_id: int | str, form: Any) -> None:
    service = EchoService(STATEFUL)
    wire = Wire(app_with_generate(service))
    for flags in ({"sequence_start": True}, {}, {}, {"sequence_end": True}):
        assert answers(wire, service, form({"sequence_id": sequence_id, **flags})).status == 200
    assert [request.sequence for request in service.requests] == [
        InSequence(sequence_id, start=True),
        InSequence(sequence_id),
        InSequence(sequence_id),
        InSequence(sequence_id, end=True),
    ]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"sequence_id": -1}, "'sequence_id' is -1; it must be an integer from 0 to 2**64 - 1, or a text"),
        ({"sequence_id": 2**64}, "it must be an integer from 0"),
        ({"sequence_id": [5]}, "it must be an integer from 0"),
        ({"sequence_id": True}, "it must be an integer from 0"),
        ({"sequence_id": "x" * 129}, "'sequence_id' has 129 characters; it may have 128"),
        ({"sequence_id": 5, "sequence_start": 1}, "'sequence_start' is 1; it must be true or false"),
        ({"sequence_id": 5, "sequence_end": "true"}, "'sequence_end' is 'true'; it must be true or false"),
    ],
)
def test_what_says_nothing_of_a_sequence_is_refused(params: dict[str, Any], said: str) -> None:
    service = EchoService(STATEFUL)
    model = served(service)
    reply = answers(Wire(app_of(model)), service, as_json(params))
    assert (reply.status, said in reply.error) == (400, True)
    assert not service.requests
    assert model.stats.failures[FailureKind.INVALID_ARGUMENT] == 1
