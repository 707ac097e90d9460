"""Who asks is known when the header is there, before the body is read, and asked anew for every request."""

from collections.abc import Mapping

import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import ANONYMOUS, Failure, FailureKind, InferenceError, Principal
from dlproxy.wire.http_server import HttpServer
from dlproxy.wire.terms import Peer

from .fixtures import PLAIN, Answers, EchoService, Wire, app_of, chunked, post, request, served

SHOP = Principal("ann", "shop")
REFUSALS: dict[bytes, Failure] = {
    b"nobody": Failure(FailureKind.UNAUTHENTICATED, "the token is not known"),
    b"guest": Failure(FailureKind.FORBIDDEN, "guests may not ask", retry_after_s=3.0),
}
INFER = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'


class Desk:
    """Knows people by a header, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.revoked: set[bytes] = set()

    def __call__(self, peer: Peer, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> Principal:
        self.asked.append((method, target))
        name = headers.get(b"authorization", b"")
        if name in REFUSALS or name in self.revoked:
            raise InferenceError(REFUSALS.get(name, REFUSALS[b"nobody"]))
        return SHOP if name == b"ann" else ANONYMOUS


class Guarded:
    """A server whose clients are identified, over one connection."""

    def __init__(self, limits: HttpLimits | None = None) -> None:
        self.desk = Desk()
        self.service = EchoService(PLAIN)
        self.server = HttpServer(app_of(served(self.service)), limits or HttpLimits(), self.desk)
        self.wire = Wire(Answers(), server=self.server)


@pytest.mark.parametrize("target", ["/v2/models/m/infer", "/predict/m"])
def test_requests_carry_who_asks_and_use_that_ones_tenant(target: str) -> None:
    guarded = Guarded()
    body = INFER if target.endswith("infer") else b'{"inputs":[[1,2]]}'
    known = {"Authorization": "ann", "X-Tenant-Id": "bank"}
    for headers in (known, known, {"X-Tenant-Id": "bank"}, known):  # the header that repeats is not parsed again
        guarded.wire.feed(post(target, body, **headers))
    requests = guarded.service.requests
    assert [(request.principal, request.ticket.tenant) for request in requests] == [
        *((SHOP, "shop"), (SHOP, "shop"), (ANONYMOUS, "bank"), (SHOP, "shop"))
    ]
    assert all(request.principal is ANONYMOUS for request in requests if request.principal == ANONYMOUS)


@pytest.mark.parametrize(
    "rest",
    [b"", b"part of the body", INFER],
)
@pytest.mark.parametrize(("name", "status"), [("nobody", 401), ("guest", 403)])
def test_a_refusal_does_not_wait_for_the_body(name: str, status: int, rest: bytes) -> None:
    guarded = Guarded()
    data = post("/v2/models/m/infer", INFER, Authorization=name)
    guarded.wire.feed(data[: len(data) - len(INFER)] + rest)
    (reply,) = guarded.wire.take()
    assert (reply.status, reply.error, reply.closes) == (status, REFUSALS[name.encode()].message, True)
    assert ("www-authenticate" in reply.headers) is (status == 401)
    assert reply.headers.get("retry-after") == (None if status == 401 else "3")
    assert guarded.wire.ended
    assert not guarded.service.requests


@pytest.mark.parametrize("headers", [{"Expect": "100-continue"}, {"Transfer-Encoding": "chunked"}, {"Upgrade": "h2c"}])
def test_however_the_body_is_to_come(headers: dict[str, str]) -> None:
    for name, statuses in (("nobody", [401]), ("ann", [200])):
        guarded = Guarded()
        framing = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(INFER))}
        upgrade = {"Connection": "upgrade"} if "Upgrade" in headers else {}
        head = request("/v2/models/m/infer", "POST", {"Authorization": name, **framing, **upgrade, **headers})
        guarded.wire.feed(head)
        if not guarded.wire.ended:
            guarded.wire.feed(INFER if framing else chunked(INFER))
            guarded.service.answer_all()
        assert [reply.status for reply in guarded.wire.take() if reply.status != 100] == statuses
        assert guarded.desk.asked == [(b"POST", b"/v2/models/m/infer")]


def test_a_client_that_is_known_no_more_is_refused_though_its_header_is_remembered() -> None:
    guarded = Guarded(HttpLimits(cors_origins=("https://shop.example",)))
    data = post("/v2/models/m/infer", INFER, Authorization="ann", Origin="https://shop.example")
    guarded.wire.feed(data, data, data)
    guarded.service.answer_all()
    guarded.desk.revoked.add(b"ann")
    guarded.wire.feed(data, data)
    *answers, refusal = guarded.wire.take()
    assert [reply.status for reply in answers] == [200] * 3
    assert (refusal.status, refusal.closes, "www-authenticate" in refusal.headers) == (401, True, True)
    assert refusal.headers["access-control-allow-origin"] == "https://shop.example", "so that its page may read why"
    assert len(guarded.service.requests) == 3


def test_a_refusal_waits_for_the_replies_before_it() -> None:
    guarded = Guarded()
    guarded.wire.feed(post("/v2/models/m/infer", INFER), post("/v2/models/m/infer", INFER, Authorization="nobody"))
    assert guarded.wire.take() == []
    guarded.service.answer_all()
    assert [reply.status for reply in guarded.wire.take()] == [200, 401]


def test_without_identification_everybody_is_the_one_anonymous() -> None:
    service = EchoService(PLAIN)
    Wire(app_of(served(service))).feed(*[post("/v2/models/m/infer", INFER, Authorization="ann")] * 2)
    assert [request.principal is ANONYMOUS for request in service.requests] == [True, True]
