"""The driver with instances that fail, hang or are lost, and with clients that leave or give a deadline: one answer each."""

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from dlproxy.message import FailureKind
from dlproxy.policy.queueing import DISCIPLINES
from tests.serve.rig import KNOBS, Reply, Rig, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang
PROMPT_S = 0.010
HEDGING = replace(KNOBS, hedge=True, retry_budget=1.0, balancer="round-robin")
every_discipline = pytest.mark.parametrize("discipline", DISCIPLINES)


async def check_at_rest(rig: Rig) -> None:
    """Once every batch has ended, nothing is remembered of any request."""
    await pass_time(10.0)
    assert rig.is_at_rest()
    assert not rig.driver._waiting
    assert not rig.driver._flights
    assert rig.lane._again.notes == 0


def now() -> float:
    return asyncio.get_running_loop().time()


# Retries


async def test_what_fails_on_one_instance_is_answered_by_the_other() -> None:
    rig = Rig(instances=2, knobs=replace(KNOBS, retry_budget=1.0, balancer="round-robin"))
    rig.fakes[0].fail_next("out of memory")
    replies = [rig.send(float(number)) for number in range(3)]
    assert [(await reply.wait()).values for reply in replies] == [[0.0], [2.0], [4.0]]
    assert [fake.batches for fake in rig.fakes] == [[[1, 2, 3]], [[1, 2, 3]]]
    assert rig.stats.failures[FailureKind.MODEL_FAILED] == 0
    await check_at_rest(rig)


async def test_what_fails_on_both_fails_with_the_models_words() -> None:
    rig = Rig(instances=2, knobs=replace(KNOBS, retry_budget=1.0))
    for fake in rig.fakes:
        fake.fail_next("out of memory")
    reply = await rig.send().wait()
    assert reply.failure is not None
    assert (reply.kind, reply.failure.message) == (FailureKind.MODEL_FAILED, "out of memory")
    assert sum(len(fake.batches) for fake in rig.fakes) == 2
    await check_at_rest(rig)


async def test_a_deadline_is_kept_while_a_second_run_is_waited_for() -> None:
    rig = Rig(instances=2, service_s=None, knobs=replace(KNOBS, max_batch=1, retry_budget=1.0, balancer="round-robin"))
    failing, hanging = rig.send(timeout_s=0.5), rig.send()
    await turns()
    rig.fakes[0].fail_next("out of memory")
    rig.fakes[0].finish()  # the other instance hangs
    assert (await failing.wait()).kind is FailureKind.DEADLINE
    assert 0.5 <= failing.at <= 0.5 + PROMPT_S
    rig.fakes[1].finish()
    assert (await hanging.wait()).kind is None
    await check_at_rest(rig)


async def test_a_client_that_leaves_before_its_second_run_is_not_run_again() -> None:
    rig = Rig(instances=2, service_s=None, knobs=replace(KNOBS, max_batch=1, retry_budget=1.0, balancer="round-robin"))
    failing, hanging = rig.send(), rig.send()
    await turns()
    rig.fakes[0].fail_next("out of memory")
    rig.fakes[0].finish()
    rig.driver.cancel(failing.request)
    assert failing.kind is FailureKind.CANCELLED
    rig.fakes[1].finish()
    await hanging.wait()
    assert [fake.batches for fake in rig.fakes] == [[[1]], [[2]]]
    await check_at_rest(rig)


# Hedges


class Slow(Rig):
    """Two instances; batches run until told to end. The first batch goes to the first instance and hangs there."""

    def __init__(self) -> None:
        super().__init__(instances=2, service_s=None, knobs=HEDGING)

    async def hang(self, *values: float, timeout_s: float = float("inf")) -> Sequence[Reply]:
        """Send these; returns when the second run has begun."""
        replies = [self.send(value, timeout_s=timeout_s) for value in values]
        await pass_time(0.1)
        assert [fake.busy for fake in self.fakes] == [True, True]
        assert self.fakes[0].batches == self.fakes[1].batches == [[reply.request.ticket.id for reply in replies]]
        return replies


