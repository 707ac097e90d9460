"""The server's connection to one actor: orders with the tensors behind them, and what comes back.

Made by instance.py, on the event loop only. Not aware of: Ray, models, batches.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import msgspec
import numpy as np

from dlproxy.instance.process.messages import Done, Order, Report, Run, frame
from dlproxy.instance.process.slots import end_of
from dlproxy.instance.ray.buffers import Arrived, Buffer

HEAD_BYTES = 1 << 16
MOST_FRAME_BYTES = 1 << 24
# What a node says that was switched off is nothing: after so many seconds without an answer of its kernel it counts as gone.
IDLE_S, PROBES, PROBE_S = 5, 3, 2

_reports = msgspec.msgpack.Decoder(Report)


class Connection(asyncio.BufferedProtocol):
    """`on_report` gets what the actor says, `on_exit`, once, why no more will come. `arrived`: outputs, before their Done."""

    pid: int | None = None  # of this machine
    last_words = ""

    def __init__(
        self,
        token: bytes,
        inputs: Buffer,
        arrived: Arrived,
        *,
        on_report: Callable[[Report], None],
        on_exit: Callable[[str], None],
    ) -> None:
        self._token = token
        self._inputs = inputs
        self._arrived = arrived
        self._on_report = on_report
        self._on_exit = on_exit
        self._transport: asyncio.Transport | None = None
        self._killed_because = ""
        self._buffer = memoryview(bytearray(HEAD_BYTES))
        self._head = b""  # of frames that are not complete
        self._done: Done | None = None  # whose outputs are coming
        self._body = memoryview(b"")  # what of them is still to come

    # What the server says

    def send(self, order: Order) -> None:
        assert self._transport is not None
        pieces: list[bytes | memoryview] = [frame(order)]
        if isinstance(order, Run):
            assert self._inputs.memory is not None
            pieces.append(memoryview(self._inputs.memory)[: end_of(order.inputs)])
        self._transport.writelines(pieces)

    def kill(self, reason: str) -> None:
        """Hang up now, upon which the actor ends; `on_exit` gets `reason`. What it still says is ignored."""
        assert self._transport is not None
        self._killed_because = self._killed_because or reason
        self._transport.abort()

    # Of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        _notice_silence(transport.get_extra_info("socket"))
        self._transport.write(self._token)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._body or self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._killed_because:
            return
        if self._body:
            self._body = self._body[nbytes:]
            self._tell()
            return
        self._head += self._buffer[:nbytes]
        try:
            while self._next_frame():
                pass
        except msgspec.DecodeError as error:
            self.kill(f"sent something that is not a message: {error}")

    def _next_frame(self) -> bool:
        length = int.from_bytes(self._head[:4], "little")
        if length > MOST_FRAME_BYTES:
            raise msgspec.DecodeError(f"{length} bytes")
        if len(self._head) < 4 + length or self._body or len(self._head) < 4:
            return False
        report = _reports.decode(self._head[4 : 4 + length])
        self._head = self._head[4 + length :]
        if not isinstance(report, Done) or not report.outputs:
            self._on_report(report)
            return True
        size = end_of(report.outputs)
        if not 0 <= size <= self._inputs.limit + HEAD_BYTES:
            raise msgspec.DecodeError(f"outputs of {size} bytes")
        self._arrived.whole = np.empty(size, np.uint8)
        here, self._head = self._head[:size], self._head[size:]
        self._done, self._body = report, memoryview(self._arrived.whole.data)
        self._body[: len(here)] = here
        self._body = self._body[len(here) :]
        self._tell()
        return True

    def _tell(self) -> None:
        """That a batch is done, if all of it has come."""
        if not self._body and self._done is not None:
            done, self._done = self._done, None
            self._on_report(done)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        cause = f": {error}" if error is not None else ""
        self._on_exit(self._killed_because or f"the connection to its actor ended{cause}")


def _notice_silence(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", IDLE_S), ("TCP_KEEPINTVL", PROBE_S), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of what was sent, which keepalive does not cover
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (IDLE_S + PROBES * PROBE_S) * 1000)
