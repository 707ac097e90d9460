"""Runs batches on a thread of its own. ONNX Runtime and torch release the GIL, so the event loop goes on meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dlproxy.instance.batch import BatchResult, run_batch
from dlproxy.instance.runtime import Runtime
from dlproxy.message import Request


class ThreadInstance:
    """One thread, one batch at a time."""

    inline = False
    capacity = 1

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self._runtime = runtime
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"dlproxy-{name}")

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        loop = asyncio.get_running_loop()

        def work() -> None:
            result = run_batch(self._runtime, requests)
            loop.call_soon_threadsafe(done, result)

        self._thread.submit(work)

    async def stop(self) -> None:
        await asyncio.to_thread(self._thread.shutdown, wait=True)
