"""Where a batch runs. An instance takes one batch at a time and reports its outcome through a callback.

Implementations: inline.py (on the event loop), thread.py. Not aware of: which requests are in the batch and why.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from dlproxy.instance.batch import BatchResult
from dlproxy.message import Request


class Instance(Protocol):
    """One running copy of a model. The driver calls it on the event loop only."""

    name: str
    """Unique within the model."""

    inline: bool
    """True if `run` computes before it returns, so that the event loop stands still meanwhile."""

    @property
    def capacity(self) -> int:
        """Batches that it takes at a time; does not change."""
        ...

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        """Start a batch; `done` is called exactly once, on the event loop, possibly before this returns. Never raises.

        If the result has a rest, the batch runs until that has ended or was stopped.
        """
        ...

    async def stop(self) -> None:
        """Let a running batch finish, then give back what the instance holds."""
        ...
