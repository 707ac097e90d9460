"""Where what is wanted is kept, so that several nodes agree on it. Here: in memory, for one process.

Called by fleet/control.py, which edits it by compare-and-set. Not aware of: what is in it, who changes it.
"""

import asyncio
from typing import Protocol

from dlproxy.policy.wanted import Wanted


class Store(Protocol):
    """One truth for all who hold a handle on it."""

    async def read(self) -> Wanted:
        """What is wanted; nothing with revision 0 if nobody has said anything yet."""
        ...

    async def swap(self, revision: int, new: Wanted) -> bool:
        """Puts `new`, with the next revision, in the place of this revision. False: that was no longer the stored one."""
        ...

    async def changed(self, revision: int) -> None:
        """Returns once the stored revision is another than this."""
        ...

    async def close(self) -> None:
        """Lets go of files and connections. Whoever waits for a change must have given up."""
        ...


class MemoryStore:
    """For one process: what it held is gone when it ends."""

    def __init__(self) -> None:
        self._wanted = Wanted()
        self._change = asyncio.Event()

    async def read(self) -> Wanted:
        return self._wanted

    async def swap(self, revision: int, new: Wanted) -> bool:
        if self._wanted.revision != revision:
            return False
        self._wanted = new
        self._change.set()
        self._change = asyncio.Event()
        return True

    async def changed(self, revision: int) -> None:
        while self._wanted.revision == revision:
            await self._change.wait()

    async def close(self) -> None:
        pass
