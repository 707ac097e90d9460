"""The driver carries out what the lane decides, on virtual loop time: no test waits for a real second."""

import asyncio

import numpy as np
import pytest
from msgspec.structs import replace

from dlproxy import service
from dlproxy.instance.inline import InlineInstance
from dlproxy.message import Failure, FailureKind, InferenceError, Response
from tests.serve.rig import KNOBS, POISON, SIGNATURE, Reply, Rig, double_unless_poisoned, pass_time, turns

pytestmark = pytest.mark.looptime


# Batches


async def test_requests_of_one_loop_turn_share_a_batch() -> None:
    rig = Rig()
    replies = [rig.send(float(number)) for number in range(8)]
    assert not any(reply.answered for reply in replies)
    for number, reply in enumerate(replies):
        assert (await reply.wait()).values == [2.0 * number]
    assert rig.batches == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert rig.is_at_rest()


async def test_what_arrives_while_the_instance_is_busy_forms_the_next_batch() -> None:
    rig = Rig(service_s=0.02)  # in budget, or the next batch would be smaller
    first = rig.send()
    await pass_time(0.002)
    later = [rig.send(float(number)) for number in range(3)]
    await pass_time(0.002)
    later.append(rig.send(3.0))
    await first.wait()
    assert [(await reply.wait()).values for reply in later] == [[0.0], [2.0], [4.0], [6.0]]
    assert rig.batches == [[1], [2, 3, 4, 5]]
    assert later[-1].at == pytest.approx(0.04)


async def test_every_request_gets_its_own_rows() -> None:
    rig = Rig()
    replies = [rig.send(10.0 * rows, rows=rows) for rows in (3, 1, 5, 2)]
    for rows, reply in zip((3, 1, 5, 2), replies, strict=True):
        assert (await reply.wait()).values == [2 * (10.0 * rows + row) for row in range(rows)]
    assert len(rig.batches) == 1


async def test_requests_of_different_shapes_do_not_share_a_batch() -> None:
    rig = Rig()
    narrow, wide = [rig.send(1.0), rig.send(2.0)], [rig.send(3.0, width=4)]
    for reply in (*narrow, *wide):
        await reply.wait()
    assert rig.batches == [[1, 2], [3]]
    assert wide[0].response is not None
    assert tuple(wide[0].response.outputs[0].shape) == (1, 4)


async def test_no_batch_is_larger_than_the_knob_says_and_a_change_holds_at_once() -> None:
    rig = Rig(knobs=replace(KNOBS, max_batch=4))
    replies = [rig.send() for _ in range(8)]
    rig.driver.change_knobs(replace(KNOBS, max_batch=2))
    for reply in replies:
        await reply.wait()
    assert [len(batch) for batch in rig.batches] == [2, 2, 2, 2]


async def test_a_batch_may_wait_to_fill_no_longer_than_the_knob_says() -> None:
    rig = Rig(service_s=0.0, knobs=replace(KNOBS, max_wait_s=0.5))
    first = rig.send()
    await pass_time(0.3)
    second = rig.send()
    await first.wait()
    await second.wait()
    assert rig.batches == [[1, 2]]
    assert first.at == pytest.approx(0.5, abs=0.002)


async def test_idle_instances_share_the_work() -> None:
    rig = Rig(instances=2, service_s=1.0, knobs=replace(KNOBS, max_batch=1))
    replies = [rig.send() for _ in range(4)]
    for reply in replies:
        await reply.wait()
    assert [len(fake.batches) for fake in rig.fakes] == [2, 2]
    assert replies[-1].at == pytest.approx(2.0)


async def test_the_loop_turns_between_two_batches_that_run_inline() -> None:
    rig = Rig(instances=0, knobs=replace(KNOBS, max_batch=1))
    rig.inline(InlineInstance)
    order: list[str] = []
    loop = asyncio.get_running_loop()

    class Noted(Reply):
        def completed(self, response: Response) -> None:
            super().completed(response)
            order.append("answer")
            loop.call_soon(order.append, "other work")

    replies = [Noted(rig.request()) for _ in range(3)]
    for reply in replies:
        rig.driver.submit(reply.request, reply)
    for reply in replies:
        await reply.wait()
    await turns()
    assert order == ["answer", "other work"] * 3


# Deadlines


async def test_a_deadline_is_kept_while_the_batch_before_takes_longer_than_predicted() -> None:
    rig = Rig(service_s=10.0)
    running, queued = rig.send(), rig.send()
    await turns()
    late = rig.send(timeout_s=0.5)
    assert (await late.wait()).kind is FailureKind.DEADLINE
    assert late.at == pytest.approx(0.5, abs=0.002)
    assert (await running.wait()).values == [2.0]
    assert (await queued.wait()).values == [2.0]
    assert rig.is_at_rest()
    assert rig.stats.failures[FailureKind.DEADLINE] == 1


