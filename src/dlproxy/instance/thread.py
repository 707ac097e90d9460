"""Runs batches on a thread of its own. ONNX Runtime and torch release the GIL, so the event loop goes on meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import cast

from dlproxy.instance.batch import BatchResult, Steps, raised, run_batch
from dlproxy.instance.runtime import Runtime, StreamingRuntime
from dlproxy.message import Request

_Job = tuple["Sequence[Request] | ThreadRest", Callable[[BatchResult], None], asyncio.AbstractEventLoop]


class ThreadInstance:
    """One thread, one batch at a time.

    Not an executor: after a batch that has filled the caches, all that runs before the next one runs cold.
    """

    inline = False
    capacity = 1

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self._runtime = runtime
        self._streaming = cast(StreamingRuntime, runtime) if runtime.signature.streams else None
        self._open = False  # a stream has not ended yet; only the thread itself looks
        self._stopping = False
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
            self._stopping = True
            return self._open
        work, done, loop = job
        try:
            if self._streaming is None:
                result = run_batch(self._runtime, cast(Sequence[Request], work))
            else:
                result = self._step(self._streaming, work, loop)
        except BaseException as error:
            result, self._open = raised(error), False
        with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits
            loop.call_soon_threadsafe(done, result)
        return self._open or not self._stopping

    def _step(
        self, runtime: StreamingRuntime, work: "Sequence[Request] | ThreadRest", loop: asyncio.AbstractEventLoop
    ) -> BatchResult:
        """The first or a further part, or the end that was asked for."""
        rest = work if isinstance(work, ThreadRest) else ThreadRest(Steps(runtime, work), self._jobs, loop)
        steps = rest.steps
        if rest.stopped:
            steps.close()
            result = BatchResult([], 0.0, 0.0)
        else:
            result = steps.next()
        self._open = not steps.ended
        if self._open:
            result.rest = rest
        return result


class ThreadRest:
    """The rest of a batch, whose steps only the thread takes."""

    def __init__(self, steps: Steps, jobs: "SimpleQueue[_Job | None]", loop: asyncio.AbstractEventLoop) -> None:
        self.steps = steps
        self.stopped = False
        self._jobs = jobs
        self._loop = loop

    def ask(self, done: Callable[[BatchResult], None]) -> None:
        self._jobs.put((self, done, self._loop))

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self._jobs.put((self, _nobody, self._loop))


def _nobody(result: BatchResult) -> None:
    """Waits for the end of what was stopped."""
