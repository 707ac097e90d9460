"""A loop in virtual time whose callbacks take time, in the order in which uvloop runs them: timers, callbacks, sockets.

Only what serve/driver.py and the fakes ask of a loop. Used by test_exactness.py, to compare inline models and loop costs.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class UvLoop:
    """`read` gets what has come on the sockets, all of it that is due when the loop looks. `now` moves on as told."""

    def __init__(self, read: Callable[[Any], None]) -> None:
        self.now = 0.0
        self._read = read
        self._ready: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._sockets: deque[tuple[float, Any]] = deque()
        self._count = 0

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        self._ready.append((callback, args))

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay_s, callback, args, self)  # type: ignore[arg-type]
        self._count += 1
        heappush(self._timers, (handle.when(), self._count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Left in the heap: it is skipped when its time comes."""

    def comes(self, at: float, what: Any) -> None:
        """Something will come on a socket then; to be said in order."""
        self._sockets.append((at, what))

    def run(self) -> None:
        """Turn until nothing is left to happen."""
        while self._ready or self._timers or self._sockets:
            self._run_timers()
            for _ in range(len(self._ready)):
                callback, args = self._ready.popleft()
                callback(*args)
            self._poll()

    def _run_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            _, _, handle = heappop(self._timers)
            if not handle.cancelled():
                handle._run()

    def _poll(self) -> None:
        if not self._ready:  # wait
            nexts = [entries[0][0] for entries in (self._timers, self._sockets) if entries]
            self.now = max(self.now, min(nexts, default=self.now))
        looked_at = self.now
        while self._sockets and self._sockets[0][0] <= looked_at:
            self._read(self._sockets.popleft()[1])
