"""The cache's layer: who is answered from where, who joins whom, and what becomes of them when something fails."""

import asyncio
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.message import FailureKind, Response
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.caching.copies import copies_of
from tests.serve.caching.site import Site, bytes_of, how
from tests.serve.rig import POISON, SIGNATURE, Reply, Rig, double_unless_poisoned, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


async def test_what_was_answered_is_not_run_again() -> None:
    site = Site()
    first = await site.send(3.0, rows=2).wait()
    again, other = site.send(3.0, rows=2), site.send(4.0, rows=2)
    assert again.answered, "at once, in the same turn"
    await other.wait()
    assert (how(first), how(again), how(other)) == ("miss", "hit", "miss")
    assert again.values == first.values == [6.0, 8.0]
    assert site.ran == 4
    await site.end()


async def test_identical_requests_at_one_time_are_run_once() -> None:
    site = Site()
    replies = [site.send(3.0) for _ in range(256)]
    await turns()
    replies += [site.send(3.0) for _ in range(10)]  # while it runs
    for reply in replies:
        assert (await reply.wait()).values == [6.0]
    assert [how(reply) for reply in replies] == ["miss"] + ["joined"] * 265
    assert site.ran == 1
    await site.end()


async def test_a_failure_of_the_model_reaches_all_and_is_not_kept() -> None:
    site = Site(Rig(function=double_unless_poisoned))
    replies = [site.send(POISON) for _ in range(5)]
    for reply in replies:
        assert (await reply.wait()).kind is FailureKind.MODEL_FAILED
    assert not len(site.layer.cache)
    assert (await site.send(POISON).wait()).kind is FailureKind.MODEL_FAILED
    assert site.ran >= 2
    await site.end()


@pytest.mark.parametrize("leaves", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (2, 1, 0), (0, 1, 2)])
@pytest.mark.parametrize("running", [False, True])
async def test_who_leaves_takes_nobody_along(leaves: tuple[int, ...], running: bool) -> None:
    site = Site()
    replies = [site.send(3.0) for _ in range(3)]
    if running:
        await turns()
    for place in leaves:
        site.cancel(replies[place])
        assert replies[place].kind is FailureKind.CANCELLED
    stays = [reply for reply in replies if not reply.answered]
    for reply in stays:
        assert (await reply.wait()).values == [6.0]
    assert site.failures == {"cancelled": len(leaves)}
    await pass_time(0.1)
    assert site.ran == 1
    await site.end()
    assert how(await site.send(3.0).wait()) == ("hit" if stays else "miss")


async def test_who_leaves_while_others_hear_is_answered_once() -> None:
    site = Site()

    class Leaving(Reply):
        def completed(self, response: Response) -> None:
            super().completed(response)
            site.cancel(last)

    request = site.rig.request(3.0)
    first = site.submit(request, Leaving(request))
    last = site.send(3.0)
    await first.wait()
    await turns()
    assert last.answered
    await site.end()


async def test_who_leaves_while_others_fail_is_answered_once() -> None:
    site = Site(Rig(function=double_unless_poisoned))

    class Leaving(Reply):
        def failed(self, failure: Any) -> None:
            super().failed(failure)
            site.cancel(last)

    request = site.rig.request(POISON)
    first = site.submit(request, Leaving(request))
    last = site.send(POISON)
    await first.wait()
    await last.wait()
    await site.end()


async def test_a_reply_that_raises_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()

    class Broken(Reply):
        def completed(self, response: Response) -> None:
            super().completed(response)
            raise RuntimeError("gone")

    for place in range(2):
        request = site.rig.request(3.0)
        broken = site.submit(request, Broken(request))
        other = site.send(3.0)
        assert (await other.wait()).values == [6.0], place
        assert broken.answered
    assert "could not hand over the answer" in caplog.text
    await site.end()


async def test_the_next_one_leads_when_the_first_may_wait_no_longer() -> None:
    site = Site(Rig(service_s=1.0))
    busy = site.send(9.0)
    await turns()
    first, second, third = site.send(3.0, timeout_s=1.5, promised=True), site.send(3.0), site.send(3.0)
    assert (await first.wait()).kind in (FailureKind.LATE, FailureKind.DEADLINE)
    assert (await second.wait()).values == [6.0]
    assert (await third.wait()).values == [6.0]
    await busy.wait()
    await site.end()


async def test_each_is_told_by_its_own_deadline() -> None:
    site = Site(Rig(service_s=1.0))
    first = site.send(3.0)
    began = asyncio.get_running_loop().time()
    hurried, patient = site.send(3.0, timeout_s=0.25, promised=True), site.send(3.0, timeout_s=5.0, promised=True)
    assert (await hurried.wait()).kind is FailureKind.LATE
    assert hurried.at - began == pytest.approx(0.25, abs=0.002)
    assert (await patient.wait()).values == (await first.wait()).values == [6.0]
    assert site.failures == {"late": 1}
    await pass_time(10.0)  # no timer goes off any more
    await site.end()


async def test_what_is_refused_to_one_is_asked_for_the_next() -> None:
    rig = Rig()
    site = Site(rig)
    rig.driver.change_knobs(site.rig.lane._knobs.__class__(max_batch=1, max_queue_rows=1))
    running = site.send(1.0)
    await turns()
    queued = site.send(2.0)
    refused, joined = site.send(3.0), site.send(3.0)
    await turns(6)
    for reply in (refused, joined):
        assert (await reply.wait()).kind in (FailureKind.QUEUE_FULL, FailureKind.OVERLOADED)
    assert (await running.wait()).values == [2.0]
    assert (await queued.wait()).values == [4.0]
    await site.end()


