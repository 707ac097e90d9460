"""Keeps a few of the requests that clients really send, so that what was tried on made-up inputs can be tried again on them.

Fed by serve/driver.py, once per batch. Not aware of: what they are tried on.
"""

from collections.abc import Callable, Sequence
from random import Random

from dlproxy.message import Request

KEPT = 32
MOST_BYTES = 32 * 2**20  # together: views keep the bodies alive that they came in
AFTER = (64, 2048)  # batches seen until what is kept is handed over: soon, and once more when it is sure to be typical
MORE = 2  # times as many until the next time, while that is wanted


class Reservoir:
    """A fair sample of the first requests of all batches (Vitter's algorithm R). `on_full` gets it twice, and says if again."""

    def __init__(self, on_full: Callable[[Sequence[Request]], bool]) -> None:
        self._on_full = on_full
        self._random = Random(0)
        self._kept: list[Request] = []
        self._seen = 0
        self._next = AFTER[0]

    def saw(self, request: Request) -> bool:
        """A batch began with it. False when no more are wanted."""
        self._seen += 1
        size = sum([len(tensor.data) for tensor in request.inputs])
        if size * KEPT <= MOST_BYTES:
            if len(self._kept) < KEPT:
                self._kept.append(request)
            elif (place := self._random.randrange(self._seen)) < KEPT:
                self._kept[place] = request
        if self._seen < self._next:
            return True
        again = bool(self._kept) and self._on_full(self._random.sample(self._kept, len(self._kept)))
        self._next = max(AFTER[-1], MORE * self._next)
        if again or self._seen < AFTER[-1]:
            return True
        self._kept.clear()
        return False
