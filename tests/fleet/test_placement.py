"""Instances are placed on the configured devices in turn, and those on a GPU do not run on the event loop."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.fleet import Fleet
from dlproxy.fleet.start import start_fleet
from dlproxy.fleet.supervised import SupervisedFleet
from dlproxy.fleet.supervisor import Supervisor
from dlproxy.instance import Instance
from dlproxy.instance.batch import BatchResult
from dlproxy.instance.process.instance import ProcessInstance
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import DType
from tests.instance import small_network
from tests.instance.fake_gpus import FakeGpus
from tests.instance.small_network import request

GPUS = [f"cuda:{number} (CUDAExecutionProvider)" for number in (0, 1)]
WHAT_IT_SEES = """
import os
import numpy as np

class Model:
    inputs, outputs = {"x": "FP32[-1]"}, {"seen": "BYTES[-1]"}

    def predict(self, batch):
        return {"seen": np.full(len(batch["x"]), os.environ.get("CUDA_VISIBLE_DEVICES", "everything"), object)}
"""


class Host:
    """What a fleet tells of its instances."""

    def __init__(self) -> None:
        self.instances: list[Any] = []

    def add_instance(self, instance: Instance) -> None:
        self.instances.append(instance)

    def retire_instance(self, name: str) -> None:
        self.instances = [instance for instance in self.instances if instance.name != name]

    def kept(self, name: str) -> int:
        return 0


async def _hosted(path: str | Path, **settings: Any) -> tuple[Fleet, Host]:
    fleet = await start_fleet("m", ModelConfig(path=str(path), **settings))
    host = Host()
    fleet.attach(host)  # type: ignore[arg-type]
    return fleet, host


async def _answers(instances: Sequence[Instance], *arrays: tuple[str, DType, Any]) -> list[Any]:
    """What each of them makes of the same request."""
    loop = asyncio.get_running_loop()
    results: list[asyncio.Future[BatchResult]] = []
    for instance in instances:
        results.append(loop.create_future())
        instance.run([request(*arrays)], results[-1].set_result)
    done = await asyncio.wait_for(asyncio.gather(*results), 30)
    assert [result.error for result in done] == [None] * len(done)
    return [result.outputs[0] for result in done]


async def _stop(fleet: Fleet, host: Host) -> None:
    await asyncio.gather(*(instance.stop() for instance in host.instances))
    await fleet.stop()


async def test_threads_get_the_devices_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeGpus(monkeypatch)
    fleet, host = await _hosted(small_network.save_onnx(tmp_path), device="cuda:0, cuda:1", instances=3, run="thread")
    assert len(machine.opened) == 2, "instances on one GPU share its weights"
    assert fleet.describe() == f"on 3 threads on {GPUS[0]} and {GPUS[1]}"
    assert [instance._runtime.device for instance in host.instances] == [*GPUS, GPUS[0]]
    await fleet.scale(4)
    assert host.instances[3]._runtime.device == GPUS[1]
    x = small_network.rows(3)
    for answer in await _answers(host.instances, ("x", DType.FP32, x)):
        np.testing.assert_allclose(answer, small_network.answer(x), atol=small_network.TOLERANCE)
    await _stop(fleet, host)


async def test_a_quick_model_on_a_gpu_runs_on_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_network.save_onnx(tmp_path)
    fleet, host = await _hosted(path, device="cpu")
    assert fleet.way.inline
    assert fleet.describe() == "inline on the event loop"
    await _stop(fleet, host)
    FakeGpus(monkeypatch)
    fleet, host = await _hosted(path)
    assert not fleet.way.inline
    assert fleet.describe() == f"on 1 thread on {GPUS[0]}"
    await _stop(fleet, host)
    fleet, host = await _hosted(path, run="inline", device="cuda:1,cuda:0")
    assert fleet.describe() == f"inline on the event loop on {GPUS[1]}"
    await _stop(fleet, host)


async def test_a_python_class_in_a_process_sees_the_gpu_of_its_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "model.py").write_text(WHAT_IT_SEES, "utf-8")
    fleet, host = await _hosted(tmp_path / "model.py:Model", device="cuda:1,cpu,auto", instances=3)
    x = ("x", DType.FP32, np.zeros(1, np.float32))
    seen = zip(host.instances, await _answers(host.instances, x), strict=True)
    assert {instance.name: list(answer) for instance, answer in seen} == {"m-0": [b"1"], "m-1": [b""], "m-2": [b"everything"]}
    await _stop(fleet, host)


async def test_workers_say_where_they_compute() -> None:
    spec = PythonSpec("tests.instance.process_models:OnAGpu")
    supervisor = Supervisor("m", lambda name: ProcessInstance(name, spec))
    signature = await supervisor.start(1)
    assert (
        SupervisedFleet("process", supervisor, signature, Calibration((), True), Way(False, 1, 1)).describe()
        == "in 1 worker process on cuda:7"
    )
    await supervisor.stop()


async def test_first_values_say_where_a_model_comes_up() -> None:
    start = {"run": "thread", "instances": 3}
    fleet, host = await _hosted("sleep:base=0.1ms", start=start)
    assert (fleet.run, len(host.instances), fleet.way.instances) == ("thread", 3, 3)
    await _stop(fleet, host)


async def test_onnx_in_pinned_processes(tmp_path: Path) -> None:
    path = small_network.save_onnx(tmp_path)
    fleet, host = await _hosted(path, run="process", instances=2, pin=True, device="cpu", memory_limit_mb=1000)
    assert fleet.describe() == "in 2 worker processes"
    x = small_network.rows(3)
    for answer in await _answers(host.instances, ("x", DType.FP32, x)):
        np.testing.assert_allclose(answer, small_network.answer(x), atol=small_network.TOLERANCE)
    await _stop(fleet, host)


async def test_a_device_that_is_not_there_fails_the_start(tmp_path: Path) -> None:
    path = small_network.save_onnx(tmp_path)
    for run in ("thread", "process"):
        with pytest.raises(ModelError, match=r"network\.onnx: device 'cuda:99' (is not there|needs ONNX Runtime's CUDA)"):
            await _hosted(path, run=run, device="cpu,cuda:99", instances=2)
    with pytest.raises(
        ConfigError, match=r"device 'gpu' is not understood; it is auto, .* or several with commas between them"
    ):
        await _hosted(path, device="cpu,gpu")
