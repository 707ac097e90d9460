"""What a service can do with a call: answer, end, refuse, give up; and what of it reaches the client."""

from urllib.parse import unquote

import pytest

from dlproxy.message import Failure, FailureKind, InferenceError
from dlproxy.wire.grpc.call import MAX_ENCODED_ERROR, STATUS, Call, Status
from dlproxy.wire.grpc.server import Methods, all_of

from .fixtures import ECHO, KEEP, TALK, Methodical
from .framed import Answer, GrpcWire, headers, unary


def kept() -> tuple[GrpcWire, Call]:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(unary(1, path=KEEP))
    return wire, methodical.kept[0][0]


def answered(wire: GrpcWire) -> Answer:
    wire.deliver()
    return wire.answers[1]


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_of_failure_has_a_status(kind: FailureKind) -> None:
    wire, call = kept()
    call.refuse(Failure(kind, "why"))
    assert answered(wire).status == STATUS[kind] != Status.OK
    assert answered(wire).fields["grpc-message"] == "why"


@pytest.mark.parametrize("text", ["100 %", "Größe\n", "漢字" * 700, "%" * 3000, "a\ud800b", "\0\x7f", ""])
def test_any_error_text_arrives_in_a_header_that_clients_take(text: str) -> None:
    wire, call = kept()
    call.end(Status.INTERNAL, text)
    encoded = answered(wire).fields.get("grpc-message", "")
    assert len(encoded) <= MAX_ENCODED_ERROR
    assert all(" " <= letter <= "~" for letter in encoded)
    found = unquote(encoded, errors="ignore")
    assert found[:400] == text.replace("\ud800", "\\ud800")[:400]


def test_an_answer_in_pieces_is_one_message() -> None:
    wire, call = kept()
    call.reply(b"a", bytearray(b"bc"), memoryview(b"def"), b"")
    assert answered(wire).messages == [b"abcdef"]


def test_a_call_ends_once() -> None:
    wire, call = kept()
    call.reply(b"first")
    call.reply(b"second")
    call.send(b"third")
    call.end(Status.INTERNAL, "fourth")
    call.give_up()
    call.refuse(Failure(FailureKind.LATE, "fifth"))
    assert answered(wire).messages == [b"first"]
    assert answered(wire).status == 0


def test_further_trailers_and_when_to_try_again() -> None:
    wire, call = kept()
    call.refuse(Failure(FailureKind.QUEUE_FULL, "full", retry_after_s=0.0001))
    assert answered(wire).fields["grpc-retry-pushback-ms"] == "1"
    wire, call = kept()
    call.end(extra=((b"x-name", b"value"),))
    assert answered(wire).fields == {
        ":status": "200",
        "content-type": "application/grpc",
        "grpc-status": "0",
        "x-name": "value",
    }


def test_a_stream_ends_with_a_failure_behind_what_it_has_sent() -> None:
    methodical = Methodical()
    wire = GrpcWire(methodical.methods).feed(headers(1, TALK))
    methodical.talks[0].send(b"one")
    methodical.talks[0].refuse(Failure(FailureKind.MODEL_FAILED, "it broke"))
    assert answered(wire).messages == [b"one"]
    assert answered(wire).status == Status.INTERNAL


def test_a_method_that_refuses_or_breaks_ends_its_call(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> None:
        raise InferenceError(Failure(FailureKind.NOT_FOUND, "no such model"))

    def break_down(*_: object) -> None:
        raise ValueError("a defect")

    for method, status in ((refuse, Status.NOT_FOUND), (break_down, Status.INTERNAL)):
        for methods in (Methods({ECHO: method}, {}), Methods({}, {ECHO: method})):
            assert answered(GrpcWire(methods).feed(unary(1))).status == status
    assert "a defect" in caplog.text


def test_a_failure_that_cannot_be_told_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    wire, call = kept()
    wire.transport.write = None  # type: ignore[method-assign,assignment]
    call.refuse(Failure(FailureKind.LATE, "late"))
    assert wire.transport.aborted
    assert "the connection is closed" in caplog.text


def test_services_are_joined_by_their_paths() -> None:
    joined = all_of(Methods({b"/a/A": len}, {}), Methods({b"/b/B": len}, {b"/b/C": len}))  # type: ignore[dict-item]
    assert (set(joined.unary), set(joined.streaming)) == ({b"/a/A", b"/b/B"}, {b"/b/C"})
