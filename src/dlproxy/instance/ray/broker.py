"""The process that holds a server's Ray client, so that whatever becomes of Ray's core never becomes of the server.

Started by cluster.py as `python -m dlproxy.instance.ray.broker SOCKET`; the one file that imports Ray. When the socket closes
it ends, and with it every actor and a cluster that was started here. Not aware of: models, batches.
"""

import os
import re
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

import ray
from ray._private.state import state  # what Ray's own libraries ask which nodes drain; there is no public name for it
from ray.job_config import JobConfig
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from dlproxy.instance.process.messages import Frames, frame
from dlproxy.instance.ray.actor import ModelActor
from dlproxy.instance.ray.messages import (
    Apart,
    Demand,
    End,
    Ended,
    Join,
    Joined,
    Node,
    Nodes,
    Order,
    Place,
    Placed,
    Report,
)
from dlproxy.message import text_of

LOOK_S = 1.0  # between two looks at the nodes
REACH_S = 5.0  # for a head that does not answer at all
LEAVE_S = 60.0  # for Ray to come up, if it was about to, and to shut down: ended sooner, some of it stays
STORE_BYTES = 80 * 2**20  # of a cluster of our own: about the least that Ray takes, for no tensor goes through it
NO_WORDS = ("class_name:", "actor_id:", "pid:", "namespace:", "ip:", "name:", "ray::", "File ")  # at the beginning of a line
MOST_CHARS = 1000
CORE_RESOURCES = ("memory", "object_store_memory")  # that every node has, and nobody asks for here


def here() -> tuple[str, str]:
    """In an actor: its node's address and name."""
    return get_node_ip_address(), ray.get_runtime_context().get_node_id()


class Broker:
    """Carries out orders, and says what has come of them. All that it asks of Ray it asks on one thread: Ray's own, which know
    first that something is done, must not wait for more.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.folder = ""  # of a cluster of our own
        self._socket = connection
        self._news: deque[tuple[Callable[[int, Future[Any]], None], int, Future[Any]]] = deque()
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._actors: dict[int, Any] = {}
        self._groups: dict[str, PlacementGroup] = {}
        self._known: Nodes | None = None
        self._looked_at = 0.0
        self._home = ""  # the node that this runs on

    def run(self) -> None:
        """Until the server has gone."""
        frames = Frames(Order)
        while True:
            ready, _, _ = select.select([self._socket, self._woken], [], [], LOOK_S)
            if self._woken in ready:
                self._woken.recv(1 << 16)
            while self._news:
                tell, number, future = self._news.popleft()
                tell(number, future)
            if self._socket in ready:
                data = self._socket.recv(1 << 16)
                if not data:
                    return
                for order in frames.feed(data):
                    self._carry_out(order)
            if self._known is not None and monotonic() - self._looked_at >= LOOK_S:
                self._look()

    def _carry_out(self, order: Order) -> None:
        if isinstance(order, Join):
            join(order, self._make_folder)
            ignore_signals()  # Ray has set its own
            self._home = ray.get_runtime_context().get_node_id()
            self.say(Joined(self.folder))
            self._look()
        elif isinstance(order, Place):
            try:
                self._place(order)
            except Exception as error:  # what Ray does not take of a demand; it says why
                self.say(Ended(order.number, text_of(error)))
        elif isinstance(order, End):
            actor = self._actors.pop(order.number, None)
            if actor is not None:
                ray.kill(actor)
        elif order.group in self._groups:
            remove_placement_group(self._groups.pop(order.group))

    def _make_folder(self) -> str:
        self.folder = tempfile.mkdtemp(prefix="dlp-ray-")  # short, for there will be paths of sockets in it
        return self.folder

    def say(self, report: Report) -> None:
        """A server that has gone is noticed by `run`."""
        with suppress(OSError):
            self._socket.sendall(frame(report))

    # Actors

    def _place(self, order: Place) -> None:
        demand, number = order.demand, order.number
        options = {
            "num_cpus": demand.cpus,
            "num_gpus": demand.gpus,
            "resources": dict(demand.resources),
            "scheduling_strategy": self._strategy(demand),
            "max_restarts": 0,  # the server starts another, which loads the same model
        }
        actor = self._actors[number] = ray.remote(ModelActor).options(**options).remote(order.token, here)
        self._when_done(actor.listen.remote(), self._listens, number)

    def _strategy(self, demand: Demand) -> Any:
        """A name, or a place in the group, which waits with it for the resources of all."""
        if not demand.group:
            return demand.strategy
        if demand.group not in self._groups:
            bundle = {"CPU": 0.001, **demand.amounts()}  # Ray takes none that is empty
            self._groups[demand.group] = placement_group([bundle] * demand.bundles, strategy=demand.strategy)
        return PlacementGroupSchedulingStrategy(self._groups[demand.group], placement_group_bundle_index=demand.bundle)

    def _listens(self, number: int, future: "Future[tuple[str, int, str, str]]") -> None:
        actor = self._actors.get(number)
        if actor is None:
            return
        if future.exception() is None:
            self.say(Placed(number, *future.result()))
            self._when_done(actor.serve.remote(), self._ended, number)
        else:
            self._ended(number, future)

    def _ended(self, number: int, future: "Future[Any]") -> None:
        error = future.exception()
        actor = self._actors.pop(number, None)
        if actor is None:
            return
        if error is None:
            ray.kill(actor)
        self.say(Ended(number, "it ended by itself" if error is None else _in_short(error)))

    def _when_done(self, reference: Any, tell: Callable[[int, "Future[Any]"], None], number: int) -> None:
        def news(future: "Future[Any]") -> None:
            self._news.append((tell, number, future))
            with suppress(BlockingIOError):  # it is awake
                self._wake.send(b".")

        reference.future().add_done_callback(news)

    # Nodes

    def _look(self) -> None:
        self._looked_at = monotonic()
        try:
            nodes = _nodes()
        except Exception as error:  # of many kinds, while the head is away
            sys.stderr.write(f"Ray does not say which nodes there are: {_in_short(error)}\n")
            return
        if self._home not in [node.name for node in nodes.nodes]:
            raise ConnectionError("the cluster has given up the node of this machine, and with it what was started from here")
        if nodes != self._known:
            self._known = nodes
            self.say(nodes)


def _nodes() -> Nodes:
    """Those that live."""
    leaving: Mapping[str, int] = state.get_draining_nodes()
    return Nodes(
        [
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                {
                    name: amount
                    for name, amount in sorted(node["Resources"].items())
                    if name not in CORE_RESOURCES and not name.startswith("node:")
                },
                leaving[node["NodeID"]] / 1000 if node["NodeID"] in leaving else None,
            )
            for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"]))
            if node["Alive"]
        ]
    )


def _in_short(error: BaseException) -> str:
    """Ray's words without colours, the traceback and the list of what it knows of the actor."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in text_of(error).splitlines()]
    said = " ".join([line for line in lines if line.strip("^~ ") and not line.startswith(NO_WORDS)])[:MOST_CHARS]
    lacks = re.search(r"No module named '(dlproxy[^']*)'", said)
    if lacks is not None:
        return f"No module named '{lacks[1]}' on that node: every node needs dlproxy, of the same version as here"
    return said


