"""What models hold of this machine's memory: measured around loading, and before that estimated from their files.

Called by serve/models.py, on a thread: measuring takes milliseconds. Memory of GPUs is not looked at. Not aware of: budgets.
"""

import ctypes
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from msgspec import Struct

from dlproxy.config import ModelConfig, is_address
from dlproxy.config.knobs import WAY
from dlproxy.cores import give_back
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import model_files
from dlproxy.instance.runtime.formats import format_of

SESSION_BYTES = 256 * 2**10  # what a model of no weights takes in this process (measured, ONNX Runtime 1.27)
WORKER_BYTES = 64 * 2**20  # what a worker process takes beside the weights, until one was seen
FACTOR = 1.5  # what a byte of weights takes in this process, until one was seen
LOADING_FACTOR = 1.0  # what a byte of weights takes besides while it is loaded, until one was seen (measured: the file's copy)
FORGETS = 0.05  # of the most that was seen, with every load: the first one of a model tries more than later ones
MOST_KNOWN = 4096  # files
LARGE_BYTES = 2**20  # a block of so many has a mapping of its own while a model is loaded; most requests are smaller
LARGEST_BYTES = 32 * 2**20  # the same at other times: the most that glibc takes, and where it arrives by itself

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def resident_bytes(pid: int | str = "self") -> int:
    """What a process holds of the memory now; 0 where the system does not tell (it is no Linux), or there is none."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@asynccontextmanager
async def large_blocks_apart() -> AsyncIterator[None]:
    """Meanwhile large blocks go back to the system as soon as they are freed, not when the heap around them is (glibc).

    While it loads, ONNX Runtime takes 0.9 times the file besides so, and 2.7 times otherwise. At other times large requests
    would pay for it: filling 4 MB takes 1.4 ms in a new mapping and 0.09 in memory that was kept (all measured).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * LARGEST_BYTES)  # as glibc has it where it moves the other by itself


def forget_most() -> None:
    """What `most_bytes` tells begins anew."""
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text("5", "ascii")


def most_bytes() -> int:
    """The most that this process has held since `forget_most`; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def held_bytes() -> int:
    """What this process really uses: what its allocator keeps of freed memory comes and goes by megabytes."""
    give_back()
    return resident_bytes()


class _Files(Struct, frozen=True):
    """Of a model. `kind`: what its size depends on besides; `apart`: it runs in worker processes."""

    size_bytes: int
    kind: str
    apart: bool


class _Seen(Struct):
    """Models of one kind that were loaded: the bytes of their files, what they took, and the least that was not weights.

    `loading`: the most that a byte of them took besides while it was loaded, of late.
    """

    files_bytes: int = 0
    held_bytes: int = 0
    least_else: int = WORKER_BYTES
    loading: float = LOADING_FACTOR


class MemoryMeter:
    """`held`: how much this process uses. Everything is called by one thread at a time.

    `base_bytes`: what it uses without models, and with the runtimes that they brought along; None before the first.
    """

    def __init__(self, held: Callable[[], int] = held_bytes) -> None:
        self.held = held
        self.base_bytes: int | None = None
        self._seen: dict[str, _Seen] = {}
        self._files: dict[tuple[object, ...], _Files] = {}
        self._measured: dict[tuple[object, ...], int] = {}

    def size_of(self, config: ModelConfig) -> int:
        """What loading this model would take, in bytes: what it took when it was loaded before, or an estimate."""
        config = config.begun(WAY)
        key = _key(config)
        if key is None:
            return 0
        return self._measured.get(key) or self._estimate(config, self._files_of(key, config))

    def loading_bytes(self, config: ModelConfig) -> int:
        """What it would take besides for as long as it is loaded: copies of its weights, trials."""
        key = _key(config)
        if key is None:
            return 0
        files = self._files_of(key, config)
        return int(files.size_bytes * self._seen.get(files.kind, _Seen()).loading) * _copies(config, files)

    def begin(self) -> int:
        """How much this process uses before a model is loaded."""
        held = self.held()
        if self.base_bytes is None:
            self.base_bytes = held
        forget_most()
        return held

    def peaked(self, config: ModelConfig, besides_bytes: int) -> None:
        """It has been loaded, and took so much at most besides what it takes now."""
        key = _key(config)
        files = self._files_of(key, config) if key is not None else None
        if files is not None and files.size_bytes and not files.apart and (seen := self._seen.get(files.kind)) is not None:
            factor = max(besides_bytes, 0) / files.size_bytes
            seen.loading = max(factor, seen.loading + FORGETS * (factor - seen.loading))

    def loaded(self, config: ModelConfig, growth_bytes: int, elsewhere_bytes: int) -> int:
        """What a model takes that has just been loaded: what this process has grown by, never less than its files, and what its
        workers hold.

        The first of its kind brought the runtime along, which stays when it goes: that one is estimated.
        """
        config = config.begun(WAY)
        key = _key(config)
        if key is None:
            return 0
        files = self._files_of(key, config)
        seen = self._seen.get(files.kind)
        if files.apart:
            size = max(growth_bytes, 0) + elsewhere_bytes
            least = size // _workers(config) - files.size_bytes
            self._seen[files.kind] = _Seen(least_else=max(least if seen is None else min(least, seen.least_else), 0))
        elif seen is None:
            self._seen[files.kind] = _Seen()
            size = self._estimate(config, files)
            self.base_bytes = (self.base_bytes or 0) + max(growth_bytes - files.size_bytes - SESSION_BYTES, 0)
            return size
        else:
            size = max(growth_bytes, files.size_bytes)
            seen.files_bytes += files.size_bytes
            seen.held_bytes += max(size - SESSION_BYTES, files.size_bytes)
        if len(self._measured) >= MOST_KNOWN:
            self._measured.clear()
        self._measured[key] = size
        return size

    def _estimate(self, config: ModelConfig, files: _Files) -> int:
        seen = self._seen.get(files.kind, _Seen())
        if files.apart:
            return (files.size_bytes + seen.least_else) * _workers(config)
        factor = seen.held_bytes / seen.files_bytes if seen.files_bytes else FACTOR
        return SESSION_BYTES + int(files.size_bytes * factor)

    def _files_of(self, key: tuple[object, ...], config: ModelConfig) -> _Files:
        found = self._files.get(key)
        if found is None:
            try:
                format = format_of(config.path)
                size = sum(os.path.getsize(file) for file in model_files(config.path))
                apart = config.run == "process" or (config.run == "auto" and format.apart)
                found = _Files(size, f"{format.name}{' apart' * apart}", apart)
            except (ModelError, OSError):  # loading says what is wrong with it
                return _Files(0, "", apart=False)
            if len(self._files) >= MOST_KNOWN:
                self._files.clear()
            self._files[key] = found
        return found


def _workers(config: ModelConfig) -> int:
    return max(config.instances, 1)


def _copies(config: ModelConfig, files: _Files) -> int:
    return _workers(config) if files.apart else 1


def _key(config: ModelConfig) -> tuple[object, ...] | None:
    """The same for what would take as much; None for what takes nothing here."""
    if is_address(config.path) or config.run == "ray":
        return None
    try:
        status = os.stat(config.path)
        stamp: tuple[object, ...] = (status.st_size, status.st_ino, status.st_mtime_ns)
    except OSError:  # a Python class by its module, or nothing
        stamp = ()
    return (config.path, *stamp, config.run, config.instances, config.threads, config.device)
