"""Answers that were cut out of batches are compared with what the request gets alone; a difference ends batching."""

import asyncio
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dlproxy.message import DType, Signature, TensorSpec
from dlproxy.serve.recheck import EVERY_S, FIRST, Recheck
from tests.serve.rig import KNOBS, Rig, double

Array = NDArray[np.generic]

pytestmark = pytest.mark.looptime


def _watched(rig: Rig) -> list[str]:
    """What the rig's driver is told of differences, from now on."""
    reasons: list[str] = []
    rig.driver.compare_answers(Recheck(rig.driver.submit, rig.stats, rig.now, reasons.append))
    return reasons


def _less_the_largest(inputs: Sequence[Array]) -> list[Array]:
    x = np.asarray(inputs[0], np.float32)
    return [x - x.max()]


async def _pair(rig: Rig, rest_s: float = 0.05) -> None:
    """A batch of one, behind which the next two wait, who then share a batch; and some time after it."""
    replies = [rig.send(float(value)) for value in (1, 2, 3)]
    for reply in replies:
        await reply.wait()
    await rig.rest(rest_s)


async def test_equal_answers_change_nothing_and_are_counted() -> None:
    rig = Rig()
    reasons = _watched(rig)
    await _pair(rig)
    rig.stats.settle()
    assert rig.stats.rechecks == {"same": 1, "different": 0}
    assert rig.stats.rows == 3, "a re-check is no client's inference"
    assert rig.batches[-1][0] < 0
    assert not reasons
    assert rig.is_at_rest()


async def test_a_row_that_depends_on_its_neighbours_ends_batching() -> None:
    rig = Rig(function=_less_the_largest)
    reasons = _watched(rig)
    await _pair(rig)
    assert rig.stats.rechecks["different"] == 0, "the last of the pair is the largest: it gets the same alone"
    replies = [rig.send(value) for value in (1.0, 9.0, 3.0)]
    for reply in replies:
        await reply.wait()
    await rig.rest(0.05)
    assert rig.stats.rechecks["different"] == 1
    assert reasons == ["output 'y' of a request was different in a batch from what it is alone"]
    await _pair(rig)
    assert len(reasons) == 1, "nothing is compared any more"


async def test_what_another_model_answered_says_nothing_of_this_one() -> None:
    """As where an upstream has no time for its best one."""
    rig = Rig(function=_less_the_largest)
    reasons = _watched(rig)
    (fake,) = rig.fakes
    for variant, again in (("small", ""), ("", "small")):  # of the batch, and of what may be run again after it
        fake.variant = variant
        replies = [rig.send(value) for value in (1.0, 9.0, 3.0)]
        for reply in replies:
            await reply.wait()
            assert reply.response is not None
            assert reply.response.variant == variant
        fake.variant = again
        await rig.rest(0.05)
    again_ran = [ids for ids in rig.batches if ids[0] < 0]
    assert again_ran == rig.batches[-1:], "once, and nothing after the first"
    assert rig.stats.rechecks == {"same": 0, "different": 0}
    assert not reasons


async def test_the_first_batches_are_all_looked_at_then_one_a_second() -> None:
    rig = Rig()
    _watched(rig)
    for _ in range(FIRST + 5):
        await _pair(rig)
    assert rig.stats.rechecks["same"] == FIRST
    await rig.rest(EVERY_S)
    await _pair(rig)
    assert rig.stats.rechecks["same"] == FIRST + 1


async def test_outputs_that_cannot_be_told_apart_are_run_alone_and_end_batching() -> None:
    """Two requests of which one finds nothing and one finds two: as many finds as rows, but for this once."""

    def positive(inputs: Sequence[Array]) -> list[Array]:
        x = np.asarray(inputs[0], np.float32)
        return [x[x[:, 0] > 0]]

    rig = Rig(function=positive)
    reasons = _watched(rig)
    replies = [rig.send(value) for value in (5.0, -1.0, 2.0)]
    for reply in replies:
        await reply.wait()
    assert [reply.values for reply in replies] == [[5.0], [], [2.0]]
    assert reasons[0] == "output 'y' has shape [2, 1] for a batch of 3 rows"
    assert rig.is_at_rest()


async def test_a_label_may_flip_once_where_the_numbers_are_the_same() -> None:
    """A tie, decided by the order in which a kernel sums."""
    signature = Signature(
        (TensorSpec("x", DType.FP32, (-1, -1)),),
        (TensorSpec("label", DType.INT64, (-1,)), TensorSpec("y", DType.FP32, (-1, -1))),
        batched=True,
        platform="fake",
    )

    def tied(inputs: Sequence[Array]) -> list[Array]:
        x = np.asarray(inputs[0], np.float32)
        return [np.full(len(x), len(x), np.int64), *double(inputs)]

    rig = Rig(function=tied, signature=signature, outputs=(0, 1))
    reasons = _watched(rig)
    await _pair(rig)
    assert (rig.stats.rechecks["different"], reasons) == (1, [])
    await _pair(rig)
    assert rig.stats.rechecks["different"] == 2
    assert len(reasons) == 1


