"""One resource has many spellings: a slash at the end, escapes, a query, the host in the target. All of them mean the same."""

from contextlib import suppress
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import InferenceError
from dlproxy.wire.http.target import name_in, path_of
from dlproxy.wire.oip import http as oip_http

from .fixtures import PLAIN, EchoService, Wire, app_of, post, request, served

NAMES = [
    "m",
    "my model",
    "zürich",
    "模型",
    "a+b",
    "a&b=c?d#e",
    "100%",
    "%41",
    "a;b",
    "a:b",
    "a/b",
    "~x.y-z_",
    "x'\"<>",
    "infer",
]
JSON_BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
ROUTES = {
    "/v2/models/{}": ("GET", None),
    "/v2/models/{}/ready": ("GET", None),
    "/v2/models/{}/versions/1/config": ("GET", None),
    "/v2/models/{}/stats": ("GET", None),
    "/v2/models/{}/infer": ("POST", JSON_BODY),
    "/v2/models/{}/versions/1/infer": ("POST", JSON_BODY),
    "/predict/{}": ("POST", b'{"inputs":[[1,2]]}'),
    "/predict/{}/versions/1": ("POST", b'{"inputs":[[1,2]]}'),
}


def every_octet(name: str) -> str:
    return "".join(f"%{octet:02x}" for octet in name.encode())


SPELLINGS = {
    "quoted": lambda path: path,
    "a slash at the end": lambda path: f"{path}/",
    "a query": lambda path: f"{path}?a=b&c=/d%",
    "both": lambda path: f"{path}/?",
    "absolute": lambda path: f"http://host:8000{path}",
    "absolute, capitals": lambda path: f"HTTP://[::1]:8000{path}/?a",
    "absolute over TLS": lambda path: f"https://host{path}?x=y",
}
QUOTINGS = {
    "least": lambda name: quote(name, safe="+:;&='\"<>"),
    "usual": lambda name: quote(name, safe=""),
    "most": every_octet,
}


def wire_of(*names: str) -> tuple[Wire, dict[str, EchoService]]:
    services = {name: EchoService(PLAIN, model=name) for name in names}
    return Wire(app_of(*map(served, services.values()))), services


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("quoting", QUOTINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_reached_by_every_spelling(name: str, quoting: str, spelling: str) -> None:
    wire, services = wire_of(*NAMES)
    for route, (method, body) in ROUTES.items():
        target = SPELLINGS[spelling](route.format(QUOTINGS[quoting](name)))
        for _ in range(2):  # the second time, it is remembered
            wire.feed(request(target, method, {}, body))
            services[name].answer_all()
            (reply,) = wire.take()
            assert reply.status == 200, (target, reply.body)
            found = reply.json()
            found = found["model_stats"][0] if "model_stats" in found else found
            assert name in (found.get("name"), found.get("model"), found.get("model_name"))


@pytest.mark.parametrize(
    "target", ["/v2/models/%", "/v2/models/m%2/infer", "/predict/%zz", "/%G0", "/v2/models/m/infer%", "/%%20"]
)
def test_an_escape_that_is_none_is_400(target: str) -> None:
    wire, _ = wire_of("m")
    (reply,) = wire.feed(post(target, JSON_BODY)).take()
    assert reply.status == 400
    assert "%25" in reply.error
    assert not wire.ended


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/v2/models%2Fm/infer",
            "/v2/models/m%2Finfer",
            "/v2%2Fmodels/m/infer",
            "/predict%2fm",
            "%2Fpredict/m",
            "//predict/m",
        ),
        *("/v2/models/m//infer", "/v2/models/m/infer//", "/v2/./models/m/infer", "/v2/x/../models/m/infer", "ftp//predict/m"),
    ],
)
def test_what_is_no_spelling_of_a_route_is_refused(target: str) -> None:
    wire, services = wire_of("m")
    (reply,) = wire.feed(post(target, JSON_BODY)).take()
    assert reply.status in (400, 404, 405)
    assert not services["m"].waiting


def test_only_so_many_spellings_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oip_http, "MAX_SPELLINGS", 5)
    wire, services = wire_of("m")
    for number in range(20):
        wire.feed(post(f"/v2/models/m/infer?n={number}", JSON_BODY))
        wire.feed(post(f"/v2/models/m/infer?n={'0' * 600}", JSON_BODY))
        services["m"].answer_all()
    assert [reply.status for reply in wire.take()] == [200] * 40
    assert len(wire._app._infer) == 5  # type: ignore[attr-defined]


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5), st.booleans())
def test_a_path_is_its_segments_however_they_are_quoted(segments: list[str], slash: bool) -> None:
    plain, coded = (
        "/" + "/".join(map(how, segments)) + "/" * slash for how in (lambda text: quote(text, safe=""), every_octet)
    )
    path = path_of(plain.encode())
    assert path == path_of(coded.encode()) == path_of(path.encode())
    assert [name_in(segment) for segment in path.split("/")] == ["", *segments]


@given(st.binary(max_size=50))
def test_any_bytes_have_a_path_or_are_refused(target: bytes) -> None:
    with suppress(InferenceError):
        path = path_of(target)
        assert path.isascii()
        assert path_of(path.encode()) == path or path == ""
        assert msgspec.json.encode([name_in(segment) for segment in path.split("/")])
