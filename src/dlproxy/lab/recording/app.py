"""A recording as a small server: the dashboard's page, and answers to what it asks.

Called by cli/replay.py. Not aware of: how it was recorded.
"""

import asyncio
import signal
import socket
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dlproxy.lab.recording.player import Player
from dlproxy.lab.recording.recording import Recording, Told
from dlproxy.wire.control.guard import ControlGuard
from dlproxy.wire.control.server import ControlServer
from dlproxy.wire.control.why import why_routes
from dlproxy.wire.dashboard.history import HOUR
from dlproxy.wire.dashboard.http import feed_route, page_routes

LEAST_SPEED, MOST_SPEED = 0.1, 1000.0


class _Steered(Struct, forbid_unknown_fields=True):
    """As Player.steer takes it."""

    at: float | None = None
    speed: Annotated[float, Meta(ge=LEAST_SPEED, le=MOST_SPEED)] | None = None
    playing: bool | None = None


class _Kept:
    """A request of the recording, as why_routes takes it."""

    def __init__(self, told: Told) -> None:
        self.name: str = told["model"]
        self.id = int(told["id"])
        self.request_id: str = told["request_id"]
        self.kept_as: Any = told["kept_as"]
        self.arrived_at: float = told["at"]
        self.seconds: float = told["seconds"]
        self._told = told

    def told(self) -> dict[str, Any]:
        return self._told


class _Until:
    """Those requests that had ended when what is shown happened."""

    def __init__(self, recording: Recording, player: Player) -> None:
        self._kept, self._player = [_Kept(told) for told in recording.requests], player

    def __iter__(self) -> Iterator[_Kept]:
        return (one for one in self._kept if one.arrived_at + one.seconds <= self._player.picture.at)


async def play(recording: Recording, player: Player, listener: socket.socket) -> None:
    """On a bound socket, until SIGINT or SIGTERM comes."""
    server, over, loop = ControlServer(replay_app(recording, player)), asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    server.start(listener)
    running = asyncio.create_task(player.run(), name="dlproxy-replay")
    await over.wait()
    running.cancel()
    player.end()
    await server.stop()


def replay_app(recording: Recording, player: Player) -> Starlette:
    """With the routes that the page asks."""

    async def history(request: Request) -> Response:
        asked = request.query_params
        seconds = asked.get("seconds", str(HOUR))
        if not (seconds.isascii() and seconds.isdecimal()):
            return JSONResponse({"error": "seconds is not a number from 1 to 3600"}, status_code=400)
        told = player.history(asked.get("model", ""), asked.get("version", ""), min(int(seconds[:5]), HOUR))
        return Response(msgspec.json.encode(told), media_type="application/json", headers={"cache-control": "no-store"})

    async def steer(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await request.body(), type=_Steered)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        player.steer(at=asked.at, speed=asked.speed, playing=asked.playing)
        return JSONResponse({})

    async def absent(request: Request) -> Response:
        return JSONResponse({"error": "this is a recording: there is no server to ask"}, status_code=404)

    routes = [
        *page_routes(),
        feed_route(player),
        Route("/dashboard/history", history),
        Route("/dashboard/replay", steer, methods=["POST"]),
        *why_routes(_Until(recording, player)),
        Route("/{path:path}", absent, methods=["GET", "POST", "PATCH"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(ControlGuard, identify=None)])
