"""The parts of an answer, written one by one as fast as the client reads: the same for every protocol that has streams.

Called by the doors. Not aware of: bytes, sockets.
"""

from collections.abc import Callable

from dlproxy.message import Failure, Rest, Tensor


class Relay:
    """Asks for a part when the client takes one. A PartTo.

    `write`: a part. `end`: called once, with None after the last part, else with why nothing more comes; not after `stop`.
    """

    def __init__(
        self,
        rest: Rest,
        write: Callable[[list[Tensor]], None],
        end: Callable[[Failure | None], None],
        may_write: Callable[[], bool],
    ) -> None:
        self._rest = rest
        self._write = write
        self._end = end
        self._may_write = may_write
        self._asked = False
        self._going_on = False
        self._over = False

    def go_on(self) -> None:
        """To be called when the first part is written, and whenever the client takes more again."""
        if self._going_on:  # a part that was there at once; the loop below goes on with the next
            return
        self._going_on = True
        while not self._asked and not self._over and self._may_write():
            self._asked = True
            self._rest.ask(self)
        self._going_on = False

    def stop(self) -> None:
        """The client has gone."""
        if not self._over:
            self._over = True
            self._rest.stop()

    def part(self, outputs: list[Tensor]) -> None:
        self._asked = False
        if not self._over:
            self._write(outputs)
            self.go_on()

    def ended(self) -> None:
        self._finish(None)

    def failed(self, failure: Failure) -> None:
        self._finish(failure)

    def _finish(self, failure: Failure | None) -> None:
        if not self._over:
            self._over = True
            self._end(failure)
