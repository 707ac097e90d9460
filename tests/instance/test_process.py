"""A batch in a worker process gives what it gives in this one, whatever its types, shapes and size; and lives end well."""

import asyncio
import gc
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.instance.batch import BatchResult, Cutter, run_batch
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.process.slots import LEND_FROM_BYTES, OUTPUT_SLOTS
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.warmup import WarmUp
from dlproxy.message import DType, Request, Signature, Tensor, Ticket
from dlproxy.tensors import NUMPY, to_bytes
from tests import models
from tests.instance.process_models import GATE, WIDE, EveryType, model_at, moody, request
from tests.instance.running import HANG_S, run


def values(result: BatchResult) -> list[list[float]]:
    assert result.error is None, result.error
    rows: list[list[float]] = result.outputs[0].tolist()
    return rows


# What it computes


def _tensor(random: np.random.Generator, name: str, dtype: DType, shape: tuple[int, int]) -> Tensor:
    count = shape[0] * shape[1]
    if dtype is DType.BYTES:
        texts = ["ä" * int(length) for length in random.integers(0, 4, count)]
        array: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = np.array([*texts, None], object)[:-1].reshape(shape)
    else:
        noise = random.integers(0, 2 if dtype is DType.BOOL else 256, count * dtype.itemsize, np.uint8)
        array = np.frombuffer(noise.tobytes(), NUMPY[dtype]).reshape(shape)
    return Tensor(name, dtype, shape, to_bytes(dtype, array))


