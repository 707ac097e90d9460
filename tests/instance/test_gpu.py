"""What only a GPU can show: the CPU's answers, limits that hold, instances side by side. Skipped where there is none."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from dlproxy.config import ModelConfig
from dlproxy.fleet.start import start_fleet
from dlproxy.instance.runtime import Runtime, onnx
from dlproxy.instance.runtime.devices import CUDA_PROVIDER
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.message import DType
from tests import models
from tests.instance import small_network
from tests.instance.small_network import INPUTS, OUTPUTS, save_torchscript

NEAR = 5e-3  # GPUs multiply FP32 with the ten bits of TF32
WIDE = 1 << 18  # columns of a row that takes 1 MiB

onnx_gpu = pytest.mark.skipif(
    not (onnx._gpus() and CUDA_PROVIDER in onnx.ort.get_available_providers()), reason="needs a GPU and onnxruntime-gpu"
)


def _assert_near(runtime: Runtime) -> None:
    for count in small_network.SIZES:
        x = small_network.rows(count)
        np.testing.assert_allclose(runtime.run([x])[0], small_network.answer(x), atol=NEAR)


def _doubling(folder: Path) -> Path:
    made = models.model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [models.value("x", DType.FP32, ("N", WIDE))],
        [models.value("y", DType.FP32, ("N", WIDE))],
    )
    return models.save(made, folder / "doubling.onnx")


def _assert_limited(runtime: Runtime) -> None:
    """To 64 MiB: a batch of 256 MiB fails, one of 4 MiB is right, before and after."""
    for rows in (4, 256, 4):
        x = np.ones((rows, WIDE), np.float32)
        if rows > 64:
            with pytest.raises(Exception, match=r"(?i)memory"):
                runtime.run([x])
        else:
            np.testing.assert_array_equal(runtime.run([x])[0], 2 * x)


@onnx_gpu
@pytest.mark.parametrize("device", ["auto", "cuda:0"])
def test_onnx_gives_the_cpus_answers(tmp_path: Path, device: str) -> None:
    runtime = open_runtime(str(small_network.save_onnx(tmp_path)), device=device)
    assert getattr(runtime, "device", None) == "cuda:0 (CUDAExecutionProvider)"
    _assert_near(runtime)


@onnx_gpu
def test_onnx_keeps_to_its_memory_limit(tmp_path: Path) -> None:
    _assert_limited(open_runtime(str(_doubling(tmp_path)), device="cuda", gpu_memory_limit_mb=64))


@onnx_gpu
async def test_two_instances_on_one_gpu(tmp_path: Path) -> None:
    fleet = await start_fleet("m", ModelConfig(path=str(small_network.save_onnx(tmp_path)), device="cuda:0", instances=2))
    assert fleet.describe() == "on 2 threads on cuda:0 (CUDAExecutionProvider)"
    started: list[Any] = []

    class Host:
        def add_instance(self, instance: Any) -> None:
            started.append(instance)

    fleet.attach(Host())  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    for turn in range(50):
        batches = [small_network.rows(1 + (turn + 5 * number) % 11) for number in range(2)]
        results = [loop.create_future() for _ in batches]
        for instance, batch, result in zip(started, batches, results, strict=True):
            instance.run([small_network.request(("x", DType.FP32, batch))], result.set_result)
        for batch, result in zip(batches, await asyncio.gather(*results), strict=True):
            assert result.error is None
            np.testing.assert_allclose(result.outputs[0], small_network.answer(batch), atol=NEAR)
    await asyncio.gather(*(instance.stop() for instance in started))
    await fleet.stop()


@pytest.fixture
def gpu_of_torch() -> Iterator[None]:
    """Its memory limit is the process's: lifted again at the end."""
    if not onnx._gpus():
        pytest.skip("needs a GPU")
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs torch for CUDA")
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("gpu_of_torch")
@pytest.mark.parametrize("device", ["auto", "cuda:0"])
def test_torch_gives_the_cpus_answers(tmp_path: Path, device: str) -> None:
    path = save_torchscript(small_network.torch_module(), tmp_path / "m.pt")
    runtime = open_runtime(str(path), device=device, inputs=INPUTS, outputs=OUTPUTS)
    assert getattr(runtime, "device", None) == "cuda:0"
    _assert_near(runtime)
    small_network.assert_right_from_two_threads(runtime)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("gpu_of_torch")
def test_torch_keeps_to_its_memory_limit(tmp_path: Path) -> None:
    import torch

    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    path = save_torchscript(Doubling().eval(), tmp_path / "m.pt")
    declared = {"inputs": {"x": f"FP32[-1,{WIDE}]"}, "outputs": {"y": f"FP32[-1,{WIDE}]"}}
    _assert_limited(open_runtime(str(path), device="cuda", gpu_memory_limit_mb=64, **declared))
