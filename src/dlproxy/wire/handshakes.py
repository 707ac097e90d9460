"""TLS handshakes that are under way, over all ports: a bounded number, of which one address gets a share; the others wait.

Part of bounds.py, used by listening.py. Not aware of: certificates, what comes after the handshake.
"""

import asyncio
import logging
import socket
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from math import inf

from msgspec import Struct

PATIENCE_S = 1.0  # for which a handshake keeps its place while others wait for it: some network round trips
SWEEP_S = 0.25
MOST_WAITING = 4096
SHARE = 4  # one address has at most a quarter of the places

log = logging.getLogger(__name__)


class _Handshake(Struct, eq=False):
    key: str
    sock: socket.socket
    run: Callable[[], Awaitable[object]]
    on_failed: Callable[[], None]
    came_at: float
    started_at: float = inf
    task: "asyncio.Task[None] | None" = None


class Handshakes:
    """At most `most` run at a time. Whoever takes long loses the place to those that wait, and fails after `timeout_s`.

    Those that wait for the share of their address are let in from the newest: who has waited long has perhaps given up, and
    whoever opens many connections to block the others blocks the oldest.
    """

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most, self._share = most, max(most // SHARE, 1)
        self.timeout_s = timeout_s
        self._running: dict[_Handshake, None] = {}  # the oldest first
        self._running_of: Counter[str] = Counter()
        self._next: OrderedDict[str, list[_Handshake]] = OrderedDict()  # by address, those that wait for any place
        self._blocked: dict[str, list[_Handshake]] = {}  # whose address has its share
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Those that run and those that wait."""
        return len(self._running) + self._waiting

    def begin(self, key: str, sock: socket.socket, run: Callable[[], Awaitable[object]], on_failed: Callable[[], None]) -> None:
        """`run`: does it, now or later, and raises OSError if it fails. `on_failed`: called then, or if it never runs."""
        if self._waiting >= MOST_WAITING:
            sock.close()
            on_failed()
            return
        loop = asyncio.get_running_loop()
        self._waiting += 1
        waiting = self._blocked if self._running_of[key] >= self._share else self._next
        waiting.setdefault(key, []).append(_Handshake(key, sock, run, on_failed, loop.time()))
        self._go_on()
        if self._timer is None:
            self._timer = loop.call_later(SWEEP_S, self._sweep)

    def _go_on(self) -> None:
        """Start what there is room for, address by address."""
        while self._next and len(self._running) < self._most:
            key, waiting = self._next.popitem(last=False)
            self._start(waiting.pop())
            if waiting:
                (self._blocked if self._running_of[key] >= self._share else self._next)[key] = waiting

    def _start(self, handshake: _Handshake) -> None:
        self._running[handshake] = None
        self._running_of[handshake.key] += 1
        loop = asyncio.get_running_loop()
        self._waiting -= 1
        handshake.started_at = loop.time()
        handshake.task = loop.create_task(self._run(handshake), name="dlproxy-handshake")

    async def _run(self, handshake: _Handshake) -> None:
        try:
            await handshake.run()
        except OSError:  # ssl.SSLError is one: it failed, took too long, or the client has gone
            handshake.on_failed()
        except BaseException:
            handshake.on_failed()
            raise
        finally:
            self._ended(handshake)

    def _ended(self, handshake: _Handshake) -> None:
        key = handshake.key
        del self._running[handshake]
        self._running_of[key] -= 1
        if not self._running_of[key]:
            del self._running_of[key]
        if key in self._blocked:
            self._next[key] = self._blocked.pop(key)
        self._go_on()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for handshake in list(self._running):
            in_the_way = bool(self._next) or handshake.key in self._blocked
            if now - handshake.came_at > self.timeout_s or (in_the_way and now - handshake.started_at > PATIENCE_S):
                _cut(handshake.sock)  # the transport finds out, and what awaits it fails
        for by_address in (self._next, self._blocked):
            for key, waiting in list(by_address.items()):
                late = [handshake for handshake in waiting if now - handshake.came_at > self.timeout_s]
                waiting[:] = waiting[len(late) :]  # the oldest come first
                if not waiting:
                    del by_address[key]
                self._drop(late)
        self._timer = loop.call_later(SWEEP_S, self._sweep) if len(self) else None

    def _drop(self, waiting: list[_Handshake]) -> None:
        self._waiting -= len(waiting)
        for handshake in waiting:
            handshake.sock.close()
            handshake.on_failed()

    def close(self) -> None:
        """End all that are not complete."""
        for by_address in (self._next, self._blocked):
            for waiting in by_address.values():
                self._drop(waiting)
            by_address.clear()
        for handshake in self._running:
            _cut(handshake.sock)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _cut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is over already
        log.debug("a handshake ended by itself")
