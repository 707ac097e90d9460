"""How far workers may run ahead of each other: stale synchronous parallel (Ho et al., NIPS 2013).

Called by asynchronous.py. Not aware of: gradients, Ray.
"""

from collections.abc import Iterable


class Clocks:
    """A worker's clock is how many steps it has ended. One may begin a step while it is at most `bound` ahead of the slowest
    that is there: 0 is in step, infinity is none held up.
    """

    def __init__(self, workers: Iterable[int], bound: float) -> None:
        self._ended = dict.fromkeys(workers, 0)
        self._bound = bound

    def may_begin(self, worker: int) -> bool:
        return self._ended[worker] - min(self._ended.values()) <= self._bound

    def ended(self, worker: int) -> None:
        self._ended[worker] += 1

    def leave(self, worker: int) -> None:
        """It is waited for no more."""
        self._ended.pop(worker, None)

    def __len__(self) -> int:
        return len(self._ended)
