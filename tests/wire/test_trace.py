"""A client's id and place in a trace: read as the standard says, echoed, logged, and part of the request."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config import HttpLimits
from dlproxy.message import NO_TRACE, Request, Trace
from dlproxy.wire.access_log import with_access_log
from dlproxy.wire.http_exchange import Exchange
from dlproxy.wire.terms import NO_TERMS, HeaderTerms, Terms
from dlproxy.wire.trace import echo, trace_of

from .fixtures import PLAIN, EchoService, Reply, Wire, app_of, post, request, served

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STATE = "rojo=00f067aa0ba902b7,congo@x=t61rcWkgMzE"
BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
INFER = "/v2/models/m/infer"


def read(**headers: str) -> Trace:
    return trace_of({name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()})


@pytest.mark.parametrize(
    ("value", "handed_on"),
    [
        (PARENT, PARENT),
        (PARENT[:-2] + "00", PARENT[:-2] + "00"),
        ("01" + PARENT[2:], PARENT),
        ("cc" + PARENT[2:] + "-what-the-future-will-be-like", PARENT),
        ("cc" + PARENT[2:] + ".what", ""),
        (PARENT + "-more", ""),
        (PARENT + "-", ""),
        ("ff" + PARENT[2:], ""),
        (PARENT.upper(), ""),
        (PARENT[:-1], ""),
        (PARENT + "0", ""),
        (PARENT + " ", ""),
        (f"{PARENT}, {PARENT}", ""),
        ("00-" + "0" * 32 + PARENT[35:], ""),
        (PARENT[:36] + "0" * 16 + "-01", ""),
        ("0x" + PARENT[2:], ""),
        ("", ""),
        ("\xe9" * 55, ""),
    ],
)
def test_a_parent_is_valid_or_ignored(value: str, handed_on: str) -> None:
    assert read(traceparent=value).parent == handed_on
    assert read(traceparent=value, tracestate=STATE).state == (STATE if handed_on else ""), "alone it means nothing"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (STATE, True),
        ("a=1", True),
        ("a=1,,b=2", True),
        ("a=1 , b=2", True),
        ("a= leading", True),
        ("a", False),
        ("A=1", False),
        ("a=1=2", False),
        ("a=\xe9", False),
        ("a=1\t", True),
        (",".join(f"k{n}=1" for n in range(32)), True),
        (",".join(f"k{n}=1" for n in range(33)), False),
        ("a=" + "x" * 256, True),
        ("a=" + "x" * 257, False),
        ("a=" + "x" * 250 + ",b=" + "y" * 250 + ",c=" + "z" * 250, False),
    ],
)
def test_a_state_that_is_malformed_or_long_is_left_out_and_the_parent_kept(value: str, kept: bool) -> None:
    assert read(traceparent=PARENT, tracestate=value) == Trace("", PARENT, value if kept else "")


@pytest.mark.parametrize("value", ["a", "7b1c-42", "two words", "x" * 128])
def test_an_id_is_echoed_as_it_came(value: str) -> None:
    assert read(x_request_id=value).request_id == value
    assert echo({b"x-request-id": value.encode()}) == b"x-request-id: %b\r\n" % value.encode()


@pytest.mark.parametrize("value", ["", "x" * 129, "caf\xe9", "a\tb", "a\x00b"])
def test_an_id_that_cannot_be_shown_is_none(value: str) -> None:
    assert read(x_request_id=value) is NO_TRACE
    assert echo({b"x-request-id": value.encode("latin-1")}) == b""


@given(st.binary(max_size=200), st.binary(max_size=80), st.binary(max_size=80))
def test_whatever_comes_nothing_is_handed_on_that_ends_a_line(request_id: bytes, parent: bytes, state: bytes) -> None:
    headers = {b"x-request-id": request_id, b"traceparent": parent, b"tracestate": state}
    trace = trace_of(headers)
    for value in (trace.request_id, trace.parent, trace.state):
        assert value.isascii()
        assert not set(value) & set("\r\n\0")
    assert echo(headers).count(b"\n") == bool(trace.request_id) + bool(trace.parent)


# On their way


def asked(*heads: dict[str, str]) -> tuple[list[Request], list[Reply]]:
    service = EchoService(PLAIN)
    wire = Wire(app_of(served(service)))
    for headers in heads:
        wire.feed(post(INFER, BODY, **headers))
        service.answer_all()
    return service.requests, wire.replies


def test_the_request_and_its_answer_carry_them() -> None:
    both = {"X-Request-Id": "abc", "Traceparent": PARENT, "Tracestate": STATE}
    requests, replies = asked(both, {}, {"x-request-id": "d", "x-request-deadline-ms": "1000"}, both)
    assert [one.trace for one in requests] == [Trace("abc", PARENT, STATE), NO_TRACE, Trace("d"), Trace("abc", PARENT, STATE)]
    assert [reply.headers.get("x-request-id") for reply in replies] == ["abc", None, "d", "abc"]
    assert [reply.headers.get("traceparent") for reply in replies] == [PARENT, None, None, PARENT]
    assert not any("tracestate" in reply.headers for reply in replies)


def test_who_says_nothing_of_the_kind_asks_for_nothing() -> None:
    terms = HeaderTerms(tenant_header="x-tenant-id", sticky="")
    for headers in ({}, {b"accept": b"*/*"}, {b"traceparent": b"nonsense"}, {b"tracestate": b"a=1"}):
        assert terms.read(headers) is NO_TERMS
    headers = {b"x-request-id": b"a"}
    assert terms.read(headers) is terms.read(headers)


def test_terms_of_the_body_leave_it() -> None:
    trace = Trace("a", PARENT)
    assert Terms(trace=trace).over(Terms(timeout_s=1.0)) == Terms(timeout_s=1.0, trace=trace)


@pytest.mark.parametrize(
    "data",
    [
        request("/nowhere"),
        post(INFER, b"{"),
        request("/predict/m", "POST", {"Content-Length": "99999999999"}),
        request("/v2", "HEAD"),
    ],
    ids=["no route", "no JSON", "too large", "head"],
)
def test_every_answer_has_them_an_error_too(data: bytes) -> None:
    first, _, rest = data.partition(b"\r\n")
    wire = Wire(app_of(served(EchoService(PLAIN))))
    wire.feed(b"%b\r\nX-Request-Id: abc\r\n%b" % (first, rest))
    (reply,) = wire.replies
    assert reply.headers["x-request-id"] == "abc"


def test_a_stream_has_them() -> None:
    def app(exchange: Exchange) -> None:
        exchange.begin(200, b"text/event-stream").end()

    wire = Wire(app, HttpLimits()).feed(request(headers={"X-Request-Id": "abc"}))
    assert b"\r\nx-request-id: abc\r\n" in wire.transport.written


def test_the_access_log_names_the_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dlproxy.access"):
        Wire(with_access_log(app_of(served(EchoService(PLAIN))), lambda: 1.0)).feed(
            request("/v2", headers={"X-Request-Id": "abc"}), request("/v2", headers={"X-Request-Id": "caf\xe9"})
        )
    first, second = [record.getMessage() for record in caplog.records if record.name == "dlproxy.access"]
    assert first.endswith(" model= id=abc")
    assert second.endswith(" model=")
