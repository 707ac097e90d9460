"""Runs batches in an actor of Ray, on whichever node has what it takes; tensors go there directly.

Started and stopped by fleet/supervisor.py, given batches by serve/driver.py. Not aware of: other instances, restarts.
"""

import asyncio
import logging
from collections.abc import Callable

from msgspec import Struct

import dlproxy
from dlproxy.hosts import authority
from dlproxy.instance.process.instance import Peer, ProcessInstance, WorkerSettings
from dlproxy.instance.ray.buffers import Arrived, Buffer
from dlproxy.instance.ray.cluster import Cluster, Seat
from dlproxy.instance.ray.connection import Connection
from dlproxy.instance.ray.messages import Demand, Placed
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.specs import PythonSpec

CONNECT_S = 10.0
EXPLAIN_S = 5.0  # of waiting for a node, after which the log says for what

log = logging.getLogger(__name__)


class ActorAddress(Struct, frozen=True):
    """Where an actor listens, for whoever shows instances."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        return authority(self.host, self.port)

    place = authority


class RayInstance(ProcessInstance):
    """As a ProcessInstance, in an actor. `on_leaving` is called on the event loop with the reason when its node drains."""

    def __init__(
        self, name: str, spec: PythonSpec, settings: WorkerSettings | None = None, *, cluster: Cluster, demand: Demand
    ) -> None:
        super().__init__(name, spec, settings)
        self.on_leaving: Callable[[str], None] | None = None
        self.address: ActorAddress | None = None
        self._cluster = cluster
        self._demand = demand
        self._seat: Seat | None = None
        self._waiting = False  # for a node

    async def _open(self) -> Peer:
        self._waiting = True
        await self._cluster.join()
        explain = self._loop.call_later(EXPLAIN_S, self._explain)
        try:
            self._seat, placed = await self._cluster.place(
                self.name, self._demand, on_gone=self._gone, on_leaving=self._tell_leaving
            )
        finally:
            explain.cancel()
        self._waiting = False
        try:
            return await self._connect(self._seat, placed)
        except BaseException:
            self._cluster.end(self._seat)
            raise

    async def _connect(self, seat: Seat, placed: Placed) -> Connection:
        self.address = ActorAddress(placed.host, placed.port)
        if placed.version != dlproxy.__version__:
            raise ModelError(f"its node ({placed.host}) has dlproxy {placed.version}, this server is {dlproxy.__version__}")
        inputs, arrived = Buffer(self._settings.max_slot_bytes), Arrived()
        self._slots, self._outputs = [inputs], arrived

        def make() -> Connection:
            return Connection(seat.token, inputs, arrived, on_report=self._on_report, on_exit=self._hung_up)

        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await self._loop.create_connection(make, placed.host, placed.port)
        except OSError as error:  # TimeoutError is one
            why = error.strerror or "no answer"
            raise ModelError(
                f"{self.name}: its actor listens at {self.address.authority}, which this server cannot reach: {why}"
            ) from error
        return connection

    def _explain(self) -> None:
        log.warning("%s: waits for %s", self.name, self._cluster.why_not(self._demand))

    def _last_words(self) -> str:
        return f"; it waited for {self._cluster.why_not(self._demand)}" if self._waiting else ""

    def _hung_up(self, how: str) -> None:
        if self._seat is not None:
            self._cluster.end(self._seat)
        where = f" on {self.address.host}" if self.address is not None else ""
        self._on_exit(how + where)

    def _gone(self, reason: str) -> None:
        if self._child is not None and not self._ended.is_set():
            self._child.kill(reason)

    def _tell_leaving(self, reason: str) -> None:
        if self.on_leaving is not None:
            self.on_leaving(reason)
