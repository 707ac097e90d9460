"""Nodes before nodes: loops, deadlines and retries over several hops, versions that differ, nodes that leave. Real sockets."""

from collections.abc import AsyncIterator
from functools import partial

import pytest

from dlproxy.fleet import upstreams
from dlproxy.instance.remote import RemoteInstance, RemoteSettings
from dlproxy.serve.server import Server
from dlproxy.testing import FakeRuntime
from tests.clients.raw import connect, json_infer
from tests.faults.tiers import Load, Site, answer, ask, free_port, instances, site, upstream, url_of, when_proving
from tests.instance.remote_grpc import GrpcUpstream
from tests.instance.test_remote import PAIR, double
from tests.instance.upstreams import until
from tests.serve.caching.redis_nodes import relay

TRANSPORTS = pytest.mark.parametrize("transport", ["http", *when_proving("grpc")])


@pytest.fixture
async def tiers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """Those that were lost are asked again soon."""
    monkeypatch.setattr(upstreams, "RemoteSettings", partial(RemoteSettings, check_interval_s=0.5, recheck_s=0.02))
    async with site() as made:
        yield made


# Retries


@pytest.mark.parametrize("status", [503, *when_proving(500)])
async def test_one_budget_holds_for_the_whole_way(tiers: Site, status: int) -> None:
    """Three tiers, all leaves fail: with a budget at each node there would be 1.44 runs for each request."""
    leaves = [await tiers.leaf() for _ in range(4)]
    middle = [await tiers.node(upstream(*leaves[at : at + 2]), eject_after=0) for at in (0, 2)]
    front = await tiers.node(upstream(*middle), eject_after=0)
    for leaf in leaves:
        leaf.status = status
        leaf.seen.clear()
        leaf.asked.clear()
    load = Load(front, clients=8)
    await load.until(lambda: load.statuses[status] >= 300)
    await load.stop()
    asked, runs = load.statuses.total(), sum(leaf.seen.total() for leaf in leaves)
    assert load.statuses == {status: asked}
    assert asked < runs <= 1.2 * asked + 30, "a fifth of what came, and three a second for ten seconds"
    assert {post.header("x-dlproxy-retries") for leaf in leaves for post in leaf.posts} == {"0"}


async def test_the_node_that_has_a_choice_runs_again(tiers: Site) -> None:
    """The front has one node behind it, and leaves retries to that one."""
    leaves = [await tiers.leaf() for _ in range(2)]
    middle = await tiers.node(upstream(*leaves))
    front = await tiers.node(upstream(middle))
    leaves[0].status = 503
    replies = [await ask(front, float(number)) for number in range(10)]
    assert [reply.status for reply in replies] == [200] * 10


# Loops


@TRANSPORTS
async def test_a_request_that_comes_back_is_refused(tiers: Site, transport: str) -> None:
    leaf = await tiers.leaf()
    port = {f"{transport}_port": free_port()}
    second = await tiers.node(upstream(leaf), node={"name": "second"}, eject_after=0, **port)
    first = await tiers.node(upstream(second, transport=transport), node={"name": "first"}, eject_after=0)
    assert answer(await ask(first, 1.0)) == 2.0
    await second.stop()
    again = await tiers.node(upstream(first, leaf), node={"name": "second"}, eject_after=0, **port)
    await until(lambda: {instances(first)["m-0"]["state"], instances(again)["m-0"]["state"]} == {"up"})
    replies = [await ask(first, float(number)) for number in range(20)]
    assert {reply.status for reply in replies} <= {200, 508}
    await leaf.stop()
    replies = [await ask(first, float(number)) for number in range(3)]
    assert 508 in [reply.status for reply in replies], replies
    why = next(reply.json()["error"] for reply in replies if reply.status == 508)
    assert "the request has come back to first-" in why
    assert "through second-" in why
    assert "loop" in why


async def test_too_many_nodes_in_a_row_are_refused(tiers: Site) -> None:
    leaf = await tiers.leaf()
    node = await tiers.node(upstream(leaf))
    reply = await ask(node, 1.0, "x-dlproxy-via: 8; a, b")
    assert reply.status == 508
    assert "8 at most" in reply.json()["error"]
    assert answer(await ask(node, 1.0, "x-dlproxy-via: 7; a, b")) == 2.0
    assert leaf.posts[-1].header("x-dlproxy-via").startswith("8; a, b, ")


# Deadlines


