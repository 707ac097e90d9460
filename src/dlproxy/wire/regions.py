"""System shared memory, as in Triton's extension: regions that clients register, and tensors in them. Linux only.

Bytes are copied by pread and pwrite and never mapped: a client that truncates its region, or fills /dev/shm, gets an error
where a mapping would end the server with SIGBUS. That costs 4 ms more for 19 MB. Called by the codecs and oip/regions_http.py.
"""

import os
import stat
import sys
from collections.abc import Iterable
from math import inf

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, Tensor, invalid

FOLDER = "/dev/shm"  # nosec B108 # POSIX shared memory is there
MAX_REGIONS = 256  # each keeps a file open
MAX_NAME = 255  # characters of a region's name
OFF = "shared memory is off on this server (--shared-memory turns it on); send tensors in the request"
ELSEWHERE = "shared memory needs Linux on the server; send tensors in the request"
CHUNK = 1 << 30  # Linux reads and writes less than 2 GiB at once


class RegionTakenError(InferenceError):
    """A region of this name is registered. A kind of its own, as gRPC tells it from other mistakes."""


class Region(Struct, frozen=True):
    """As clients registered it."""

    name: str
    key: str
    offset: int
    byte_size: int


class _Memory:
    """An open shared memory object: closed when no region and no request needs it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Window(Struct, frozen=True):
    """Where one tensor is in a region. Whoever has it may use it, even if the region is unregistered meanwhile."""

    region: str
    memory: _Memory
    start: int
    byte_size: int

    def read(self) -> memoryview:
        """Its bytes as they are now. Raises InferenceError if the region has been truncated."""
        pieces, at, end = [], self.start, self.start + self.byte_size
        while at < end:
            piece = os.pread(self.memory.fd, min(end - at, CHUNK), at)
            if not piece:
                raise self._truncated()
            pieces.append(piece)
            at += len(piece)
        return memoryview(b"".join(pieces))  # of one piece, no copy

    def write(self, data: memoryview | bytes) -> None:
        """At its beginning. Raises InferenceError if the region has been truncated, or its pages cannot be had."""
        view = memoryview(data).cast("B")
        if os.fstat(self.memory.fd).st_size < self.start + len(view):  # else it would grow again
            raise self._truncated()
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self.memory.fd, view[done : done + CHUNK], self.start + done)
        except OSError as error:
            message = f"shared memory region '{self.region}' cannot be written: {error.strerror}"
            raise InferenceError(Failure(FailureKind.UNAVAILABLE, message)) from None

    def _truncated(self) -> InferenceError:
        return invalid(f"shared memory region '{self.region}' has become smaller than it was when it was registered")


class Regions:
    """The regions of one server, by name. `most_bytes`: of all inputs of one request that are in regions."""

    def __init__(self, *, on: bool, most_bytes: float = inf, folder: str = FOLDER) -> None:
        self.on = on and sys.platform == "linux"
        self._why_off = ELSEWHERE if on else OFF
        self._most_bytes = most_bytes
        self._folder = folder
        self._regions: dict[str, tuple[Region, _Memory]] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """`byte_size` bytes from `offset` of the object that `key` names. Raises InferenceError."""
        if not self.on:
            raise InferenceError(Failure(FailureKind.FORBIDDEN, self._why_off))
        if not 0 < len(name) <= MAX_NAME:
            raise invalid(f"a shared memory region needs a name of at most {MAX_NAME} characters")
        if name in self._regions:
            failure = Failure(FailureKind.INVALID_ARGUMENT, f"shared memory region '{name}' already in manager")
            raise RegionTakenError(failure)
        if len(self._regions) >= MAX_REGIONS:
            message = f"there are {MAX_REGIONS} shared memory regions, which is the most; unregister one first"
            raise InferenceError(Failure(FailureKind.UNAVAILABLE, message))
        memory = _Memory(self._opened(key))
        status = os.fstat(memory.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise _not_opened(key)  # as if there were none: what other users have is nobody's business
        if offset < 0 or byte_size < 1 or offset + byte_size > status.st_size:
            raise invalid(
                f"failed to register shared memory region '{name}': invalid args: "
                f"'{key}' has {status.st_size} bytes, which is not {byte_size} from offset {offset} on"
            )
        self._regions[name] = (Region(name, key, offset, byte_size), memory)

    def unregister(self, name: str = "") -> None:
        """Forget it, or all of them; one that there is not is forgotten already."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str = "") -> list[Region]:
        """Of one region, or of all. Raises InferenceError."""
        if not name:
            return [region for region, _ in self._regions.values()]
        if name not in self._regions:
            raise _missing(f"Unable to find system shared memory region: '{name}'")
        return [self._regions[name][0]]

    def window(self, name: str, offset: int | None, byte_size: int | None) -> Window:
        """The place that a tensor's parameters name. Raises InferenceError."""
        found = self._regions.get(name)
        if found is None:
            why = "" if self.on else f"; {self._why_off}"
            raise _missing(f"Unable to find shared memory region: '{name}'{why}")
        region, memory = found
        offset = offset or 0
        if not 0 <= offset < region.byte_size:
            raise invalid(f"Invalid offset for shared memory region: '{name}': it has {region.byte_size} bytes, got {offset}")
        if byte_size is None or not 0 < byte_size <= region.byte_size - offset:
            size = "no shared_memory_byte_size" if byte_size is None else f"{byte_size} bytes"
            has = f"it has {region.byte_size} bytes, got {size} from offset {offset} on"
            raise invalid(f"Invalid offset + byte size for shared memory region: '{name}': {has}")
        return Window(name, memory, region.offset + offset, byte_size)

    def read(self, window: Window, taken: int) -> memoryview:
        """An input. `taken`: bytes that the request's inputs before it have taken from regions. Raises InferenceError."""
        if taken + window.byte_size > self._most_bytes:
            message = f"the inputs in shared memory are too large; at most {self._most_bytes:.0f} bytes are accepted"
            raise InferenceError(Failure(FailureKind.TOO_LARGE, message))
        return window.read()

    def _opened(self, key: str) -> int:
        """Of what lies in the folder itself: a key is a name, as for shm_open, with or without a slash in front."""
        name = key.lstrip("/")
        if "/" in name:
            raise _not_opened(key)
        try:
            return os.open(f"{self._folder}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError):  # ValueError: no name of a file can be like this
            raise _not_opened(key) from None


NO_REGIONS = Regions(on=False)


def write_all(outputs: Iterable[tuple[Tensor, Window]]) -> None:
    """Each tensor to its window; nothing, if one is too large for it. Raises InferenceError."""
    outputs = list(outputs)
    for tensor, window in outputs:
        if len(tensor.data) > window.byte_size:
            message = (
                f"shared memory size specified with the request for output '{tensor.name}' ({window.byte_size} bytes) "
                f"should be at least {len(tensor.data)} bytes to hold the results"
            )
            raise InferenceError(Failure(FailureKind.MODEL_FAILED, message))
    for tensor, window in outputs:
        window.write(tensor.data)


def _missing(message: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.NOT_FOUND, message))


def _not_opened(key: str) -> InferenceError:
    return invalid(
        f"Unable to open shared memory region: '{key}': a key names shared memory of the server's own user, without slashes"
    )
