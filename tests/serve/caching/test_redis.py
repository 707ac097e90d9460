"""Nodes that share answers through a real Redis, and what may become of it meanwhile: no request is the worse for it."""

import asyncio
from typing import Any

import numpy as np
import pytest
from redis import Redis

from dlproxy.message import DType, FailureKind, Signature, TensorSpec
from dlproxy.serve.caching import shared
from dlproxy.serve.caching.circuit import FAILURES
from tests.fleet.redis_server import RedisServer
from tests.serve.caching.redis_nodes import Node, Nodes, all_of, nodes, redis, relay, until
from tests.serve.rig import POISON, Reply, double_unless_poisoned, pass_time

__all__ = ["nodes", "redis"]

OTHER_SHAPE = Signature(
    (TensorSpec("x", DType.FP32, (-1, -1)),), (TensorSpec("y", DType.FP32, (-1, 5)),), batched=True, platform="fake"
)


def _answers(redis: RedisServer) -> list[bytes]:
    with Redis(port=redis.port) as client:
        return [key for key in client.scan_iter("dlproxy:cache:*") if isinstance(key, bytes) and not key.endswith(b"seed")]


async def _stored(node: Node, count: int = 1) -> None:
    await until(lambda: node.second.counts.stored >= count)


async def _share(node: Node, *values: float) -> None:
    """The first answers that it shares."""
    for value in values or (1.0,):
        assert await node.answered(value) == "miss"
    await _stored(node, len(values) or 1)


async def test_what_one_node_has_computed_the_other_has_too(nodes: Nodes) -> None:
    a, b = await nodes.start(), await nodes.start()
    await _share(a)
    assert await b.answered() == "hit"
    assert await b.answered() == "hit"
    assert (a.runs, b.runs) == (1, 0)
    assert b.second.counts.found == 1, "the second one was remembered here"
    assert b.rig.stats.cache is not None
    assert b.rig.stats.cache.shared == 1


async def test_a_hundred_identical_requests_over_two_nodes_are_one_run(nodes: Nodes) -> None:
    a, b = await nodes.start(), await nodes.start()
    await all_of([node.ask(3.0) for _ in range(50) for node in (a, b)])
    assert a.runs + b.runs == 1
    assert a.second.counts.waited + b.second.counts.waited == 1


async def test_many_keys_over_two_nodes_are_one_run_each(nodes: Nodes) -> None:
    a, b = await nodes.start(), await nodes.start()
    replies = await all_of([node.ask(float(number)) for number in range(200) for node in (a, b)])
    assert [reply.values[0] for reply in replies] == [2.0 * number for number in range(200) for _ in "ab"]
    rows = sum(len(batch) for node in (a, b) for fake in node.rig.fakes for batch in fake.batches)
    assert rows == 200


async def test_a_failure_reaches_its_own_clients_and_the_other_node_computes(nodes: Nodes) -> None:
    a, b = await nodes.start(function=double_unless_poisoned), await nodes.start(service_s=0.02)
    failing = [a.ask(POISON) for _ in range(5)]
    await until(lambda: a.second.counts.leased)
    waiting = [b.ask(POISON) for _ in range(5)]
    assert {reply.kind for reply in await all_of(failing)} == {FailureKind.MODEL_FAILED}
    assert {reply.values[0] for reply in await all_of(waiting)} == {2 * POISON}
    assert b.second.counts.leased == 1, "it did not wait for the lease's end"
    await _stored(b)
    assert await a.answered(POISON) == "hit"


