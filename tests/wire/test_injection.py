"""What a client sends is quoted in replies and logs, and never becomes a header, a line or a command of a terminal there."""

import logging
from collections.abc import Callable

import pytest

from dlproxy.cli.logs import TextLines
from dlproxy.config import HttpLimits
from dlproxy.message import Quota, Ticket
from dlproxy.policy.quota import Quotas
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.http.access_log import with_access_log
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.oip.http import OipApp

from .fixtures import PLAIN, EchoService, Wire, parse_replies, served

INJECTED = b"x-injected: 1"
PAYLOADS = {
    "a line": b"a\r\n" + INJECTED,
    "the end of a header": b"a\r\n\r\nHTTP/1.1 200 OK\r\n" + INJECTED + b"\r\n\r\n",
    "a line feed": b"a\n" + INJECTED,
    "a carriage return": b"a\r" + INJECTED,
    "a folded line": b"a\r\n " + INJECTED,
    "a folded line with a tab": b"a\r\n\t" + INJECTED,
    "a zero": b"a\0" + INJECTED,
    "an escape": b"a\x1b[2J\x1b]0;" + INJECTED,
    "a next line": b"a\xc2\x85\xe2\x80\xa8" + INJECTED,
    "a line as others have it": b"a\xe5\x98\x8a\xe5\x98\x8d" + INJECTED,  # two characters whose low bytes are CR and LF
    "encoded": b"a%0d%0a" + INJECTED,
}
CONTROL = {*range(32), 127}
HEADERS = [
    *(b"x-request-id", b"traceparent", b"tracestate", b"x-tenant-id", b"x-request-priority", b"x-request-deadline-ms"),
    *(b"origin", b"access-control-request-headers", b"access-control-request-method", b"accept-encoding", b"content-type"),
    *(b"authorization", b"x-api-key", b"expect", b"te", b"content-encoding", b"inference-header-content-length"),
]
TARGETS = [
    *(b"/v2/models/%b", b"/v2/models/%b/infer", b"/v2/models/m/versions/%b", b"/predict/%b", b"/%b", b"/v1/models/%b:predict"),
    *(b"/v2/repository/models/%b/load", b"/v2/models/m?%b"),
]


def wire() -> Wire:
    catalog = Catalog()
    catalog.add(served(EchoService(PLAIN)))
    app = OipApp(catalog, HttpLimits(), clock=lambda: 100.0, server_timing=True)
    return Wire(app, server=_server(app))


def _server(app: Callable[[Exchange], None]) -> HttpServer:
    clock = iter(range(1000))
    return HttpServer(with_access_log(app, lambda: float(next(clock))), HttpLimits(cors_origins=["https://shop.example"]))


def _replies(run: Wire) -> None:
    """All of them are well-formed, and none has a header of the client's making, nor a byte that no header may have."""
    written = bytes(run.transport.written)
    head = written.partition(b"\r\n\r\n")[0]
    assert not CONTROL - {*b"\r\n"} & {*head}, head
    for reply in parse_replies(written):
        assert "x-injected" not in reply.headers
        assert not any("x-injected" in value and "\r" in value for value in reply.headers.values())
        assert not CONTROL & {*reply.body}
        reply.body.decode()


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS"])
def test_no_header_of_a_request_becomes_one_of_the_reply(
    method: bytes, header: bytes, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    more = b"origin: https://shop.example\r\naccess-control-request-method: POST\r\n" if method == b"OPTIONS" else b""
    run = wire().feed(b"%b /v2 HTTP/1.1\r\nhost: h\r\n%b%b: %b\r\n\r\n" % (method, more, header, payload))
    _replies(run)
    _logged(caplog)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_name_in_a_path_becomes_a_header_or_a_line(target: bytes, payload: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for sent in (payload.replace(b" ", b"%20"), b"".join(b"%%%02X" % byte for byte in payload)):
        method = b"POST" if b"infer" in target or b"load" in target or b"predict" in target else b"GET"
        run = wire().feed(b"%b %b HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n" % (method, target % sent))
        _replies(run)
    _logged(caplog)


def _logged(caplog: pytest.LogCaptureFixture) -> None:
    formatter = TextLines("%(levelname)s %(name)s: %(message)s")
    for record in caplog.records:
        first, *others = formatter.format(record).split("\n")
        assert all(line.startswith("    ") for line in others)
        assert not {*map(chr, CONTROL - {9}), "\x85", "\u2028"} & {*first, *"".join(others)}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_tenant_in_a_refusal_is_quoted(payload: bytes) -> None:
    tenant = payload.decode("latin-1")
    quotas = Quotas({"*": Quota(requests_per_s=1.0)})
    failures = [quotas.admit(Ticket(number, 0.0, tenant=tenant), 0.0) for number in range(2)]
    assert failures[1] is not None
    assert failures[1].message.isprintable()
