"""The control port: metrics, health, state and knobs of the models, as an ordinary Starlette application.

No inference passes here. Called by serve/server.py. Not aware of: the inference port's protocol.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dlproxy.config import ConfigError
from dlproxy.instance.runtime import ModelError
from dlproxy.message import FailureKind, InferenceError, Principal, encodable
from dlproxy.policy.planner import VersionState
from dlproxy.telemetry import prometheus
from dlproxy.telemetry.event_log import LogError
from dlproxy.wire.audit import Audit
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.control.guard import ControlGuard, who_asks
from dlproxy.wire.http.exchange import STATUS
from dlproxy.wire.http.target import name_in, path_of
from dlproxy.wire.operations import Operations, Pilots, ResultCaches
from dlproxy.wire.rights import demand, seen
from dlproxy.wire.settings import LogLevels
from dlproxy.wire.terms import Identify

MOST_BODY = 64 * 1024  # bytes of a change of knobs


def control_app(
    catalog: Catalog,
    connections: Callable[[], int],
    operations: Operations,
    pilots: Pilots,
    caches: ResultCaches,
    more: Sequence[Route] = (),
    identify: Identify | None = None,
    audit: Audit | None = None,
) -> Starlette:
    """Routes: /metrics (Prometheus text or OpenMetrics), /healthz (200 while every model has a live instance, else 503),
    /models (state, also of what comes, goes or cannot be loaded), /models/NAME (state; PATCH with JSON of knobs changes
    them, for queued requests too), POST to /models/NAME/ACTION with JSON of its arguments (serve/operations.py), /autopilot and
    /autopilot/NAME (what it does), POST to /autopilot/pause, resume and challenge (of {"model": NAME}, or of all), /cache and
    /cache/NAME (what is remembered), POST to /cache/clear (of {"model": NAME}, or of all), /log (PATCH: levels); and `more`.
    """
    whole = prometheus.registry(catalog, connections, operations.states)

    async def metrics(request: Request) -> Response:
        registry, who = whole, who_asks(request)
        models: Iterable[ServedModel] = catalog
        if who.grant is not None and "*" not in who.grant.models:
            models = seen(catalog, who, "metrics")
            registry = prometheus.registry(models, connections, lambda: seen(operations.states(), who, "metrics"))
        if _prefers_openmetrics(request.headers.get("accept", "")):
            return Response(prometheus.openmetrics_page(registry, models), media_type=OPENMETRICS)
        return Response(prometheus.page(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(request: Request) -> Response:
        models: dict[str, bool] = {}
        for model in seen(catalog, who_asks(request)):  # of several versions, all
            models[model.name] = models.get(model.name, True) and model.ready
        return JSONResponse({"ready": catalog.ready, "models": models}, status_code=200 if catalog.ready else 503)

    app = Starlette(
        middleware=[Middleware(OnePath), Middleware(ControlGuard, identify=identify, audit=audit)],
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            *_model_routes(catalog, operations, caches),
            *_autopilot_routes(pilots),
            *_cache_routes(catalog, caches),
            *_log_routes(LogLevels()),
            *more,
        ],
    )
    app.router.redirect_slashes = False  # one at the end is cut; more of them are no spelling of anything
    return app


def _model_routes(catalog: Catalog, operations: Operations, caches: ResultCaches) -> list[Route]:
    def states(request: Request, name: str = "") -> list[dict[str, Any]]:
        return _states(catalog, operations, caches, who_asks(request), name)

    async def models(request: Request) -> Response:
        return JSONResponse(states(request))

    async def model(request: Request) -> Response:
        name, version = name_in(request.path_params["name"]), request.query_params.get("version", "")
        who = who_asks(request)

        async def answer() -> Any:
            if request.method == "PATCH":
                await operations.act(
                    name, "set", {"version": catalog.get(name, version, who).version, "knobs": await _object(request)}
                )
            found = catalog.get(name, version, who)
            key, remembered = (found.name, found.version), caches.states(name)
            return next(_viewed(one, found, remembered) for one in operations.states() if (one.name, one.version) == key)

        return await _answer(answer())

    async def act(request: Request) -> Response:
        name, action = name_in(request.path_params["name"]), request.path_params["action"]

        async def answer() -> Any:
            arguments = await _object(request)
            if isinstance(other := arguments.get("trunk"), str) and other:  # a model that would compute for this one
                demand(who_asks(request), "admin", other)
            await operations.act(name, action, arguments)
            return states(request, name)

        return await _answer(answer())

    return [
        Route("/models", models),
        Route("/models/{name}", model, methods=["GET", "PATCH"]),
        Route("/models/{name}/{action}", act, methods=["POST"]),
    ]


def _autopilot_routes(pilots: Pilots) -> list[Route]:
    def states(request: Request) -> list[dict[str, Any]]:
        return _may_see(pilots.states(), who_asks(request))

    async def all_of_them(request: Request) -> Response:
        return JSONResponse(states(request))

    async def one(request: Request) -> Response:
        async def answer() -> Any:
            return pilots.states(name_in(request.path_params["name"]))

        return await _answer(answer())

    async def switch(request: Request) -> Response:
        async def answer() -> Any:
            name = await _model_named(request)
            demand(who_asks(request), "admin", name)
            turn = pilots.pause if request.url.path.endswith("pause") else pilots.resume
            turn(name)
            return states(request)

        return await _answer(answer())

    async def challenge(request: Request) -> Response:
        async def answer() -> Any:
            said = await _object(request)
            challenger, name = said.pop("challenger", None), said.pop("model", "")
            if said or not isinstance(challenger, str) or not isinstance(name, str):
                raise ConfigError(
                    'it takes a policy or a file on the server, as {"challenger": "agent.onnx"}, and a "model" or none'
                )
            demand(who_asks(request), "admin", name)
            await pilots.challenge(challenger, name)
            return states(request)

        return await _answer(answer())

    return [
        Route("/autopilot", all_of_them),
        Route("/autopilot/challenge", challenge, methods=["POST"]),
        Route("/autopilot/pause", switch, methods=["POST"]),
        Route("/autopilot/resume", switch, methods=["POST"]),
        Route("/autopilot/{name}", one),
    ]


def _cache_routes(catalog: Catalog, caches: ResultCaches) -> list[Route]:
    async def all_of_them(request: Request) -> Response:
        return JSONResponse(_may_see(caches.states(), who_asks(request)))

    async def one(request: Request) -> Response:
        async def answer() -> Any:
            return caches.states(catalog.get(name_in(request.path_params["name"]), "", who_asks(request)).name)

        return await _answer(answer())

    async def clear(request: Request) -> Response:
        async def answer() -> Any:
            name = await _model_named(request)
            demand(who_asks(request), "admin", name)
            return {"forgotten": caches.clear(catalog.get(name, "", who_asks(request)).name if name else "")}

        return await _answer(answer())

    return [
        Route("/cache", all_of_them),
        Route("/cache/clear", clear, methods=["POST"]),
        Route("/cache/{name}", one),
    ]


def _log_routes(levels: LogLevels) -> list[Route]:
    async def log(request: Request) -> Response:
        async def answer() -> Any:
            if request.method == "PATCH":
                said = await _object(request)
                level, logger = said.pop("level", None), said.pop("logger", "")
                if said or not isinstance(level, str) or not isinstance(logger, str):
                    raise ConfigError('it takes a level and a logger or none, as {"level": "debug", "logger": "dlproxy.serve"}')
                levels.change(level, logger)
            return levels.show()

        return await _answer(answer())

    return [Route("/log", log, methods=["GET", "PATCH"])]


class OnePath:
    """Gives the application every path in one spelling, in which a slash that came encoded does not part segments."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                scope = {**scope, "path": path_of(scope["raw_path"])}
            except InferenceError as error:
                await JSONResponse({"error": error.failure.message}, status_code=400)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _prefers_openmetrics(accept: str) -> bool:
    """To the plain text, which whoever does not say gets."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = [piece.strip() for piece in part.split(";")]
        weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        weights[kind] = max(weights.get(kind, 0.0), float(weight) if weight.replace(".", "", 1).isdecimal() else 0.0)
    named = weights.get("application/openmetrics-text", 0.0)
    return named > 0.0 and named >= weights.get("text/plain", 0.0)


def _may_see(states: Sequence[dict[str, Any]], who: Principal) -> list[dict[str, Any]]:
    return [state for state in states if who.grant is None or who.grant.allows("read", state["name"])]


def _states(catalog: Catalog, operations: Operations, caches: ResultCaches, who: Principal, name: str) -> list[dict[str, Any]]:
    served, remembered = {(model.name, model.version): model for model in catalog}, caches.states(name)
    found = [one for one in seen(operations.states(), who) if name in ("", one.name)]
    return [_viewed(one, served.get((one.name, one.version)), remembered) for one in found]


def _viewed(one: VersionState, model: ServedModel | None, remembered: Sequence[dict[str, Any]]) -> dict[str, Any]:
    state = {} if model is None or model.control is None else model.control.state()
    if model is not None:
        model.stats.settle()
        state = {**state, "busy_s": model.stats.busy_s}
    if model is not None and any(model.stats.shadows.values()):
        state = {**state, "shadow": model.stats.shadows}
    if model is not None and model.stats.streams is not None:
        state = {**state, "streams": {"open": model.stats.streams.open, "parts": model.stats.streams.parts}}
    cache = next((cache for cache in remembered if (cache["name"], cache["version"]) == (one.name, one.version)), None)
    if cache is not None:
        state = {**state, "cache": {key: value for key, value in cache.items() if key not in ("name", "version")}}
    return {**msgspec.to_builtins(one), "ready": model is not None and model.ready, **state}


async def _answer(work: Awaitable[Any]) -> Response:
    """What `work` returns, as JSON; or why it could not be done."""
    try:
        return JSONResponse(await work)
    except InferenceError as error:
        kind = error.failure.kind
        status = STATUS[kind] if kind in (FailureKind.NOT_FOUND, FailureKind.FORBIDDEN) else 503  # else it comes or goes
        return JSONResponse({"error": encodable(error.failure.message)}, status_code=status)
    except (ConfigError, LogError, ModelError) as error:
        return JSONResponse({"error": encodable(str(error))}, status_code=400)
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads


async def _model_named(request: Request) -> str:
    """By the body; empty for all. Raises ConfigError."""
    said = await _object(request)
    name = said.pop("model", "")
    if said or not isinstance(name, str):
        raise ConfigError('it takes the name of a model, as {"model": "digits"}, or nothing')
    return name


async def _object(request: Request) -> dict[str, Any]:
    """The body; where it is an action's arguments, none is needed. Raises ConfigError if it is no object."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise ConfigError(f"the body is longer than {MOST_BODY} bytes")
    try:
        found = msgspec.json.decode(body or (b"{}" if request.method == "POST" else b""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError('the body is not a JSON object such as {"discipline": "edf"}')
    return found
