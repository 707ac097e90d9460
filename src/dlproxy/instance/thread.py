"""Runs batches on a thread of its own. ONNX Runtime and torch release the GIL, so the event loop goes on meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from dlproxy.instance.batch import BatchResult, raised, run_batch
from dlproxy.instance.runtime import Runtime
from dlproxy.message import Request

_Job = tuple[Sequence[Request], Callable[[BatchResult], None], asyncio.AbstractEventLoop]


class ThreadInstance:
    """One thread, one batch at a time.

    Not an executor: after a batch that has filled the caches, all that runs before the next one runs cold.
    """

    inline = False
    capacity = 1

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self._runtime = runtime
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=self._work, name=f"dlproxy-{name}", daemon=True)
        self._thread.start()

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        self._jobs.put((requests, done, asyncio.get_running_loop()))

    async def stop(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while self._serve(self._jobs.get()):
            pass

    def _serve(self, job: _Job | None) -> bool:
        """False to end. A method of its own, so that the thread keeps no batch alive while it waits for the next."""
        if job is None:
            return False
        requests, done, loop = job
        try:
            result = run_batch(self._runtime, requests)
        except BaseException as error:
            result = raised(error)
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits
            loop.call_soon_threadsafe(done, result)
        return True
