"""An HTTP/1.1 server for small, frequent requests: listens, knows its connections, lets them age, drains.

Called by serve/server.py. Not aware of: parsing (http_connection.py), models, routes.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from email.utils import formatdate

from dlproxy.config import HttpLimits
from dlproxy.wire.cors import Cors
from dlproxy.wire.http_connection import DRAIN_GRACE_S, HttpConnection, Seen
from dlproxy.wire.http_exchange import Exchange
from dlproxy.wire.terms import Identify

log = logging.getLogger(__name__)

SWEEP_S = 0.5  # how often timeouts are looked at: the hot path pays for none of them
QUIET_TURNS = 5  # of the event loop without a new connection, after which none waits to be accepted
MAX_SEEN, MAX_SEEN_BYTES = 1024, 4096  # heads that are remembered for all connections, and the largest of them


class HttpServer:
    """Listens on one socket and hands every complete request to `app`, which replies through the exchange.

    `identify` says who asks, before the body is read, and may refuse the request; without it, everybody is anonymous.
    """

    def __init__(self, app: Callable[[Exchange], None], limits: HttpLimits, identify: Identify | None = None) -> None:
        self.identify = identify
        self.cors = Cors(limits.cors_origins) if limits.cors_origins else None
        self.app = app if self.cors is None else self.cors.before(app)
        self.limits = limits
        self.connections: set[HttpConnection] = set()
        self.accepted = 0  # connections, so far
        self.draining = False
        self.date_line = b""
        self._seen: dict[bytes, Seen] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def remember(self, seen: Seen | None) -> Seen | None:
        """The same, or what another connection has seen with the same head: hundreds of clients then share what is read of it,
        which stays in the core's cache.
        """
        if seen is None or len(seen.head) > MAX_SEEN_BYTES:
            return seen
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        return self._seen.setdefault(seen.head, seen)

    async def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket; returns once connections are accepted."""
        self._loop = asyncio.get_running_loop()
        self._sweep_at = self._loop.time()
        self._sweep()
        create = self._loop.create_unix_server if listener.family == socket.AF_UNIX else self._loop.create_server
        self._server = await create(lambda: HttpConnection(self), sock=listener, backlog=1024)

    def connection_closed(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def drain(self, timeout_s: float) -> int:
        """Take no new connections, finish what is under way, close. Returns how many connections had to be cut."""
        self.draining = True
        await self._take_backlog()
        self._server.close()
        self._next_sweep.cancel()
        self._sweep_at = self._loop.time()  # what passed before is not the idle connections' grace
        for connection in self.connections:
            connection.begin_grace()
        self._sweep()
        if self.connections:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), timeout_s)
            except TimeoutError:
                log.warning("closing %d connections that were still busy after %g s", len(self.connections), timeout_s)
        cut = list(self.connections)
        for connection in cut:
            connection.abort()
        self._next_sweep.cancel()
        return len(cut)

    async def _take_backlog(self) -> None:
        """Whoever has connected may have sent a request already: closing the listener would reset those not accepted yet."""
        quiet, end = 0, self._loop.time() + DRAIN_GRACE_S
        while quiet < QUIET_TURNS and self._loop.time() < end:  # uvloop accepts one in each turn of the loop
            before = self.accepted
            await asyncio.sleep(0)
            quiet = quiet + 1 if self.accepted == before else 0

    def _sweep(self) -> None:
        now = self._loop.time()
        elapsed_s, self._sweep_at = now - self._sweep_at, now
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        for connection in list(self.connections):
            connection.age(elapsed_s)
        self._next_sweep = self._loop.call_later(DRAIN_GRACE_S / 3 if self.draining else SWEEP_S, self._sweep)