async def test_a_late_batch_runs_again_and_the_first_answer_counts() -> None:
    rig = Slow()
    replies = await rig.hang(1.0, 2.0)
    rig.fakes[1].finish()
    assert [(await reply.wait()).values for reply in replies] == [[2.0], [4.0]]
    assert rig.driver.unanswered == 0
    rig.fakes[0].finish()  # too late: a Reply that is answered twice fails the test
    await check_at_rest(rig)
    assert rig.stats.failures == dict.fromkeys(FailureKind, 0)


async def test_the_late_one_may_still_be_the_first() -> None:
    rig = Slow()
    (reply,) = await rig.hang(3.0)
    rig.fakes[0].finish()
    assert (await reply.wait()).values == [6.0]
    rig.fakes[1].finish()
    await check_at_rest(rig)


@pytest.mark.parametrize("first", [0, 1])
async def test_if_one_run_fails_the_other_answers(first: int) -> None:
    rig = Slow()
    replies = await rig.hang(1.0, 2.0)
    rig.fakes[first].fail_next("out of memory")
    rig.fakes[first].finish()
    await turns()
    assert not any(reply.answered for reply in replies)
    rig.fakes[1 - first].finish()
    assert [(await reply.wait()).values for reply in replies] == [[2.0], [4.0]]
    await check_at_rest(rig)


async def test_if_both_runs_fail_the_request_fails_once() -> None:
    rig = Slow()
    (reply,) = await rig.hang(1.0)
    for fake in rig.fakes:
        fake.fail_next("out of memory", "out of memory")
        fake.finish()
        await turns()
    assert (await reply.wait()).kind is FailureKind.MODEL_FAILED
    await check_at_rest(rig)


@pytest.mark.parametrize("lost", [0, 1])
async def test_an_instance_lost_during_a_hedge_leaves_the_other_run(lost: int) -> None:
    rig = Slow()
    replies = await rig.hang(1.0, 2.0)
    rig.driver.lose_instance(f"m-{lost}", "it died")
    await turns()
    assert not any(reply.answered for reply in replies)
    rig.fakes[lost].finish()  # what a lost instance says is not heard
    await turns()
    assert not any(reply.answered for reply in replies)
    rig.fakes[1 - lost].finish()
    assert [(await reply.wait()).values for reply in replies] == [[2.0], [4.0]]
    await check_at_rest(rig)


async def test_both_instances_lost_during_a_hedge_fail_it_once() -> None:
    rig = Slow()
    replies = await rig.hang(1.0, 2.0)
    for number in range(2):
        rig.driver.lose_instance(f"m-{number}", "it died")
    assert [reply.kind for reply in replies] == [FailureKind.UNAVAILABLE] * 2
    await check_at_rest(rig)


async def test_clients_that_leave_during_a_hedge_are_answered_once_and_forgotten() -> None:
    rig = Slow()
    gone, stays = await rig.hang(1.0, 2.0)
    rig.driver.cancel(gone.request)
    assert gone.kind is FailureKind.CANCELLED
    rig.driver.cancel(gone.request)
    rig.fakes[1].finish()
    assert (await stays.wait()).values == [4.0]
    rig.fakes[0].finish()
    await check_at_rest(rig)


async def test_a_hedge_uses_idle_instances_only() -> None:
    rig = Slow()
    slow = rig.send(1.0)
    await turns()
    other = rig.send(2.0)
    await pass_time(1.0)
    assert [len(fake.batches) for fake in rig.fakes] == [1, 1]
    rig.fakes[1].finish()
    await turns()
    assert rig.fakes[1].batches[1:] == [[1]], "once there is one"
    rig.fakes[1].finish()
    assert [(await reply.wait()).values for reply in (slow, other)] == [[2.0], [4.0]]
    rig.fakes[0].finish()
    await check_at_rest(rig)