async def test_each_deadline_is_kept_at_its_own_time() -> None:
    rig = Rig(service_s=10.0)
    rig.send()
    await turns()
    late = [rig.send(timeout_s=seconds) for seconds in (0.9, 0.3, 0.6)]
    for reply in late:
        assert (await reply.wait()).kind is FailureKind.DEADLINE
    assert [reply.at for reply in late] == pytest.approx([0.9, 0.3, 0.6], abs=0.002)


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    rig = Rig()
    rig.send()
    await turns()
    hopeless = rig.send(timeout_s=0.001)
    assert (await hopeless.wait()).kind is FailureKind.DEADLINE
    assert hopeless.at == 0.0


async def test_a_deadline_that_has_passed_runs_nothing() -> None:
    rig = Rig()
    reply = await rig.send(timeout_s=-1.0).wait()
    assert reply.kind is FailureKind.DEADLINE
    assert rig.batches == []


async def test_a_full_queue_refuses_the_next_request_and_says_when_to_come_again() -> None:
    rig = Rig(service_s=1.0, knobs=replace(KNOBS, max_queue_rows=2))
    held = [rig.send()]
    await turns()
    held += [rig.send(), rig.send()]
    refused = await rig.send().wait()
    assert refused.kind is FailureKind.QUEUE_FULL
    assert refused.failure is not None
    assert refused.failure.retry_after_s is not None
    for reply in held:
        assert (await reply.wait()).values == [2.0]


# Cancellation


async def test_a_queued_request_that_is_cancelled_never_runs() -> None:
    rig = Rig(service_s=1.0)
    rig.send()
    await turns()
    gone, stays = rig.send(), rig.send()
    await turns()
    rig.driver.cancel(gone.request)
    assert gone.kind is FailureKind.CANCELLED
    await stays.wait()
    assert rig.batches == [[1], [3]]
    assert rig.is_at_rest()


async def test_a_request_may_be_cancelled_in_the_turn_in_which_it_came() -> None:
    rig = Rig()
    stays, gone = rig.send(1.0), rig.send(2.0)
    rig.driver.cancel(gone.request)
    assert gone.kind is FailureKind.CANCELLED
    assert (await stays.wait()).values == [2.0]
    assert rig.is_at_rest()


async def test_a_request_cancelled_while_it_runs_leaves_its_neighbours_their_rows() -> None:
    rig = Rig(service_s=1.0)
    replies = [rig.send(float(number), rows=2) for number in range(3)]
    await turns()
    rig.driver.cancel(replies[1].request)
    assert replies[1].kind is FailureKind.CANCELLED
    assert (await replies[0].wait()).values == [0.0, 2.0]
    assert (await replies[2].wait()).values == [4.0, 6.0]
    assert rig.is_at_rest()


async def test_a_batch_whose_clients_have_all_left_ends_quietly() -> None:
    rig = Rig(service_s=1.0)
    replies = [rig.send(), rig.send()]
    await turns()
    for reply in replies:
        rig.driver.cancel(reply.request)
    await pass_time(2.0)
    assert rig.is_at_rest()
    assert (await rig.send(4.0).wait()).values == [8.0]


async def test_cancelling_twice_or_after_the_answer_changes_nothing() -> None:
    rig = Rig()
    reply = await rig.send().wait()
    rig.driver.cancel(reply.request)
    other = rig.send()
    rig.driver.cancel(other.request)
    rig.driver.cancel(other.request)
    await turns()
    assert reply.failure is None
    assert rig.stats.failures[FailureKind.CANCELLED] == 1


async def test_cancelling_the_awaiting_task_cancels_the_request() -> None:
    rig = Rig(service_s=1.0)
    task = asyncio.ensure_future(service.infer(rig.driver, rig.request()))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.driver.unanswered == 0
    await pass_time(2.0)
    assert rig.is_at_rest()


async def test_awaiting_raises_the_failure() -> None:
    rig = Rig(instances=0)
    with pytest.raises(InferenceError, match="no live instance") as caught:
        await service.infer(rig.driver, rig.request())
    assert caught.value.failure.kind is FailureKind.UNAVAILABLE


# Failing models


@pytest.mark.parametrize("place", range(8))
async def test_one_poisoned_item_among_eight_fails_alone(place: int) -> None:
    rig = Rig(function=double_unless_poisoned)
    replies = [rig.send(POISON if number == place else float(number)) for number in range(8)]
    for number, reply in enumerate(replies):
        await reply.wait()
        if number == place:
            assert reply.failure == Failure(FailureKind.MODEL_FAILED, "bad index")
        else:
            assert reply.values == [2.0 * number]
    assert rig.is_at_rest()


