"""`dlproxy serve` as a child process: started, waited for, asked where it listens, ended. Called by demo.py and lab/evaluate.

It has a session of its own: Ctrl-C in the terminal reaches the parent, which ends it. Not aware of: models, load.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from select import select
from time import monotonic

from msgspec import Struct

from dlproxy.hosts import authority, plain_host

START_S = 60.0  # far beyond a slow machine's second or two: only a server that hangs takes longer
STOP_S = 10.0
LOOK_S = 0.1
USER_ERROR = 2  # the exit code of a server that its user can mend


class ServerError(Exception):
    """The server did not start; `mendable`: by whoever wrote the command."""

    def __init__(self, message: str, *, mendable: bool = False) -> None:
        super().__init__(message)
        self.mendable = mendable


class Addresses(Struct):
    """Where a server listens."""

    host: str
    http_port: int
    control_port: int

    @property
    def http(self) -> str:
        return f"http://{authority(self.host, self.http_port)}"

    @property
    def control(self) -> str:
        return f"http://{authority(self.host, self.control_port)}"


class ChildServer:
    """Starting when made. `about`: what it said of its models; `ready_s`: seconds from its start until it was ready."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self._started_at = monotonic()
        command = [sys.executable, "-m", "dlproxy", "serve", *arguments]
        self.process = subprocess.Popen(  # nosec B603 # our own interpreter
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True
        )
        self.about: list[str] = []
        self.ready_s = 0.0

    def wait_until_ready(self, within_s: float = START_S, wanted: Callable[[], bool] = lambda: True) -> Addresses:
        """Where it listens. Raises ServerError; KeyboardInterrupt once it is not `wanted` any more."""
        report = self._report(within_s, wanted)
        self.ready_s = monotonic() - self._started_at
        found = {
            match[1]: (number, match[2], int(match[3]))
            for number, line in enumerate(report)
            if (match := re.match(r"(inference|metrics) +http://(.+):(\d+)/", line))
        }
        if len(found) != 2:
            raise ServerError("the server did not report its addresses:\n" + "\n".join(report))
        number, host, http_port = found["inference"]
        self.about = report[:number]
        return Addresses(plain_host(host), http_port, found["metrics"][2])

    def tail(self) -> str:
        """The last of what it wrote to stderr."""
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-10:])

    def kill(self) -> None:
        """At once, without a drain."""
        with suppress(ProcessLookupError):
            self.process.kill()

    def end(self) -> None:
        """Let it drain; if that is interrupted or takes too long, kill it."""
        try:
            if self.process.poll() is None:
                self.process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(STOP_S)
        finally:
            self.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self._log.close()

    def _report(self, within_s: float, wanted: Callable[[], bool]) -> list[str]:
        """What it prints up to the line that says it is ready."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        said = b""
        while not re.search(rb"^ready.*\n", said, re.MULTILINE):
            if not wanted():
                raise KeyboardInterrupt
            if monotonic() > self._started_at + within_s:
                raise ServerError(f"the server was not ready after {within_s:g} s\n{self.tail()}")
            if not select([descriptor], [], [], LOOK_S)[0]:
                continue
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                code = self.process.wait()
                raise ServerError(f"the server did not start\n{self.tail()}", mendable=code == USER_ERROR)
            said += piece
        return said.decode(errors="replace").splitlines()
