"""Serves the control port: uvicorn, with the connections that a Listening accepts, counts and lets age.

Called by serve/server.py. Not aware of: routes.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from dlproxy.config import HttpLimits
from dlproxy.wire.bounds import Bounds
from dlproxy.wire.control.guard import PEER
from dlproxy.wire.listening import Listening, peer_of

TICK_S = 1.0  # how often the Date header is renewed


class _Connection(H11Protocol):
    """One client, whose certificate or account the guard looks at. Over llhttp, uvicorn would lose the body behind an offer to
    upgrade.
    """

    def __init__(self, server: "_EmbeddedServer") -> None:
        super().__init__(server.config, server.server_state, server.lifespan.state)
        self._door = server.door
        self._limits = server.limits
        self._waited_s = 0.0
        self._aged: object = None  # the request that was under way, or over, when it was looked at last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.app_state = {**self.app_state, PEER: peer_of(cast(asyncio.Transport, transport))}
        room = len(self._door.connections) < self._limits.max_connections
        if not self._door.connection_made(self, transport) or not room:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.connection_closed(self)
        super().connection_lost(exc)

    def age(self, seconds: float) -> None:
        """uvicorn waits for ever: for a request, for its body, and for a client that does not read."""
        limits, cycle = self._limits, self.cycle
        self._waited_s += seconds
        if cycle is not self._aged:
            self._aged, self._waited_s = cycle, 0.0
        if self.transport.get_write_buffer_size():
            longest_s = limits.write_timeout_s
        elif cycle is None or cycle.response_complete:
            longest_s = limits.header_timeout_s
        elif cycle.more_body:
            longest_s = limits.body_timeout_s + len(cycle.body) / limits.min_body_bytes_per_s
        else:
            self._waited_s = 0.0  # it is the client that waits
            return
        if self._waited_s > longest_s:
            self.transport.abort()

    def begin_grace(self) -> None:
        """uvicorn drains by itself, and waits for whoever does not read what it was sent."""
        if self.flow.write_paused:
            self.transport.abort()

    def abort(self) -> None:
        self.transport.abort()


class _EmbeddedServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the process belongs to serve/server.py.

    Its loop wakes once a second instead of ten times: each time costs a model that computes on the same core.
    """

    def __init__(self, config: uvicorn.Config, limits: HttpLimits, bounds: Bounds) -> None:
        super().__init__(config)
        self.limits = limits
        self.door = Listening(lambda: _Connection(self), bounds)
        self._ending = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ending.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        for listener in sockets or ():
            await self.door.start(listener, self.config.ssl)
        self.started = True

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # 0: renew the Date header
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.door.close()
        for connection in list(self.door.connections):
            connection.begin_grace()
        await super().shutdown(sockets)


class ControlServer:
    """Serves the control port on a bound socket, in this event loop."""

    def __init__(
        self,
        app: Starlette,
        tls: ssl.SSLContext | None = None,
        limits: HttpLimits = HttpLimits(),  # noqa: B008 - it is frozen
        bounds: Bounds | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            log_config=None,
            access_log=False,
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = tls
        self._server = _EmbeddedServer(config, limits, Bounds(limits) if bounds is None else bounds)
        self._task: asyncio.Task[None] | None = None

    def start(self, listener: socket.socket) -> None:
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        self._server.end()
        if self._task is not None:
            await self._task
