"""What models hold of the memory: measured where the system tells, estimated from their files before."""

import asyncio
import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import helper

from dlproxy.config import ModelConfig, ServerConfig
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.memory import (
    SESSION_BYTES,
    WORKER_BYTES,
    MemoryMeter,
    forget_most,
    held_bytes,
    large_blocks_apart,
    most_bytes,
    resident_bytes,
)
from dlproxy.fleet.processes import start_processes
from dlproxy.instance.integrity import Trust
from dlproxy.message import DType
from dlproxy.serve.models import Models
from tests import models

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux' /proc")


def weighing(side: int, path: Path) -> str:
    """A model of one matrix of so many rows and columns."""
    weights = models.constant("w", np.random.default_rng(side).standard_normal((side, side)).astype(np.float32))
    ends = [models.value("x", DType.FP32, ("N", side))], [models.value("y", DType.FP32, ("N", side))]
    return str(models.save(models.model([helper.make_node("MatMul", ["x", "w"], ["y"])], *ends, [weights]), path))


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    """Of 4 MiB."""
    return ModelConfig(path=weighing(1024, tmp_path / "m.onnx"))


def test_before_anything_was_loaded_files_tell(config: ModelConfig) -> None:
    files = os.path.getsize(config.path)
    meter = MemoryMeter()
    assert meter.size_of(config) == SESSION_BYTES + int(1.5 * files)
    in_workers = msgspec.structs.replace(config, run="process", instances=3)
    assert meter.size_of(in_workers) == 3 * (WORKER_BYTES + files)
    assert meter.size_of(ModelConfig(path="http://other:8000/v2/models/m")) == 0
    assert meter.size_of(ModelConfig(path="nowhere.onnx")) == SESSION_BYTES, "loading it says so"


def test_later_estimates_follow_what_was_seen(config: ModelConfig, tmp_path: Path) -> None:
    meter = MemoryMeter()
    other = ModelConfig(path=weighing(512, tmp_path / "other.onnx"))
    files, of_other = os.path.getsize(config.path), os.path.getsize(other.path)
    first = meter.loaded(other, 500 * MIB, 0)
    assert first == SESSION_BYTES + int(1.5 * of_other), "what came with the runtime is not the model's"
    assert meter.loaded(config, 2 * files + SESSION_BYTES, 0) == 2 * files + SESSION_BYTES
    assert meter.size_of(config) == 2 * files + SESSION_BYTES, "it is known"
    assert meter.size_of(other) == SESSION_BYTES + 2 * of_other
    assert meter.loaded(other, -5 * MIB, 0) == of_other, "others freed something meanwhile"


def test_a_changed_file_is_another_model(config: ModelConfig, tmp_path: Path) -> None:
    meter = MemoryMeter()
    for growth in (0, 100 * MIB):
        meter.loaded(config, growth, 0)
    assert meter.size_of(config) == 100 * MIB
    weighing(64, Path(config.path))
    assert meter.size_of(config) < 2 * MIB


def test_workers_count_with_all_that_they_hold(config: ModelConfig) -> None:
    meter = MemoryMeter()
    files = os.path.getsize(config.path)
    one = msgspec.structs.replace(config, run="process", instances=1)
    assert meter.loaded(one, -MIB, 300 * MIB) == 300 * MIB
    two = msgspec.structs.replace(one, instances=2)
    assert meter.size_of(two) == 600 * MIB
    assert meter.loaded(two, 0, 2 * files) == 2 * files
    assert meter.size_of(msgspec.structs.replace(one, instances=4)) == 4 * files


