"""Digests of files that are not read again while they stay as they are, by later processes either.

Called by fleet/remembered.py and graphs.py, for folders of their own. Not aware of: what the files are.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock
from time import time_ns

import msgspec
from msgspec import Struct

from dlproxy.instance.runtime.content import FileState, digest_of, stamp_of

FRESH_NS = 2 * 10**9
MOST_DIGESTS = 4096
WORTH_BYTES = 2**20  # a smaller file is read as soon as a table of digests
TABLE = "digests"

log = logging.getLogger(__name__)


class Table(Struct, frozen=True):
    """`boot`: in which life of the machine. After a crash a disk may hold other bytes than a file's stamp promises."""

    boot: str
    files: dict[str, FileState]


class Digests:
    """SHA-256 by path. `folder`: where they are kept for other processes; it must be nobody else's (see `is_private`)."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, FileState] = {}
        self._read = False
        self._lock = Lock()

    def of(self, file: str) -> bytes:
        """Raises OSError."""
        file = os.path.abspath(file)
        with self._lock:
            stamp, known = stamp_of(file), self._known().get(file)
            if known is not None and known.stamp == stamp:
                return known.digest
            settled = time_ns() - stamp[-1] > FRESH_NS  # else it may change again within one tick of the file system's clock
            digest = digest_of(file)
            if settled:
                if len(self._files) >= MOST_DIGESTS:
                    self._files.clear()
                self._files[file] = FileState(stamp, digest)
                if stamp[0] >= WORTH_BYTES:
                    self._write()
            return digest

    def _known(self) -> dict[str, FileState]:
        if not self._read and self._folder is not None:
            with suppress(OSError, msgspec.DecodeError):  # then they are read, as the first time
                table = msgspec.msgpack.decode((self._folder / TABLE).read_bytes(), type=Table)
                if boot() and table.boot == boot() and is_private(self._folder):
                    self._files.update(table.files)
        self._read = True
        return self._files

    def _write(self) -> None:
        if self._folder is None or not boot():
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            kept = {file: state for file, state in self._files.items() if state.stamp[0] >= WORTH_BYTES}
            replace(self._folder / TABLE, msgspec.msgpack.encode(Table(boot(), kept)))
        except OSError as error:
            log.debug("digests are not kept in %s: %s", self._folder, error)


def replace(path: Path, data: bytes) -> None:
    """Written in one step, so that whoever reads finds the old or the new. Raises OSError."""
    with NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as file:
        file.write(data)
    os.replace(file.name, path)


def is_private(folder: Path) -> bool:
    """Whether nobody else may write there. Raises OSError."""
    status = folder.stat()
    return not hasattr(os, "geteuid") or (status.st_uid == os.geteuid() and not status.st_mode & 0o022)


def boot() -> str:
    """Which life of the machine this is; empty where the system does not tell (it is no Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
