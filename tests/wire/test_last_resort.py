"""Whatever goes wrong while a request is answered: exactly one reply, or a closed connection; foreign text comes escaped."""

import logging
from collections.abc import Callable, Mapping
from math import inf, nan
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import DType, Failure, FailureKind, Request, Response, Tensor, encodable, text_of
from dlproxy.service import ReplyTo
from dlproxy.wire.http.exchange import Exchange

from .fixtures import PLAIN, TIMING, Answers, EchoService, Wire, app_of, post, request, served

LONE = "caf\udce9"
JSON_BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
HEAD = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}'
BINARY_HEAD = HEAD[:-1] + b',"parameters":{"binary_data_output":true}}'
BINARY = post("/v2/models/m/infer", BINARY_HEAD + bytes(8), **{"Inference-Header-Content-Length": str(len(BINARY_HEAD))})
ROUTES = {
    "JSON": post("/v2/models/m/infer", JSON_BODY),
    "binary": BINARY,
    "plain": post("/predict/m", b'{"inputs":[[1,2]]}'),
}
GOOD = Tensor("out_x", DType.FP32, (1, 2), bytes(8))


class Scripted(EchoService):
    """Answers at once with what it was told to."""

    def __init__(self, answer: Callable[[Request, ReplyTo], object]) -> None:
        super().__init__(PLAIN)
        self._answer = answer

    def submit(self, request: Request, reply: ReplyTo) -> None:
        self._answer(request, reply)


def broken(**changes: Any) -> Callable[[Request, ReplyTo], None]:
    """Completes with a response that no encoder takes."""
    response = Response("", "m", "1", [GOOD], TIMING)
    return lambda _, reply: reply.completed(msgspec.structs.replace(response, **changes))


def raises(_: Request, __: ReplyTo) -> None:
    raise RuntimeError("submit never raises, they said")


def answers_and_raises(_: Request, reply: ReplyTo) -> None:
    reply.failed(Failure(FailureKind.QUEUE_FULL, "full"))
    raise RuntimeError("too late to matter")


DEFECTS: Mapping[str, Callable[[Request, ReplyTo], object]] = {
    "an output's name": broken(outputs=[msgspec.structs.replace(GOOD, name=LONE)]),
    "a model's name": broken(model=LONE),
    "a type that is none": broken(outputs=[msgspec.structs.replace(GOOD, dtype=None)]),
    "no bytes at all": broken(outputs=[msgspec.structs.replace(GOOD, data=None)]),
    "too many outputs": broken(outputs=[GOOD, GOOD, None]),
    "no outputs": broken(outputs=None),
    "a wait without end": lambda _, reply: reply.failed(Failure(FailureKind.OVERLOADED, "busy", inf)),
    "a wait that is no number": lambda _, reply: reply.failed(Failure(FailureKind.OVERLOADED, "busy", nan)),
    "a failure that is none": lambda _, reply: reply.failed(None),  # type: ignore[arg-type]
    "a service that raises": raises,
}


@pytest.mark.parametrize("data", ROUTES.values(), ids=ROUTES)
@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_one_500_and_the_connection_goes_on(
    defect: Callable[[Request, ReplyTo], object], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    wire = Wire(app_of(served(Scripted(defect)))).feed(data + data)
    replies = wire.take()
    assert [reply.status for reply in replies] == [500, 500]
    assert "internal error" in replies[0].error
    assert [entry.exc_info is not None for entry in caplog.records] == [True, True]
    assert [reply.status for reply in wire.feed(request("/v2/health/live")).take()] == [200]


def test_a_request_that_was_answered_is_not_answered_again(caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire(app_of(served(Scripted(answers_and_raises)))).feed(ROUTES["JSON"])
    assert [reply.status for reply in wire.take()] == [503]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("text", [LONE, "\ud800\udc00\udfff", "nul \0 and bell \a", "\udcff" * 5000, "plain", "schön"])
@pytest.mark.parametrize("data", ROUTES.values(), ids=ROUTES)
def test_a_failure_with_any_text_is_told(data: bytes, text: str) -> None:
    service = Scripted(lambda _, reply: reply.failed(Failure(FailureKind.MODEL_FAILED, text)))
    (reply,) = Wire(app_of(served(service))).feed(data).take()
    assert reply.status == 500
    assert reply.error.startswith(encodable(text)[:1000])


@given(st.text(st.characters(), max_size=50))  # surrogates too
def test_any_text_can_be_made_encodable_and_what_was_stays(text: str) -> None:
    made = encodable(text)
    assert made.encode().decode() == made
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made)) == made
    assert made == text or any("\ud800" <= letter <= "\udfff" for letter in text)
    assert text_of(ValueError(text)) == made or not text


