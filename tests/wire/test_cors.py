"""Pages of other sites: those that are named may ask from a browser and read every answer, errors too; off, nothing is said."""

from pathlib import Path

import pytest

from dlproxy.config import ConfigError, HttpLimits, load
from dlproxy.message import Failure, FailureKind

from .fixtures import PLAIN, EchoService, Reply, Wire, app_of, post, request, served

SHOP, OTHER = "https://shop.example", "http://localhost:3000"
JSON_BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "content-type,authorization,x-tenant-id",
}
REQUESTS = {
    "an answer": (200, post("/v2/models/m/infer", JSON_BODY)),
    "plain JSON": (200, post("/predict/m", b'{"inputs":[[1,2]]}')),
    "metadata": (200, request("/v2")),
    "a head": (200, request("/v2", "HEAD")),
    "no JSON": (400, post("/v2/models/m/infer", b"{")),
    "no model": (404, post("/v2/models/n/infer", JSON_BODY)),
    "no route": (404, request("/nowhere")),
    "another method": (405, request("/v2/models/m/infer")),
    "a failure": (500, post("/v2/models/bad/infer", JSON_BODY)),
    "too large": (413, request("/predict/m", "POST", {"Content-Length": "2000000"})),
    "malformed": (400, b"POST /predict/m HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n"),
    "another coding": (501, request("/predict/m", "POST", {"Transfer-Encoding": "gzip"})),
}
OURS = ("access-control-allow-origin", "access-control-expose-headers", "access-control-allow-methods", "vary")


class Failing(EchoService):
    def answer(self, index: int = 0) -> None:
        _, reply = self.waiting.popleft()
        reply.failed(Failure(FailureKind.MODEL_FAILED, "out of luck"))


def ask(data: bytes, origin: str | None, *allowed: str) -> Reply:
    good, bad = EchoService(PLAIN), Failing(PLAIN, model="bad")
    wire = Wire(app_of(served(good), served(bad)), HttpLimits(max_body_bytes=1 << 20, cors_origins=list(allowed)))
    line = b"" if origin is None else b"Origin: %b\r\n" % origin.encode()
    first, _, rest = data.partition(b"\r\n")
    wire.feed(b"%b\r\n%b%b" % (first, line, rest))
    good.answer_all()
    bad.answer_all()
    (reply,) = wire.replies
    return reply


@pytest.mark.parametrize(("status", "data"), REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(
    ("origin", "allowed", "granted", "vary"),
    [
        (SHOP, (), None, None),
        (None, (), None, None),
        (SHOP, ("*",), "*", None),
        (None, ("*",), "*", None),
        (SHOP, (OTHER, "*"), "*", None),
        (SHOP, (SHOP,), SHOP, "origin"),
        (OTHER, (SHOP, OTHER), OTHER, "origin"),
        ("null", (SHOP, "null"), "null", "origin"),
        (None, (SHOP,), None, "origin"),
        ("null", (SHOP,), None, "origin"),
        (OTHER, (SHOP,), None, "origin"),
        (f"{SHOP}.evil.example", (SHOP,), None, "origin"),
        (f"{SHOP}:8443", (SHOP,), None, "origin"),
        ("http://shop.example", (SHOP,), None, "origin"),
    ],
)
def test_every_answer_says_who_may_read_it(
    status: int, data: bytes, origin: str | None, allowed: tuple[str, ...], granted: str | None, vary: str | None
) -> None:
    reply = ask(data, origin, *allowed)
    assert reply.status == status
    assert reply.headers.get("access-control-allow-origin") == granted
    assert reply.headers.get("vary") == vary
    exposed = reply.headers.get("access-control-expose-headers")
    assert (exposed is None) == (granted is None)
    told = {"inference-header-content-length", "server-timing", "retry-after", "x-dlproxy-cache", "x-dlproxy-variant"}
    assert exposed is None or told <= set(exposed.split(", "))


@pytest.mark.parametrize("target", ["/v2/models/m/infer", "/predict/m", "/nowhere", "*"])
@pytest.mark.parametrize(("origin", "allowed", "granted"), [(SHOP, SHOP, SHOP), (SHOP, "*", "*"), (OTHER, "*", "*")])
def test_a_browser_that_asks_first_is_told_what_it_may_send(target: str, origin: str, allowed: str, granted: str) -> None:
    reply = ask(request(target, "OPTIONS", PREFLIGHT), origin, allowed)
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["access-control-allow-origin"] == granted
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == "content-type,authorization,x-tenant-id"
    assert int(reply.headers["access-control-max-age"]) > 0


@pytest.mark.parametrize(("origin", "allowed"), [(SHOP, ()), (OTHER, (SHOP,)), (None, (SHOP,))])
def test_one_that_may_not_is_answered_as_without_the_knob(origin: str | None, allowed: tuple[str, ...]) -> None:
    reply = ask(request("/predict/m", "OPTIONS", PREFLIGHT), origin, *allowed)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_options_that_asks_for_no_permission_is_a_method_like_others() -> None:
    assert ask(request("/predict/m", "OPTIONS"), SHOP, SHOP).status == 405


def test_off_nothing_of_it_is_said() -> None:
    for _, data in REQUESTS.values():
        assert not set(OURS) & ask(data, SHOP).headers.keys()


def test_a_head_that_is_remembered_keeps_its_origin() -> None:
    service = EchoService(PLAIN)
    wire = Wire(app_of(served(service)), HttpLimits(cors_origins=[SHOP, OTHER]))
    for origin in (SHOP, SHOP, OTHER, "https://evil.example", OTHER, SHOP):
        wire.feed(post("/v2/models/m/infer", JSON_BODY, Origin=origin))
        service.answer_all()
        (reply,) = wire.take()
        assert reply.headers.get("access-control-allow-origin") == (None if "evil" in origin else origin)


@pytest.mark.parametrize(
    "origin", [SHOP, OTHER, "*", "null", "http://[::1]:3000", "http://127.0.0.1:80", "chrome-extension://abc"]
)
def test_origins_are_taken(tmp_path: Path, origin: str) -> None:
    (tmp_path / "c.toml").write_text(f'[http]\ncors_origins = ["{origin}"]\n')
    assert load(tmp_path / "c.toml").http.cors_origins == [origin]


@pytest.mark.parametrize(
    "origin",
    [
        f"{SHOP}/",
        f"{SHOP}/app",
        "shop.example",
        "https://*.shop.example",
        "HTTPS://shop.example",
        "",
        "a\\r\\nb: c",
        "https://",
    ],
)
def test_what_no_browser_sends_is_refused(tmp_path: Path, origin: str) -> None:
    (tmp_path / "c.toml").write_text(f'[http]\nmax_headers = 50\ncors_origins = ["{origin}"]\n')
    with pytest.raises(ConfigError, match=r"c.toml:3: .* is not an origin; write it .* like https://shop.example:8443"):
        load(tmp_path / "c.toml")
