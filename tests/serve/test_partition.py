"""Large requests are split, and their answers are those of the whole: once, complete, or not at all."""

import logging
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.instance.batch import Cutter, gather
from dlproxy.message import DType, FailureKind, Request, Signature, Tensor, TensorSpec, Ticket, Trace
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.partition import split
from dlproxy.serve.layers import WakeLayer
from dlproxy.serve.partition import PartitionLayer, can_split, cut, joined
from dlproxy.telemetry.stats import Timings
from dlproxy.tensors import to_array, to_bytes
from tests.serve.rig import KNOBS, POISON, SIGNATURE, Array, Reply, Rig, double_unless_poisoned, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)


class Site:
    """A rig behind the layer, with parts of four rows and two instances unless said otherwise."""

    def __init__(self, knobs: LaneKnobs = KNOBS, *, part_rows: int = 4, **settings: Any) -> None:
        knobs = replace(knobs, part_rows=part_rows)
        self.rig = rig = Rig(**{"instances": 2, "knobs": knobs, **settings})
        signature = settings.get("signature", SIGNATURE)
        self.layer = PartitionLayer(
            rig.driver, signature, rig.stats, ids=self._ids(), clock=rig.now, knobs=knobs, most_whole=knobs.max_batch
        )

    def _ids(self) -> Iterator[int]:
        """From where whole requests get theirs."""
        while True:
            self.rig._ids += 1
            yield self.rig._ids

    def send(self, value: float = 1.0, *, rows: int, **terms: Any) -> Reply:
        reply = Reply(self.rig.request(value, rows=rows, **terms))
        self.layer.submit(reply.request, reply)
        return reply

    async def end(self) -> None:
        """Nothing is left of anything."""
        await turns()
        assert self.rig.is_at_rest()
        assert not self.layer.under_way
        self.rig.stats.settle()

    @property
    def rows(self) -> list[int]:
        """Of each batch."""
        return self.rig.runtime.rows

    @property
    def failures(self) -> dict[str, int]:
        return {kind.value: times for kind, times in self.rig.stats.failures.items() if times}


async def test_a_request_is_answered_as_if_it_had_run_whole() -> None:
    site = Site()
    reply = await site.send(5.0, rows=10).wait()
    assert reply.values == [2 * (5.0 + row) for row in range(10)]
    assert reply.response is not None
    assert (reply.response.model, reply.response.version) == ("m", "1")
    assert sorted(site.rows) == [4, 6], "one part on one instance, two on the other"
    await site.end()


async def test_whoever_answered_a_part_is_named() -> None:
    site = Site()
    for variants, named in ((("", ""), {""}), (("small", ""), {"small"}), (("small", "tiny"), {"small, tiny", "tiny, small"})):
        for fake, variant in zip(site.rig.fakes, variants, strict=True):
            fake.variant = variant
        reply = await site.send(rows=10).wait()
        assert reply.response is not None
        assert reply.response.variant in named
    await site.end()


async def test_what_is_no_larger_than_a_part_passes_as_it_is() -> None:
    site = Site()
    reply = await site.send(rows=4).wait()
    assert site.rig.batches == [[reply.request.ticket.id]]
    assert site.rig._ids == 1


async def test_parts_share_batches_with_other_requests() -> None:
    site = Site(instances=1)
    first, large, small = site.send(rows=1), site.send(2.0, rows=9), site.send(50.0, rows=1)
    for reply in (first, large, small):
        await reply.wait()
    assert site.rows == [11]
    assert (large.values, small.values) == ([2.0 * (2 + row) for row in range(9)], [100.0])


async def test_a_request_counts_once_and_its_rows_and_batches_as_they_ran() -> None:
    site = Site()
    timings = Timings(8)
    site.rig.stats.readers.append(timings)
    await site.send(rows=16).wait()
    await site.end()
    stats = site.rig.stats
    assert (stats.rows, stats.batches) == (16, 2)
    assert {each.count for each in (stats.request, stats.queue, stats.batch, stats.compute, stats.split)} == {1}
    assert stats.request.total_s == pytest.approx(0.010, abs=1e-6)
    assert list(timings.newest_s) == pytest.approx([0.010], abs=1e-6)
    assert site.failures == {}