async def test_every_poisoned_item_and_no_other_fails() -> None:
    rig = Rig(function=double_unless_poisoned)
    bad = {0, 3, 4, 11}
    replies = [rig.send(POISON if number in bad else float(number), rows=1) for number in range(13)]
    for reply in replies:
        await reply.wait()
    assert {number for number, reply in enumerate(replies) if reply.failure} == bad


async def test_a_batch_that_fails_once_for_no_reason_is_answered_by_its_retry() -> None:
    rig = Rig()
    rig.fakes[0].fail_next("out of memory")
    replies = [rig.send(float(number)) for number in range(4)]
    for number, reply in enumerate(replies):
        assert (await reply.wait()).values == [2.0 * number]


async def test_an_item_cancelled_before_its_retry_is_not_run_again() -> None:
    rig = Rig(function=double_unless_poisoned, service_s=None)
    replies = [rig.send(POISON), rig.send(1.0)]
    await turns()
    rig.driver.cancel(replies[0].request)
    rig.fakes[0].finish()
    rig.fakes[0].finish()
    assert replies[1].values == [2.0]
    assert rig.batches == [[1, 2], [2]]


async def test_a_model_that_gives_nothing_useful_fails_its_requests_instead_of_leaving_them_waiting() -> None:
    for wrong in ([], [np.full((1, 1), "text", object)]):
        rig = Rig(function=lambda inputs, wrong=wrong: wrong)
        assert (await rig.send().wait()).kind is FailureKind.MODEL_FAILED
        assert rig.is_at_rest()


async def test_a_model_without_batch_axis_that_gives_too_few_outputs_fails_its_request() -> None:
    signature = replace(SIGNATURE, batched=False)
    rig = Rig(function=lambda inputs: [], signature=signature, knobs=replace(KNOBS, max_batch=1))
    assert (await rig.send().wait()).kind is FailureKind.MODEL_FAILED


# Lost instances


async def test_what_a_lost_instance_ran_is_run_by_another() -> None:
    rig = Rig(instances=2, service_s=None)
    reply = rig.send(3.0)
    await turns()
    lost, other = rig.fakes if rig.fakes[0].busy else reversed(rig.fakes)
    rig.driver.lose_instance(lost.name, "killed")
    assert other.batches == [[1]]
    lost.finish()  # its report comes too late
    assert not reply.answered
    other.finish()
    assert reply.values == [6.0]
    assert rig.is_at_rest()


async def test_without_another_instance_the_loss_fails_what_ran_and_what_waited() -> None:
    rig = Rig(service_s=None)
    ran = rig.send()
    await turns()
    waited = rig.send()
    await turns()
    assert rig.driver.ready
    rig.driver.lose_instance("m-0", "killed")
    assert not rig.driver.ready
    assert [ran.kind, waited.kind] == [FailureKind.UNAVAILABLE] * 2
    assert rig.is_at_rest()
    assert (await rig.send().wait()).kind is FailureKind.UNAVAILABLE


async def test_a_new_instance_takes_up_the_service_again() -> None:
    rig = Rig()
    rig.driver.lose_instance("m-0", "killed")
    rig.driver.add_instance(rig.fake("m-1"))
    assert (await rig.send(2.0).wait()).values == [4.0]


async def test_a_request_that_costs_two_instances_gets_no_third() -> None:
    rig = Rig(instances=3, service_s=None)
    killer = rig.send()
    await turns()
    for _ in range(2):
        victim = next(fake for fake in rig.fakes if fake.busy)
        rig.fakes.remove(victim)
        rig.driver.lose_instance(victim.name, "killed")
    assert killer.kind is FailureKind.UNAVAILABLE
    assert not rig.fakes[0].busy


async def test_losing_an_unknown_instance_changes_nothing() -> None:
    rig = Rig()
    rig.driver.lose_instance("nobody", "never was")
    assert (await rig.send().wait()).values == [2.0]


# Stopping


async def test_stop_waits_for_what_is_unanswered() -> None:
    rig = Rig(service_s=1.0, knobs=replace(KNOBS, max_batch=1))
    replies = [rig.send(float(number)) for number in range(3)]
    await rig.driver.stop(drain_s=10.0)
    assert [reply.values for reply in replies] == [[0.0], [2.0], [4.0]]
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)
    assert rig.fakes[0].stopped


