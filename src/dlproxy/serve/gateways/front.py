"""A server of several gateways, as one: starts them, shows them on one control port, and ends them at a signal.

Made by cli/serve.py, in place of server.py's Server. Not aware of: models, requests, how gateways are kept.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware

from dlproxy.config import Config, ConfigError
from dlproxy.hosts import nearby
from dlproxy.serve.announcing import Announcer, Reached
from dlproxy.serve.gateways.asking import Asking
from dlproxy.serve.gateways.control import SummedControl
from dlproxy.serve.gateways.feed import SummedFeed
from dlproxy.serve.gateways.keeper import Gateways
from dlproxy.serve.listeners import Listeners
from dlproxy.serve.server import CUT_SHORT, HANG_UP, identity_desk
from dlproxy.serve.unix_socket import UnixSocket
from dlproxy.wire.audit import Audit
from dlproxy.wire.bounds import Bounds
from dlproxy.wire.control.docs_page import InferencePort, docs_routes
from dlproxy.wire.control.guard import ControlGuard
from dlproxy.wire.control.http import OnePath
from dlproxy.wire.control.server import ControlServer
from dlproxy.wire.dashboard.http import feed_route, page_routes
from dlproxy.wire.tls import HTTP, Certificates

log = logging.getLogger(__name__)


class Front:
    """`start`, then `run` until SIGTERM or SIGINT. `arguments`: of the gateways' processes, how they log."""

    def __init__(self, config: Config, count: int, arguments: Sequence[str]) -> None:
        """Raises ConfigError."""
        if sys.platform != "linux":
            raise ConfigError(
                "gateways: only Linux shares a port's connections out among processes: set gateways = 1", "gateways"
            )
        self._config = config
        self.gateways = Gateways(config, count, arguments)
        self.host = config.server.host
        self.ports: dict[str, int] = {}
        self.unix_socket: UnixSocket | None = None
        self._asking = Asking(self.gateways)
        self._feed = SummedFeed(self._asking)
        asks = config.auth.asks or bool(config.grants)
        self._desk = identity_desk(config) if asks else None
        self._certificates = Certificates(config.tls) if config.tls.cert else None
        self._announcer = Announcer(config.node, config.server) if config.node.group else None
        self._audit = Audit()
        self._control: ControlServer | None = None

    @property
    def http_port(self) -> int:
        """0 where a Unix socket takes its place."""
        return self.ports.get("http_port", 0)

    @property
    def control_port(self) -> int:
        return self.ports["control_port"]

    @property
    def scheme(self) -> str:
        return "http" if self._certificates is None else "https"

    async def start(self) -> None:
        """Bind all ports, start every gateway, listen. Raises ConfigError, ModelError, PortError, OSError."""
        gc.freeze()
        with Listeners(self._config.server, shared=True) as listeners:
            self.ports, self.unix_socket = listeners.ports, listeners.unix_socket
            control = listeners.take_control()
            try:
                await self.gateways.start(listeners)
            except BaseException:
                control.close()
                raise
        tls = self._certificates
        limits = self._config.http
        self._control = ControlServer(self._app(), None if tls is None else tls.context(HTTP), limits, Bounds(limits))
        if tls is not None:
            tls.watch()
        control.listen()
        self._control.start(control)
        self._feed.start()
        if self._announcer is not None:
            self._announcer.start(Reached(self.http_port, self.ports.get("grpc_port", 0), tls is not None))

    def _app(self) -> Starlette:
        tls = self._certificates is not None
        port = InferencePort(nearby(self.host), self.http_port, tls=tls)
        if self.unix_socket is not None:
            port = InferencePort(path=self.unix_socket.path, tls=tls)
        app = Starlette(
            middleware=[Middleware(OnePath), Middleware(ControlGuard, identify=self._desk, audit=self._audit)],
            routes=[
                *SummedControl(self.gateways, self._asking).routes(),
                *docs_routes(lambda who, url: {}, port),  # whose document the route above takes from a gateway
                *page_routes(),
                feed_route(self._feed),
            ],
        )
        app.router.redirect_slashes = False
        return app

    async def run(self, on_ready: Callable[["Front"], None], reread: Callable[[], Config] | None = None) -> None:
        """As Server.run: start, call `on_ready`, serve until a signal, drain; a second signal cuts the drain short."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, *HANG_UP):
            loop.add_signal_handler(number, stop.set)
        starting, stopped = loop.create_task(self.start()), loop.create_task(stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            self._cut_at_another_signal()
            log.info("stopped before the server was ready")
            starting.cancel()
            await asyncio.wait([starting])
            return
        await starting
        on_ready(self)
        tasks: list[asyncio.Task[None]] = []
        if reread is not None:
            for number in HANG_UP:
                loop.add_signal_handler(number, lambda: tasks.append(loop.create_task(self._reload(reread))))
        await stopped
        for task in tasks:
            task.cancel()
        self._cut_at_another_signal()
        await self.stop()

    async def stop(self) -> None:
        """Take no new connections, answer what is under way (at most drain_s seconds), stop everything."""
        if self._announcer is not None:
            await self._announcer.stop()
        if self.unix_socket is not None:
            self.unix_socket.remove()
        await self.gateways.stop(self._config.server.drain_s)
        self._feed.close()
        if self._control is not None:
            await self._control.stop()
        await self._asking.close()
        if self._certificates is not None:
            self._certificates.close()
        self._audit.flush(now=True)

    async def _reload(self, reread: Callable[[], Config]) -> None:
        try:
            await self.gateways.reload(reread())
        except ConfigError as error:
            log.error("the configuration is not followed: %s", error)

    def _cut_at_another_signal(self) -> None:
        def cut() -> None:
            log.warning("stopped by a second signal: requests under way were cut")
            self.gateways.kill()
            logging.shutdown()
            os._exit(CUT_SHORT)

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, cut)
