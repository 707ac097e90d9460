"""The event loop of all blocking clients of a process, on a thread of its own. Made when the first of them calls.

Called by blocking.py. Not aware of: what runs on it. A forked child has no such thread: it makes its own, and leaves what the
parent's clients hold, such as their sockets, as it is.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol, TypeVar

_Result = TypeVar("_Result")
STOP_S = 2.0  # how long the end of the process may wait for connections to close


class Closable(Protocol):
    async def close(self) -> None: ...


class Background:
    """`open`: what is to be closed before the loop ends. `lock`: for whoever adds to it."""

    def __init__(self) -> None:
        self.open: set[Closable] = set()
        self.lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dlproxy-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Its result, waited for on this thread, which may be interrupted."""
        if not self.runs or threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a Client cannot be called here: on its own thread, at the end of the process, or after a fork")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    @property
    def runs(self) -> bool:
        """False in a forked child, and at the end of the process."""
        return _current is self and not self._loop.is_closed()

    def begin(self, work: Coroutine[Any, Any, object]) -> None:
        """Not waited for; from any thread, and in the midst of anything."""
        if self.runs:
            self._loop.call_soon_threadsafe(self._loop.create_task, work)
        else:
            work.close()

    async def close(self, one: Closable) -> None:
        """Nobody needs it any more."""
        if one in self.open:
            self.open.discard(one)
            await one.close()

    def stop(self) -> None:
        """At the end of the process."""
        if not self.runs:
            return
        with suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._close_all(), self._loop).result(STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)
        if not self._thread.is_alive():
            self._loop.close()

    async def _close_all(self) -> None:
        for one in list(self.open):
            await self.close(one)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # whose calls have failed by that
            await asyncio.wait(others)
        await self._loop.shutdown_asyncgens()


_current: Background | None = None
_lock = threading.Lock()
_parents: list[Background] = []  # kept, so that nothing in them is ever finalised here


def background() -> Background:
    """That of this process."""
    global _current
    with _lock:
        if _current is None:
            _current = Background()
            atexit.register(_current.stop)
        return _current


def _forget() -> None:
    """In a forked child: whoever held the lock is not here, and neither is the thread."""
    global _current, _lock
    _lock = threading.Lock()
    if _current is not None:
        _parents.append(_current)
        _current = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget)
