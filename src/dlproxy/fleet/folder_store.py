"""What is wanted, in a file of a folder that nodes share.

Made by store.py. Who writes holds a lock; the new file takes the old one's place in one step when it is on disk, so whoever
reads needs none, and a node that ends meanwhile leaves one of both. Not aware of: what is in the file.
"""

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from dlproxy.fleet.shared_store import SharedStore
from dlproxy.fleet.store import StoreError

POLL_S = 0.5
LOCK_S = 2.0  # a write takes milliseconds
PATIENCE_S = 5.0  # a server of files that is gone blocks for ever

P = ParamSpec("P")
T = TypeVar("T")


class FolderStore(SharedStore):
    """All file access is on one thread of its own: it may block."""

    def __init__(self, folder: Path, poll_s: float = POLL_S) -> None:
        super().__init__(f"store {folder / 'wanted.json'}", poll_s)
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self) -> bytes | None:
        return await self._do(self._read)

    async def _replace(self, old: bytes | None, new: bytes) -> bool:
        return await self._do(self._write, old, new)

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))
        except TimeoutError:
            raise StoreError(f"{self.place} does not answer within {PATIENCE_S:g} s") from None
        except OSError as error:
            raise StoreError(f"{self.place} cannot be used: {error}") from None

    def _read(self) -> bytes | None:
        try:
            return (self._folder / "wanted.json").read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, old: bytes | None, new: bytes) -> bool:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            if self._read() != old:
                return False
            fresh = self._folder / "wanted.new"
            with open(_open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._folder / "wanted.json")
            folder = _open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with open(_open(self._folder / "wanted.lock", os.O_RDWR | os.O_CREAT), "rb") as lock:
            give_up_at = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up_at:
                        raise StoreError(f"{self.place} is locked by another process (wanted.lock beside it)") from None
                    time.sleep(0.005)
            yield


def _open(path: Path, flags: int) -> int:
    """For nobody else to read: what models are sent may be secret."""
    return os.open(path, flags, 0o600)