async def test_stopping_during_a_hedge_fails_the_request_once() -> None:
    rig = Slow()
    (reply,) = await rig.hang(1.0)
    stopping = asyncio.ensure_future(rig.driver.stop(0.1))
    await pass_time(0.2)
    assert reply.kind is FailureKind.UNAVAILABLE
    for fake in rig.fakes:
        fake.finish()
    await stopping
    await check_at_rest(rig)


# Promptness: an expired request is answered within 10 ms, one whose client has gone leaves the queue at once


@every_discipline
@pytest.mark.parametrize("instances", [1, 3])
async def test_an_expired_request_is_answered_at_once_although_every_instance_is_busy(discipline: str, instances: int) -> None:
    rig = Rig(instances=instances, service_s=2.0, knobs=replace(KNOBS, discipline=discipline))
    running = []
    for _ in range(instances):
        running.append(rig.send())
        await turns()
    replies = []
    for number in range(60):
        await pass_time(0.00917)
        reply = Reply(rig.request(timeout_s=0.0503 + (number * 0.3771) % 1.3))
        reply.request.ticket.priority = number % 9
        reply.request.ticket.tenant = "abc"[number % 3]
        rig.driver.submit(reply.request, reply)
        replies.append(reply)
    waited = 0
    for reply in replies:
        assert (await reply.wait()).kind is FailureKind.DEADLINE
        ticket = reply.request.ticket
        assert reply.at <= ticket.deadline_at + PROMPT_S
        waited += reply.at >= ticket.deadline_at
    assert waited > 50, "hardly one was refused when it came"
    assert now() < 2.0, "before any instance was free"
    for reply in running:
        assert (await reply.wait()).kind is None
    await check_at_rest(rig)


@every_discipline
async def test_expired_requests_are_answered_while_the_machine_has_other_work_to_expire(discipline: str) -> None:
    """Five hundred deadlines within the same few milliseconds, behind one that is far away."""
    rig = Rig(service_s=2.0, knobs=replace(KNOBS, discipline=discipline))
    running = rig.send()
    await turns()
    patient = rig.send(timeout_s=50.0)
    replies = [rig.send(timeout_s=0.5 + number * 1e-5) for number in range(500)]
    for reply in replies:
        assert (await reply.wait()).kind is FailureKind.DEADLINE
        assert 0.0 <= reply.at - reply.request.ticket.deadline_at <= PROMPT_S
    assert [(await reply.wait()).kind for reply in (running, patient)] == [None, None]
    await check_at_rest(rig)


@every_discipline
async def test_a_request_whose_client_has_gone_leaves_the_queue_at_once(discipline: str) -> None:
    rig = Rig(service_s=2.0, knobs=replace(KNOBS, max_queue_rows=8, discipline=discipline))
    running = rig.send()
    await turns()
    replies = [rig.send(float(number), rows=2) for number in range(4)]
    await turns()
    assert (rig.lane.view().queued_requests, rig.lane.view().queued_rows) == (4, 8)
    rig.driver.cancel(replies[2].request)
    assert (rig.lane.view().queued_requests, rig.lane.view().queued_rows) == (3, 6)
    assert (replies[2].kind, replies[2].at) == (FailureKind.CANCELLED, now())
    place = rig.send(9.0, rows=2)  # there is room again
    await turns()
    assert rig.lane.view().queued_requests == 4
    kinds = [(await reply.wait()).kind for reply in (running, *replies, place)]
    assert kinds == [None, None, None, FailureKind.CANCELLED, None, None]
    assert all(3 + 1 not in batch for batch in rig.batches), "it never ran"
    await check_at_rest(rig)


async def test_a_client_that_leaves_in_the_turn_in_which_it_came_never_waits() -> None:
    rig = Rig(service_s=2.0)
    await rig.send().wait()
    running = rig.send()
    await turns()
    reply = rig.send()
    rig.driver.cancel(reply.request)
    assert reply.kind is FailureKind.CANCELLED
    assert rig.lane.view().queued_requests == 0
    await running.wait()
    await check_at_rest(rig)
