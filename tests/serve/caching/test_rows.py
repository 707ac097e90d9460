"""Rows that are remembered by themselves: answers are those of the model, and only rows that are not known are run."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.message import (
    DType,
    Failure,
    FailureKind,
    InferenceError,
    Request,
    Response,
    Signature,
    Tensor,
    TensorSpec,
    Ticket,
    Timing,
)
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.caching.layer import CacheLayer
from dlproxy.serve.caching.rows import has_rows
from dlproxy.service import ReplyTo, infer
from dlproxy.telemetry.stats import ModelStats

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)

SIGNATURE = Signature(
    (TensorSpec("x", DType.INT32, (-1, 2)), TensorSpec("t", DType.BYTES, (-1,))),
    (TensorSpec("sum", DType.INT32, (-1,)), TensorSpec("t", DType.BYTES, (-1,))),
    batched=True,
    platform="test",
)
Row = tuple[int, bytes]


class Summing:
    """A Service that adds up each row's numbers, and gives its text again; notes how many rows each run had."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.failure: Failure | None = None
        self.waits = False
        self._held: list[tuple[Request, ReplyTo]] = []

    def submit(self, request: Request, reply: ReplyTo) -> None:
        self.ran.append(request.ticket.rows)
        self._held.append((request, reply))
        if not self.waits:
            asyncio.get_running_loop().call_soon(self.answer)

    def answer(self) -> None:
        request, reply = self._held.pop(0)
        if self.failure is not None:
            reply.failed(self.failure)
            return
        x, text = request.inputs
        numbers = np.frombuffer(x.data, np.int32).reshape(x.shape)
        assert numbers.shape[0] == request.ticket.rows
        outputs = [Tensor("sum", DType.INT32, (len(numbers),), numbers.sum(axis=1, dtype=np.int32).tobytes()), text]
        wanted = [outputs[index] for index in request.outputs]
        reply.completed(Response(request.id, "m", "1", wanted, Timing(0.0, 0.0, 0.01)))

    def cancel(self, request: Request) -> None:
        for held in self._held:
            if held[0] is request:
                self._held.remove(held)
                held[1].failed(Failure(FailureKind.CANCELLED, "cancelled"))
                return


def layer_before(inner: Summing) -> CacheLayer:
    config = ModelConfig(path="m", cache="on", cache_rows=True)
    layer = Caches(CacheConfig(memory_mb=64), asyncio.get_running_loop().time).before(
        inner, "m", config, SIGNATURE, ModelStats()
    )
    assert layer is not None
    return layer


def asked(rows: Sequence[Row], number: int = 1, outputs: Sequence[int] = (0, 1)) -> Request:
    x = np.array([(value, 1) for value, _ in rows], np.int32)
    text = b"".join([len(text).to_bytes(4, "little") + text for _, text in rows])
    inputs = [Tensor("x", DType.INT32, x.shape, x.tobytes()), Tensor("t", DType.BYTES, (len(rows),), text)]
    return Request(Ticket(number, 0.0, rows=len(rows)), "m", inputs, outputs)


def answers(response: Response) -> list[list[int]]:
    return [np.frombuffer(tensor.data, np.int32).tolist() for tensor in response.outputs if tensor.dtype is DType.INT32]


async def test_of_eight_rows_of_which_five_are_known_three_are_run() -> None:
    inner = Summing()
    layer = layer_before(inner)
    await infer(layer, asked([(value, b"a") for value in range(5)], 1))
    response = await infer(layer, asked([(value, b"a") for value in (7, 0, 1, 9, 2, 3, 4, 8)], 2))
    assert inner.ran == [5, 3]
    assert answers(response) == [[8, 1, 2, 10, 3, 4, 5, 9]]
    assert response.cache == "partial"
    again = await infer(layer, asked([(4, b"a"), (9, b"a")], 3))
    assert (answers(again), again.cache, inner.ran) == ([[5, 10]], "hit", [5, 3])
    single = await infer(layer, asked([(9, b"a")], 4))
    assert (answers(single), single.cache) == ([[10]], "hit")


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 5), st.sampled_from([b"", b"a", b"bb"])), min_size=1, max_size=6),
            st.sampled_from([(0, 1), (1, 0), (1,), (0,)]),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_answers_are_those_of_the_model(requests: list[tuple[list[Row], Sequence[int], bool]]) -> None:
    async def ask_all() -> None:
        layer = layer_before(Summing())
        for number, (rows, outputs, clears) in enumerate(requests):
            response = await infer(layer, asked(rows, number + 1, outputs))
            want = await infer(Summing(), asked(rows, number + 1, outputs))
            assert [(tensor.name, tuple(tensor.shape), bytes(tensor.data)) for tensor in response.outputs] == [
                (tensor.name, tuple(tensor.shape), bytes(tensor.data)) for tensor in want.outputs
            ]
            if clears:
                layer.clear()
        assert not layer.waiting
        assert not layer.flights

    asyncio.run(ask_all())


async def test_a_failure_is_not_remembered_and_leaves_nothing() -> None:
    inner = Summing()
    layer = layer_before(inner)
    inner.failure = Failure(FailureKind.MODEL_FAILED, "broken")
    with pytest.raises(InferenceError, match="broken"):
        await infer(layer, asked([(1, b""), (2, b"")]))
    inner.failure = None
    assert answers(await infer(layer, asked([(1, b""), (2, b"")], 2))) == [[2, 3]]
    assert layer.rows is not None
    assert not layer.rows.asked


async def test_what_is_run_of_a_request_is_cancelled_with_it() -> None:
    inner = Summing()
    layer = layer_before(inner)
    await infer(layer, asked([(1, b"")]))
    inner.waits = True
    task = asyncio.create_task(infer(layer, asked([(1, b""), (2, b"")], 2)))
    await asyncio.sleep(0)
    assert inner.ran == [1, 1]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not inner._held
    assert layer.rows is not None
    assert not layer.rows.asked


async def test_what_runs_while_the_cache_is_cleared_is_not_kept() -> None:
    inner = Summing()
    layer = layer_before(inner)
    inner.waits = True
    task = asyncio.create_task(infer(layer, asked([(1, b""), (2, b"")], 2)))
    await asyncio.sleep(0)
    layer.clear()
    inner.answer()
    await task
    assert len(layer.cache) == 0


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (TensorSpec("y", DType.FP32, (-1, 4)), True),
        (TensorSpec("y", DType.FP32, (2, -1), rows=1), False),
        (TensorSpec("y", DType.FP32, (4,), rows=None), False),
        (TensorSpec("y", DType.FP32, (-1, 4), counts="n"), False),
    ],
)
def test_rows_are_told_apart_only_where_they_come_first(spec: TensorSpec, found: bool) -> None:
    assert has_rows(Signature(SIGNATURE.inputs, (spec,), batched=True, platform="")) is found
    assert not has_rows(Signature(SIGNATURE.inputs, (spec,), batched=False, platform=""))
