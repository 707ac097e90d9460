"""The OpenAPI document: every route there is and no other, schemas that hold, examples that are answered."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import DType, Signature
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.http.exchange import STATUS, Exchange
from dlproxy.wire.http.openapi import PARAMETERS, ROUTES
from dlproxy.wire.http.openapi_schemas import MOST_EXAMPLE
from dlproxy.wire.http.routes import Row
from dlproxy.wire.http.target import path_of
from dlproxy.wire.oip.http import OipApp

from .fixtures import PLAIN, EchoService, Reply, Wire, echo_signature, post, request, served

SIGNATURES = {
    "m": PLAIN,
    "two ways": echo_signature(("a", DType.INT8, (-1, 2, 3)), ("b", DType.BOOL, (-1,))),
    "text": echo_signature(("x", DType.BYTES, (-1, 1)), text=True),
    "scalar": echo_signature(("x", DType.UINT64, ()), batched=False),
    "half": echo_signature(("x", DType.FP16, (-1, 2))),
    "required": echo_signature(("required", DType.FP32, (-1,))),
    "large": echo_signature(("x", DType.FP32, (-1, MOST_EXAMPLE + 1))),
}


class Site:
    """Models of every kind, on one connection. `more`: routes of other protocols."""

    def __init__(self, *more: Row, **signatures: Signature) -> None:
        self.services = {name: EchoService(found, model=name) for name, found in (signatures or SIGNATURES).items()}
        self.catalog = Catalog()
        for service in self.services.values():
            self.catalog.add(served(service))
        self.app = OipApp(
            self.catalog, HttpLimits(), clock=lambda: 1.0, server_timing=False, more=more, tenant_header="X-Customer"
        )
        self.wire = Wire(self.app)

    def ask(self, data: bytes) -> Reply:
        self.wire.feed(data)
        for service in self.services.values():
            service.answer_all()
        return self.wire.replies[-1]

    def document(self) -> dict[str, Any]:
        reply = self.ask(request("/openapi.json"))
        assert reply.status == 200
        found: dict[str, Any] = reply.json()
        return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from refs(each)
    elif isinstance(value, list):
        for each in value:
            yield from refs(each)


def test_it_is_whole() -> None:
    document = Site().document()
    assert document["openapi"] == "3.1.0"
    for ref in set(refs(document)):
        found: Any = document
        for name in ref.removeprefix("#/").split("/"):
            found = found[name]
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for path, _, operation in operations(document):
        in_path = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"]
        assert sorted(in_path) == sorted(re.findall(r"{(\w+)}", path))
        assert {"200", "400", "404", "405", "500"} <= operation["responses"].keys()


def test_no_route_is_forgotten_and_none_is_made_up() -> None:
    site = Site()
    document = site.document()
    samples = [(re.sub(r"{\w+}", "1", path), method.upper()) for path, method, _ in operations(document)]
    for pattern, handlers in site.app._routes._table:
        for method in handlers.keys() - {b"HEAD"}:
            assert any(pattern.fullmatch(path) and method == called.encode() for path, called in samples), pattern.pattern
    for path, method in samples:
        assert site.app._routes.has(path_of(path.encode()), method.encode())
    assert "/v2/logging" not in document["paths"]


def test_what_another_protocol_adds_is_described_too() -> None:
    def answer(exchange: Exchange) -> None:
        exchange.reply(200, b"application/json", b"{}")

    rows = [(r"/v2/logging", b"GET", answer), (r"(?i)/v1/models/(?P<name>[^/]+)%3A(?P<verb>predict|regress)", b"POST", answer)]
    paths = Site(*rows, m=PLAIN).document()["paths"]
    assert list(paths["/v2/logging"]) == ["get"]
    assert {path for path in paths if path.startswith("/v1")} == {"/v1/models/{model}:predict", "/v1/models/{model}:regress"}


def test_plain_json_in_parts_comes_with_the_routes_of_streams() -> None:
    def media(site: Site) -> set[str]:
        return set(site.document()["paths"]["/predict/m"]["post"]["responses"]["200"]["content"])

    row: Row = (r"/v2/models/(?P<name>[^/]+)/generate_stream", b"POST", lambda exchange, name: None)
    assert media(Site(m=PLAIN)) == {"application/json"}
    assert media(Site(row, m=PLAIN)) == {"application/json", "application/x-ndjson", "text/event-stream"}


def test_every_failure_of_inference_is_among_its_answers() -> None:
    responses = Site().document()["paths"]["/v2/models/{model}/infer"]["post"]["responses"]
    not_yet = {401, 403}  # of credentials, which no server asks for now
    assert {str(status) for status in set(STATUS.values()) - not_yet} <= responses.keys()


def test_answers_of_inference_may_say_how_they_came_about() -> None:
    document = Site().document()
    headers = {path: operation["responses"]["200"].get("headers", {}) for path, _, operation in operations(document)}
    assert headers["/v2/models/{model}"] == {}
    for path in ("/v2/models/{model}/infer", "/predict/{model}"):
        assert {"Server-Timing", "x-dlproxy-cache", "x-dlproxy-variant"} <= headers[path].keys()


@pytest.mark.parametrize("name", SIGNATURES)
def test_each_example_is_answered(name: str) -> None:
    site = Site()
    paths = site.document()["paths"]
    asked = 0
    for path, operation in ((path, methods["post"]) for path, methods in paths.items() if "post" in methods):
        if operation.get("x-model") == name:
            for example in operation["requestBody"]["content"]["application/json"]["schema"].get("examples", ()):
                reply = site.ask(post(path, msgspec.json.encode(example)))
                assert reply.status == 200, reply.body
                asked += 1
    assert asked == (0 if name in ("half", "large") else 2)


def test_a_request_has_the_models_own_inputs() -> None:
    schema = Site().document()["paths"]["/v2/models/two%20ways/infer"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    inputs = schema["properties"]["inputs"]
    assert (inputs["minItems"], inputs["maxItems"]) == (2, 2)
    a, b = inputs["items"]["oneOf"]
    assert a["properties"]["name"] == {"const": "a"}
    assert a["properties"]["datatype"] == {"const": "INT8"}
    assert a["properties"]["shape"]["prefixItems"][1:] == [{"const": 2}, {"const": 3}]
    assert a["properties"]["data"]["anyOf"][0]["items"] == {"type": "integer", "minimum": -128, "maximum": 127}
    assert b["properties"]["data"]["items"] == {"type": "boolean"}


def test_versions_stand_apart_where_there_are_several() -> None:
    site = Site(m=PLAIN)
    assert not [path for path in site.document()["paths"] if path.startswith("/v2/models/m/versions")]
    site.catalog.add(served(EchoService(echo_signature(("y", DType.INT32, (-1,))), version="2")))
    found = {path for path in site.document()["paths"] if "/m" in path}
    assert found >= {
        "/v2/models/m/infer",
        "/v2/models/m/versions/1/infer",
        "/v2/models/m/versions/2/infer",
        "/predict/m/versions/2",
    }


def test_what_comes_in_parts_has_no_schema_of_one_answer() -> None:
    streams = msgspec.structs.replace(PLAIN, streams=True)
    assert not [path for path in Site(m=streams).document()["paths"] if path.endswith("/m/infer")]


def test_the_tenants_header_has_the_name_that_the_server_gave_it() -> None:
    named = [one["name"] for one in Site().document()["paths"]["/predict/m"]["post"]["parameters"]]
    assert "X-Customer" in named
    assert "x-tenant-id" not in named


def test_the_table_says_nothing_twice_and_knows_its_words() -> None:
    said = [(route.method, route.path) for route in ROUTES]
    assert len(set(said)) == len(said)
    for route in ROUTES:
        assert set(re.findall(r"{(\w+)}", route.path)) | set(route.takes) <= PARAMETERS.keys()