def test_an_exception_without_words_is_told_by_its_type() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert [text_of(MuteError()), text_of(ValueError())] == ["MuteError", "ValueError"]


def test_a_reply_that_cannot_be_sent_closes_the_connection() -> None:
    answers = Answers(at_once=False)
    wire = Wire(answers).feed(request("/1"))

    def fails(_: object) -> None:
        raise OSError("no buffer space")

    wire.transport.write = fails  # type: ignore[method-assign]
    answers.answer(answers.seen[0])
    assert wire.transport.aborted


def test_a_failure_that_cannot_be_told_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_reply(*_: object) -> None:
        raise MemoryError

    wire = Wire(app_of(served(Scripted(raises))))
    monkeypatch.setattr(Exchange, "reply", no_reply)
    wire.feed(ROUTES["JSON"])
    assert wire.transport.aborted


def test_an_application_that_raises_behind_a_slow_reader_still_answers() -> None:
    def app(exchange: Exchange) -> None:
        if exchange.target == b"/large":
            exchange.reply(200, b"text/plain", bytes(200_000))
        else:
            raise KeyError(exchange.target)

    wire = Wire(app)
    wire.transport.stuck = True
    wire.feed(request("/large") + request("/1") + request("/2"))
    wire.transport.unstick()
    assert [reply.status for reply in wire.take()] == [200, 500, 500]


ODD = [b"caf\xc3\xa9", b"%E9", b"%00", b"%0a", b"%ED%A0%80", b"'\"<&>", b"%F0%9F%98%80"]


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_in_a_target_come_back_in_an_error(odd: bytes) -> None:
    wire = Wire(app_of(served(EchoService(PLAIN))))
    targets = (b"/v2/models/%b/infer", b"/predict/%b", b"/%b", b"/v2/models/m/versions/%b/infer")
    for target in targets:
        wire.feed(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % (target % odd))
        for reply in wire.take():
            assert reply.status in (400, 404)
            assert reply.error
        if wire.ended:  # llhttp takes no raw bytes above ASCII
            wire = Wire(app_of(served(EchoService(PLAIN))))


@pytest.mark.parametrize(
    "name", ["x-request-deadline-ms", "x-request-priority", "Inference-Header-Content-Length", "Content-Encoding"]
)
@pytest.mark.parametrize("value", [b"\xff\xfe", b"caf\xe9", b"caf\xc3\xa9", b"\xed\xa0\x80", b"1" * 3000])
def test_odd_header_values_come_back_in_an_error(name: str, value: bytes) -> None:
    data = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n%b: %b\r\nContent-Length: %d\r\n\r\n%b"
    wire = Wire(app_of(served(EchoService(PLAIN)))).feed(data % (name.encode(), value, len(JSON_BODY), JSON_BODY))
    (reply,) = wire.take()
    assert reply.status in (400, 501)
    assert reply.error
    assert not wire.ended


@pytest.mark.parametrize(
    "text", [b'"\\ud800"', b'"\\udce9\\ud800"', b'"\xed\xa0\x80"', b'"\xff"', b'"\\u0000"', '"\U0001f600"'.encode()]
)
@pytest.mark.parametrize("field", ["id", "name", "datatype", "output", "parameter"])
def test_odd_texts_in_a_body_are_answered(text: bytes, field: str) -> None:
    known = {"id": b'"a"', "name": b'"x"', "datatype": b'"FP32"', "output": b'"out_x"', "parameter": b'"p"', field: text}
    fields = {key.encode(): value for key, value in known.items()}
    body = (
        b'{"id":%(id)b,"inputs":[{"name":%(name)b,"shape":[1,2],"datatype":%(datatype)b,"data":[1,2]}],'
        b'"outputs":[{"name":%(output)b}],"parameters":{%(parameter)b:1}}'
    ) % fields
    wire = Wire(app_of(served(EchoService(PLAIN, at_once=False)))).feed(post("/v2/models/m/infer", body))
    assert [reply.status for reply in wire.take()] in ([400], [])  # none: it was taken
    assert not wire.ended


def test_nothing_is_logged_of_what_is_the_clients_fault(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    Wire(app_of(served(EchoService(PLAIN)))).feed(post("/v2/models/m/infer", b"{"), post("/nowhere", b""))
    assert not caplog.records
