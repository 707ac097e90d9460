"""A Ray cluster as the server sees it: actors that are placed, nodes that come, drain and go.

Used by instance.py and fleet/ray.py, on the event loop only; Ray itself is in another process (broker.py).
Not aware of: models, batches, connections to actors.
"""

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

from msgspec import Struct

from dlproxy.cores import usable_cores
from dlproxy.instance.process.child import Child
from dlproxy.instance.ray.actor import TOKEN_BYTES
from dlproxy.instance.ray.messages import Apart, Demand, Disband, End, Ended, Join, Joined, Node, Nodes, Place, Placed, Report
from dlproxy.instance.runtime import ModelError

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # of a cluster that we start
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray advises, and warns of each time
    "RAY_DEDUP_LOGS": "0",
}

LEFT_S = 15.0

log = logging.getLogger(__name__)


class Seat(Struct, eq=False):
    """One actor, from the order until it is gone. `token`: opens its connection. `placed`: where it listens.

    `on_gone` and `on_leaving` are called with the reason: it has ended, or its node will.
    """

    number: int
    token: bytes
    demand: Demand
    placed: "asyncio.Future[Placed]"
    on_gone: Callable[[str], None]
    on_leaving: Callable[[str], None]
    told: bool = False  # that its node leaves


class Cluster:
    """The cluster at one address, joined when the first actor is wanted."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.nodes: Sequence[Node] = ()
        self.users = 0
        self._child: Child | None = None
        self._joining: asyncio.Future[Joined] | None = None
        self._ended: asyncio.Event = asyncio.Event()
        self._seats: dict[int, Seat] = {}
        self._numbers = 0
        self._apart = ""  # what it said at last
        self._folder = ""  # of a cluster of our own

    @property
    def pid(self) -> int | None:
        """Of the process that holds the Ray client, while there is one."""
        return None if self._child is None else self._child.pid

    async def join(self) -> None:
        """Raises ModelError."""
        if self._joining is None or (self._joining.done() and self._child is None):
            self._begin()
        assert self._joining is not None
        await asyncio.shield(self._joining)

    async def place(
        self, name: str, demand: Demand, *, on_gone: Callable[[str], None], on_leaving: Callable[[str], None]
    ) -> tuple[Seat, Placed]:
        """An actor that listens. Waits until there is a node for it, until cancelled. Raises ModelError."""
        await self.join()
        if self._child is None:
            raise ModelError("the process that holds the Ray client has ended")
        self._numbers += 1
        token = secrets.token_bytes(TOKEN_BYTES)
        placed: asyncio.Future[Placed] = asyncio.get_running_loop().create_future()
        seat = self._seats[self._numbers] = Seat(self._numbers, token, demand, placed, on_gone, on_leaving)
        self._child.send(Place(seat.number, name, token, demand))
        try:
            return seat, await placed
        except BaseException:
            self.end(seat)
            raise

    def end(self, seat: Seat) -> None:
        """Kill the actor, wherever it is; what becomes of it is nobody's matter any more."""
        if self._seats.pop(seat.number, None) is not None and self._child is not None:
            self._child.send(End(seat.number))

    def disband(self, group: str) -> None:
        """Give back the places of a placement group."""
        if self._child is not None:
            self._child.send(Disband(group))

    def leave(self) -> None:
        """End every actor that is left, and the cluster, if it is our own: `left` waits until that is so."""
        if self._child is not None:
            self._child.hang_up()

    async def left(self) -> None:
        """When that is so, or Ray does not come to an end."""
        if self._child is None:
            return
        try:
            async with asyncio.timeout(LEFT_S):
                await self._ended.wait()
        except TimeoutError:
            log.warning("Ray: the process that holds its client did not end within %g s, and is left to itself", LEFT_S)

    # What there is

    def room(self, demand: Demand) -> int:
        """Actors for which the nodes of now are large enough, whatever else runs there."""
        wanted = demand.amounts()
        stay = [node for node in self.nodes if node.leaves_at is None]
        return int(
            sum([min([node.resources.get(name, 0.0) // amount for name, amount in wanted.items()], default=0) for node in stay])
        )

    def why_not(self, demand: Demand) -> str:
        """What a demand waits for that has no place yet, in words."""
        wanted = demand.amounts()
        asked = _in_words(wanted) or "nothing"
        if not self.nodes:
            return "Ray, which has not come up yet"
        if self.room(demand) or not wanted:
            return f"a node with {asked}: every node that has it is in use, and waits for one that ends, or for another node"
        most = {name: max([node.resources.get(name, 0.0) for node in self.nodes]) for name in wanted}
        return f"a node with {asked}: no node has that ({len(self.nodes)} nodes; the most that one has: {_in_words(most)})"

    # What the broker says

    def _begin(self) -> None:
        if find_spec("ray") is None:
            raise ModelError("run = 'ray' needs Ray, which is not installed; try: pip install 'dlproxy[ray]'")
        self._joining = asyncio.get_running_loop().create_future()
        self._joining.add_done_callback(lambda joining: joining.cancelled() or joining.exception())  # whoever waits has gone
        self._ended = asyncio.Event()
        self._apart = ""
        try:
            self._child = Child(
                "ray",
                [],
                environment=ENVIRONMENT,
                on_report=self._on_report,
                on_exit=self._on_exit,
                module="dlproxy.instance.ray.broker",
                kinds=Report,
                level=logging.DEBUG,  # of what Ray prints; what matters of it is told in words
            )
        except OSError as error:
            raise ModelError(f"cannot start a process for Ray: {error}") from error
        self._child.send(Join(self.address, usable_cores()))

    def _on_report(self, report: Report) -> None:
        if isinstance(report, Nodes):
            self._on_nodes(report)
        elif isinstance(report, Placed):
            seat = self._seats.get(report.number)
            if seat is not None and not seat.placed.done():
                seat.placed.set_result(report)
                self._look_at(seat)
        elif isinstance(report, Ended):
            seat = self._seats.pop(report.number, None)
            if seat is not None:
                _gone(seat, report.reason)
        elif isinstance(report, Apart):
            self._apart = report.reason
            self._refuse(report.reason)
        elif self._joining is not None and not self._joining.done():
            log.info(
                "Ray: %s", "started a cluster on this machine" if report.folder else f"joined the cluster ({self.address})"
            )
            self._folder = report.folder
            self._joining.set_result(report)

    def _refuse(self, reason: str) -> None:
        if self._joining is not None and not self._joining.done():
            self._joining.set_exception(ModelError(f"Ray cannot be used (ray_address = {self.address!r}): {reason}"))

    def _on_nodes(self, report: Nodes) -> None:
        before = {node.name: node for node in self.nodes}
        self.nodes = report.nodes
        for name in before.keys() - {node.name for node in self.nodes}:
            log.warning("Ray: node %s (%s) is gone", before[name].host, name[:8])
        for seat in list(self._seats.values()):
            self._look_at(seat)

    def _look_at(self, seat: Seat) -> None:
        """Whether its node is there, and stays."""
        if not seat.placed.done() or seat.placed.cancelled() or seat.placed.exception() is not None:
            return
        name = seat.placed.result().node
        node = next((node for node in self.nodes if node.name == name), None)
        if node is None and self.nodes:
            self._seats.pop(seat.number, None)
            _gone(seat, "Ray has given its node up")
        elif node is not None and node.leaves_at is not None and not seat.told:
            seat.told = True
            seat.on_leaving(f"its node ({node.host}) {_when(node.leaves_at)}")

    def _on_exit(self, how: str) -> None:
        assert self._child is not None
        said = f"; the last that it said: {self._child.last_words}" if self._child.last_words else ""
        self._child = None
        self._ended.set()
        shutil.rmtree(self._folder, ignore_errors=True)  # what the broker could not
        self._folder = ""
        reason = self._apart or f"the process that holds the Ray client has ended: {how}{said}"
        self._refuse(reason)
        if self.users:
            log.warning("Ray: %s", reason)
        seats, self._seats, self.nodes = list(self._seats.values()), {}, ()
        for seat in seats:
            if not seat.placed.done():  # of others their connections tell: where the head is gone, they go on for a while
                _gone(seat, reason)


def _gone(seat: Seat, reason: str) -> None:
    if not seat.placed.done():
        seat.placed.set_exception(ModelError(f"Ray could not start its actor: {reason}"))
    elif not seat.placed.cancelled():
        seat.on_gone(reason)


def _in_words(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items())


def _when(leaves_at: float) -> str:
    return f"will be gone at {datetime.fromtimestamp(leaves_at, UTC):%H:%M:%S} UTC" if leaves_at else "drains"


_clusters: WeakKeyDictionary[Any, dict[str, Cluster]] = WeakKeyDictionary()  # by event loop: one client for all models


def enter(address: str) -> Cluster:
    """The cluster at an address, shared by all that enter it; each must `depart`."""
    clusters = _clusters.setdefault(asyncio.get_running_loop(), {})
    cluster = clusters.setdefault(address, Cluster(address))
    cluster.users += 1
    return cluster


def depart(cluster: Cluster) -> bool:
    """The last one out leaves the cluster. Whether it was that one."""
    cluster.users -= 1
    if not cluster.users:
        clusters = _clusters.get(asyncio.get_running_loop(), {})
        if clusters.get(cluster.address) is cluster:
            del clusters[cluster.address]
        cluster.leave()
    return not cluster.users
