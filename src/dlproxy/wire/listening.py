"""A listening socket and its connections: counts them, lets them age, drains them, whatever protocol they speak.

Base of http/server.py and grpc/server.py. Not aware of: parsing, requests.
"""

import asyncio
import logging
import os
import selectors
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from typing import Protocol

from dlproxy.config import HttpLimits
from dlproxy.wire.audit import Audit
from dlproxy.wire.bounds import Bounds, Place
from dlproxy.wire.handshakes import PATIENCE_S
from dlproxy.wire.terms import Peer

log = logging.getLogger(__name__)

BACKLOG = 1024
MOST_ACCEPTED = 64  # in one turn of the event loop
PAUSE_S = 1.0  # where the system has no room for another connection
GOODBYE_S = 3.0  # for which a client may leave the end of TLS unanswered
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
    """Serves a bound socket by what `make` makes of each connection, or several. The ports of a server share `bounds` and
    `audit`.
    """

    def __init__(self, make: Callable[[], asyncio.Protocol], bounds: Bounds | None = None, audit: Audit | None = None) -> None:
        self._make = make
        self.audit = audit or Audit()
        self._bounds = Bounds(HttpLimits()) if bounds is None else bounds
        self.connections: dict[Connection, Place] = {}
        self.accepted = 0  # connections, so far
        self.draining = False
        self.date_line = b""
        self._sockets: dict[socket.socket, asyncio.Server | None] = {}  # asyncio's; with TLS, connections are accepted here
        self._tls: ssl.SSLContext | None = None
        self._coming: dict[asyncio.BaseProtocol, Place] = {}  # whose handshakes are under way
        self._shaken = asyncio.Event()  # one of them has ended
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Returns once connections are accepted. Raises OSError if another process listens there."""
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        await self.accept_from(listener)
        self._sweep_at = self._loop.time()
        self._sweep()

    async def accept_from(self, listener: socket.socket) -> None:
        """From this socket, too. Raises OSError if another process listens there."""
        if self._tls is None:
            create = self._loop.create_unix_server if listener.family == socket.AF_UNIX else self._loop.create_server
            self._sockets[listener] = await create(self._make, sock=listener, backlog=BACKLOG)
        else:
            listener.setblocking(False)
            listener.listen(BACKLOG)
            self._sockets[listener] = None
            self._loop.add_reader(listener, self._accept, listener)

    def leave(self, listener: socket.socket) -> None:
        """Accept no more from this one, and close it. Connections stay."""
        server = self._sockets.pop(listener)
        if server is not None:
            server.close()
        else:
            self._loop.remove_reader(listener)
            listener.close()

    def connection_made(self, connection: Connection, transport: asyncio.BaseTransport) -> bool:
        """False: its address has too many, and it shall be aborted without a word."""
        place = self._coming.pop(connection, None) if self._coming else None  # type: ignore[call-overload]
        if place is None:
            place = self._bounds.place(address_of(transport))
        self.accepted += 1
        if place is None:
            return False
        self.connections[connection] = place
        return True

    def connection_closed(self, connection: Connection) -> None:
        place = self.connections.pop(connection, None)
        if place is not None:
            place.leave()
        if not self.connections:
            self._empty.set()

    def stop_accepting(self) -> None:
        for listener in list(self._sockets):
            self.leave(listener)

    def close(self) -> None:
        """For whoever drains by other means."""
        self.stop_accepting()
        self._next_sweep.cancel()

    # With TLS: who comes is counted before the handshake, of which asyncio's servers tell only when it is over

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MOST_ACCEPTED):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("no connection can be accepted for %g s: %s", PAUSE_S, error)
                self._loop.remove_reader(listener)
                self._loop.call_later(PAUSE_S, self._accept_again, listener)
                return
            self.accepted += 1
            place = self._bounds.place(address[0] if isinstance(address, tuple) else "")
            if place is None:
                sock.close()
                continue
            sock.setblocking(False)
            self._bounds.handshakes.begin(place.key, sock, partial(self._shake_hands, sock, place), place.leave)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._sockets:
            self._loop.add_reader(listener, self._accept, listener)

    async def _shake_hands(self, sock: socket.socket, place: Place) -> None:
        protocol, limit_s = self._make(), self._bounds.handshakes.timeout_s
        self._coming[protocol] = place
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=self._tls, ssl_handshake_timeout=limit_s, ssl_shutdown_timeout=GOODBYE_S
            )
        finally:
            self._coming.pop(protocol, None)
            self._shaken.set()

    async def drain(self, timeout_s: float) -> int:
        """Take no new connections, finish what is under way, close. Returns how many connections had to be cut."""
        self.draining = True
        await self._take_backlog()
        self.stop_accepting()
        self._next_sweep.cancel()
        for _ in range(QUIET_TURNS):  # whoever was accepted last is heard of some turns later
            await asyncio.sleep(0)
        self._sweep_at = self._loop.time()  # what passed before is not the idle connections' grace
        for connection in self.connections:
            connection.begin_grace()
        self._sweep()
        try:
            async with asyncio.timeout(timeout_s):
                await self._end_handshakes()
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
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

    async def _end_handshakes(self) -> None:
        """Whoever was accepted may have sent a request behind its half of the handshake; who is silent is not waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while self._coming:
                    self._shaken.clear()
                    await self._shaken.wait()

    def _sweep(self) -> None:
        now = self._loop.time()
        elapsed_s, self._sweep_at = now - self._sweep_at, now
        self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        for connection in list(self.connections):
            connection.age(elapsed_s)
        self.audit.flush()
        self._next_sweep = self._loop.call_later(DRAIN_GRACE_S / 3 if self.draining else SWEEP_S, self._sweep)


def address_of(transport: asyncio.BaseTransport) -> str:
    """Empty on a Unix socket."""
    found = transport.get_extra_info("peername")
    return found[0] if isinstance(found, tuple) else ""


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether the system holds something of the client's, or its end, that was not read yet."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(sock.fileno(), selectors.EVENT_READ)
        return bool(selector.select(0))


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Who is at the other end, as far as the connection shows it."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        if not hasattr(socket, "SO_PEERCRED"):  # Linux has it
            return Peer()
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        process, user, _ = struct.unpack("3i", credentials)
        return Peer() if process == os.getpid() else Peer("", f"unix:{user}")  # ourselves: /docs/try, for whoever asks there
    subject = (transport.get_extra_info("peercert") or {}).get("subject", ())
    name = next((value for part in subject for field, value in part if field == "commonName"), "")
    return Peer(address_of(transport), f"cert:{name}" if name else "")