async def test_stop_fails_what_does_not_finish_in_time() -> None:
    rig = Rig(service_s=1.0, knobs=replace(KNOBS, max_batch=1))
    replies = [rig.send() for _ in range(3)]
    await rig.driver.stop(drain_s=1.5)
    assert [reply.kind for reply in replies] == [None, FailureKind.UNAVAILABLE, FailureKind.UNAVAILABLE]
    assert [reply.at for reply in replies[1:]] == pytest.approx([1.5, 1.5])
    assert rig.fakes[0].stopped
    assert rig.is_at_rest()


async def test_stop_without_patience_answers_what_came_in_the_same_turn() -> None:
    rig = Rig()
    reply = rig.send()
    await rig.driver.stop(drain_s=0.0)
    assert reply.kind is FailureKind.UNAVAILABLE


async def test_after_stop_requests_are_refused() -> None:
    rig = Rig()
    await rig.driver.stop(1.0, "the server is shutting down")
    assert not rig.driver.ready
    assert (await rig.send().wait()).failure == Failure(FailureKind.UNAVAILABLE, "the server is shutting down", 1.0)


async def test_who_comes_during_the_drain_is_refused_and_the_others_are_served() -> None:
    rig = Rig(service_s=1.0, knobs=replace(KNOBS, max_batch=1))
    first, second = rig.send(1.0), rig.send(2.0)
    stopping = asyncio.create_task(rig.driver.stop(drain_s=10.0))
    await turns()
    late = await rig.send(3.0).wait()
    assert (late.kind, late.at) == (FailureKind.UNAVAILABLE, 0.0)
    await stopping
    assert [first.values, second.values] == [[2.0], [4.0]]
    assert rig.is_at_rest()


# The client's own deadline


async def test_a_client_is_answered_by_its_own_deadline_while_the_batch_runs_on() -> None:
    rig = Rig(service_s=1.0)
    impatient, patient = rig.send(1.0, timeout_s=0.25, promised=True), rig.send(2.0, timeout_s=0.25)
    assert (await impatient.wait()).kind is FailureKind.LATE
    assert 0.25 <= impatient.at <= 0.251
    assert (await patient.wait()).values == [4.0], "nobody promised it an answer by then"
    assert rig.batches == [[1, 2]]
    assert rig.stats.failures[FailureKind.LATE] == 1
    assert rig.is_at_rest()


async def test_stopping_an_idle_driver_takes_no_time_and_may_be_done_twice() -> None:
    rig = Rig()
    await rig.driver.stop(drain_s=30.0)
    await rig.driver.stop(drain_s=30.0)
    assert asyncio.get_running_loop().time() == 0.0


# Replies that raise


class _Raising(Reply):
    def completed(self, response: Response) -> None:
        raise ConnectionResetError("the socket is gone")

    def failed(self, failure: Failure) -> None:
        raise ConnectionResetError("the socket is gone")


async def test_a_reply_that_raises_does_not_harm_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    replies = [rig.send(1.0)]
    bad = _Raising(rig.request())
    rig.driver.submit(bad.request, bad)
    replies.append(rig.send(3.0))
    assert [(await reply.wait()).values for reply in replies] == [[2.0], [6.0]]
    assert rig.is_at_rest()
    assert "could not hand over the answer" in caplog.text


async def test_a_reply_that_raises_on_failure_does_not_harm_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(service_s=None)
    replies = [rig.send()]
    bad = _Raising(rig.request())
    rig.driver.submit(bad.request, bad)
    replies.append(rig.send())
    await turns()
    rig.driver.lose_instance("m-0", "killed")
    assert [reply.kind for reply in replies] == [FailureKind.UNAVAILABLE] * 2
    assert rig.is_at_rest()
    assert "could not hand over the failure" in caplog.text


# Counting


async def test_batches_are_counted_with_their_rows_and_times() -> None:
    rig = Rig(service_s=0.25)
    for reply in [rig.send(rows=2), rig.send(rows=3)]:
        await reply.wait()
    await rig.send().wait()
    assert (rig.stats.rows, rig.stats.batches) == (6, 2)
    assert {rows: size.batches for rows, size in rig.stats.batch_sizes.items()} == {5: 1, 1: 1}
    assert rig.stats.request.count == 3
    assert rig.stats.compute.total_s == pytest.approx(3 * 0.25)
    assert rig.stats.request.total_s == pytest.approx(3 * 0.25)


async def test_a_reply_tells_where_its_time_went() -> None:
    rig = Rig(service_s=0.25)
    rig.send()
    await pass_time(0.1)
    second = await rig.send().wait()
    assert second.response is not None
    assert second.response.timing.queue_s == pytest.approx(0.15)
    assert second.response.timing.compute_s == pytest.approx(0.25)