def test_what_loading_takes_besides_is_learned_and_fades(config: ModelConfig, tmp_path: Path) -> None:
    meter = MemoryMeter()
    files = os.path.getsize(config.path)
    assert meter.loading_bytes(config) == files
    in_workers = msgspec.structs.replace(config, run="process", instances=3)
    assert meter.loading_bytes(in_workers) == 3 * files
    assert meter.loading_bytes(ModelConfig(path="http://other:8000/v2/models/m")) == 0
    meter.loaded(config, files, 0)
    meter.peaked(config, 4 * files)  # with a trial that later ones need not have
    other = ModelConfig(path=weighing(512, tmp_path / "other.onnx"))
    assert meter.loading_bytes(other) == pytest.approx(4 * os.path.getsize(other.path), rel=0.01)
    for _ in range(100):
        meter.peaked(config, files // 2)
    assert files // 2 <= meter.loading_bytes(config) < 0.6 * files
    meter.peaked(config, -5 * MIB)  # others freed something meanwhile
    assert 0 <= meter.loading_bytes(config) < 0.6 * files


def test_what_came_with_the_first_model_is_the_process_s_own(config: ModelConfig) -> None:
    meter = MemoryMeter(lambda: 100 * MIB)
    meter.begin()
    assert meter.base_bytes == 100 * MIB
    for growth in (50 * MIB, 5 * MIB):
        meter.loaded(config, growth, 0)
        assert meter.base_bytes == 150 * MIB - os.path.getsize(config.path) - SESSION_BYTES


@linux
async def test_large_blocks_go_back_at_once_while_a_model_is_loaded() -> None:
    async with large_blocks_apart():
        before = resident_bytes()
        blocks = [bytearray(b"1") * (64 * MIB) for _ in range(2)]  # larger than what other tests have left free in the heap
        assert resident_bytes() - before > 100 * MIB
        kept = bytearray(1000)  # behind them, where a heap cannot be cut
        blocks.clear()
        assert resident_bytes() - before < 10 * MIB
    assert kept


@linux
async def test_the_most_that_was_held_is_told_and_forgotten() -> None:
    forget_most()
    before = most_bytes()
    async with large_blocks_apart():
        bytearray(64 * MIB).clear()
    assert most_bytes() - before > 60 * MIB
    forget_most()
    assert most_bytes() - before < 20 * MIB


@pytest.fixture
def some() -> Models:
    return Models(ServerConfig(calibration_folder="", drain_s=1.0))


def quick(path: str, **knobs: object) -> ModelConfig:
    return msgspec.convert({"path": path, "run": "inline", "threads": 1, "batching": "off", **knobs}, ModelConfig)


@linux
async def test_what_is_measured_is_what_the_process_grows_by_and_goes_with_the_model(some: Models, tmp_path: Path) -> None:
    await some.load("first", quick(weighing(512, tmp_path / "first.onnx")))
    before = await asyncio.to_thread(held_bytes)
    loaded = {}
    for number in range(8):
        config = quick(weighing(700 + 100 * number, tmp_path / f"{number}.onnx"))
        loaded[f"m{number}"] = (await some.load(f"m{number}", config)).size_bytes
        assert some.facts()[f"m{number}", "1"].size_bytes == loaded[f"m{number}"] >= (700 + 100 * number) ** 2 * 4
    growth = await asyncio.to_thread(held_bytes) - before
    weights = sum((700 + 100 * number) ** 2 * 4 for number in range(8))
    assert sum(loaded.values()) < 1.6 * weights
    assert growth < 1.75 * sum(loaded.values())  # or much less: memory that the process had kept is used again
    for name in loaded:
        await some.unload(name)
    left = resident_bytes() - before  # glibc keeps the top of a thread's heap, here the size of one model or two
    assert left < 0.5 * weights, "without asking the allocator again"
    await some.drain()


@linux
async def test_what_is_held_besides_the_models_is_seen(some: Models, tmp_path: Path) -> None:
    for name in ("first", "second"):
        await some.load(name, quick(weighing(512, tmp_path / f"{name}.onnx")))
    before = some.unmeasured_bytes()
    assert before < 20 * MIB
    requests = bytearray(100 * MIB)
    assert 90 * MIB < some.unmeasured_bytes() - before < 120 * MIB
    assert some.loading_bytes(quick(str(tmp_path / "second.onnx"))) > 0
    del requests
    await some.drain()


async def test_what_goes_holds_its_memory_until_it_is_gone(some: Models, config: ModelConfig) -> None:
    size = (await some.load("m", quick(config.path))).size_bytes
    leaving = asyncio.create_task(some.unload("m"))
    await asyncio.sleep(0)
    assert list(some) == []
    assert some.facts()["m", "1"].size_bytes == size
    await leaving
    assert some.facts() == {}
    await some.drain()


@linux
async def test_a_model_in_workers_is_as_large_as_they_are(some: Models, config: ModelConfig) -> None:
    model = await some.load("m", quick(config.path, run="process", instances=2))
    assert model.size_bytes > 2 * 20 * MIB, "Python and ONNX Runtime alone take more"
    assert some.size_of(quick(config.path, run="process", instances=2)) == model.size_bytes
    await some.drain()


@linux
async def test_workers_share_one_copy_of_the_weights_from_the_first_start_on(tmp_path: Path) -> None:
    side = 2560
    config = ModelConfig(path=weighing(side, tmp_path / "m.onnx"), run="process", instances=2, threads=1)
    fleet = await start_processes("m", config, Trust(), str(tmp_path / "graphs"))
    own = [_private_bytes(instance.pid) for instance in fleet._supervisor.instances]  # type: ignore[attr-defined]
    await fleet.stop()
    assert max(own) - min(own) < 2 * side * side, "the one that wrote the graph holds what that took"
    assert list((tmp_path / "graphs").glob("*/graph.onnx")), "the graph was not kept: this shows nothing"


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private"))


class Holding(ThreadPoolExecutor):
    """Keeps what its threads returned, as they do for as long as they wait to run again."""

    def __init__(self) -> None:
        super().__init__(1)
        self.kept: list[Future[Any]] = []

    def submit(self, *arguments: Any, **named: Any) -> Any:
        self.kept.append(super().submit(*arguments, **named))
        return self.kept[-1]


async def test_no_thread_holds_on_to_a_model_that_it_loaded(some: Models, config: ModelConfig) -> None:
    pool = Holding()
    asyncio.get_running_loop().set_default_executor(pool)
    model = await some.load("m", quick(config.path))
    assert isinstance(model.fleet, LocalFleet)
    weights = weakref.ref(model.fleet._warm[0].runtime)
    del model
    await some.unload("m")
    assert pool.kept
    assert weights() is None
    await some.drain()
