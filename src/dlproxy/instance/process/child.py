"""A worker process as the operating system sees it: starts it, carries messages, logs its output, notices its end.

Called by instance.py and ray/cluster.py, on the event loop only. Not aware of: batches, models, why it is killed.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.config.secrets import without_secrets
from dlproxy.instance.process.messages import Frames, Report, frame
from dlproxy.instance.process.output import OutputLines

THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)  # read by the libraries when they are loaded, so they must stand in the worker's environment
PIPE_BYTES = 1 << 20  # the most that Linux gives everybody: what a worker may print while the event loop is busy
READ_BYTES = 1 << 16

log = logging.getLogger(__name__)


class WorkerLine:
    """The socket to a worker, from the server's side. `on_report` gets what it says, of `kinds`."""

    def __init__(self, name: str, connection: socket.socket, on_report: Callable[[Any], None], kinds: Any = Report) -> None:
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._on_report: Callable[[Any], None] = on_report
        self._killed_because = ""
        self._frames = Frames(kinds)
        self._socket = connection
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def send(self, order: Struct) -> None:
        """Frames are small and one is under way at a time, so they always fit into the socket's buffer."""
        data = frame(order)
        try:
            sent = self._sent(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has just died: that is noticed by itself, and tells more
            return
        if sent < len(data):
            self.kill(f"takes no orders: a message of {len(data)} bytes did not fit into its socket")

    def hang_up(self) -> None:
        """Say nothing more: it ends when it has read what was said."""
        with suppress(OSError):  # it has just died
            self._socket.shutdown(socket.SHUT_WR)

    def kill(self, reason: str) -> None:
        """End the worker now; `on_exit` gets `reason`. What it still says is ignored."""
        raise NotImplementedError

    def _sent(self, data: bytes) -> int:
        return self._socket.send(data)

    def _disconnected(self) -> None:
        raise NotImplementedError

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._disconnected()
            return
        if self._killed_because:
            return
        try:
            reports = self._frames.feed(data)
        except msgspec.DecodeError as error:
            self.kill(f"sent something that is not a message: {error}")
            return
        for report in reports:
            self._on_report(report)


class Child(WorkerLine):
    """One process that runs `module`. `on_report` gets what it says, of `kinds`, `on_exit`, once, how it ended, after that."""

    def __init__(
        self,
        name: str,
        slots: Sequence[int],
        *,
        environment: Mapping[str, str],
        on_report: Callable[[Any], None],
        on_exit: Callable[[str], None],
        module: str = "dlproxy.instance.process.worker",
        kinds: Any = Report,
        level: int = logging.INFO,
    ) -> None:
        """Raises OSError."""
        self._on_exit = on_exit
        self._level = level  # of what it prints
        self._lines = OutputLines()
        ours, theirs = socket.socketpair()
        self._output, write_end = os.pipe()
        try:
            self._process = _spawn(module, theirs.fileno(), slots, write_end, environment)
        except BaseException:
            ours.close()
            os.close(self._output)
            raise
        finally:
            theirs.close()
            os.close(write_end)
        super().__init__(name, ours, on_report, kinds)
        os.set_blocking(self._output, False)
        self._pidfd = open_pidfd(self._process.pid)
        self._loop.add_reader(self._output, self._output_readable)
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._ended)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last_words(self) -> str:
        """The last lines that it printed, on one line."""
        return " / ".join(self._lines.last)

    def kill(self, reason: str) -> None:
        self._killed_because = self._killed_because or reason
        self._process.kill()

    def _disconnected(self) -> None:
        """It is ending or, with its socket closed, of no more use."""
        self._loop.remove_reader(self._socket.fileno())
        self._process.kill()
        if self._pidfd is None:
            self._loop.run_in_executor(None, self._process.wait).add_done_callback(lambda _: self._ended())

    def _ended(self) -> None:
        if self._process.poll() is None:
            return
        while not self._killed_because and _has_data(self._socket):
            self._readable()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        while self._output_readable():
            pass
        self._loop.remove_reader(self._output)
        os.close(self._output)
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._on_exit(self._killed_because or _how_it_ended(self._process.returncode))

    def _output_readable(self) -> bool:
        """Log what there is; True if there may be more."""
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return False
        for line in self._lines.feed(data, self._loop.time()):
            log.log(self._level, "%s: %s", self.name, line)
        if not data:
            self._loop.remove_reader(self._output)
        return bool(data)


def _spawn(
    module: str, control: int, slots: Sequence[int], output: int, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """On the loop's own thread, for the kernel ends the worker with the thread that started it."""
    if sys.platform == "linux":
        from fcntl import F_SETPIPE_SZ, fcntl

        try:
            fcntl(output, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:  # the user has many pipes already: the usual 64 KiB must do
            log.debug("a worker's pipe stays small")
    paths = [path or os.getcwd() for path in sys.path]
    descriptors = (control, *slots)
    return subprocess.Popen(  # nosec B603 # our own interpreter
        [sys.executable, "-P", "-m", module, *map(str, descriptors)],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        env={**without_secrets(os.environ), "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **environment},
        start_new_session=True,  # Ctrl-C and a terminal that closes are for the server
    )


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where there is none, and the socket must tell."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return None


def _has_data(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"its process ended by itself with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (not by dlproxy: perhaps by the kernel, short of memory)" if -status == signal.SIGKILL else ""
    return f"its process was killed by {name}{hint}"
