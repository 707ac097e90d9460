"""The OpenAPI 3.1 document of the inference port: the routes there are, and for each model those with its own schemas.

A route of another protocol is described by a line in ROUTES. Called by oip/http.py, which answers with it.
Not aware of: what a route does.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from msgspec import Struct, structs

from dlproxy import __version__
from dlproxy.message import Signature
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.http import openapi_schemas as schemas
from dlproxy.wire.http.exchange import REASONS
from dlproxy.wire.http.openapi_schemas import Schema, ref
from dlproxy.wire.http.target import path_of

ANY_ROUTE = (400, 404, 405, 408, 413, 414, 417, 431, 500, 501, 503, 505)  # what HTTP itself, and any handler, may end with
INFERENCE = (429, 504, 508)
NO_EXAMPLES: Mapping[str, str] = MappingProxyType({})


class Described(Struct, frozen=True):
    """One method of one path. `answer`, `body`: schemas, or names of some; an answer without one is empty.

    `more`: further statuses.
    `takes`: names of PARAMETERS beside those in the path. `also`: what else an answer may be, by its media type.
    """

    method: str
    path: str
    tag: str
    summary: str
    answer: str | Schema = ""
    body: str | Schema = ""
    more: tuple[int, ...] = ()
    takes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    @property
    def pieces(self) -> list[str]:
        """The parameters in its path."""
        return [name for name in PARAMETERS if f"{{{name}}}" in self.path]


_TERMS = ("deadline", "priority", "tenant", "cache", "request-id", "traceparent")
_BINARY = "application/octet-stream"
_PARTS = ("application/x-ndjson", "text/event-stream")
_MODEL, _VERSION = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"


def _of_model(path: str, summary: str, answer: str, more: tuple[int, ...] = ()) -> list[Described]:
    return [Described("GET", f"{base}{path}", "Models", summary, answer, more=more) for base in (_MODEL, _VERSION)]


def _inference(
    path: str, summary: str, answer: str, body: str, *, takes: tuple[str, ...] = (), also: tuple[str, ...] = ()
) -> Described:
    return Described("POST", path, "Inference", summary, answer, body, INFERENCE, (*_TERMS, *takes), also)


def _shared_memory(kind: str) -> list[Described]:
    base, tag = f"/v2/{kind}sharedmemory", "Shared memory"
    return [
        Described("GET", f"{base}/status", tag, f"All registered regions of {kind} memory", "Any"),
        Described("GET", f"{base}/region/{{region}}/status", tag, f"One region of {kind} memory", "Any"),
        Described("POST", f"{base}/region/{{region}}/register", tag, f"Register a region of {kind} memory", body="Object"),
        Described("POST", f"{base}/unregister", tag, f"Forget all regions of {kind} memory"),
        Described("POST", f"{base}/region/{{region}}/unregister", tag, f"Forget one region of {kind} memory"),
    ]


def _settings(path: str, what: str) -> list[Described]:
    return [
        Described("GET", path, "Settings", f"{what} as they are", "Object"),
        Described(
            "POST", path, "Settings", f"Change {what[0].lower()}{what[1:]}; the answer is all of them", "Object", "Object"
        ),
    ]


def _tensorflow() -> list[Described]:
    tag = "TensorFlow Serving, KServe V1"
    found = [Described("GET", "/v1/models", tag, "Names of the models", "Object")]
    for base in ("/v1/models/{model}", "/v1/models/{model}/versions/{number}", "/v1/models/{model}/labels/{label}"):
        found += [
            Described("GET", base, tag, "State of the versions", "Object"),
            Described("GET", f"{base}/metadata", tag, "Signatures", "Object"),
            *[
                Described("POST", f"{base}:{verb}", tag, f"Inference: {verb}", "Object", "Object", INFERENCE, _TERMS)
                for verb in ("predict", "classify", "regress", "explain")
            ],
        ]
    return found


ROUTES: tuple[Described, ...] = (
    Described("GET", "/", "Server", "What this is and what it serves", "Welcome"),
    Described("GET", "/openapi.json", "Server", "This document", "Object"),
    Described("GET", "/v2", "Server", "Name, version, extensions", "Server"),
    Described("GET", "/v2/health/live", "Server", "Whether it lives", "Live"),
    Described("GET", "/v2/health/ready", "Server", "Whether every model has a live instance", "Ready"),
    *_of_model("", "Inputs and outputs", "Model"),
    *_of_model("/ready", "Whether it has a live instance", "ModelReady"),
    *_of_model("/config", "Triton's ModelConfig", "ModelConfig"),
    *_of_model("/stats", "Counts, durations, batch sizes", "Statistics"),
    Described("GET", "/v2/models/stats", "Models", "Statistics of all models", "Statistics"),
    *[
        _inference(f"{base}/infer", "Inference", "InferResponse", "InferRequest", takes=("json-bytes",), also=(_BINARY,))
        for base in (_MODEL, _VERSION)
    ],
    *[
        _inference(path, "Inference in plain JSON", "PredictResponse", "PredictRequest", also=_PARTS)
        for path in ("/predict/{model}", "/predict/{model}/versions/{version}")
    ],
    *[
        _inference(f"{base}/{verb}", summary, answer, "Object", also=also)
        for base in (_MODEL, _VERSION)
        for verb, summary, answer, also in (
            ("generate", "Inference with tensors as keys", "Object", ()),
            ("generate_stream", "Inference with tensors as keys, in parts as they are computed", "", _PARTS[1:]),
        )
    ],
    Described("POST", "/v2/repository/index", "Repository", "The models and their state", "Index", "IndexRequest"),
    Described("POST", "/v2/repository/models/{model}/load", "Repository", "Load or reload", body="LoadRequest"),
    Described("POST", "/v2/repository/models/{model}/unload", "Repository", "Unload", body="LoadRequest"),
    *_tensorflow(),
    *_shared_memory("system"),
    *_shared_memory("cuda"),
    *_settings("/v2/logging", "Settings of the log"),
    *_settings("/v2/trace/setting", "Settings of traces"),
    *_settings("/v2/models/{model}/trace/setting", "Settings of one model's traces"),
)
"""All that can be described; in the document is what the server has, in this order."""


def _in_path(description: str, **schema: Any) -> Schema:
    return {"in": "path", "required": True, "description": description, "schema": {"type": "string", "minLength": 1, **schema}}


def _in_header(name: str, description: str, schema: Schema) -> Schema:
    return {"in": "header", "name": name, "description": description, "schema": schema}


PARAMETERS: dict[str, Schema] = {
    "model": _in_path("name of a model"),
    "version": _in_path("a number or a label", pattern=r"^\w+$"),
    "number": _in_path("of a version", pattern="^[0-9]+$"),
    "label": _in_path("of a version"),
    "region": _in_path("name of a region"),
    "deadline": _in_header(
        "x-request-deadline-ms", "milliseconds from now; later, the answer is 504", {"type": "number", "exclusiveMinimum": 0}
    ),
    "priority": _in_header(
        "x-request-priority", "1 is the most urgent; 0: the default", {"type": "integer", "minimum": 0, "maximum": 999_999_999}
    ),
    "tenant": _in_header("x-tenant-id", "for quotas and fair shares", {"type": "string"}),
    "cache": _in_header(
        "Cache-Control",
        "of remembered answers: no-cache, no-store or max-age=SECONDS; what is not understood says nothing",
        {"type": "string"},
    ),
    "request-id": _in_header("x-request-id", "echoed, logged, handed on to upstreams", {"type": "string", "maxLength": 128}),
    "traceparent": _in_header("traceparent", "of W3C Trace Context; echoed, handed on to upstreams", {"type": "string"}),
    "json-bytes": _in_header(
        "Inference-Header-Content-Length",
        "bytes of JSON at the body's beginning; binary tensors follow",
        {"type": "integer", "minimum": 0},
    ),
}

HEADERS: dict[str, Schema] = {
    "Retry-After": {"description": "seconds after which trying again may help", "schema": {"type": "integer"}},
    "Server-Timing": {"description": "milliseconds in the queue, gathering, and in the model", "schema": {"type": "string"}},
    "x-dlproxy-cache": {
        "description": "where answers are remembered: what there was for this request",
        "schema": {"type": "string", "enum": ["hit", "miss", "joined", "partial", "bypass"]},
    },
    "x-dlproxy-variant": {
        "description": "the name, as in a path, of the model that answered in place of this one; absent if none did",
        "schema": {"type": "string"},
    },
    "Inference-Header-Content-Length": {
        "description": "bytes of JSON, where outputs are binary",
        "schema": {"type": "integer"},
    },
    "Allow": {"description": "the methods that there are", "schema": {"type": "string"}},
}
_HEADERS_OF = {405: ("Allow",), 429: ("Retry-After",), 503: ("Retry-After",)}

Has = Callable[[str, bytes], bool]
"""Whether the server answers a path, as path_of gives it, with a method."""


def document(
    catalog: Catalog, models: Sequence[ServedModel], has: Has, *, tenant_header: str, server: str = "/"
) -> dict[str, Any]:
    """`models`: those that are told of. `server`: the inference port's address, as whoever asks reaches it."""
    paths: dict[str, dict[str, Any]] = {}
    examples = next(({"model": model.name, "version": model.version, "number": model.version} for model in models), {})
    routes = {(route.method, route.path): route for route in _present(has)}
    for route in routes.values():
        _add(paths, route.path, route, _operation(route, tenant_header, examples))
    for name in dict.fromkeys(model.name for model in models):
        for path, signature in _versions(catalog, name):
            if signature.streams:  # what comes in parts stays with the routes of all models
                continue
            for general in ("/v2/models/{model}/infer", "/predict/{model}"):
                own = _of_one(routes["POST", general], name, path, signature)
                _add(paths, own.path, own, {**_operation(own, tenant_header), "x-model": name})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dlproxy",
            "version": __version__,
            "description": "Inference: the Open Inference Protocol as Triton serves it, and plain JSON.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": {"schemas": schemas.SCHEMAS, "responses": _failures(), "headers": HEADERS},
    }


