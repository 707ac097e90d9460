"""What runs in an actor, here on a thread, and the instance that talks to it: the contract, and doors that get garbage.

Without Ray; test_ray.py has the same with it.
"""

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest
import uvloop

import dlproxy
from dlproxy.instance.process.instance import WorkerSettings
from dlproxy.instance.process.messages import frame
from dlproxy.instance.ray import actor as actors
from dlproxy.instance.ray import cluster as clusters
from dlproxy.instance.ray.actor import TOKEN_BYTES, ModelActor
from dlproxy.instance.ray.cluster import Cluster, Seat
from dlproxy.instance.ray.instance import RayInstance
from dlproxy.instance.ray.messages import Apart, Demand, End, Ended, Joined, Node, Nodes, Placed
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.testing.instance_contract import RULES, STREAM_RULES, describe
from tests.instance.process_models import WIDE, request
from tests.instance.running import run

TOKEN = b"t" * TOKEN_BYTES


class Threads(Cluster):
    """Actors are threads of this process. `listen`: what stands in an actor's place."""

    version = dlproxy.__version__

    def __init__(self, listen: Callable[[bytes], int] | None = None) -> None:
        super().__init__("local")
        self._listen = listen or _start_actor

    async def join(self) -> None:
        """Nothing is to be joined."""

    async def place(
        self, name: str, demand: Demand, *, on_gone: Callable[[str], None], on_leaving: Callable[[str], None]
    ) -> tuple[Seat, Placed]:
        placed = Placed(1, "127.0.0.1", self._listen(TOKEN), "node", self.version)
        future = asyncio.get_running_loop().create_future()
        future.set_result(placed)
        return Seat(1, TOKEN, demand, future, on_gone, on_leaving), placed


def _start_actor(token: bytes) -> int:
    actor = ModelActor(token, lambda: ("127.0.0.1", "node"))
    _, port, *_ = actor.listen()
    threading.Thread(target=actor.serve, daemon=True).start()
    return port


async def _started(runtime: Runtime) -> RayInstance:
    instance = RayInstance("ray-0", _spec(runtime), cluster=Threads(), demand=Demand())
    await instance.start()
    return instance


def _spec(runtime: Runtime) -> PythonSpec:
    return PythonSpec("dlproxy.testing.instance_contract:rebuild", describe(runtime))


@pytest.mark.parametrize("rule", [*RULES, *STREAM_RULES], ids=lambda rule: rule.__name__)
async def test_rule_holds(rule: Callable[..., object]) -> None:
    await rule(_started)  # type: ignore[misc]


# Doors


def test_only_who_knows_the_token_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "GREETING_S", 0.2)
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"u" * TOKEN_BYTES, TOKEN[:-1]):
        port = _start_actor(TOKEN)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(garbage)
            stranger.settimeout(10.0)
            with socket.create_connection(("127.0.0.1", port)) as server:
                server.sendall(TOKEN)
                assert stranger.recv(1) == b"", "who said something else is hung up on"
                server.shutdown(socket.SHUT_WR)
                server.settimeout(10.0)
                assert server.recv(1) == b"", "an actor ends with its server"


