"""Requests reach the version that they are for, and a shadow is asked beside it without anybody noticing."""

import asyncio

import pytest

from dlproxy.message import FailureKind
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.traffic import Splitter
from dlproxy.policy.wanted import Traffic
from dlproxy.serve.traffic import MOST_SHADOWS, Shadow, TrafficLayer
from dlproxy.wire.catalog import ServedModel
from tests.serve.rig import POISON, SIGNATURE, Array, Reply, Rig, double, double_unless_poisoned, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


def triple(inputs: list[Array]) -> list[Array]:
    return [inputs[0] * 3]


def served(rig: Rig, version: str) -> ServedModel:
    return ServedModel(
        name="m",
        version=version,
        signature=SIGNATURE,
        service=rig.driver,
        stats=rig.stats,
        max_batch=64,
        slo_s=None,
        view=rig.lane.view,
    )


class Site:
    """Versions 1 (doubles) and 2, behind a layer."""

    def __init__(self, traffic: Traffic, other: Rig | None = None) -> None:
        self.one, self.two = Rig(), other or Rig(function=triple)  # type: ignore[arg-type]
        splitter = Splitter("m", "1", traffic, ("1", "2"))
        shadow = Shadow(served(self.two, "2"), self.two.driver) if traffic.shadow else None
        self.layer = TrafficLayer(splitter, {"1": self.one.driver, "2": self.two.driver}, shadow)

    def send(self, value: float = 1.0, *, rows: int = 1, tenant: str = "") -> Reply:
        reply = Reply(self.one.request(value, rows=rows))
        reply.request.ticket.tenant = tenant
        self.layer.submit(reply.request, reply)
        return reply

    async def finish(self) -> None:
        while self.one.driver._waiting or self.two.driver._waiting:
            await self.one.rest(0.01)
        for rig in (self.one, self.two):
            rig.stats.settle()

    @property
    def shadows(self) -> dict[str, int]:
        return {what: count for what, count in self.two.stats.shadows.items() if count}


async def test_requests_are_split() -> None:
    site = Site(Traffic(shares={"2": 0.25}))
    replies = [site.send() for _ in range(400)]
    await site.finish()
    assert sum(reply.values == [3.0] for reply in replies) == pytest.approx(100, abs=3)
    assert sum(reply.values == [2.0] for reply in replies) == pytest.approx(300, abs=3)


async def test_a_tenant_has_its_own_version() -> None:
    site = Site(Traffic(tenants={"ann": "2"}))
    replies = {name: site.send(tenant=name) for name in ("ann", "bob")}
    await site.finish()
    assert {name: reply.values for name, reply in replies.items()} == {"ann": [3.0], "bob": [2.0]}


@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_cancelling_reaches_whoever_has_the_request(share: float) -> None:
    site = Site(Traffic(shares={"2": share}))
    reply, other = site.send(), site.send()
    await turns()
    site.layer.cancel(reply.request)
    assert reply.kind is FailureKind.CANCELLED
    await site.finish()
    assert other.kind is None


async def test_a_shadow_answers_nobody_and_is_compared() -> None:
    site = Site(Traffic(shadow="2"))
    replies = [site.send(value) for value in (0.0, 1.0, 2.0)]
    await site.finish()
    assert [reply.values for reply in replies] == [[0.0], [2.0], [4.0]]
    assert site.shadows == {"same": 1, "different": 2}, "three times nothing is twice nothing"
    assert site.two.stats.request.count == 0, "no client was answered there"
    assert site.one.stats.request.count == 3


async def test_a_shadow_that_is_the_same_model_gives_the_same_answers() -> None:
    site = Site(Traffic(shadow="2"), Rig(function=double))
    replies = [site.send(rows=2) for _ in range(20)]
    await site.finish()
    assert all(reply.values == [2.0, 4.0] for reply in replies)
    assert site.shadows == {"same": 20}


