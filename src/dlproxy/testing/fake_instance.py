"""An instance whose batches end when the test says so, or after so many seconds of the event loop's (virtual) time.

Implements the Instance protocol; passes check_instance. Not aware of: lanes, drivers.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct, structs

from dlproxy.instance.batch import BatchResult, run_batch
from dlproxy.instance.runtime import Runtime
from dlproxy.message import Request


class _Running(Struct):
    requests: Sequence[Request]
    done: Callable[[BatchResult], None]
    timer: asyncio.TimerHandle | None = None


class FakeInstance:
    """Computes with `runtime` at the moment at which a batch ends; the result claims `service_s` seconds of compute.

    `service_s`: seconds for a batch of so many rows; None: each batch runs until `finish` is called.
    """

    inline = False
    capacity = 1

    def __init__(self, name: str, runtime: Runtime, *, service_s: Callable[[int], float] | None = None) -> None:
        self.name = name
        self._runtime = runtime
        self._service_s = service_s
        self._running: _Running | None = None
        self._failures: deque[str] = deque()
        self._ended = asyncio.Event()
        self.batches: list[list[int]] = []
        """Ticket ids of every batch so far, in gathering order."""
        self.stopped = False
        self.variant = ""
        """Who answers in place of the model, as an upstream may say."""

    @property
    def busy(self) -> bool:
        """True while a batch runs."""
        return self._running is not None

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        assert self._running is None, f"{self.name} got a batch while it runs one"
        assert not self.stopped, f"{self.name} got a batch after it was stopped"
        self._running = _Running(requests, done)
        self._ended.clear()
        self.batches.append([request.ticket.id for request in requests])
        if self._service_s is not None:
            seconds = self._service_s(sum(request.ticket.rows for request in requests))
            self._running.timer = asyncio.get_running_loop().call_later(seconds, self.finish, seconds)

    def finish(self, compute_s: float = 0.0) -> None:
        """End the running batch now: with its answers or, if one is scripted, with a failure."""
        running = self._running
        assert running is not None, f"{self.name} has no batch to finish"
        if running.timer is not None:
            running.timer.cancel()
        if self._failures:
            result = BatchResult([], 0.0, 0.0, self._failures.popleft())
        else:
            result = run_batch(self._runtime, running.requests)
            result = structs.replace(result, batch_s=0.0, compute_s=0.0 if result.error else compute_s, variant=self.variant)
        self._running = None
        self._ended.set()
        running.done(result)

    def fail_next(self, *messages: str) -> None:
        """The next batches to end fail with these messages, one each."""
        self._failures.extend(messages)

    async def stop(self) -> None:
        """Waits for the running batch to end, as a real instance does."""
        if self._running is not None:
            await self._ended.wait()
        self.stopped = True
