"""Ways between nodes that are cut, slow or half open, and clocks that differ: no answer is wrong, none comes twice.

`make prove-partitions` runs them for longer, and between network namespaces. Most here are of one process, over a proxy's
ways.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from dlproxy.fleet import upstreams
from dlproxy.instance.remote import RemoteSettings
from dlproxy.serve.server import Server
from tests.clients.server import ServerProcess, asked, write_config
from tests.faults.net import Net
from tests.faults.tiers import ROUNDS, Leaf, Load, Site, instances, site, upstream, when_proving
from tests.fleet.redis_server import RedisServer
from tests.instance.remote_grpc import Way
from tests.serve.caching.redis_nodes import relay

DEADLINE_MS = 400
DEADLINE = f"x-request-deadline-ms: {DEADLINE_MS}"
SKEWED = """
import time

real, wall = time.monotonic, time.time
time.monotonic = lambda: real() + {skew_s}
time.time = lambda: wall() + {skew_s}
"""


@pytest.fixture
async def tiers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """Checks are quick, or a test would take half a minute."""
    quick = partial(RemoteSettings, check_interval_s=0.5, check_timeout_s=0.5, recheck_s=0.02, connect_timeout_s=0.5)
    monkeypatch.setattr(upstreams, "RemoteSettings", quick)
    async with site() as made:
        yield made


async def way_to(leaf: Leaf, stack: AsyncExitStack) -> tuple[Way, str]:
    way = Way(leaf.port)
    await way.start()
    stack.push_async_callback(way.stop)
    return way, leaf.url.replace(str(leaf.port), str(way.port))


def states(front: Server) -> list[str]:
    return [str(place["state"]) for place in instances(front).values()]


async def test_a_peer_that_vanishes_without_a_word(tiers: Site) -> None:
    """Half-open connections: no answer comes after its deadline, and before long all goes to the other."""
    async with AsyncExitStack() as stack:
        lost, other = await tiers.leaf(), await tiers.leaf()
        way, url = await way_to(lost, stack)
        front = await tiers.node(f"{url},{other.url}", batch_timeout_s=2.0)
        load = Load(front, clients=6, headers=(DEADLINE,))
        await load.after(100)
        for _ in range(ROUNDS):
            way.dead = True
            way.cut()
            await load.until(lambda: instances(front)["m-0"]["state"] == "lost")
            late = load.statuses[504] + load.statuses[503]
            await load.after(200)
            assert load.statuses[504] + load.statuses[503] <= late + 6, "but for those that were under way"
            way.dead = False
            way.reset()  # what was cut is closed at last, and new connections pass
            await load.until(lambda: instances(front)["m-0"]["state"] == "up")
            await load.after(50)
        await load.stop()
        assert set(load.statuses) <= {200, 503, 504}
        assert load.statuses[503] + load.statuses[504] < 0.2 * load.statuses[200]
        assert load.slowest_s < 2 * DEADLINE_MS / 1e3, "who names a deadline hears by then, whoever is gone"


async def test_connections_that_a_middlebox_has_forgotten(tiers: Site) -> None:
    """Old ones are silent, new ones pass: the upstream is well, and serves on once a batch's time is over."""
    async with AsyncExitStack() as stack:
        leaf = await tiers.leaf()
        way, url = await way_to(leaf, stack)
        front = await tiers.node(url, batch_timeout_s=0.5)
        load = Load(front, clients=4, headers=(DEADLINE,))
        await load.after(50)
        way.cut()
        await load.after(200)
        await load.stop()
        assert instances(front)["m-0"]["state"] == "up"
        assert load.slowest_s < 2 * DEADLINE_MS / 1e3


async def test_a_front_tier_that_is_split(tiers: Site) -> None:
    """Each front node reaches another half of what is behind; both answer all, and neither believes the other's half gone."""
    async with AsyncExitStack() as stack:
        leaves = [await tiers.leaf() for _ in range(2)]
        ways = [[await way_to(leaf, stack) for leaf in leaves] for _ in range(2)]
        fronts = [await tiers.node(",".join(url for _, url in own), batch_timeout_s=2.0) for own in ways]
        load = Load(*fronts, clients=6)
        await load.after(50)
        for _ in range(ROUNDS):
            for place, own in enumerate(ways):
                own[place][0].refuses = True
                own[place][0].reset()
            await load.until(lambda: [one[place] for place, one in enumerate(map(states, fronts))] == ["lost"] * 2)
            await load.after(200)
            assert [one[1 - place] for place, one in enumerate(map(states, fronts))] == ["up"] * 2
            for place, own in enumerate(ways):
                own[place][0].refuses = False
            await load.until(lambda: states(fronts[0]) == states(fronts[1]) == ["up"] * 2)
        await load.stop()
        assert set(load.statuses) == {200}
        assert all(leaf.seen for leaf in leaves)