@pytest.mark.parametrize("degraded", ["one", "two"])
async def test_what_a_variant_answered_is_not_compared(degraded: str) -> None:
    site = Site(Traffic(shadow="2"))
    (fake,) = getattr(site, degraded).fakes
    fake.variant = "small"
    assert (await site.send(1.0).wait()).values == [2.0]
    await site.finish()
    assert site.shadows == {}
    fake.variant = ""
    await site.send(1.0).wait()
    await site.finish()
    assert site.shadows == {"different": 1}


async def test_a_shadow_that_answers_itself_is_not_asked_twice() -> None:
    site = Site(Traffic(shadow="2", shares={"2": 0.5}))
    replies = [site.send() for _ in range(20)]
    await site.finish()
    assert sum(reply.values == [3.0] for reply in replies) == 10
    assert site.shadows == {"different": 10}


async def test_a_shadow_that_fails_harms_nobody() -> None:
    site = Site(Traffic(shadow="2"), Rig(function=double_unless_poisoned))
    replies = [site.send(POISON) for _ in range(3)]
    await site.finish()
    assert [reply.values for reply in replies] == [[2 * POISON]] * 3
    assert site.shadows == {"failed": 3}
    assert not any(site.two.stats.failures.values()), "no client's request failed"


async def test_a_failure_of_the_real_one_is_not_compared() -> None:
    site = Site(Traffic(shadow="2"))
    reply = site.send()
    await turns()
    site.layer.cancel(reply.request)
    assert reply.kind is FailureKind.CANCELLED
    await site.finish()
    assert site.shadows == {}


async def test_a_shadow_has_no_deadline_and_is_last_in_line() -> None:
    site = Site(Traffic(shadow="2"), Rig(service_s=None))
    reply = Reply(site.one.request(timeout_s=0.5, promised=True))
    reply.request.ticket.priority = 1
    site.layer.submit(reply.request, reply)
    await reply.wait()
    ((copy, _),) = site.two.driver._waiting.values()
    assert (copy.ticket.deadline_at, copy.ticket.answer_by, copy.ticket.priority) == (float("inf"), float("inf"), 8)
    assert reply.request.ticket.priority == 1
    await site.one.rest(1.0)
    site.two.fakes[0].finish()
    await site.finish()
    assert site.shadows == {"same": 1}


async def test_a_shadow_that_is_slow_is_asked_less() -> None:
    site = Site(Traffic(shadow="2"), Rig(service_s=None))
    replies = [site.send() for _ in range(2 * MOST_SHADOWS)]
    await asyncio.gather(*(reply.wait() for reply in replies))
    assert all(reply.values == [2.0] for reply in replies)
    assert site.shadows == {"dropped": MOST_SHADOWS}
    assert len(site.two.driver._waiting) == MOST_SHADOWS
    while site.two.fakes[0].busy:
        site.two.fakes[0].finish()
        await turns()
    assert site.shadows == {"dropped": MOST_SHADOWS, "same": MOST_SHADOWS}
    site.send()
    await turns()
    assert site.two.driver._waiting, "it is asked again"
    site.two.fakes[0].finish()
    await site.finish()


async def test_a_shadow_with_clients_of_its_own_is_asked_when_they_do_not_wait() -> None:
    site = Site(Traffic(shadow="2"), Rig(service_s=None, knobs=LaneKnobs(max_batch=1, max_queue_rows=100)))
    own = [site.two.send() for _ in range(2)]
    await turns()
    site.send()
    await site.one.rest(0.05)
    assert site.shadows == {"dropped": 1}
    assert not any(reply.answered for reply in own)


async def test_a_shadow_without_an_instance_is_not_asked() -> None:
    site = Site(Traffic(shadow="2"), Rig(instances=0))
    reply = site.send()
    await site.finish()
    assert reply.kind is None
    assert site.shadows == {"dropped": 1}


async def test_copies_share_no_batch_with_clients_requests() -> None:
    site = Site(Traffic(shadow="2"))
    blocked = site.two.send()
    await turns()
    own = [site.two.send() for _ in range(3)]
    for _ in range(3):
        site.send()
    await site.finish()
    assert blocked.answered
    assert all(reply.values == [3.0] for reply in own)
    assert all(len({ticket_id < 0 for ticket_id in batch}) == 1 for batch in site.two.batches)
    assert site.two.stats.request.count == 4