def _present(has: Has) -> list[Described]:
    """What this server has. Plain JSON in parts comes with the routes of streams."""
    found = [route for route in ROUTES if has(path_of(_sample(route).encode()), route.method.encode())]
    streams = any(route.path.endswith("/generate_stream") for route in found)
    return [structs.replace(route, also=()) if route.also == _PARTS and not streams else route for route in found]


def _sample(route: Described) -> str:
    path = route.path
    for name in route.pieces:
        path = path.replace(f"{{{name}}}", "1")
    return path


def _versions(catalog: Catalog, name: str) -> list[tuple[str, Signature]]:
    """What follows the name in a path, with what it takes: without a version, and each version if there are several."""
    segment, numbers = quote(name, safe=""), catalog.versions(name)
    found = [(segment, catalog.asked(name).signature)]
    if len(numbers) > 1:
        found += [(f"{segment}/versions/{quote(number)}", catalog.get(name, number).signature) for number in numbers]
    return found


def _of_one(route: Described, name: str, path: str, signature: Signature) -> Described:
    """A route of inference as one model has it, with schemas of its own."""
    if route.path.endswith("/infer"):
        body, answer = schemas.infer_request(signature), schemas.infer_response(signature)
    else:
        body, answer = schemas.predict_request(signature), schemas.predict_response(signature)
    return structs.replace(route, path=route.path.replace("{model}", path), tag=name, body=body, answer=answer)


