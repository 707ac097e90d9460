"""Where what is wanted is kept, so that several nodes agree on it. Here: what any store does, and one in memory.

Called by fleet/control.py, which edits it by compare-and-set. Redis is imported only once an address asks for it.
Not aware of: what is in it, who changes it.
"""

import asyncio
import re
from pathlib import Path
from typing import Protocol

from dlproxy.config import ConfigError
from dlproxy.policy.wanted import Wanted


class StoreError(ConfigError):
    """The store cannot be used now: it is cut off, locked or full. Later it may be."""


class Store(Protocol):
    """One truth for all who hold a handle on it."""

    async def read(self) -> Wanted:
        """What is wanted; nothing with revision 0 if nobody has said anything yet.

        A store that cannot be used any more: what was last seen there. One that never could be: ConfigError.
        """
        ...

    async def swap(self, revision: int, new: Wanted) -> bool:
        """Puts `new`, with the next revision, in the place of this revision. False: that was no longer the stored one.

        Raises StoreError if the store cannot be used now, ConfigError if it holds what cannot be understood.
        """
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


def open_store(url: str) -> Store:
    """The store that the knob `store` names. Raises ConfigError."""
    if not url:
        return MemoryStore()
    scheme = re.match(r"([a-z][a-z0-9+.-]+):", url, re.IGNORECASE)
    try:
        if scheme is None:
            from dlproxy.fleet.folder_store import FolderStore

            return FolderStore(Path(url))
        if scheme[1].lower() in ("redis", "rediss"):
            from dlproxy.fleet.redis_store import redis_store

            return redis_store(url)
    except ImportError as error:
        missing = _MISSING.get((error.name or "").partition(".")[0])
        if missing is None:
            raise
        raise ConfigError(missing, "store") from None
    raise ConfigError(
        f"a store cannot be at '{scheme[1]}:'; it is the path of a folder that nodes share, or redis://HOST:PORT/DB, or "
        "rediss:// with TLS; empty: each process for itself",
        "store",
    )


_MISSING = {
    "fcntl": "a store in a folder needs locks of files as Unix has them, which this system lacks",
    "redis": "a store in Redis needs a package that is not installed: pip install 'dlproxy[redis]'",
}
