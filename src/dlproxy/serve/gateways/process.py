"""One gateway process as its keeper sees it: starts it, carries messages, notices its end.

Made by keeper.py, on the event loop only. Not aware of: other gateways, what is served.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

from msgspec import DecodeError

from dlproxy.instance.process.messages import Frames, frame
from dlproxy.serve.gateways.messages import Order, Report

READ_BYTES = 1 << 16
LINGER_S = 10.0  # for a process that has closed its socket, to end

log = logging.getLogger(__name__)


class GatewayProcess:
    """`on_report` gets what it says. `ended` is done, with its exit status, when it has said all and is gone."""

    def __init__(self, arguments: Sequence[str], descriptors: Sequence[int], on_report: Callable[[Report], None]) -> None:
        """`arguments`: of cli/gateway.py, before that of the socket. Raises OSError."""
        self._on_report = on_report
        ours, theirs = socket.socketpair()
        try:
            passed = (theirs.fileno(), *descriptors)
            self._process = subprocess.Popen(  # nosec B603 # our own interpreter
                [sys.executable, "-P", "-m", "dlproxy.cli.gateway", *arguments, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=passed,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                process_group=0,  # Ctrl-C is for the keeper
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours
        self._sending = asyncio.Lock()
        self.ended = asyncio.get_running_loop().create_task(self._listen(), name=f"dlproxy-gateway-{self.pid}")

    @property
    def pid(self) -> int:
        return self._process.pid

    async def send(self, order: Order) -> None:
        """One that has just died is noticed by itself."""
        with suppress(OSError):
            async with self._sending:
                await asyncio.get_running_loop().sock_sendall(self._socket, frame(order))

    def kill(self) -> None:
        self._process.kill()

    async def _listen(self) -> int:
        loop, frames = asyncio.get_running_loop(), Frames(Report)
        with closing(self._socket):
            try:
                while data := await self._received(loop):
                    for report in frames.feed(data):
                        self._on_report(report)
            except DecodeError as error:
                log.error("gateway process %d sent something that is not a message: %s", self.pid, error)
                self.kill()
        waiting = loop.run_in_executor(None, self._process.wait)
        if not (await asyncio.wait([waiting], timeout=LINGER_S))[0]:
            self.kill()
        return await waiting

    async def _received(self, loop: asyncio.AbstractEventLoop) -> bytes:
        try:
            return await loop.sock_recv(self._socket, READ_BYTES)
        except OSError:
            return b""


def ending(status: int) -> str:
    """In words, what the exit status of a process says of its end."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