async def test_an_urgent_request_does_not_wait_behind_a_lazy_one() -> None:
    site = Site(Rig(service_s=0.010))
    lazy = site.send(3.0, priority=7)
    urgent, lazier = site.send(3.0, priority=1), site.send(3.0, priority=7)
    for reply in (lazy, urgent, lazier):
        assert (await reply.wait()).values == [6.0]
    assert (how(urgent), how(lazier)) == ("miss", "joined")
    await site.end()


async def test_clients_may_want_no_part_in_it() -> None:
    site = Site()
    assert how(await site.send(3.0, max_age_s=-1.0).wait()) == "bypass"
    assert not len(site.layer.cache)
    await site.send(3.0).wait()
    assert how(await site.send(3.0, max_age_s=-1.0).wait()) == "bypass"
    assert how(await site.send(3.0, max_age_s=0.0).wait()) == "miss"
    assert site.ran == 4
    await pass_time(5.0)
    assert how(await site.send(3.0, max_age_s=6.0).wait()) == "hit"
    assert how(await site.send(3.0, max_age_s=4.0).wait()) == "miss"
    assert how(await site.send(3.0, max_age_s=4.0).wait()) == "hit", "it is as new as that now"
    await site.end()


async def test_whoever_wants_it_anew_joins_nobody() -> None:
    site = Site()
    replies = [site.send(3.0), site.send(3.0, max_age_s=0.0), site.send(3.0)]
    for reply in replies:
        assert (await reply.wait()).values == [6.0]
    assert [how(reply) for reply in replies] == ["miss", "miss", "joined"]
    assert site.ran == 2
    await site.end()


async def test_answers_get_too_old() -> None:
    site = Site(cache_ttl_s=2.0)
    await site.send(3.0).wait()
    await pass_time(1.5)
    assert how(await site.send(3.0).wait()) == "hit"
    await pass_time(1.0)
    assert how(await site.send(3.0).wait()) == "miss"
    assert site.layer.counts.expired == 1
    await site.end()


async def test_what_runs_while_it_is_cleared_is_not_kept() -> None:
    site = Site()
    await site.send(1.0).wait()
    before = site.send(3.0)
    await turns()
    assert site.layer.clear() == 1
    after = site.send(3.0)
    assert how(await before.wait()) == "miss"
    assert how(await after.wait()) == "miss", "it does not join what was asked before"
    assert site.ran == 3
    assert len(site.layer.cache) == 1
    await site.end()


async def test_a_model_that_goes_answers_what_it_has() -> None:
    site = Site()
    replies = [site.send(3.0) for _ in range(3)]
    site.layer.close()
    await site.rig.driver.stop(5.0)
    for reply in replies:
        assert (await reply.wait()).values == [6.0]
    assert not list(site.caches)
    late = await site.send(3.0).wait()
    assert late.kind is FailureKind.UNAVAILABLE
    await site.end()


async def test_tenants_share_answers_unless_told_not_to() -> None:
    for apart in (False, True):
        site = Site(cache_by_tenant=apart)
        await site.send(3.0, tenant="a").wait()
        assert how(await site.send(3.0, tenant="a").wait()) == "hit"
        assert how(await site.send(3.0, tenant="b").wait()) == ("miss" if apart else "hit")
        assert how(await site.send(3.0).wait()) == ("miss" if apart else "hit")
        await site.end()


async def test_an_answer_too_large_is_not_kept() -> None:
    site = Site()
    rows = site.layer.cache.budget // 4 + 1
    site.rig.driver.change_knobs(site.rig.lane._knobs.__class__(max_batch=rows, max_queue_rows=rows))
    assert how(await site.send(3.0, rows=rows).wait()) == "miss"
    assert not len(site.layer.cache)
    await site.end()


async def test_entries_are_copies_of_their_batch() -> None:
    """A batch's result is one array, of which an answer may be a small part."""
    site = Site()
    array = np.zeros(1 << 16, np.float32)
    batch = weakref.ref(array)
    reply = await site.send(3.0).wait()
    assert reply.response is not None
    (kept,) = list(site.layer.cache)
    (tensor,) = reply.response.outputs
    whole = memoryview(array).cast("B")
    tensor.data = whole[:4]
    (copied,) = copies_of([tensor])
    del array, whole, tensor, reply
    gc.collect()
    assert batch() is None
    assert bytes(copied.data) == bytes(4)
    assert isinstance(kept.value.outputs[0].data, bytes)
    await site.end()


async def test_budgets_are_kept_to() -> None:
    site = Site()
    for value in range(3000):
        await site.send(float(value)).wait()
    cache = site.layer.cache
    assert cache.used <= cache.budget == 2**20
    assert site.layer.counts.evicted == 3000 - len(cache)
    assert bytes_of(await site.send(2999.0).wait()) == [np.float32(5998.0).tobytes()]
    await site.end()


async def test_where_no_memory_is_left_nothing_is_remembered_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caches = Caches(CacheConfig(), asyncio.get_running_loop().time, spare=lambda: 255 * 2.0**20)
    rig = Rig()
    layers = [caches.before(rig.driver, name, ModelConfig(path="m", cache="on"), SIGNATURE, rig.stats) for name in "ab"]
    assert [layer.cache.budget for layer in layers if layer is not None] == [0, 0]
    (line,) = caplog.messages
    assert "no more memory than the 256 MiB" in line
    for layer in layers:
        assert layer is not None
        layer.close()
    await rig.driver.stop(0.0)