def join(order: Join, make_folder: Callable[[], str]) -> None:
    """`make_folder`: for the files of a cluster of our own, if it comes to that. Raises ConnectionError, or what Ray does."""
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "namespace": "dlproxy",
        "job_config": JobConfig(_py_driver_sys_path=[path for path in reversed(sys.path) if path]),  # each goes to the front
    }
    address = os.environ.get("RAY_ADDRESS", "auto") if order.address == "auto" else order.address
    if address not in ("auto", "local"):
        _reach(address)
    if address != "local":
        try:
            ray.init(address=address, **common)
            return
        except ConnectionError:
            if address != "auto":
                raise
    common["_temp_dir"] = make_folder()
    ray.init(address="local", num_cpus=order.cores, include_dashboard=False, object_store_memory=STORE_BYTES, **common)


def _reach(address: str) -> None:
    """Raises ConnectionError where nobody listens, which Ray takes minutes to find out, and ends the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error.strerror or error}") from None


def ignore_signals() -> None:
    """They are for the server, which drains first. By handlers: what is started here would inherit that they are ignored."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def _end_in_time(connection: socket.socket, broker: Broker) -> None:
    """When the server has gone: Ray waits long, to begin and to end, for a cluster that is none."""
    gone = select.poll()
    gone.register(connection, getattr(select, "POLLRDHUP", select.POLLHUP))
    gone.poll()
    sleep(LEAVE_S)
    shutil.rmtree(broker.folder, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Runs until the server goes away."""
    ignore_signals()
    os.chdir("/")  # for Ray lets actors import what lies in this folder, before all else
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    broker = Broker(connection)
    threading.Thread(target=_end_in_time, args=(connection, broker), daemon=True).start()
    try:
        broker.run()
    except Exception as error:
        broker.say(Apart(_in_short(error)))
    ray.shutdown()
    shutil.rmtree(broker.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