@pytest.mark.parametrize("delay_s", [0.020, *when_proving(0.0, 0.005)])
async def test_a_slow_way_is_used_when_the_near_one_is_full(tiers: Site, delay_s: float) -> None:
    """What the way costs is measured over the sockets: with little to do all goes to the near one."""
    near, far = await tiers.leaf(), await tiers.leaf()
    async with relay(far.port) as slow:
        slow.delay_s = delay_s
        front = await tiers.node(f"{near.url},{far.url.replace(str(far.port), str(slow.port))}", balancer="nearest")
        load = Load(front, clients=1)
        await load.after(20)
        for leaf in (near, far):
            leaf.seen.clear()
        await load.after(60)
        if delay_s == 0.020:  # a busy machine is 5 ms late itself
            assert far.seen.total() < 0.5 * near.seen.total()
        await load.stop()
        assert set(load.statuses) == {200}


async def test_a_registry_that_is_cut_off_changes_nothing(tiers: Site, tmp_path: Path) -> None:
    redis = RedisServer(tmp_path)
    try:
        leaves = [await tiers.leaf() for _ in range(2)]
        own = {"registry": redis.url, "group": "g", "refresh_s": 0.2}
        behind = [await tiers.node(upstream(leaf), node=own) for leaf in leaves]
        names = {f"m-127.0.0.1:{node.http_port}" for node in behind}
        front = await tiers.node("http://g/v2/models/m", members="redis", node={"registry": redis.url, "refresh_s": 0.2})
        load = Load(front)
        await load.until(lambda: set(instances(front)) == names)
        redis.kill()
        await load.after(100)
        redis.start(empty=True)
        await load.after(100)
        assert set(instances(front)) == names, "an empty registry knows nobody, which is taken for a failure"
        await behind[0].stop()
        await load.until(lambda: sorted(states(front)) == ["lost", "up"])
        await load.after(50)
        await load.stop()
        assert set(load.statuses) == {200}
    finally:
        redis.kill()


@pytest.fixture(params=[5.0, *when_proving(-5.0)])
def skewed(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A back end whose clocks, both of them, are so many seconds off."""
    (tmp_path / "sitecustomize.py").write_text(SKEWED.format(skew_s=request.param))
    config = write_config(tmp_path / "dlproxy.toml", {"m": {"path": "sleep:base=1ms,row=1ms"}}, calibration_folder="")
    with monkeypatch.context() as environment:
        environment.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        server = ServerProcess("--config", config)
    with server:
        yield server


async def test_clocks_that_differ_by_five_seconds(skewed: ServerProcess, tiers: Site) -> None:
    """What travels are durations: a deadline is neither over at once nor five seconds longer."""
    front = await tiers.node(f"http://{skewed.address}/v2/models/m")
    question = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [7.0]}]}
    headers: dict[str, Any] = {"x-request-deadline-ms": "2000"}
    for port in (front.http_port, skewed.http_port):
        began_at = monotonic()
        url = f"http://127.0.0.1:{port}/v2/models/m/infer"
        told = await asyncio.to_thread(asked, url, question, **headers)
        assert (told.status, told.json["outputs"][0]["data"]) == (200, [7.0])
        assert monotonic() - began_at < 2.0


# Between machines, as far as this system lets us make some


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net("front", "b1", "b2")
    yield made
    made.close()


async def test_cables_that_are_pulled(net: Net, tiers: Site) -> None:
    """One behind is cut off; it ends and comes back while it is; then all are. Deadlines hold, and no answer is wrong."""
    leaves = [await tiers.leaf(host=net.addresses[machine], listener=net.listener(machine)) for machine in ("b1", "b2")]
    front = await tiers.node(upstream(*leaves), batch_timeout_s=2.0)
    load = Load(front, clients=6, headers=(DEADLINE,))
    await load.after(100)
    for _ in range(ROUNDS):
        await net.pull("b1")
        await load.until(lambda: states(front) == ["lost", "up"])
        await load.after(100)
        await leaves[0].stop()
        await leaves[0].start(listener=net.listener("b1", leaves[0].port))
        await net.plug("b1")
        await load.until(lambda: states(front) == ["up", "up"])
        for machine in ("b1", "b2"):
            await net.pull(machine)
        await load.until(lambda: states(front) == ["lost", "lost"])
        for machine in ("b1", "b2"):
            await net.plug(machine)
        await load.until(lambda: states(front) == ["up", "up"])
        await load.after(100)
    await load.stop()
    assert set(load.statuses) <= {200, 503, 504}
    assert load.slowest_s < 2 * DEADLINE_MS / 1e3
