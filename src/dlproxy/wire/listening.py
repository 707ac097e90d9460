"""A listening socket and its connections: lets them age, drains them, whatever protocol they speak.

Base of http/server.py and grpc/server.py. Not aware of: parsing, requests.
"""

import asyncio
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Protocol

from dlproxy.wire.terms import Peer
from dlproxy.wire.tls import HANDSHAKE_S

log = logging.getLogger(__name__)

SWEEP_S = 0.5  # how often timeouts are looked at: the hot path pays for none of them
QUIET_TURNS = 5  # of the event loop without a new connection, after which none waits to be accepted
DRAIN_GRACE_S = 0.3  # while draining, how long an idle connection may still bring a request that was on its way


class Connection(Protocol):
    """What the sweep and a drain want of a client's connection."""

    def age(self, seconds: float) -> None:
        """Called by the sweep: act on what has waited too long."""
        ...

    def begin_grace(self) -> None:
        """The server drains: what an idle connection's client has sent may still be on its way."""
        ...

    def abort(self) -> None:
        """End the connection now, whatever is under way."""
        ...


class Listening:
    """Serves one bound socket by what `make` makes of each connection."""

    def __init__(self, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self._make = make
        self.connections: set[Connection] = set()
        self.accepted = 0  # connections, so far
        self.draining = False
        self.date_line = b""
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Returns once connections are accepted."""
        self._loop = asyncio.get_running_loop()
        self._sweep_at = self._loop.time()
        self._sweep()
        more: dict[str, Any] = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_S}
        create = self._loop.create_unix_server if listener.family == socket.AF_UNIX else self._loop.create_server
        self._server = await create(self._make, sock=listener, backlog=1024, **more)

    def connection_made(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.accepted += 1

    def connection_closed(self, connection: Connection) -> None:
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


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Who is at the other end, as far as the connection shows it."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        if not hasattr(socket, "SO_PEERCRED"):  # Linux has it
            return Peer()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        process, user, _ = struct.unpack("3i", credentials)
        return Peer() if process == os.getpid() else Peer("", f"unix:{user}")  # ourselves: /docs/try, for whoever asks there
    address = transport.get_extra_info("peername") or ("",)
    subject = (transport.get_extra_info("peercert") or {}).get("subject", ())
    name = next((value for part in subject for field, value in part if field == "commonName"), "")
    return Peer(address[0], f"cert:{name}" if name else "")
