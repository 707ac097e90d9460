"""`async for outputs in proxy.stream(...)`: Python classes that answer in parts, on a thread and in a worker process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest

from dlproxy import FailureKind, InferenceError, Model, Proxy
from dlproxy.instance.runtime import ModelError
from dlproxy.serve.assemble import LoadedModel
from tests import models

RUNS = pytest.mark.parametrize("run", ["thread", "process"])
KINDS = pytest.mark.parametrize("word", ["def", "async def"])
HANG_S = 30.0


def _write(folder: Path, word: str = "def", *, parts: str = "int(batch['x'].max())", then: str = "") -> Path:
    """So many parts, each x + step. `then`: what the class does before each but the first."""
    folder.joinpath("counter.py").write_text(
        dedent(f"""
        import time
        from pathlib import Path

        class Counter:
            inputs, outputs = {{"x": "FP32[-1]"}}, {{"y": "FP32[-1]"}}
            streams = True

            {word} predict(self, batch):
                y = batch["x"].copy()
                try:
                    for step in range({parts}):
                        if step:
                            {then or "pass"}
                        y[:] = batch["x"] + step
                        yield {{"y": y}}
                    if {parts} < 1:
                        yield {{"y": y}}
                except GeneratorExit:
                    Path({str(folder / "closed")!r}).touch()
                    raise
        """)
    )
    return folder / "counter.py"


@asynccontextmanager
async def _proxy(path: Path, **settings: Any) -> AsyncIterator[Proxy]:
    async with Proxy([Model(f"{path}:Counter", name="counter", **settings)]) as proxy:
        yield proxy


async def _read(proxy: Proxy, x: float, **options: Any) -> list[float]:
    async with asyncio.timeout(HANG_S):
        return [float(part["y"][0]) async for part in proxy.stream("counter", {"x": _row(x)}, **options)]


def _row(x: float) -> np.ndarray[Any, Any]:
    return np.array([x], np.float32)


def _loaded(proxy: Proxy) -> LoadedModel:
    (model,) = proxy.models
    return model


@RUNS
@KINDS
async def test_parts_come_as_the_class_yields_them(tmp_path: Path, run: str, word: str) -> None:
    async with _proxy(_write(tmp_path, word), run=run) as proxy:
        assert await _read(proxy, 4.0) == [4.0, 5.0, 6.0, 7.0]
        assert await _read(proxy, 1.0, outputs=["y"], timeout_s=20.0, priority=1, tenant="t") == [1.0]


@RUNS
async def test_streams_that_begin_together_share_a_batch_and_each_reads_its_own(tmp_path: Path, run: str) -> None:
    async with _proxy(_write(tmp_path, parts="3"), run=run) as proxy:
        many = await asyncio.gather(*(_read(proxy, float(x)) for x in range(20)))
        assert many == [[x, x + 1.0, x + 2.0] for x in range(20)]
        stats = _loaded(proxy).served.stats
        stats.settle()
        assert stats.batches < stats.rows == 20


async def test_answers_whose_number_of_parts_depends_on_others_share_no_batch(tmp_path: Path) -> None:
    async with _proxy(_write(tmp_path), run="thread") as proxy:
        assert await asyncio.gather(_read(proxy, 3.0), _read(proxy, 2.0)) == [[3.0, 4.0, 5.0], [2.0, 3.0]]
        assert not _loaded(proxy).served.signature.batched


@RUNS
@KINDS
async def test_who_leaves_early_closes_the_generator_and_frees_the_instance(tmp_path: Path, run: str, word: str) -> None:
    async with _proxy(_write(tmp_path, word), run=run) as proxy:
        async with aclosing(proxy.stream("counter", {"x": _row(1e6)})) as parts:
            async for part in parts:
                if part["y"][0] > 1e6:
                    break
        assert await _read(proxy, 2.0) == [2.0, 3.0]
        assert (tmp_path / "closed").exists()


async def test_cancelling_while_a_part_is_awaited_stops_the_stream(tmp_path: Path) -> None:
    async with _proxy(_write(tmp_path, then="time.sleep(0.05 if batch['x'][0] == 1e6 else 0)"), run="thread") as proxy:
        for _ in range(3):
            reading = asyncio.ensure_future(_read(proxy, 1e6))
            await asyncio.wait([reading], timeout=0.08)
            reading.cancel()
            await asyncio.wait([reading])
        assert await _read(proxy, 2.0) == [2.0, 3.0]
        assert not _loaded(proxy).lane.view().running_batches


async def test_a_model_that_answers_at_once_is_a_stream_of_one_part() -> None:
    image = np.zeros((1, 1, 8, 8), np.float32)
    async with Proxy([Model(models.DIGITS)]) as proxy:
        (part,) = [part async for part in proxy.stream("digits", {"image": image})]
        assert part["probabilities"].tolist() == (await proxy.infer("digits", {"image": image}))["probabilities"].tolist()
        with pytest.raises(InferenceError, match="its inputs are 'image'"):
            _ = [part async for part in proxy.stream("digits", {"x": image})]


async def test_infer_refuses_answers_in_parts_before_it_runs_anything(tmp_path: Path) -> None:
    async with _proxy(_write(tmp_path), run="thread") as proxy:
        with pytest.raises(InferenceError, match=r"'counter' answers in parts, .* proxy\.stream") as caught:
            await proxy.infer("counter", {"x": _row(2.0)})
        assert caught.value.failure.kind is FailureKind.UNSUPPORTED
        stats = _loaded(proxy).served.stats
        assert stats.failures[FailureKind.UNSUPPORTED] == 1
        stats.settle()
        assert stats.batches == 0


@RUNS
async def test_an_error_in_mid_stream_comes_after_the_parts_before_it(tmp_path: Path, run: str) -> None:
    async with _proxy(_write(tmp_path, then="assert step < 2, 'too far'"), run=run) as proxy:
        parts = proxy.stream("counter", {"x": _row(5.0)})
        assert [float((await anext(parts))["y"][0]) for _ in range(2)] == [5.0, 6.0]
        with pytest.raises(InferenceError, match=r"Counter\.predict raised AssertionError: too far") as caught:
            await anext(parts)
        assert caught.value.failure.kind is FailureKind.MODEL_FAILED
        assert await _read(proxy, 2.0) == [2.0, 3.0]


async def test_a_worker_that_is_killed_in_mid_stream_breaks_it_off_and_is_replaced(tmp_path: Path) -> None:
    async with _proxy(_write(tmp_path), run="process", outage_wait_s=HANG_S) as proxy:
        parts = proxy.stream("counter", {"x": _row(1e6)})
        await anext(parts)
        await anext(parts)
        os.kill(_loaded(proxy).roster.places()[0]["pid"], signal.SIGKILL)
        with pytest.raises(InferenceError, match=r"the answer breaks off: its process was killed by SIGKILL") as caught:
            _ = [part async for part in parts]
        assert caught.value.failure.kind is FailureKind.UNAVAILABLE
        assert await _read(proxy, 2.0) == [2.0, 3.0]


async def test_a_part_that_hangs_meets_the_time_limit_of_a_batch(tmp_path: Path) -> None:
    path = _write(tmp_path, then="time.sleep(60 if step == 2 and batch['x'][0] == 5 else 0)")
    async with _proxy(path, run="process", batch_timeout_s=1.0, outage_wait_s=HANG_S) as proxy:
        with pytest.raises(InferenceError, match=r"it did not finish the next part of a batch's answers within 1 s"):
            await _read(proxy, 5.0)
        parts = proxy.stream("counter", {"x": _row(3.0)})
        assert (await anext(parts))["y"][0] == 3.0
        slow = asyncio.Event()
        asyncio.get_running_loop().call_later(1.5, slow.set)
        await slow.wait()  # the reader may take its time
        assert [float(part["y"][0]) async for part in parts] == [4.0, 5.0]


async def test_a_proxy_that_is_left_waits_for_its_streams_for_a_while(tmp_path: Path) -> None:
    proxy = Proxy([Model(f"{_write(tmp_path)}:Counter", name="counter", run="thread")], drain_s=0.2)
    async with proxy:
        parts = proxy.stream("counter", {"x": _row(1e6)})
        await anext(parts)
    with pytest.raises(InferenceError, match="the answer breaks off"):
        await anext(parts)
    assert (tmp_path / "closed").exists()


async def test_the_event_loop_runs_no_streams(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="answers in parts, which the event loop cannot wait for: run = 'thread' or 'process'"):
        async with _proxy(_write(tmp_path), run="inline"):
            pass