# Requests of different lengths

LENGTHS = Signature(
    (TensorSpec("x", DType.FP32, (-1, -1), padded=1),),
    (TensorSpec("y", DType.FP32, (-1, -1), padded=1),),
    batched=True,
    platform="fake",
)
PADS = msgspec.structs.replace(KNOBS, max_padding=0.9)


def _less_the_mean(inputs: Sequence[Array]) -> list[Array]:
    """Zeros that a row is filled up with change its mean."""
    x = np.asarray(inputs[0], np.float32)
    return [x - x.mean(axis=1, keepdims=True)]


def _watched_for_both(rig: Rig) -> tuple[list[str], list[str]]:
    """What is said of batching, and of padding, which ends then."""
    batching: list[str] = []
    padding: list[str] = []

    def end_padding(reason: str) -> None:
        padding.append(reason)
        rig.driver.change_knobs(KNOBS)

    def soon(reason: str) -> None:
        asyncio.get_running_loop().call_soon(end_padding, reason)  # not in the midst of a lane's commands

    rig.driver.compare_answers(Recheck(rig.driver.submit, rig.stats, rig.now, batching.append, soon))
    return batching, padding


async def _of_lengths(rig: Rig, *widths: int) -> list[list[float]]:
    """The answers to requests of these lengths, which wait behind another and then share what batch they may."""
    first = rig.send(1.0)
    replies = [rig.send_of_length(width) for width in widths]
    for reply in (first, *replies):
        await reply.wait()
    await rig.rest(0.05)
    return [reply.row for reply in replies]


async def test_padded_answers_that_are_right_are_compared_and_counted() -> None:
    rig = Rig(signature=LENGTHS, knobs=PADS)
    batching, padding = _watched_for_both(rig)
    assert await _of_lengths(rig, 3, 2, 5) == [[2.0, 4.0, 6.0], [2.0, 4.0], [2.0, 4.0, 6.0, 8.0, 10.0]]
    assert len(rig.batches[1]) == 3, "one batch of all three lengths"
    assert rig.stats.rechecks == {"same": 1, "different": 0}
    assert rig.stats.elements == {"real": 11, "padding": 5}
    assert not batching
    assert not padding


async def test_a_difference_in_a_padded_batch_ends_padding_and_not_batching() -> None:
    rig = Rig(signature=LENGTHS, knobs=PADS, function=_less_the_mean)
    batching, padding = _watched_for_both(rig)
    wrong = await _of_lengths(rig, 2, 3)
    assert wrong[0] != [-0.5, 0.5]
    assert padding == ["output 'y' of a request was different padded in a batch from what it is alone"]
    before = len(rig.batches)
    assert await _of_lengths(rig, 2, 3, 2, 3) == [[-0.5, 0.5], [-1.0, 0.0, 1.0]] * 2
    sizes = [len(batch) for batch in rig.batches[before:] if batch[0] >= 0]
    assert sizes == [1, 2, 2], "of one length each"
    assert not batching
    assert len(padding) == 1
    assert rig.stats.rechecks["same"] >= 1, "what is batched still is looked at further"


async def test_a_difference_in_a_batch_of_one_length_ends_batching_at_once() -> None:
    rig = Rig(signature=LENGTHS, knobs=PADS, function=_less_the_largest)
    batching, padding = _watched_for_both(rig)
    first = rig.send(1.0)
    replies = [rig.send_of_length(3, value) for value in (9.0, 1.0)]
    for reply in (first, *replies):
        await reply.wait()
    await rig.rest(0.05)
    assert batching == ["output 'y' of a request was different in a batch from what it is alone"]
    assert not padding


async def test_an_output_that_is_shorter_than_its_batch_ends_padding_and_all_are_answered() -> None:
    """The model drops the last step of long batches."""

    def cut_short(inputs: Sequence[Array]) -> list[Array]:
        x = np.asarray(inputs[0], np.float32)
        return [x[:, :-1] if len(x) > 1 and x.shape[1] > 2 else x]

    rig = Rig(signature=LENGTHS, knobs=PADS, function=cut_short)
    batching, padding = _watched_for_both(rig)
    assert await _of_lengths(rig, 2, 3) == [[1.0, 2.0], [1.0, 2.0, 3.0]]
    assert padding == ["output 'y' has shape [2, 2] for a batch padded to 3"]
    assert not batching
    assert rig.is_at_rest()