@st.composite
def batches(draw: st.DrawFn) -> list[Request]:
    """Requests of every type with any number of rows, each input with its own width, small and large."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    widths = [draw(st.sampled_from([0, 1, 3, 8, 500])) for _ in DType]
    return [
        Request(
            Ticket(number, 0.0, rows=rows),
            "m",
            [_tensor(random, f"in_{dtype.value}", dtype, (rows, width)) for dtype, width in zip(DType, widths, strict=True)],
            range(len(DType)),
        )
        for number, rows in enumerate(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    ]


def _cut(signature: Signature, result: BatchResult, requests: Sequence[Request]) -> list[tuple[str, DType, list[int], bytes]]:
    assert result.error is None, result.error
    cutter, start, cut = Cutter(signature, result.outputs, requests=len(requests)), 0, []
    for one in requests:
        tensors = cutter.cut(start, one.ticket.rows, one.outputs)
        cut += [(tensor.name, tensor.dtype, list(tensor.shape), bytes(tensor.data)) for tensor in tensors]
        start += one.ticket.rows
    return cut


def test_any_batch_gives_what_it_gives_in_this_process() -> None:
    here = EveryType()
    with asyncio.Runner() as runner:
        instance = ProcessInstance("every", PythonSpec("tests.instance.process_models:EveryType"))
        assert runner.run(instance.start()) == here.signature
        held = []

        @settings(max_examples=30, deadline=None)
        @given(batches())
        def check(requests: list[Request]) -> None:
            result = runner.run(run(instance, *requests))
            expected = _cut(here.signature, run_batch(here, requests), requests)
            assert _cut(here.signature, result, requests) == expected
            held.append((result, requests, expected))  # so that slots are lent while later batches run
            del held[:-4]
            for earlier, its_requests, its_outputs in held:
                assert _cut(here.signature, earlier, its_requests) == its_outputs, "a later batch overwrote its outputs"

        check()
        runner.run(instance.stop())


async def test_an_onnx_model_is_warmed_up_and_runs() -> None:
    instance = ProcessInstance("digits", model_at(models.DIGITS), WorkerSettings(warm_up=WarmUp()))
    signature = await instance.start()
    assert signature.batched
    assert instance.calibration is not None
    assert instance.calibration.single_s is not None
    image = np.zeros((3, *signature.inputs[0].shape[1:]), np.float32)
    tensor = Tensor(signature.inputs[0].name, DType.FP32, image.shape, to_bytes(DType.FP32, image))
    result = await run(instance, Request(Ticket(1, 0.0, rows=3), "digits", [tensor], (0,)))
    assert result.error is None
    assert result.outputs[0].sum(axis=1) == pytest.approx([1.0] * 3)
    assert result.compute_s > 0.0
    await instance.stop()


async def test_rows_that_depend_on_each_other_make_a_model_without_batches(tmp_path: Path) -> None:
    path = models.save(models.softmax_over_rows(), tmp_path / "softmax.onnx")
    instance = ProcessInstance("softmax", model_at(path), WorkerSettings(warm_up=WarmUp()))
    assert not (await instance.start()).batched
    await instance.stop()


def test_it_runs_on_uvloop() -> None:
    async def one_life() -> None:
        instance = moody()
        await instance.start()
        assert values(await run(instance, request(1.5), request(2.0))) == [[3.0, 3.0], [4.0, 4.0]]
        await instance.stop()
        assert instance.pid is None

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(one_life())


# Sizes


async def test_slots_grow_with_what_a_batch_needs() -> None:
    instance = moody()
    await instance.start()
    for width in (1, 5_000, 3, 2_000_000):
        result = await run(instance, request(1.0, width=width), request(2.0, width=width))
        assert result.error is None
        assert result.outputs[0].shape == (2, width)
        assert (result.outputs[0] == [[2.0], [4.0]]).all()
    result = await run(instance, request(WIDE, width=5))  # two megabytes from twenty bytes
    assert result.outputs[0].shape == (1, 500_000)
    assert (result.outputs[0] == WIDE).all()
    await instance.stop()


async def test_what_does_not_fit_fails_its_batch_and_says_what_would() -> None:
    instance = moody(max_slot_bytes=2**20)
    await instance.start()
    too_wide = await run(instance, request(1.0, width=25_000_000))  # 100 MB
    assert too_wide.error == "its inputs take 100000000 bytes, a worker's slot holds at most 1048576 (max_slot_bytes)"
    too_much = await run(instance, request(WIDE, width=5))
    assert too_much.error is not None
    assert "its outputs take 2000000 bytes" in too_much.error
    assert values(await run(instance, request(1.0))) == [[2.0, 2.0]]
    whole = await run(instance, request(1.0, width=2**18))  # to the last byte
    assert whole.outputs[0].nbytes == 2**20
    await instance.stop()


async def test_a_hundred_megabytes_pass() -> None:
    instance = moody()
    await instance.start()
    result = await run(instance, request(1.0, width=25_000_000))
    assert result.error is None
    assert result.outputs[0].nbytes == 100_000_000
    assert float(result.outputs[0].min()) == float(result.outputs[0].max()) == 2.0
    await instance.stop()


# Outputs in shared memory


async def test_outputs_stay_as_they_were_however_long_they_are_held() -> None:
    instance = moody()
    await instance.start()
    width = LEND_FROM_BYTES // 4
    held = [await run(instance, request(float(number), width=width)) for number in range(2 * OUTPUT_SLOTS)]
    assert len(instance._outputs._lent) == OUTPUT_SLOTS - 1, "the others were copied out"
    await instance.stop()
    for number, result in enumerate(held):
        assert (result.outputs[0] == 2.0 * number).all()


async def test_a_slot_comes_back_with_the_last_view_of_it() -> None:
    instance = moody()
    await instance.start()
    for number in range(10):
        result = await run(instance, request(float(number), width=LEND_FROM_BYTES))
        view = result.outputs[0][:, 5:7]
        del result
        gc.collect()
        assert view.tolist() == [[2.0 * number] * 2]
        assert len(instance._outputs._lent) == 1
        del view
        assert not instance._outputs._lent
    await instance.stop()


# Lives


async def test_stop_waits_for_the_running_batch(tmp_path: Path) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    instance = moody(fifo=fifo)
    await instance.start()
    results: list[BatchResult] = []
    instance.run([request(GATE)], results.append)
    gate = await asyncio.to_thread(fifo.open, "wb")  # returns when the model waits at the other end
    stopping = asyncio.create_task(instance.stop())
    again = asyncio.create_task(instance.stop())
    await asyncio.sleep(0)
    assert not results
    gate.close()
    await asyncio.wait_for(asyncio.gather(stopping, again), HANG_S)
    assert values(results[0]) == [[2.0 * GATE] * 2]
    assert instance.pid is None


async def test_an_instance_that_was_never_started_stops() -> None:
    await moody().stop()


async def test_a_start_that_is_cancelled_or_stopped_leaves_nothing() -> None:
    before = os.listdir("/proc/self/fd")
    instance = moody()
    starting = asyncio.create_task(instance.start())
    await asyncio.sleep(0)
    pid = instance.pid
    assert pid is not None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

    instance = moody("m-1")
    starting = asyncio.create_task(instance.start())
    await asyncio.sleep(0)
    await instance.stop()
    with pytest.raises(ModelError, match="stopped"):
        await starting
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_threads_cores_and_environment_are_the_workers_own() -> None:
    core = max(os.sched_getaffinity(0))
    spec = PythonSpec("tests.instance.process_models:Environment")
    settings = WorkerSettings(threads=3, cores=(core,), environment={"MINE": "yes"})
    instance = ProcessInstance("environment", spec, settings)
    await instance.start()
    result = await run(instance, request(1.0, width=1))
    assert result.outputs[0].tolist() == [[b"3", b"yes", str(core).encode()]]
    await instance.stop()
