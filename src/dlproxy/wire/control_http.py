"""The control port: metrics, health, state and knobs of the models, as an ordinary Starlette application.

No inference passes here. Called by serve/server.py. Not aware of: the inference port's protocol.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dlproxy.config import ConfigError
from dlproxy.message import FailureKind, InferenceError, encodable
from dlproxy.telemetry import prometheus
from dlproxy.wire.catalog import Catalog, ModelControl, ModelView, ServedModel
from dlproxy.wire.target import name_in, path_of

Action = Callable[[ModelControl, dict[str, Any]], Awaitable[None]]

MOST_BODY = 64 * 1024  # bytes of a change of knobs
TICK_S = 1.0  # how often the Date header is renewed


def control_app(catalog: Catalog, connections: Callable[[], int], view: Callable[[], list[ModelView]]) -> Starlette:
    """Routes: /metrics (Prometheus text), /healthz (200 while every model has a live instance, else 503), /models (state, also
    of those that come and go), /models/NAME (state; PATCH with a JSON object of knobs changes them, for queued requests too),
    and POST to /models/NAME/scale with {"instances": N}.
    """
    registry = prometheus.registry(catalog, connections)

    async def metrics(_: Request) -> Response:
        return Response(prometheus.page(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        models: dict[str, bool] = {}
        for model in catalog:  # of several versions, all
            models[model.name] = models.get(model.name, True) and model.ready
        return JSONResponse({"ready": catalog.ready, "models": models}, status_code=200 if catalog.ready else 503)

    async def models(_: Request) -> Response:
        served = {(model.name, model.version): _state(model) for model in catalog}
        return JSONResponse([_viewed(one, served.get((one.name, one.version), {"ready": False})) for one in view()])

    async def model(request: Request) -> Response:
        return await _answer(catalog, request, _change if request.method == "PATCH" else None)

    async def scale(request: Request) -> Response:
        return await _answer(catalog, request, _scale)

    app = Starlette(
        middleware=[Middleware(_OnePath)],
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/models", models),
            Route("/models/{name}", model, methods=["GET", "PATCH"]),
            Route("/models/{name}/scale", scale, methods=["POST"]),
        ],
    )
    app.router.redirect_slashes = False  # one at the end is cut; more of them are no spelling of anything
    return app


class _OnePath:
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


def _state(model: ServedModel) -> dict[str, Any]:
    state = {} if model.control is None else model.control.state()
    shadows = model.stats.shadows
    if any(shadows.values()):
        state = {**state, "shadow": shadows}
    return {"name": model.name, "version": model.version, "ready": model.ready, **state}


def _viewed(one: ModelView, state: dict[str, Any]) -> dict[str, Any]:
    return {"name": one.name, "version": one.version, "default": one.default, "phase": one.phase, **state}


async def _body(request: Request) -> bytes:
    """Raises ConfigError for one that is longer than any object of knobs."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            raise ConfigError(f"the body is longer than {MOST_BODY} bytes")
    return body


async def _answer(catalog: Catalog, request: Request, act: Action | None) -> Response:
    """The state of the model that the path names, after what was asked for was done."""
    try:
        found = catalog.get(name_in(request.path_params["name"]), request.query_params.get("version", ""))
        if act is not None:
            if found.control is None:
                raise ConfigError(f"model '{found.name}' cannot be changed")
            await act(found.control, _object(await _body(request)))
    except InferenceError as error:
        status = 404 if error.failure.kind is FailureKind.NOT_FOUND else 503  # it is being loaded or unloaded
        return JSONResponse({"error": encodable(error.failure.message)}, status_code=status)
    except ConfigError as error:
        return JSONResponse({"error": encodable(str(error))}, status_code=400)
    except ClientDisconnect:
        return Response(status_code=400)  # which nobody reads
    return JSONResponse(_state(found))


async def _change(control: ModelControl, changes: dict[str, Any]) -> None:
    control.change(changes)


async def _scale(control: ModelControl, wanted: dict[str, Any]) -> None:
    count = wanted.get("instances")
    if len(wanted) != 1 or not isinstance(count, int) or isinstance(count, bool):
        raise ConfigError('scale takes {"instances": N}')
    await control.scale(count)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError('the body is not a JSON object such as {"discipline": "edf"}')
    return found


class _EmbeddedServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the process belongs to serve/server.py.

    Its loop wakes once a second instead of ten times: each time costs a model that computes on the same core.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ending.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # 0: renew the Date header
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), TICK_S)


class ControlServer:
    """Serves the control port on a bound socket, in this event loop."""

    def __init__(self, app: Starlette) -> None:
        config = uvicorn.Config(
            app,
            http="h11",  # over llhttp, uvicorn loses the body behind an offer to upgrade
            ws="none",
            log_config=None,
            access_log=False,
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = _EmbeddedServer(config)
        self._task: asyncio.Task[None] | None = None

    def start(self, listener: socket.socket) -> None:
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        self._server.end()
        if self._task is not None:
            await self._task
