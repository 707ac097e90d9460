"""The access log: a line for each reply, whoever gave it and however late; nothing of it is the client's to forge."""

import logging

import pytest

from dlproxy.wire.access_log import with_access_log
from dlproxy.wire.http_exchange import Exchange, ReplyStream

from .fixtures import PLAIN, EchoService, Wire, app_of, post, request, served

BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "dlproxy.access"]


def test_a_reply_that_comes_later_is_logged_then(caplog: pytest.LogCaptureFixture) -> None:
    now = [10.0]
    service = EchoService(PLAIN)
    wire = Wire(with_access_log(app_of(served(service)), lambda: now[0]))
    with caplog.at_level(logging.INFO, "dlproxy.access"):
        wire.feed(post("/v2/models/m/infer?x=1", BODY))
        assert _said(caplog) == []
        now[0] = 10.25
        service.answer_all()
        (reply,) = wire.replies
        assert _said(caplog) == [
            f"POST /v2/models/m/infer?x=1 status=200 bytes={len(reply.body)} seconds=0.250000 model=m",
        ]


def test_a_reply_in_parts_is_logged_when_it_has_ended_or_its_client_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    now, streams = [10.0], list[ReplyStream]()

    def app(exchange: Exchange) -> None:
        streams.append(stream := exchange.begin(200, b"text/plain"))
        exchange.on_abandoned = stream.end

    with caplog.at_level(logging.INFO, "dlproxy.access"):
        wire = Wire(with_access_log(app, lambda: now[0]))
        for target in ("/ends", "/breaks", "/leaves"):
            wire = wire if target == "/breaks" else Wire(with_access_log(app, lambda: now[0]))
            wire.feed(request(target))
            streams[-1].write(b"12345")
            now[0] += 0.5
            assert not any(target in said for said in _said(caplog))
            {"/ends": streams[-1].end, "/breaks": streams[-1].break_off, "/leaves": wire.lose}[target]()
            streams[-1].write(b"6")
            streams[-1].end()
    assert _said(caplog) == [
        f"GET {target} status=200 bytes=5 seconds=0.500000 model=" for target in ("/ends", "/breaks", "/leaves")
    ]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (request("/v2", "HEAD"), "HEAD /v2 status=200 bytes=0 seconds=0.000000 model="),
        (post("/predict/caf%C3%A9/versions/2", BODY), "POST /predict/caf%C3%A9/versions/2 status=404 bytes="),
        (post("/v2/models/m/infer", b"{"), "POST /v2/models/m/infer status=400 bytes="),
    ],
)
def test_each_reply_is_one_line_of_ascii(data: bytes, line: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dlproxy.access"):
        Wire(with_access_log(app_of(served(EchoService(PLAIN))), lambda: 1.0)).feed(data)
    (said,) = _said(caplog)
    assert said.startswith(line)
    assert said.isascii()
    assert said.isprintable()


def test_a_defect_of_the_server_is_logged_as_what_the_client_got(caplog: pytest.LogCaptureFixture) -> None:
    def broken(exchange: Exchange) -> None:
        raise RuntimeError("oh")

    with caplog.at_level(logging.INFO, "dlproxy.access"):
        Wire(with_access_log(broken, lambda: 1.0)).feed(request("/v2"))
    (said,) = _said(caplog)
    assert "status=500" in said


def test_pipelined_requests_are_logged_in_the_order_of_their_ends(caplog: pytest.LogCaptureFixture) -> None:
    service = EchoService(PLAIN)
    wire = Wire(with_access_log(app_of(served(service)), lambda: 1.0))
    with caplog.at_level(logging.INFO, "dlproxy.access"):
        wire.feed(post("/v2/models/m/infer?first", BODY) + post("/v2/models/m/infer?second", BODY))
        service.answer(1)
        service.answer(0)
    assert [said.split()[1] for said in _said(caplog)] == ["/v2/models/m/infer?second", "/v2/models/m/infer?first"]
    assert [reply.status for reply in wire.replies] == [200, 200]
