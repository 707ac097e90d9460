"""Three upstreams behind one driver, under load, while they are killed and brought back."""

import numpy as np

from dlproxy.instance.remote import RemoteInstance, parse_address, start_upstreams
from dlproxy.message import DType, Request, Response
from dlproxy.tensors import to_array
from dlproxy.testing import FakeRuntime
from tests.instance.remote_cases import request
from tests.instance.remote_lane import Flood, RemoteLane
from tests.instance.test_remote import PAIR, double
from tests.instance.upstreams import QUICK, DlproxyUpstream, until

DEATHS = 6


def _check(asked: Request, response: Response) -> None:
    (sent,), (got,) = asked.inputs, response.outputs
    expected = 2 * to_array(sent.dtype, sent.shape, sent.data)
    assert np.array_equal(to_array(got.dtype, got.shape, got.data), expected), "an answer of somebody else"


def _random_request() -> Request:
    return request(("x", DType.FP32, NOISE.random((1, 2), np.float32)))


NOISE = np.random.default_rng(1)


async def _until_answered(flood: Flood, more: int) -> None:
    goal = flood.answers + more
    await until(lambda: flood.answers >= goal)


async def test_clients_hardly_notice_that_upstreams_die() -> None:
    upstreams = [DlproxyUpstream(FakeRuntime(PAIR, double)) for _ in range(3)]
    for upstream in upstreams:
        await upstream.start()
    instances = [RemoteInstance(f"m-{n}", parse_address(each.url), QUICK) for n, each in enumerate(upstreams)]
    await start_upstreams(instances)
    lane = RemoteLane(PAIR)
    for instance in instances:
        lane.add(instance)
    flood = Flood(lane, _random_request, _check, clients=24)
    for death in range(DEATHS):
        victim, instance = upstreams[death % 3], instances[death % 3]
        await _until_answered(flood, 1000)
        await victim.stop()
        await until(lambda instance=instance: not instance.up)  # type: ignore[misc]
        await _until_answered(flood, 500)
        await victim.start()
        await until(lambda instance=instance: instance.up)  # type: ignore[misc]
    await flood.stop()

    assert len(flood.failures) <= flood.answers / 1000, flood.failures[:5]
    assert flood.answers >= 1500 * DEATHS
    assert (lane.lane.view().running_batches, lane.driver.unanswered) == (0, 0)
    await lane.driver.stop(1.0)
    for ended in (*instances, *upstreams):
        await ended.stop()
    assert [instance.connections for instance in instances] == [0, 0, 0]


async def test_all_upstreams_gone_fails_fast_and_recovers() -> None:
    upstream = DlproxyUpstream(FakeRuntime(PAIR, double))
    await upstream.start()
    instance = RemoteInstance("m-0", parse_address(upstream.url), QUICK)
    await start_upstreams([instance])
    lane = RemoteLane(PAIR)
    lane.add(instance)
    flood = Flood(lane, _random_request, _check, clients=1)
    await _until_answered(flood, 10)
    await upstream.stop()
    await until(lambda: len(flood.failures) > 0)
    assert not lane.driver.ready
    said = flood.failures[0].message
    assert "connection refused" in said or "connection reset by peer" in said
    await upstream.start()
    await _until_answered(flood, 10)
    await flood.stop()
    await lane.driver.stop(1.0)
    for ended in (instance, upstream):
        await ended.stop()
