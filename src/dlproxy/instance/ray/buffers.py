"""Memory for the tensors of a batch that cross a connection: a Slot that no other process maps, and outputs as they came.

Called by actor.py and connection.py. Not aware of: sockets, messages.
"""

from collections.abc import Sequence
from mmap import mmap

import numpy as np

from dlproxy.instance.process.messages import Part
from dlproxy.instance.process.slots import Array, Slot, cut_apart
from dlproxy.message import TensorSpec


class Buffer(Slot):
    """Pages that are only taken when they are written. `limit`: in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(-1, limit)

    def follow(self, size: int) -> None:
        """Be at least so large. Views of what was before stay valid."""
        if size > self.size:
            self.memory = mmap(-1, size)
            self.size = size

    def close(self) -> None:
        self.memory = None

    def _provide(self, size: int) -> None:
        """`follow` does."""


class Arrived:
    """The outputs of one batch, in memory of their own, which its replies are views of. `whole`: set as they come."""

    next = 0

    def __init__(self) -> None:
        self.whole: Array = np.empty(0, np.uint8)

    def size(self, number: int) -> int:
        return 0

    def read(self, number: int, size: int, specs: Sequence[TensorSpec], parts: Sequence[Part]) -> list[Array]:
        """Of the batch that came last; it is not kept here any longer."""
        whole, self.whole = self.whole, np.empty(0, np.uint8)
        return cut_apart(whole, specs, parts)