async def test_its_timing_is_that_of_the_part_that_came_last() -> None:
    site = Site(replace(KNOBS, max_batch=4), instances=1)
    reply = await site.send(rows=12).wait()
    assert reply.response is not None
    timing = reply.response.timing
    assert timing.queue_s == pytest.approx(0.020, abs=1e-6)
    assert timing.compute_s == pytest.approx(0.010, abs=1e-6)


async def test_a_part_that_fails_ends_the_request_and_the_other_parts() -> None:
    site = Site(replace(KNOBS, max_batch=4, retry_budget=0.0), instances=1, function=double_unless_poisoned)
    reply, other = site.send(POISON - 5, rows=24), site.send(rows=1)  # the poison is in the second part
    await reply.wait()
    assert (reply.kind, reply.at) == (FailureKind.MODEL_FAILED, pytest.approx(0.020, abs=1e-6))
    await other.wait()
    assert other.values == [2.0]
    assert site.rows == [4, 4, 4, 1], "the third part began in the turn in which the second failed, the others never ran"
    await site.end()
    assert site.failures == {"model_failed": 1}
    assert site.rig.stats.request.count == 1


async def test_cancelling_cancels_every_part() -> None:
    site = Site(replace(KNOBS, max_batch=4), service_s=None)
    reply = site.send(rows=40)
    await turns()
    assert site.rig.driver.unanswered == 1, "clients' requests count, not their parts"
    site.layer.cancel(reply.request)
    assert reply.kind is FailureKind.CANCELLED
    for fake in site.rig.fakes:
        fake.finish()
    await site.end()
    assert sum(site.rows) == 8, "what ran already ends; nothing more starts"
    assert site.failures == {"cancelled": 1}


async def test_cancelling_in_the_turn_of_its_arrival_and_after_its_end_does_no_harm() -> None:
    site = Site()
    gone, stays = site.send(rows=9), site.send(rows=9)
    site.layer.cancel(gone.request)
    await stays.wait()
    site.layer.cancel(stays.request)
    assert (gone.kind, len(stays.values)) == (FailureKind.CANCELLED, 9)
    await site.end()


async def test_what_is_not_split_is_cancelled_as_before() -> None:
    site = Site(service_s=None)
    reply = site.send(rows=1)
    await turns()
    site.layer.cancel(reply.request)
    assert reply.kind is FailureKind.CANCELLED


async def test_a_full_queue_refuses_all_of_it_once() -> None:
    site = Site(replace(KNOBS, max_batch=4, max_queue_rows=20), service_s=None)
    for _ in range(3):
        site.send(rows=4)
    await turns()
    assert site.rig.lane.view().queued_rows == 4
    refused, taken = site.send(rows=17), site.send(rows=16)
    await turns()
    assert refused.kind is FailureKind.QUEUE_FULL
    assert not taken.answered
    assert site.rig.lane.view().queued_rows == 20
    assert site.failures == {"queue_full": 1}


async def test_more_parts_than_are_gathered_in_a_turn_stop_at_the_first_that_is_refused() -> None:
    site = Site(replace(KNOBS, max_batch=4, max_queue_rows=100), part_rows=1, service_s=None)
    for _ in range(9):
        site.send(rows=1)
    await turns()
    reply = site.send(rows=500)
    assert reply.kind is FailureKind.QUEUE_FULL, "before the last of them was even submitted"
    assert len(site.rig.driver._inbox) == 0
    await turns()
    assert site.rig.driver.unanswered == 9
    assert site.failures == {"queue_full": 1}


