"""Instances on a real Ray cluster of several node processes: the contract, and what is lost with an actor or a node: nothing.

`make prove-ray` has the longer form of the second: DLPROXY_RAY_KILLS nodes, one after the other.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from dlproxy.config import ModelConfig
from dlproxy.fleet.start import start_fleet
from dlproxy.instance.process.instance import WorkerSettings
from dlproxy.instance.ray.cluster import Cluster, depart, enter
from dlproxy.instance.ray.instance import RayInstance
from dlproxy.instance.ray.messages import Demand
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.testing.instance_contract import RULES, STREAM_RULES, describe
from tests.clients.raw import Connect
from tests.clients.server import HANG_S, ServerProcess, write_config
from tests.faults.echoes import CLIENTS, Load
from tests.instance.ray_cluster import LocalCluster

pytestmark = pytest.mark.extras

KILLS = int(os.environ.get("DLPROXY_RAY_KILLS", "1"))
BETWEEN = 20 * CLIENTS


@pytest.fixture(scope="module")
def ray() -> Iterator[LocalCluster]:
    """A head that computes nothing, and two nodes of two CPUs each."""
    with LocalCluster(nodes=3, cpus=2, head_cpus=0) as cluster:
        yield cluster


async def test_every_rule_holds_on_actors(ray: LocalCluster) -> None:
    cluster = enter(ray.address)
    starting = asyncio.Semaphore(8)

    async def make(runtime: Runtime) -> RayInstance:
        spec = PythonSpec("dlproxy.testing.instance_contract:rebuild", describe(runtime))
        instance = RayInstance("ray-0", spec, cluster=cluster, demand=Demand(cpus=0.01))
        async with starting:
            await instance.start()
        return instance

    await asyncio.gather(*(rule(make) for rule in (*RULES, *STREAM_RULES)))
    await asyncio.to_thread(_until, lambda: not ray.actors())
    depart(cluster)
    await cluster.left()


async def test_who_waits_for_a_node_is_seen_by_the_autoscaler_and_told_why_it_did_not_come(ray: LocalCluster) -> None:
    nowhere = Cluster("127.0.0.1:1")
    with pytest.raises(ModelError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: Connection refused"):
        await nowhere.join()
    cluster = enter(ray.address)
    await cluster.join()
    settings, demand = WorkerSettings(start_timeout_s=4.0), Demand(resources={"tpu": 4.0})
    greedy = RayInstance("ray-0", PythonSpec("x:y"), settings, cluster=cluster, demand=demand)
    starting = asyncio.create_task(greedy.start())
    await asyncio.to_thread(_until, lambda: {"CPU": 1.0, "tpu": 4.0} in ray.wanted())
    with pytest.raises(ModelError, match=r"within 4 s .*; it waited for a node with 1 CPU, 4 tpu: no node has that \(3 nodes"):
        await starting
    await asyncio.to_thread(_until, lambda: not ray.wanted())
    depart(cluster)
    await cluster.left()


async def test_a_group_has_each_on_another_node_and_does_not_grow(ray: LocalCluster) -> None:
    config = ModelConfig(path="sleep:base=1ms", run="ray", ray_address=ray.address, instances=2, ray_placement="strict-spread")
    fleet = await start_fleet("m", config)
    assert {actor["node"] for actor in ray.actors()} == {node["name"] for node in ray.nodes[1:]}
    with pytest.raises(ModelError, match="placement group of 2 instances does not grow"):
        await fleet.scale(3)
    await fleet.scale(1)
    await asyncio.to_thread(_until, lambda: len(ray.actors()) == 1)
    await fleet.stop()
    assert not ray.groups()


async def test_killed_actors_killed_nodes_and_drained_nodes_cost_no_request(
    ray: LocalCluster, connect: Connect, tmp_path: Path
) -> None:
    settings = {
        "path": "sleep:base=5ms",
        "run": "ray",
        "ray_address": ray.address,
        "instances": 2,
        "outage_wait_s": HANG_S,
    }
    with ServerProcess("--config", write_config(tmp_path / "dlproxy.toml", {"m": settings})) as server:
        load = Load()
        await load.start(connect, server.http_port)
        await load.more(BETWEEN)
        victim = ray.actors()[0]
        os.kill(victim["pid"], signal.SIGKILL)
        await load.more(BETWEEN)
        await asyncio.to_thread(_until, lambda: _on(ray) and victim not in ray.actors() and _up(server) == 2)
        for _ in range(KILLS):
            node = next(node for node in ray.nodes[1:] if node["name"] in _on(ray))
            await asyncio.to_thread(ray.kill, node)
            await load.more(BETWEEN)
            await asyncio.to_thread(_until, lambda name=node["name"]: name not in _on(ray) and _up(server) == 2)
            await asyncio.to_thread(ray.add, 2)
        leaving = _on(ray)[0]
        lost = server.errors().count("lost:")
        await asyncio.to_thread(ray.drain, next(node for node in ray.nodes if node["name"] == leaving), HANG_S)
        await asyncio.to_thread(_until, lambda: leaving not in _on(ray) and _up(server) == 2)
        await load.more(BETWEEN)
        await load.stop()
        assert load.failures == set()
        assert all(connection.sent == connection.received for connection in load.connections)
        assert server.errors().count("lost:") == lost, "who leaves a node that drains is not lost"
        assert server.stop() == 0
    assert ray.actors() == []


def _on(ray: LocalCluster) -> list[str]:
    """The nodes on which there is an actor."""
    return [actor["node"] for actor in ray.actors()]


def _up(server: ServerProcess) -> int:
    return sum(instance["state"] == "up" for instance in server.instances("m"))


def _until(condition: Callable[[], object]) -> None:
    """Ask again until it holds; each look is a request to the server or to Ray, which paces the loop."""
    deadline = monotonic() + HANG_S
    while not condition():
        assert monotonic() < deadline, "it did not come to that"
