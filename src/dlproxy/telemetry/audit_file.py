"""The audit log as a file of JSON lines, which is put aside when it is large. A handler of logging, set up by cli/logs.py.

Not aware of: who writes what.
"""

import fcntl
import json
import logging
import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dlproxy.telemetry.event_log import LogError

log = logging.getLogger(__name__)


class AuditFile(logging.Handler):
    """Readable for its owner alone. At `most_bytes` it becomes FILE.1, of which FILE.`keep` is the oldest that is kept.

    Several processes may write to it: each line is one append, and whoever puts the file aside holds a lock on it. When it
    cannot be written, that is logged once, records are counted, and the number is written when it can be again.
    """

    def __init__(self, path: Path, most_bytes: int, keep: int) -> None:
        """Raises LogError."""
        super().__init__()
        self._path, self._most_bytes, self._keep = path, most_bytes, keep
        self._lost = 0
        self._torn = False
        try:
            self._file = self._opened()
        except OSError as error:
            raise LogError(f"the audit log {path} cannot be written: {error.strerror or error}") from None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                self._write(self._line(record.created, {"outcome": f"{self._lost} records could not be written"}))
                log.warning("the audit log is written again; %d records are missing", self._lost)
                self._lost = 0
            self._write(self._line(record.created, getattr(record, "request", {"what": record.getMessage()})))
        except OSError as error:
            if not self._lost:
                log.error("the audit log %s cannot be written: %s", self._path, error.strerror or error)
            self._lost += 1

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        super().close()

    @staticmethod
    def _line(created: float, told: dict[str, str]) -> bytes:
        time = datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return json.dumps({"time": time, **told}).encode() + b"\n"

    def _write(self, line: bytes) -> None:
        if self._follow() + len(line) > self._most_bytes:
            self._put_aside()
        if self._torn:  # by a disk that was full in the midst of a line
            line = b"\n" + line
        written = os.write(self._file, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError("no room for a whole line")

    def _opened(self) -> int:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            state = os.fstat(file)
            if not stat.S_ISREG(state.st_mode):
                raise OSError("it is no ordinary file")
            if state.st_mode & 0o077:
                os.fchmod(file, 0o600)
        except BaseException:
            os.close(file)
            raise
        return file

    def _follow(self) -> int:
        """The size of the file that has the name now: it may have been put aside, by another process or an operator."""
        mine = os.fstat(self._file)
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            named = None
        if named is None or (named.st_ino, named.st_dev) != (mine.st_ino, mine.st_dev):
            fresh = self._opened()
            os.close(self._file)
            self._file, self._torn = fresh, False
            return os.fstat(fresh).st_size
        return mine.st_size

    def _put_aside(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process does it now; this line may go to the old file
            return
        named = os.stat(self._path)
        if named.st_ino == os.fstat(self._file).st_ino:
            for number in range(self._keep, 0, -1):
                older = self._path if number == 1 else self._numbered(number - 1)
                with suppress(FileNotFoundError):
                    os.replace(older, self._numbered(number))
            if not self._keep:
                os.unlink(self._path)
        self._follow()  # the lock goes with the old file

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
