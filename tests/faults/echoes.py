"""Clients that ask a model `m` for a number each, and judge what comes back: `Load`, for tests that break what answers."""

import asyncio

import numpy as np

from tests.clients.raw import Connect, RawConnection, RawReply, binary_infer, binary_output
from tests.clients.server import HANG_S

CLIENTS = 16


class Load:
    """CLIENTS connections that ask again when they are answered, each time for another number to be given back."""

    def __init__(self) -> None:
        self.connections: list[RawConnection] = []
        self.failures: set[str] = set()
        self.answered = 0
        self._asked: dict[RawConnection, float] = {}
        self._enough = asyncio.Event()
        self._wanted = 0
        self._stopping = False

    async def start(self, connect: Connect, port: int) -> None:
        for number in range(CLIENTS):
            connection = await connect(port, self._on_reply)
            self.connections.append(connection)
            self._ask(connection, 1000.0 * number)

    async def more(self, count: int) -> None:
        """Until so many further answers have come."""
        self._wanted = self.answered + count
        self._enough.clear()
        await asyncio.wait_for(self._enough.wait(), HANG_S)

    async def stop(self) -> None:
        """Ask no more; returns when nothing is under way."""
        self._stopping = True
        await self.more(CLIENTS)

    def _ask(self, connection: RawConnection, value: float) -> None:
        self._asked[connection] = value
        connection.send(binary_infer("m", "x", "FP32", np.array([[value]], np.float32)))

    def _on_reply(self, connection: RawConnection, reply: RawReply) -> None:
        value = self._asked[connection]
        if reply.status != 200:
            self.failures.add(f"{reply.status} {reply.json()['error']}")
        elif binary_output(reply, np.float32).tolist() != [[value]]:
            self.failures.add(f"another's answer, or its own a second time: {reply.body!r}")
        self.answered += 1
        if not self._stopping:
            self._ask(connection, value + 1.0)
        if self.answered >= self._wanted:
            self._enough.set()
