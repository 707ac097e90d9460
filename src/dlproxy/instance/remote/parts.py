"""An answer that an upstream gives in parts, passed on one by one, each when it is asked for. Made by remote.py.

Not aware of: connections, protocols, who reads.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from dlproxy.instance.batch import Array, BatchResult
from dlproxy.instance.remote.channel import Answer, Messages
from dlproxy.instance.remote.failures import UpstreamError, failed


class RemoteParts:
    """A BatchRest, once the first part is there.

    `decode`: the outputs of an answer that is no refusal, None if it has none, as Triton's last one; raises UpstreamError.
    `on_end`: called once, with the error if there is one, before whoever waits hears of it.
    """

    def __init__(
        self,
        messages: Messages[Any],
        decode: Callable[[Any], list[Array] | None],
        on_end: Callable[[UpstreamError | None], None],
    ) -> None:
        self._messages = messages
        self._decode = decode
        self._on_end = on_end
        self._done: Callable[[BatchResult], None] | None = None
        self._asked_at = 0.0
        self._first = True
        self._stopped = self._ended = False

    def ask(self, done: Callable[[BatchResult], None]) -> None:
        self._done = done
        self._asked_at = perf_counter()
        self._messages.ask(self._arrived)

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._messages.stop()
            if self._done is None:
                self._end(None)

    def _arrived(self, outcome: Answer | UpstreamError | None) -> None:
        if self._stopped:
            self._tell(BatchResult([], 0.0, 0.0), None)
            return
        try:
            outputs = self._outputs(outcome)
        except UpstreamError as error:
            self._messages.stop()
            self._tell(failed(error, 0.0), error)
            return
        if outputs is None and outcome is not None:
            self._messages.ask(self._arrived)
            return
        self._first = False
        rest = None if outputs is None else self
        self._tell(BatchResult(outputs or [], perf_counter() - self._asked_at, 0.0, rest=rest), None)

    def _outputs(self, outcome: Answer | UpstreamError | None) -> list[Array] | None:
        if outcome is None:
            if self._first:
                raise UpstreamError("the upstream ended its answer before the first part")
            return None
        error = outcome if isinstance(outcome, UpstreamError) else outcome.refusal()
        if error is not None:
            raise error
        return self._decode(outcome)

    def _tell(self, result: BatchResult, error: UpstreamError | None) -> None:
        done, self._done = self._done, None
        if result.rest is None:
            self._end(error)
        if done is not None:
            done(result)

    def _end(self, error: UpstreamError | None) -> None:
        if not self._ended:
            self._ended = True
            self._on_end(error)
