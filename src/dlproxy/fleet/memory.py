"""What models hold of this machine's memory: measured around loading, and before that estimated from their files.

Called by serve/models.py, on a thread: measuring takes milliseconds. Memory of GPUs is not looked at. Not aware of: budgets.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from dlproxy.config import ModelConfig, is_address
from dlproxy.config.knobs import WAY
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import model_files
from dlproxy.instance.runtime.formats import format_of

SESSION_BYTES = 256 * 2**10  # what a model of no weights takes in this process (measured, ONNX Runtime 1.27)
WORKER_BYTES = 64 * 2**20  # what a worker process takes beside the weights, until one was seen
FACTOR = 1.5  # what a byte of weights takes in this process, until one was seen
MOST_KNOWN = 4096  # files

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def resident_bytes(pid: int | str = "self") -> int:
    """What a process holds of the memory now; 0 where the system does not tell (it is no Linux), or there is none."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def give_back() -> None:
    """Memory that was freed goes back to the system, where the C library can do that (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


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
    """Models of one kind that were loaded: the bytes of their files, what they took, and the least that was not weights."""

    files_bytes: int = 0
    held_bytes: int = 0
    least_else: int = WORKER_BYTES


class MemoryMeter:
    """`held`: how much this process uses. Everything is called by one thread at a time."""

    def __init__(self, held: Callable[[], int] = held_bytes) -> None:
        self.held = held
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
            return self._estimate(config, files)
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


def _key(config: ModelConfig) -> tuple[object, ...] | None:
    """The same for what would take as much; None for what takes nothing here."""
    if is_address(config.path):
        return None
    try:
        status = os.stat(config.path)
        stamp: tuple[object, ...] = (status.st_size, status.st_ino, status.st_mtime_ns)
    except OSError:  # a Python class by its module, or nothing
        stamp = ()
    return (config.path, *stamp, config.run, config.instances, config.threads, config.device)
