"""A worker that another process has started, and lends: reached over its Unix socket, with slots that are ours.

Made by instance.py and fleet/lent.py. Not aware of: batches, who else uses the worker, whose turn it is.
"""

import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence

from dlproxy.instance.process.child import WorkerLine, open_pidfd
from dlproxy.instance.process.messages import Report

CONNECT_S = 1.0  # a worker that runs a batch accepts when that is done; the kernel connects us at once


class LentWorker(WorkerLine):
    """`on_exit`, once, when it is gone or has been given back. Raises OSError while there is none."""

    last_words = ""

    def __init__(
        self, path: str, name: str, slots: Sequence[int], on_report: Callable[[Report], None], on_exit: Callable[[str], None]
    ) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_S)
            connection.connect(path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.pid: int = struct.unpack("3i", credentials)[0]
            self._pidfd = open_pidfd(self.pid)
        except OSError:
            connection.close()
            raise
        self._slots = list(slots)
        self._on_exit = on_exit
        super().__init__(name, connection, on_report)

    @staticmethod
    def probe(path: str) -> None:
        """Raises OSError where no worker listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CONNECT_S)
            connection.connect(path)

    def kill(self, reason: str) -> None:
        """Whoever has started it starts another."""
        self._killed_because = self._killed_because or reason
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _sent(self, data: bytes) -> int:
        slots, self._slots = self._slots, []
        return socket.send_fds(self._socket, [data], slots) if slots else self._socket.send(data)

    def _disconnected(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._on_exit(self._killed_because or "its process has ended")