async def test_whoever_dies_with_a_lease_delays_others_by_no_more_than_that(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlproxy.serve.caching.circuit.UNKNOWN_LEASE_S", 0.3)
    a, b = await nodes.start(service_s=None), await nodes.start()
    a.ask(3.0)
    await until(lambda: a.second.counts.leased)
    await a.caches.close()
    began = asyncio.get_running_loop().time()
    assert await b.answered(3.0) == "miss"
    assert 0.1 < asyncio.get_running_loop().time() - began < 0.6
    assert b.second.counts.leased == 1


async def test_a_client_that_cannot_wait_hears_so_in_time(nodes: Nodes) -> None:
    a, b = await nodes.start(service_s=None), await nodes.start()
    a.ask(3.0)
    await until(lambda: a.second.counts.leased)
    hurried = b.ask(3.0, timeout_s=0.05, promised=True)
    patient = b.ask(3.0)
    assert (await hurried.wait()).kind is FailureKind.LATE
    assert not patient.answered
    a.rig.fakes[0].finish()
    assert (await patient.wait()).values == [6.0]
    assert b.runs == 0


async def test_a_lease_is_given_back_when_nobody_wants_the_answer(nodes: Nodes, redis: RedisServer) -> None:
    a = await nodes.start(service_s=None)
    reply = a.ask(3.0)
    await until(lambda: a.second.counts.leased)
    assert len(_answers(redis)) == 1
    a.layer.cancel(reply.request)
    await reply.wait()
    await until(lambda: not _answers(redis))


async def test_models_share_nothing_unless_they_are_the_same(nodes: Nodes) -> None:
    a = await nodes.start()
    await _share(a)
    for model in ({"path": "sleep:base=2ms"}, {"version": "2"}, {"cache_content": "other"}):
        other = await nodes.start(model=model)
        assert await other.answered() == "miss", model
    other = await nodes.start(signature=OTHER_SHAPE)
    assert await other.answered(width=5) == "miss"


async def test_what_cannot_be_told_is_not_shared(nodes: Nodes, caplog: pytest.LogCaptureFixture) -> None:
    a = await nodes.start(model={"path": "a.py:Model"})
    assert a.layer.second is None
    assert "cache_content" in caplog.text
    assert await a.answered() == "miss"
    assert await a.answered() == "hit"


@pytest.mark.parametrize("junk", ["bytes", "empty", "huge", "list", "hash", "another's", "older", "truncated"])
async def test_junk_under_our_keys_is_ignored_and_replaced(nodes: Nodes, redis: RedisServer, junk: str) -> None:
    a, b = await nodes.start(), await nodes.start()
    await _share(a, 1.0, 2.0)
    with Redis(port=redis.port) as client:
        for key in _answers(redis):
            was = client.get(key)
            assert isinstance(was, bytes)
            client.delete(key)
            if junk == "list":
                client.lpush(key, "x")
            elif junk == "hash":
                client.hset(key, "a", "b")
            else:
                put: dict[str, bytes] = {
                    "bytes": b"\x80\x04" + bytes(range(256)),
                    "empty": b"",
                    "huge": bytes(9 << 20),
                    "another's": was[:-1] + b"x",
                    "older": was[:4] + b"\0" + was[5:],
                    "truncated": was[:30],
                }
                client.set(key, put[junk])
    for value in (1.0, 2.0):
        assert await b.answered(value) == "miss"
    assert b.second.counts.ignored == (0 if junk == "empty" else 2)
    await _stored(b, 2)
    b.forget()
    assert await b.answered(1.0) == "hit"
    assert not b.second.circuit.is_open


async def test_an_answer_under_another_key_is_none(nodes: Nodes, redis: RedisServer) -> None:
    a, b = await nodes.start(), await nodes.start()
    await _share(a, 1.0, 2.0)
    with Redis(port=redis.port) as client:
        one, two = _answers(redis)
        first, second = client.get(one), client.get(two)
        assert isinstance(first, bytes)
        assert isinstance(second, bytes)
        client.mset({one: second, two: first})
    assert await b.answered(1.0) == "miss"
    assert b.second.counts.ignored == 1


@pytest.mark.parametrize("size", [1, 10_000, 100_000, 400_000])
@pytest.mark.parametrize("kind", ["even", "noise"])
async def test_answers_of_any_size_are_shared_compressed_where_that_pays(
    nodes: Nodes, redis: RedisServer, size: int, kind: str
) -> None:
    noise = np.random.default_rng(1).normal(size=(1, size)).astype(np.float32)

    def function(inputs: Any) -> Any:
        return [np.concatenate([2 * inputs[0], noise if kind == "noise" else np.zeros_like(noise)], axis=1)]

    a, b = await nodes.start(function=function), await nodes.start(function=function)
    await _share(a)
    assert await b.answered() == "hit"
    with Redis(port=redis.port) as client:
        stored = client.strlen(_answers(redis)[0])
    assert isinstance(stored, int)
    assert (stored < 0.8 * 4 * size) is (kind == "even" and size > 1)


async def test_an_answer_that_is_too_large_is_not_shared(nodes: Nodes, redis: RedisServer) -> None:
    a = await nodes.start(function=lambda inputs: [np.repeat(2 * inputs[0], 2_000_000, axis=1)])
    await a.answered()
    await until(lambda: a.second.counts.unstored == 1 and not _answers(redis))


async def test_answers_leave_when_their_time_is_over(nodes: Nodes, redis: RedisServer) -> None:
    a = await nodes.start(model={"cache_ttl_s": 0.1}, redis_ttl_s=50.0)
    b = await nodes.start(redis_ttl_s=50.0, model={"version": "2"})
    await _share(a)
    await _share(b)
    with Redis(port=redis.port) as client:
        await until(lambda: len(_answers(redis)) == 1)
        assert 40_000 < client.pttl(_answers(redis)[0]) <= 50_000
    assert await a.answered() == "miss"
    assert await b.answered() == "hit"


async def test_what_is_found_is_as_old_here_as_there(nodes: Nodes) -> None:
    ttl: dict[str, Any] = {"cache_ttl_s": 0.4}
    a, b = await nodes.start(model=ttl), await nodes.start(model=ttl)
    await _share(a)
    await pass_time(0.3)
    assert await b.answered() == "hit"
    await pass_time(0.2)
    assert await b.answered() == "miss"


async def test_clearing_one_version_forgets_its_answers_everywhere(
    nodes: Nodes, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SCANNED", b"50")
    a = await nodes.start(model={"version": "1"})
    b = await nodes.start(model={"version": "2"})
    for number in range(900):
        a.ask(float(number))
    await all_of([b.ask(1.0)])
    await _stored(a, 900)
    await _stored(b)
    assert a.caches.clear("other") == 0
    assert a.caches.clear("m") == 900
    await until(lambda: len(_answers(redis)) == 1)
    assert await a.answered(1.0) == "miss"


async def test_a_slow_redis_costs_the_wait_a_few_times_and_then_nothing(nodes: Nodes, redis: RedisServer) -> None:
    async with relay(redis.port) as slow:
        a = await nodes.start(url=slow.url, redis_wait_s=0.02)
        await a.answered(0.0)
        slow.delay_s = 1.0
        loop, waits = asyncio.get_running_loop(), []
        for number in range(1, FAILURES + 20):
            began = loop.time()
            assert await a.answered(float(number)) == "miss"
            waits.append(loop.time() - began)
        assert a.second.circuit.is_open
        assert a.second.counts.late == FAILURES
        assert a.second.counts.skipped == 19
        assert np.median(waits[FAILURES:]) < 0.02, "the model's 10 ms, and nothing for Redis"
        slow.delay_s = 0.0
        await until(lambda: _probed(a))
        a.second.circuit.answered()
        await a.answered(5000.0)
        await _stored(a)
        a.forget()
        assert await a.answered(5000.0) == "hit"
        await a.caches.close()


def _probed(node: Node) -> bool:
    """Only requests have it probed."""
    node.ask(1.0, width=int(node.rig.now() * 1e3) % 1000 + 1)
    return not node.second.circuit.is_open


async def test_answers_that_come_late_are_dropped(nodes: Nodes, redis: RedisServer) -> None:
    async with relay(redis.port) as slow:
        a, b = await nodes.start(), await nodes.start(url=slow.url, redis_wait_s=0.02, service_s=0.2)
        await _share(a)
        slow.delay_s = 0.1
        assert await b.answered(1.0) == "miss"
        assert b.second.counts.late == 1
        assert b.runs == 1
        slow.delay_s = 0.0
        b.forget()
        assert await b.answered(1.0) == "hit"
        await b.caches.close()


async def test_a_redis_that_dies_and_comes_back_fails_no_request(nodes: Nodes, redis: RedisServer) -> None:
    a, b = await nodes.start(), await nodes.start()
    await a.answered(0.0)
    running = [node.ask(float(number)) for number in range(1, 30) for node in (a, b)]
    await until(lambda: a.second.counts.leased > 5 or b.second.counts.leased > 5)
    redis.kill()
    running += [node.ask(float(number)) for number in range(30, 60) for node in (a, b)]
    replies = await all_of(running)
    assert [reply.values[0] for reply in replies] == [2.0 * number for number in range(1, 60) for _ in "ab"]
    redis.start()
    await until(lambda: a.second.state()["connected"] and b.second.state()["connected"])
    await a.answered(1000.0)
    await until(lambda: _answers(redis))
    assert await b.answered(1000.0) == "hit"


async def test_a_node_that_starts_without_redis_shares_once_it_is_there(nodes: Nodes, redis: RedisServer) -> None:
    b = await nodes.start()
    redis.kill()
    a = await nodes.start(connected=False)
    assert await a.answered(1.0) == "miss"
    assert await a.answered(1.0) == "hit"
    redis.start()
    await until(lambda: a.second.state()["connected"] and b.second.state()["connected"])
    assert await a.answered(1.0) == "miss", "its keys are other ones from now on"
    await _stored(a)
    assert await b.answered(1.0) == "hit"


async def test_a_redis_without_memory_is_read_and_not_written(nodes: Nodes, redis: RedisServer) -> None:
    a, b = await nodes.start(), await nodes.start()
    await _share(a)
    with Redis(port=redis.port) as client:
        client.config_set("maxmemory", 1)
    assert await b.answered(1.0) == "hit"
    assert await b.answered(2.0) == "miss"
    await until(lambda: b.second.counts.unstored == 1)
    assert not b.second.circuit.is_open


async def test_a_redis_that_refuses_is_left_alone_for_a_while(
    nodes: Nodes, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    a = await nodes.start()
    with Redis(port=redis.port) as client:
        client.execute_command("ACL", "SETUSER", "default", "-getrange")
    for number in range(FAILURES):
        assert await a.answered(float(number)) == "miss"
    assert a.second.circuit.is_open
    assert a.second.counts.failed == FAILURES
    assert "NOPERM" in caplog.text


async def test_a_model_that_goes_asks_no_more(nodes: Nodes) -> None:
    a, b = await nodes.start(service_s=None), await nodes.start()
    a.ask(1.0)
    await until(lambda: a.second.counts.leased)
    waiting = b.ask(1.0)
    await until(lambda: b.second._looks)
    b.layer.close()
    assert (await waiting.wait()).values == [2.0]
    assert b.caches.states() == []


async def test_two_urgent_ones_for_one_key_are_two_runs_and_one_answer_is_kept(nodes: Nodes) -> None:
    a = await nodes.start(service_s=None)
    first = a.ask(1.0)
    await until(lambda: a.second.counts.leased)
    urgent = a.rig.request(1.0)
    urgent.ticket.priority = 1
    second = Reply(urgent)
    a.layer.submit(urgent, second)
    assert a.second.counts.skipped == 1
    a.rig.fakes[0].finish()
    await first.wait()
    await pass_time(0)
    a.rig.fakes[0].finish()
    await second.wait()
    await _stored(a)
    assert not a.second._looks


async def test_its_state_is_json_and_names_no_password(nodes: Nodes) -> None:
    a = await nodes.start()
    await _share(a)
    (state,) = a.caches.states()
    assert state["redis"]["circuit"] == "closed"
    assert state["redis"]["stored"] == 1


def test_a_lease_is_never_taken_for_an_answer() -> None:
    from dlproxy.serve.caching.frames import MAGIC, opened

    assert not MAGIC.startswith(shared.LEASE)
    assert opened(bytes(16), shared.LEASE + bytes(shared.TOKEN_BYTES)) is None
