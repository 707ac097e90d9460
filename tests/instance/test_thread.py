"""The thread instance beyond the contract: nobody who waits for a batch is forgotten, and no batch outlives its answer."""

import asyncio
from collections.abc import Sequence
from threading import Event
from weakref import ref

import numpy as np

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.thread import ThreadInstance
from dlproxy.message import DType, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.testing.fake_runtime import Array, FakeRuntime

HANG_S = 30.0
SIGNATURE = Signature((TensorSpec("x", DType.FP32, (-1,)),), (TensorSpec("y", DType.FP32, (-1,)),), batched=True, platform="")


def request() -> Request:
    return Request(Ticket(1, 0.0), "same", [Tensor("x", DType.FP32, (1,), np.ones(1, np.float32).tobytes())], (0,))


async def run(instance: ThreadInstance) -> BatchResult:
    answer: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
    instance.run([request()], answer.set_result)
    return await asyncio.wait_for(answer, HANG_S)


async def test_a_model_that_exits_fails_its_batch_and_the_next_one_runs() -> None:
    exits = [True]

    def model(inputs: Sequence[Array]) -> list[Array]:
        if exits and exits.pop():
            raise SystemExit(3)
        return list(inputs)

    instance = ThreadInstance("thread", FakeRuntime(SIGNATURE, model))
    assert (await run(instance)).error == "the model raised SystemExit: 3"
    assert (await run(instance)).error is None
    await instance.stop()


async def test_an_idle_thread_keeps_no_batch_alive() -> None:
    given: list[ref[Array]] = []

    def model(inputs: Sequence[Array]) -> list[Array]:
        output = inputs[0].copy()
        given.append(ref(output))
        return [output]

    instance = ThreadInstance("thread", FakeRuntime(SIGNATURE, model))
    await run(instance)
    for _ in range(500):
        if given[0]() is None:
            break
        await asyncio.to_thread(Event().wait, 0.01)  # the thread may still be on its way to the next batch
    assert given[0]() is None
    await instance.stop()


def test_a_loop_that_closes_while_a_batch_runs_leaves_the_thread_unharmed() -> None:
    started, closed = Event(), Event()

    def model(inputs: Sequence[Array]) -> list[Array]:
        started.set()
        assert closed.wait(HANG_S)
        return list(inputs)

    instance = ThreadInstance("thread", FakeRuntime(SIGNATURE, model))
    reported: list[BatchResult] = []

    async def leave() -> None:
        instance.run([request()], reported.append)
        assert await asyncio.to_thread(started.wait, HANG_S)

    asyncio.run(leave())
    closed.set()  # it cannot report to that loop any more
    assert asyncio.run(run(instance)).error is None, "the next loop's batch"
    asyncio.run(instance.stop())
    assert not reported