async def test_a_deadline_that_passes_ends_all_of_it() -> None:
    site = Site(replace(KNOBS, max_batch=4), service_s=None)
    reply = site.send(rows=40, timeout_s=0.050, promised=True)
    await reply.wait()
    assert (reply.kind, reply.at) == (FailureKind.LATE, pytest.approx(0.050, abs=0.002))
    await turns()
    assert site.rig.lane.view().queued_rows == 0
    assert site.failures == {"late": 1}


async def test_a_drain_waits_for_every_part() -> None:
    site = Site(replace(KNOBS, max_batch=4))
    reply = site.send(rows=40)
    await turns()
    await site.rig.driver.stop(10.0)
    assert reply.values == [2.0 * (1 + row) for row in range(40)]
    await site.end()


async def test_a_drain_that_takes_too_long_fails_all_of_it() -> None:
    site = Site(replace(KNOBS, max_batch=4), service_s=1.0)
    reply = site.send(rows=40)
    await turns()
    await site.rig.driver.stop(1.5)
    assert reply.kind is FailureKind.UNAVAILABLE
    await site.end()


async def test_an_instance_that_is_lost_takes_no_part_with_it_if_another_is_there() -> None:
    site = Site(replace(KNOBS, max_batch=4, retry_budget=1.0), service_s=1.0)
    reply = site.send(rows=8)
    await turns()
    site.rig.driver.lose_instance("m-0", "killed")
    assert len((await reply.wait()).values) == 8
    await site.end()


async def test_a_part_in_quarantine_ends_the_request() -> None:
    site = Site(replace(KNOBS, max_batch=4, retry_budget=1.0), instances=3, service_s=None, quarantine_s=60.0)
    harmful = site.send(rows=4)
    await turns()
    while not harmful.answered:
        (busy,) = (fake for fake in site.rig.fakes if fake.busy)
        site.rig.fakes.remove(busy)
        site.rig.driver.lose_instance(busy.name, "it crashed", crashed=True)
        await turns()
    assert harmful.kind is FailureKind.MODEL_FAILED
    reply = site.send(-3.0, rows=8)  # of which the second part is the same four rows
    assert (reply.kind, reply.failure and "quarantine_s" in reply.failure.message) == (FailureKind.MODEL_FAILED, True)
    await turns()
    assert site.failures == {"model_failed": 2}


async def test_other_knobs_hold_for_the_next_requests() -> None:
    site = Site(replace(KNOBS, max_batch=8), instances=1, service_s=None)
    site.layer.configure(replace(KNOBS, max_batch=8, part_rows=2))
    site.send(rows=6)
    assert site.rig._ids == 3, "three parts, of which the first has its id"
    site.layer.configure(replace(KNOBS, max_batch=8, part_rows=0))
    site.send(rows=8)
    assert site.rig._ids == 4


async def test_rows_that_turn_out_to_depend_on_each_other_are_split_no_more() -> None:
    site = Site(replace(KNOBS, max_batch=8))
    site.layer.end()
    site.layer.configure(replace(KNOBS, max_batch=1, part_rows=4))
    whole, too_large = site.send(rows=8), site.send(rows=9)
    await whole.wait()
    assert site.rows == [8]
    assert too_large.kind is FailureKind.INVALID_ARGUMENT
    assert too_large.failure is not None
    assert too_large.failure.message.startswith("inference request batch-size must be <= 8 for 'm', got 9")
    await site.end()
    assert site.failures == {"invalid_argument": 1}


async def test_a_client_that_cannot_take_its_refusal_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Reply):
        def failed(self, failure: object) -> None:
            raise OSError("the socket has gone")

    site = Site(replace(KNOBS, max_batch=8))
    site.layer.end()
    request = site.rig.request(rows=9)
    with caplog.at_level(logging.ERROR):
        site.layer.submit(request, Broken(request))
    assert "could not hand over the failure" in caplog.text