def _add(paths: dict[str, dict[str, Any]], path: str, route: Described, operation: dict[str, Any]) -> None:
    paths.setdefault(path, {})[route.method.lower()] = operation


def _operation(route: Described, tenant_header: str, examples: Mapping[str, str] = NO_EXAMPLES) -> dict[str, Any]:
    parameters = [{"name": name, **PARAMETERS[name]} for name in (*route.pieces, *route.takes)]
    for parameter in parameters:
        if parameter["name"] in examples:
            parameter["example"] = examples[parameter["name"]]
        if parameter["name"] == "x-tenant-id":
            parameter["name"] = tenant_header
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()} {route.path}",
        "tags": [route.tag],
        "summary": route.summary,
        "responses": _answers(route),
    }
    if parameters:
        operation["parameters"] = parameters
    if route.body:
        content: dict[str, Any] = {"application/json": {"schema": _schema(route.body)}}
        if _BINARY in route.also:
            content[_BINARY] = {}
        operation["requestBody"] = {"required": route.more == INFERENCE, "content": content}
    return operation


def _answers(route: Described) -> dict[str, Any]:
    """Of a readiness, 503 has the shape of 200, too."""
    content: dict[str, Any] = {media: {} for media in route.also}
    if route.answer:
        content = {"application/json": {"schema": _schema(route.answer)}, **content}
    good: dict[str, Any] = {"description": "the answer", **({"content": content} if content else {})}
    if route.more == INFERENCE:
        names = ["Server-Timing", "x-dlproxy-cache", "x-dlproxy-variant"]
        names += ["Inference-Header-Content-Length"] if _BINARY in route.also else []
        good["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
    answers = {"200": good}
    answers |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted((*ANY_ROUTE, *route.more))}
    if route.path.endswith("/ready"):
        either = {"application/json": {"schema": {"anyOf": [_schema(route.answer), ref("Error")]}}}
        answers["503"] = {"description": "not ready", "content": either}
    return answers


def _schema(given: str | Schema) -> Schema:
    return ref(given) if isinstance(given, str) else given


def _failures() -> dict[str, Any]:
    content = {"application/json": {"schema": ref("Error")}}
    found = {}
    for status in sorted((*ANY_ROUTE, *INFERENCE)):
        reason = REASONS[status].decode().partition(" ")[2]
        headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS_OF.get(status, ())}
        found[str(status)] = {"description": reason, "content": content, **({"headers": headers} if headers else {})}
    return found