def test_an_actor_that_nobody_comes_to_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "GREETING_S", 0.05)
    actor = ModelActor(TOKEN, lambda: ("127.0.0.1", "node"))
    actor.listen()
    with pytest.raises(TimeoutError):
        actor.serve()


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"\xff\xff\xff\xff", "not a message"),
        (b"\x03\x00\x00\x00\xc1\xc1\xc1", "not a message"),
        (frame(Joined("/tmp")), "not a message"),
        (b"", "connection to its actor ended"),
    ],
)
async def test_an_actor_that_talks_nonsense_is_hung_up_on(says: bytes, why: str) -> None:
    def listen(token: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            with listener, listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(says)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

        threading.Thread(target=answer, daemon=True).start()
        return int(listener.getsockname()[1])

    instance = RayInstance("ray-0", PythonSpec("x:y"), cluster=Threads(listen), demand=Demand())
    with pytest.raises(ModelError, match=why):
        await instance.start()


async def test_an_actor_that_cannot_be_reached_is_told_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    instance = RayInstance("ray-0", PythonSpec("x:y"), cluster=Threads(lambda token: int(port)), demand=Demand())
    with pytest.raises(ModelError, match=f"listens at 127.0.0.1:{port}, which this server cannot reach"):
        await instance.start()


async def test_a_node_with_another_version_is_refused() -> None:
    cluster = Threads(lambda token: 1)
    cluster.version = "0.0.1"
    with pytest.raises(ModelError, match=r"its node \(127\.0\.0\.1\) has dlproxy 0\.0\.1, this server is"):
        await RayInstance("ray-0", PythonSpec("x:y"), cluster=cluster, demand=Demand()).start()


async def test_a_model_that_does_not_load_says_why_in_its_own_words() -> None:
    instance = RayInstance("ray-0", PythonSpec("dlproxy.nowhere:x"), cluster=Threads(), demand=Demand())
    with pytest.raises(ModelError, match=r"No module named 'dlproxy\.nowhere'"):
        await instance.start()


async def test_what_is_too_large_is_an_error_of_its_batch() -> None:
    settings = WorkerSettings(max_slot_bytes=1 << 16)
    spec = PythonSpec("tests.instance.process_models:Moody")
    instance = RayInstance("ray-0", spec, settings, cluster=Threads(), demand=Demand())
    await instance.start()
    for large in (request(float(WIDE)), request(1.0, width=1 << 15)):
        result = await run(instance, large)
        assert result.error is not None
        assert "max_slot_bytes" in result.error
    assert (await run(instance, request(2.0))).outputs[0].tolist() == [[4.0, 4.0]]
    await instance.stop()


def test_megabytes_arrive_whole_on_every_event_loop() -> None:
    async def there_and_back() -> None:
        instance = RayInstance("ray-0", PythonSpec("tests.instance.process_models:Moody"), cluster=Threads(), demand=Demand())
        await instance.start()
        for _ in range(3):
            (output,) = (await run(instance, request(3.0, rows=64, width=5000), request(4.0, width=5000))).outputs
            assert output.shape == (65, 5000)
            assert (output[:64] == 6.0).all()
            assert (output[64] == 8.0).all()
        await instance.stop()

    for factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(there_and_back())


# What the cluster is seen as


class Broker:
    """Stands where the process with the Ray client would."""

    last_words = ""

    def __init__(self) -> None:
        self.orders: list[object] = []

    def send(self, order: object) -> None:
        self.orders.append(order)


def _node(name: str, leaves_at: float | None = None, **resources: float) -> Node:
    return Node(name, f"host-{name}", resources, leaves_at)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> tuple[Cluster, Broker]:
    """A cluster of two nodes."""
    cluster, broker = Cluster("auto"), Broker()

    async def join() -> None: ...

    monkeypatch.setattr(cluster, "join", join)
    monkeypatch.setattr(cluster, "_child", broker)
    cluster._on_report(Nodes([_node("a", CPU=4.0), _node("b", CPU=2.0, GPU=1.0)]))
    return cluster, broker


@pytest.mark.parametrize(
    ("demand", "room", "why"),
    [
        (Demand(cpus=1), 6, "a node with 1 CPU: every node that has it is in use"),
        (Demand(cpus=2, gpus=0.5), 1, "a node with 2 CPU, 0.5 GPU: every node that has it is in use"),
        (Demand(cpus=3, gpus=1), 0, "no node has that (2 nodes; the most that one has: 4 CPU, 1 GPU)"),
        (Demand(cpus=0, resources={"tpu": 1}), 0, "a node with 1 tpu: no node has that"),
    ],
)
def test_what_there_is_room_for(joined: tuple[Cluster, Broker], demand: Demand, room: int, why: str) -> None:
    assert joined[0].room(demand) == room
    assert why in joined[0].why_not(demand)


async def test_an_actor_hears_that_its_node_leaves_and_that_it_is_gone(joined: tuple[Cluster, Broker]) -> None:
    cluster, _ = joined
    told: list[str] = []
    placing = asyncio.create_task(cluster.place("m", Demand(), on_gone=told.append, on_leaving=told.append))
    await asyncio.sleep(0)
    cluster._on_report(Placed(1, "host-b", 1, "b", "1"))
    await placing
    leaving = [_node("a", CPU=4.0), _node("b", leaves_at=0.0, CPU=2.0)]
    cluster._on_report(Nodes(leaving))
    cluster._on_report(Nodes([*leaving, _node("c")]))
    assert told == ["its node (host-b) drains"], "once"
    assert cluster.room(Demand()) == 4, "nothing more goes there"
    cluster._on_report(Nodes([_node("a", CPU=4.0)]))
    assert told[1:] == ["Ray has given its node up"]
    cluster._on_report(Ended(1, "killed"))
    assert len(told) == 2, "that is known"


async def test_what_ray_says_of_an_actor_is_why_it_does_not_start_or_is_lost(joined: tuple[Cluster, Broker]) -> None:
    cluster, _ = joined
    told: list[str] = []
    placings = [
        asyncio.create_task(cluster.place("m", Demand(), on_gone=told.append, on_leaving=told.append)) for _ in range(2)
    ]
    await asyncio.sleep(0)
    cluster._on_report(Ended(1, "out of memory"))
    with pytest.raises(ModelError, match="Ray could not start its actor: out of memory"):
        await placings[0]
    cluster._on_report(Placed(2, "host-b", 1, "b", "1"))
    await placings[1]
    cluster._on_report(Ended(2, "out of memory"))
    assert told == ["out of memory"]


async def test_who_has_an_actor_keeps_it_when_the_client_dies(joined: tuple[Cluster, Broker]) -> None:
    cluster, _ = joined
    told: list[str] = []
    placings = [
        asyncio.create_task(cluster.place("m", Demand(), on_gone=told.append, on_leaving=told.append)) for _ in range(2)
    ]
    await asyncio.sleep(0)
    cluster._on_report(Placed(2, "host-b", 1, "b", "1"))
    await placings[1]
    cluster._on_exit("its process was killed by SIGKILL")
    with pytest.raises(ModelError, match="the process that holds the Ray client has ended: its process was killed by SIGKILL"):
        await placings[0]
    assert not told, "its connection tells what becomes of it"
    with pytest.raises(ModelError, match="has ended"):
        await cluster.place("m", Demand(), on_gone=told.append, on_leaving=told.append)


async def test_who_does_not_wait_any_more_has_its_actor_ended(joined: tuple[Cluster, Broker]) -> None:
    cluster, broker = joined
    placing = asyncio.create_task(cluster.place("m", Demand(), on_gone=str, on_leaving=str))
    await asyncio.sleep(0)
    placing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await placing
    assert broker.orders[-1] == End(1)
    cluster._on_report(Placed(1, "host-b", 1, "b", "1"))


async def test_a_cluster_that_cannot_be_joined_says_why(joined: tuple[Cluster, Broker]) -> None:
    cluster, _ = joined
    cluster._joining = asyncio.get_running_loop().create_future()
    cluster._on_report(Apart("no Ray cluster answers at 10.0.0.1:6379"))
    with pytest.raises(ModelError, match=r"ray_address = 'auto'\): no Ray cluster answers at 10.0.0.1:6379"):
        await cluster._joining


async def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'dlproxy\[ray\]'"):
        await Cluster("auto").join()