async def test_an_input_that_the_model_broadcasts_keeps_a_request_whole() -> None:
    specs = (TensorSpec("x", DType.FP32, (-1, -1)), TensorSpec("y", DType.FP32, (-1, -1)))
    signature = Signature(specs, SIGNATURE.outputs, batched=True, platform="fake", even=False)
    site = Site(signature=signature, function=lambda inputs: [inputs[0] + inputs[1]])

    def send(*rows: int) -> Reply:
        reply = Reply(site.rig.request(rows=max(rows)))
        reply.request.inputs = [
            Tensor(spec.name, DType.FP32, (many, 1), to_bytes(DType.FP32, np.ones((many, 1), np.float32)))
            for spec, many in zip(specs, rows, strict=True)
        ]
        site.layer.submit(reply.request, reply)
        return reply

    assert (await send(10, 10).wait()).values == [2.0] * 10
    assert sorted(site.rows) == [4, 6]
    assert (await send(10, 1).wait()).values == [2.0] * 10
    assert site.rows[2:] == [10]
    assert send(65, 1).kind is FailureKind.INVALID_ARGUMENT


async def test_an_answer_that_cannot_be_put_together_is_a_failure_of_the_model() -> None:
    def widens(inputs: Sequence[Array]) -> list[Array]:
        return [np.ones((len(inputs[0]), 1 + int(inputs[0][0, 0]) % 2), np.float32)]

    site = Site(replace(KNOBS, max_batch=3), part_rows=3, function=widens)
    reply = await site.send(rows=6).wait()
    assert (reply.kind, reply.failure and "'y' cannot be put together" in reply.failure.message) == (
        FailureKind.MODEL_FAILED,
        True,
    )
    await site.end()
    assert site.failures == {"model_failed": 1}


async def test_a_request_that_nobody_waits_for_has_parts_that_nobody_counts() -> None:
    site = Site()
    request = site.rig.request(rows=9)
    request.ticket.id = -5
    reply = Reply(request)
    site.layer.submit(request, reply)
    await turns()
    assert site.rig.driver.unanswered == 0
    assert len((await reply.wait()).values) == 9
    await site.end()
    assert site.rig.stats.request.count == 0


async def test_a_request_that_wakes_its_model_has_all_its_parts_wait_for_that() -> None:
    class Asleep:
        asleep = True

        def wake(self) -> None:
            self.asleep = False

    site = Site(instances=0)
    site.rig.driver.expect_instance(float("inf"))
    layer = WakeLayer(site.layer, Asleep())  # type: ignore[arg-type]
    reply = Reply(site.rig.request(rows=9, timeout_s=0.020))
    layer.submit(reply.request, reply)
    await site.rig.rest(1.0)
    site.rig.driver.add_instance(site.rig.fake("late"))
    assert len((await reply.wait()).values) == 9


# Cutting and joining

NUMBERS = (DType.FP16, DType.BF16, DType.INT8, DType.BOOL, DType.FP64, DType.BYTES)


def drawn(dtype: DType, shape: tuple[int, ...], seed: int) -> Tensor:
    random = np.random.default_rng(seed)
    if dtype is DType.BYTES:
        array = np.array([random.bytes(int(size)) for size in random.integers(0, 5, np.prod(shape, dtype=int))], object)
        return Tensor("", dtype, shape, to_bytes(dtype, array.reshape(shape)))
    size = dtype.itemsize * int(np.prod(shape, dtype=int))
    data = bytes(random.integers(0, 2, size, np.uint8)) if dtype is DType.BOOL else random.bytes(size)
    return Tensor("", dtype, shape, memoryview(data))


shapes = st.lists(st.tuples(st.sampled_from(NUMBERS), st.lists(st.integers(0, 3), max_size=2)), min_size=1, max_size=3)


