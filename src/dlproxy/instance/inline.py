"""Runs a batch on the event loop itself: for models so quick that handing them to a thread costs more than they do."""

from collections.abc import Callable, Sequence
from time import thread_time

from dlproxy.instance.batch import BatchResult, raised, run_batch
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.trial import SHARED_ABOVE_S
from dlproxy.message import Request
from dlproxy.policy.plan import HOLD_S

TOO_LONG_S = 3e-3  # one batch this long is no batch for the loop
IN_A_THOUSAND = 1000  # of so many batches one may be longer than HOLD_S


class InlineInstance:
    """Blocks the loop for the length of one batch, so it is chosen only for models that are quick, and left if they are not.

    `on_long` is told, with the seconds of processor time, of a batch that was far too long, or of the second in a thousand that
    was too long: the instance should be replaced by one that does not block.
    """

    inline = True
    capacity = 1

    def __init__(self, name: str, runtime: Runtime, on_long: Callable[[float], None] | None = None) -> None:
        self.name = name
        self._runtime = runtime
        self._on_long = on_long
        self._batches = 0
        self._slow = 0  # of these
        self._long_at = -IN_A_THOUSAND  # the last one that was too long
        self._close_to = False  # batches are so long that the thread's own clock, which costs a system call, is read

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        began_at = thread_time() if self._close_to else 0.0
        try:
            result = run_batch(self._runtime, requests)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            result = raised(error)
        seconds = result.batch_s + result.compute_s
        self._batches += 1
        if seconds > HOLD_S / 4:
            if self._close_to:  # time that others took from the core is not the model's
                seconds = min(seconds, thread_time() - began_at)
            self._look(seconds, len(requests))
        done(result)

    def _look(self, seconds: float, requests: int) -> None:
        if not self._close_to:  # others may have had the core
            self._close_to = True
            return
        self._slow += seconds > SHARED_ABOVE_S * requests
        if seconds <= HOLD_S:
            return
        again = self._batches - self._long_at < IN_A_THOUSAND
        self._long_at = self._batches
        if self._on_long is not None and (again or seconds > TOO_LONG_S):
            self._on_long(seconds)

    @property
    def slow(self) -> bool:
        """Whether, of its batches so far, more than one in four took so long a request that threads would serve better."""
        return self._slow * 4 > self._batches

    async def stop(self) -> None:
        """Nothing can be running: `run` does not return before its batch is done."""
