"""The control port: metrics and health, as an ordinary Starlette application. No inference passes here.

Called by serve/server.py. Not aware of: the inference port's protocol.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dlproxy.telemetry import prometheus
from dlproxy.wire.catalog import Catalog


def control_app(catalog: Catalog, connections: Callable[[], int]) -> Starlette:
    """Routes: /metrics (Prometheus text), /healthz (200 while every model has a live instance, else 503)."""
    registry = prometheus.registry(catalog, connections)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        models = {model.name: model.is_ready() for model in catalog}
        return JSONResponse({"ready": catalog.ready, "models": models}, status_code=200 if catalog.ready else 503)

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz)])


class _EmbeddedServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the process belongs to serve/server.py."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ControlServer:
    """Serves the control port on a bound socket, in this event loop."""

    def __init__(self, app: Starlette) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, log_level="warning", lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = _EmbeddedServer(config)
        self._task: asyncio.Task[None] | None = None

    def start(self, listener: socket.socket) -> None:
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