@pytest.mark.looptime(False)
@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 40), part_rows=st.integers(1, 12), made=shapes, shared=st.booleans(), last=st.booleans())
def test_parts_put_together_again_are_the_whole_byte_for_byte(
    rows: int, part_rows: int, made: list[tuple[DType, list[int]]], shared: bool, last: bool
) -> None:
    """As inputs that are cut, gathered by a model that gives them back, cut from its batch, and joined."""
    inputs = [TensorSpec(f"i{n}", dtype, (-1, *tail)) for n, (dtype, tail) in enumerate(made)]
    tensors = [drawn(spec.dtype, (rows, *spec.shape[1:]), n) for n, spec in enumerate(inputs)]
    if shared:
        inputs.append(TensorSpec("s", DType.FP32, (3,), rows=None))
        tensors.append(drawn(DType.FP32, (3,), 9))
    outputs = tuple(spec for spec in inputs if spec.rows == 0)
    signature = Signature(tuple(inputs), outputs, batched=True, platform="fake")
    assert can_split(signature)
    wanted = tuple(range(len(outputs)))[:: -1 if last else 1]
    request = Request(Ticket(1, 0.0, rows=rows), "m", tensors, wanted)
    request.trace = Trace("an id")
    parts = cut(request, split(request.ticket, part_rows, count(2)), signature)
    assert {part.trace for part in parts} == {request.trace}
    for part in parts:
        assert [tensor.shape[0] for tensor, spec in zip(part.inputs, inputs, strict=True) if spec.rows == 0] == (
            [part.ticket.rows] * len(outputs)
        )
        assert not shared or part.inputs[-1] is tensors[-1]
    arrays = gather(signature, parts)
    cutter = Cutter(signature, arrays[: len(outputs)], requests=len(parts))
    starts = np.cumsum([0, *(part.ticket.rows for part in parts)]).tolist()
    answers = [cutter.cut(start, part.ticket.rows, wanted) for start, part in zip(starts, parts, strict=False)]
    whole = joined(answers, [part.ticket.rows for part in parts], wanted, signature)
    for tensor, index in zip(whole, wanted, strict=True):
        assert (tuple(tensor.shape), bytes(tensor.data)) == (tuple(tensors[index].shape), bytes(tensors[index].data))


@pytest.mark.looptime(False)
@given(rows=st.integers(2, 12), part_rows=st.integers(1, 5))
def test_outputs_with_rows_elsewhere_and_ragged_ones_are_put_together_too(rows: int, part_rows: int) -> None:
    counts = np.arange(rows, dtype=np.int64) % 3
    arrays = {
        "across": np.arange(2 * rows, dtype=np.float32).reshape(2, rows),
        "counts": counts,
        "ragged": np.arange(int(counts.sum()) * 2, dtype=np.int8).reshape(-1, 2),
    }
    outputs = (
        TensorSpec("across", DType.FP32, (2, -1), rows=1),
        TensorSpec("counts", DType.INT64, (-1,)),
        TensorSpec("ragged", DType.INT8, (-1, 2), rows=None, counts="counts"),
    )
    signature = Signature(SIGNATURE.inputs, outputs, batched=True, platform="fake")
    assert can_split(signature)
    tickets = split(Ticket(1, 0.0, rows=rows), part_rows, count(2))
    cutter = Cutter(signature, list(arrays.values()), requests=2)
    answers, start = [], 0
    for ticket in tickets:
        answers.append(cutter.cut(start, ticket.rows, (0, 1, 2)))
        start += ticket.rows
    for tensor in joined(answers, [ticket.rows for ticket in tickets], (0, 1, 2), signature):
        found = to_array(tensor.dtype, tensor.shape, tensor.data)
        assert np.array_equal(found, arrays[tensor.name]), tensor.name


@pytest.mark.looptime(False)
@pytest.mark.parametrize(
    "changes",
    [
        {"batched": False},
        {"streams": True},
        {"inputs": (TensorSpec("x", DType.FP32, (3, -1), rows=1),)},
        {"inputs": (TensorSpec("x", DType.FP32, (3,), rows=None),)},
        {"outputs": (TensorSpec("y", DType.FP32, (3,), rows=None),)},
    ],
)
def test_what_cannot_be_cut_apart_is_not_split(changes: dict[str, Any]) -> None:
    assert can_split(SIGNATURE)
    assert not can_split(replace(SIGNATURE, **changes))
