"""A Unix socket to listen on in place of a TCP port: a stale file is replaced, and the file goes when the server does.

Called by serve/server.py. Not aware of: what is served on it.
"""

import errno
import os
import socket
import stat
from contextlib import suppress

BACKLOG = 1024
PATIENCE_S = 1.0  # for an answer from whoever listens already


class UnixSocket:
    """Listens from the start: a bound socket that does not yet is told apart from a stale one by nobody.

    Raises OSError, whose text is for the operator.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
            self.listener.listen(BACKLOG)
        except OSError:
            self.listener.close()
            raise
        self._file = os.stat(self.path)

    def _bind(self) -> None:
        try:
            self.listener.bind(self.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(self.path)
            self.listener.bind(self.path)

    def remove(self) -> None:
        """Remove the file, unless it has become another server's."""
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), self._file):
                os.unlink(self.path)


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise OSError(errno.EEXIST, "a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PATIENCE_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (BlockingIOError, TimeoutError):  # it is there, with a full backlog
            pass
    raise OSError(errno.EADDRINUSE, "another server is listening there")
