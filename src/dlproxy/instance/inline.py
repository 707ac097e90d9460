"""Runs a batch on the event loop itself: for models so quick that handing them to a thread costs more than they do."""

from collections.abc import Callable, Sequence

from dlproxy.instance.batch import BatchResult, raised, run_batch
from dlproxy.instance.runtime import Runtime
from dlproxy.message import Request


class InlineInstance:
    """Blocks the loop for the length of one batch, so the warm-up chooses it only below a threshold."""

    inline = True
    capacity = 1

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.name = name
        self._runtime = runtime

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        try:
            result = run_batch(self._runtime, requests)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            result = raised(error)
        done(result)

    async def stop(self) -> None:
        """Nothing can be running: `run` does not return before its batch is done."""