@TRANSPORTS
async def test_what_is_left_of_the_deadline_travels(tiers: Site, transport: str) -> None:
    """Two hops, the second of 15 ms there and back: each node gets less than the one before it had."""
    leaf = await tiers.leaf()
    async with relay(leaf.port) as slow:
        slow.delay_s = 0.015
        middle = await tiers.node(leaf.url.replace(str(leaf.port), str(slow.port)))
        front = await tiers.node(url_of(middle, transport))
        assert answer(await ask(front, 1.0, "x-request-deadline-ms: 5000")) == 2.0
        left_ms = float(leaf.posts[-1].header("x-request-deadline-ms"))
        assert 1000.0 < left_ms < 5000.0 - 15.0
        assert answer(await ask(front, 1.0)) == 2.0
        assert leaf.posts[-1].header("x-request-deadline-ms") == "", "who waits for ever says so"
        assert (await ask(front, 1.0, "x-request-deadline-ms: 10")).status in (503, 504)


async def test_over_grpc_all_of_it_is_metadata(tiers: Site) -> None:
    behind = GrpcUpstream(FakeRuntime(PAIR, double), max_batch=16)
    await behind.start()
    try:
        node = await tiers.node(behind.url, node={"name": "gw"})
        assert (
            answer(await ask(node, 3.0, "x-request-deadline-ms: 5000", "x-dlproxy-via: 2; a, b", "x-dlproxy-retries: 0")) == 6.0
        )
        told = next(metadata for method, _, metadata in reversed(behind.asked) if method == "ModelInfer")
        assert told["x-dlproxy-via"].startswith("3; a, b, gw-")
        assert told["x-dlproxy-retries"] == "0"
        assert 0.0 < float(told["x-request-deadline-ms"]) < 5000.0
        await node.stop()
    finally:
        await behind.stop()


# What a node says of itself


@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_answers_say_how_busy_a_node_is_and_where(tiers: Site, transport: str) -> None:
    behind = await tiers.node("sleep:base=1ms,row=1ms", node={"zone": "b"}, run="thread")
    front = await tiers.node(url_of(behind, transport), node={"zone": "a"})
    (model,) = front.models
    (instance,) = model.driver._instances.values()
    assert isinstance(instance, RemoteInstance)
    assert await ask_sleep(front) == 200
    assert instance.zone == "b"
    assert instance.distance_s > 0.0, "another zone"


async def ask_sleep(server: Server) -> int:
    """The status of a request of the model that sleeps."""
    connection = await connect(server.http_port)
    reply = await connection.ask(json_infer("m", "x", "FP32", [[1.0]]))
    connection.close()
    await connection.ended
    assert "x-dlproxy-load" not in reply.headers, "nobody but a node is told"
    return reply.status


# Versions that differ


@pytest.mark.parametrize("balancer", ["peak-ewma", "prequal", "nearest", *when_proving("consistent-hash")])
async def test_nodes_of_other_versions_serve_side_by_side(tiers: Site, balancer: str) -> None:
    """One that says nothing of itself, one that says more than is known, one that says nonsense."""
    old = await tiers.leaf()
    newer = await tiers.leaf(extra="x-dlproxy-load: rows=1; wait=0.002; zone=z; gpu=70\r\nx-dlproxy-mood: good\r\n")
    broken = await tiers.leaf(extra="x-dlproxy-load: ;rows=much=; wait\r\n")
    front = await tiers.node(upstream(old, newer, broken), balancer=balancer)
    load = Load(front, clients=6, headers=("x-dlproxy-via: 1; x; colour=red", "x-dlproxy-retries: perhaps", "x-dlproxy-new: 1"))
    await load.after(300)
    await load.stop()
    assert set(load.statuses) == {200}
    assert all(leaf.seen for leaf in (old, newer, broken)) or balancer in ("nearest", "consistent-hash")


# Nodes that leave and come


async def test_a_node_that_leaves_says_so_and_nothing_is_lost(tiers: Site) -> None:
    leaves = [await tiers.leaf() for _ in range(2)]
    behind = [await tiers.node(upstream(leaf), node={"leave_s": 0.3}, http_port=free_port()) for leaf in leaves]
    front = await tiers.node(upstream(*behind))
    load = Load(front, clients=6)
    await load.after(100)
    await behind[0].stop()
    left = instances(front)["m-0"]
    assert (left["state"], left["last_problem"]) in [("lost", "it is about to stop"), ("lost", "the model is not ready")]
    await load.after(100)
    again = await tiers.node(upstream(leaves[0]), http_port=behind[0].http_port)
    await load.until(lambda: instances(front)["m-0"]["state"] == "up")
    before = leaves[0].seen.total()
    await load.until(lambda: leaves[0].seen.total() > before + 20)
    await load.stop()
    assert set(load.statuses) == {200}
    assert again.http_port == behind[0].http_port


async def test_a_leaf_that_dies_costs_no_answer_and_none_is_wrong(tiers: Site) -> None:
    leaves = [await tiers.leaf() for _ in range(4)]
    middle = [await tiers.node(upstream(*leaves[at : at + 2])) for at in (0, 2)]
    front = await tiers.node(upstream(*middle))
    load = Load(front, clients=6)
    await load.after(100)
    await leaves[0].stop()
    await load.after(200)
    await load.stop()
    assert set(load.statuses) == {200}
