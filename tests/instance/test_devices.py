"""Where models run: what a device means, what is chosen from what is present, and that nothing falls back in silence."""

import ctypes
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlproxy.instance.runtime import ModelError, onnx
from dlproxy.instance.runtime.devices import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    OPENVINO_PROVIDER,
    TENSORRT_PROVIDER,
    gpu_of,
    in_words,
    onnx_plans,
    tensorrt_rows,
    visible_gpus,
)
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.message import DType, TensorSpec
from tests import models
from tests.instance import small_network
from tests.instance.fake_gpus import FakeGpus

PLAIN = [CPU_PROVIDER]
GPU = [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER]
EVERY = [TENSORRT_PROVIDER, CUDA_PROVIDER, OPENVINO_PROVIDER, CPU_PROVIDER]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    return FakeGpus(monkeypatch)


# What is chosen


@pytest.mark.parametrize(
    ("device", "available", "gpus", "places"),
    [
        ("auto", PLAIN, 1, ["cpu"]),
        ("auto", GPU, 0, ["cpu"]),
        ("auto", GPU, 2, ["cuda:0", "cpu"]),
        ("auto", [OPENVINO_PROVIDER, CPU_PROVIDER], 0, ["cpu"]),
        ("cpu", GPU, 2, ["cpu"]),
        ("cuda", GPU, 1, ["cuda:0"]),
        ("cuda:1", GPU, 2, ["cuda:1"]),
        ("tensorrt", GPU, 1, ["tensorrt:0"]),
        ("tensorrt:1", GPU, 2, ["tensorrt:1"]),
        ("openvino", EVERY, 0, ["openvino:CPU"]),
        ("openvino:GPU.1", EVERY, 0, ["openvino:GPU.1"]),
    ],
)
def test_what_is_tried_for_a_device(device: str, available: list[str], gpus: int, places: list[str]) -> None:
    plans = onnx_plans(device, available, gpus)
    assert [plan.place for plan in plans] == places
    for plan in plans:
        names = [name for name, _ in plan.providers]
        assert names[0] == plan.main
        assert names[-1] == CPU_PROVIDER, "for operators that the others lack"


def test_tensorrt_leaves_what_it_lacks_to_cuda() -> None:
    (plan,) = onnx_plans("tensorrt:1", GPU, 2)
    assert [(name, options.get("device_id")) for name, options in plan.providers] == [
        (TENSORRT_PROVIDER, "1"),
        (CUDA_PROVIDER, "1"),
        (CPU_PROVIDER, None),
    ]


def test_a_memory_limit_is_in_bytes_and_the_arena_grows_only_as_needed() -> None:
    (plan,) = onnx_plans("cuda:1", GPU, 2, memory_limit_mb=3)
    options = dict(plan.providers)[CUDA_PROVIDER]
    assert (options["gpu_mem_limit"], options["arena_extend_strategy"]) == ("3145728", "kSameAsRequested")
    (unlimited,) = onnx_plans("cuda:1", GPU, 2)
    assert "gpu_mem_limit" not in dict(unlimited.providers)[CUDA_PROVIDER]


def test_openvino_computes_with_the_models_threads() -> None:
    (plan,) = onnx_plans("openvino:GPU", EVERY, 0, threads=3)
    assert dict(plan.providers)[OPENVINO_PROVIDER] == {"device_type": "GPU", "num_of_threads": "3"}


@pytest.mark.parametrize(
    ("device", "available", "gpus", "limit_mb", "clue"),
    [
        ("cuda", PLAIN, 1, 0, "needs ONNX Runtime's CUDAExecutionProvider, .* install onnxruntime-gpu in place of onnxruntime"),
        ("openvino", GPU, 1, 0, "install onnxruntime-openvino in place"),
        ("cuda:2", GPU, 2, 0, "device 'cuda:2' is not there: the NVIDIA driver sees 2 GPUs"),
        ("tensorrt", GPU, 0, 0, "device 'tensorrt' is not there: the NVIDIA driver sees 0 GPUs"),
        ("tensorrt", GPU, 1, 100, "gpu_memory_limit_mb cannot be kept by device 'tensorrt'"),
        ("gpu", GPU, 1, 0, "device 'gpu' is not understood; it is auto, cpu, cuda"),
        ("cuda:0,cuda:1", GPU, 2, 0, "device 'cuda:0,cuda:1' is not understood"),
        ("cpu:1", GPU, 1, 0, "device 'cpu:1' is not understood"),
    ],
)
def test_what_cannot_be_had_is_refused(device: str, available: list[str], gpus: int, limit_mb: int, clue: str) -> None:
    with pytest.raises(ModelError, match=clue):
        onnx_plans(device, available, gpus, memory_limit_mb=limit_mb)


def test_one_engine_for_all_batches() -> None:
    inputs = (TensorSpec("x", DType.FP32, (-1, 3, 8)), TensorSpec("n", DType.INT64, (-1,)))
    assert tensorrt_rows(inputs, 64) == {
        "trt_profile_min_shapes": "x:1x3x8,n:1",
        "trt_profile_opt_shapes": "x:64x3x8,n:64",
        "trt_profile_max_shapes": "x:64x3x8,n:64",
    }
    assert tensorrt_rows((TensorSpec("x", DType.FP32, (4, 3)),), 64) == {}, "nothing is open"
    assert tensorrt_rows((TensorSpec("x", DType.FP32, (-1, -1)),), 64) == {}, "nobody knows the other axis' size"


@pytest.mark.parametrize(
    ("device", "gpus", "number"), [("auto", 0, None), ("auto", 2, 0), ("cpu", 2, None), ("cuda", 1, 0), ("cuda:1", 2, 1)]
)
def test_the_gpu_of_torch_and_tensorflow(device: str, gpus: int, number: int | None) -> None:
    assert gpu_of(device, gpus, "torch") == number


@pytest.mark.parametrize(
    ("device", "clue"),
    [
        ("cuda", "device 'cuda' is not there: torch 9 sees 0 GPUs"),
        ("tensorrt", "device 'tensorrt' is for ONNX models; this one takes auto, cpu, cuda or cuda:N"),
        ("meta", "device 'meta' is not understood"),
    ],
)
def test_devices_that_torch_and_tensorflow_do_not_have(device: str, clue: str) -> None:
    with pytest.raises(ModelError, match=clue):
        gpu_of(device, 0, "torch 9")


def test_the_gpus_that_a_python_class_sees() -> None:
    shown = {"CUDA_VISIBLE_DEVICES": "3, GPU-8f2c"}
    assert visible_gpus("auto", shown) == {}
    assert visible_gpus("cpu", {}) == {"CUDA_VISIBLE_DEVICES": ""}
    assert visible_gpus("cuda:1", {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert visible_gpus("cuda:1", shown) == {"CUDA_VISIBLE_DEVICES": "GPU-8f2c"}
    with pytest.raises(ModelError, match="device 'cuda:2' is not there: CUDA_VISIBLE_DEVICES = '3, GPU-8f2c' sees 2 GPUs"):
        visible_gpus("cuda:2", shown)
    with pytest.raises(ModelError, match="a Python class takes auto, cpu, cuda or cuda:N"):
        visible_gpus("openvino", {})


def test_places_in_words() -> None:
    assert in_words(["cpu", "cpu"]) == ""
    assert in_words(["cuda:0", "cuda:1", "cuda:0"]) == " on cuda:0 and cuda:1"


# What ONNX Runtime makes of it


def _runtime(folder: Path, **settings: int | str) -> OnnxRuntime:
    return OnnxRuntime(small_network.save_onnx(folder), threads=1, **settings)  # type: ignore[arg-type]


def test_auto_takes_the_first_gpu(tmp_path: Path, machine: FakeGpus, caplog: pytest.LogCaptureFixture) -> None:
    runtime = _runtime(tmp_path, device="auto", gpu_memory_limit_mb=100)
    assert runtime.device == "cuda:0 (CUDAExecutionProvider)"
    ((name, options), _) = machine.opened[-1]
    assert (name, options["device_id"], options["gpu_mem_limit"]) == (CUDA_PROVIDER, "0", str(100 * 2**20))
    small_network.assert_right(runtime)
    small_network.assert_right_from_two_threads(runtime)
    assert not caplog.records


def test_auto_without_a_gpu_is_the_cpu_and_says_so_once(
    tmp_path: Path, machine: FakeGpus, caplog: pytest.LogCaptureFixture
) -> None:
    machine.gpus = 0
    assert [_runtime(tmp_path, device="auto").device for _ in range(2)] == ["cpu", "cpu"]
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (
        logging.WARNING,
        'ONNX Runtime can use CUDA, but models with device = "auto" run on the CPU: the NVIDIA driver sees no GPU',
    )


def test_auto_on_a_build_without_cuda_is_the_cpu_without_a_word(
    tmp_path: Path, machine: FakeGpus, caplog: pytest.LogCaptureFixture
) -> None:
    machine.available = PLAIN
    assert _runtime(tmp_path, device="auto").device == "cpu"
    assert not caplog.records


def test_a_gpu_that_onnx_runtime_left_out_is_noticed(
    tmp_path: Path, machine: FakeGpus, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.left_out = {CUDA_PROVIDER}
    machine.missing_library = "libcudnn.so.9"
    with pytest.raises(
        ModelError, match=r"network\.onnx cannot be loaded on cuda:1 by .*: Failed to load libcudnn\.so\.9: no such file"
    ):
        _runtime(tmp_path, device="cuda:1")
    assert not caplog.records
    runtime = _runtime(tmp_path, device="auto")
    assert runtime.device == "cpu"
    small_network.assert_right(runtime)
    assert len(caplog.records) == 1
    assert "run on the CPU" in caplog.text
    assert "libcudnn.so.9" in caplog.text
    assert capsys.readouterr().out == "", "ONNX Runtime prints what it could not load"


def test_a_gpu_that_was_left_out_for_no_known_reason(tmp_path: Path, machine: FakeGpus) -> None:
    machine.left_out = {TENSORRT_PROVIDER}
    with pytest.raises(ModelError, match="it left TensorrtExecutionProvider out, and says why on standard error"):
        _runtime(tmp_path, device="tensorrt")


def test_a_gpu_that_cannot_take_the_model(tmp_path: Path, machine: FakeGpus, caplog: pytest.LogCaptureFixture) -> None:
    machine.raises[CUDA_PROVIDER] = RuntimeError("CUDA failure 2: out of memory\nfile: cuda_call.cc")
    with pytest.raises(
        ModelError, match=r"cannot be loaded on cuda:0 by ONNX Runtime .*: CUDA failure 2: out of memory file: cuda_call\.cc$"
    ):
        _runtime(tmp_path, device="cuda")
    assert _runtime(tmp_path, device="auto").device == "cpu"
    assert "run on the CPU" in caplog.text
    assert "out of memory" in caplog.text


def test_a_file_that_is_no_model_is_refused_on_a_gpu_too(tmp_path: Path, machine: FakeGpus) -> None:
    (tmp_path / "m.onnx").write_bytes(b"garbage")
    for device, words in (("auto", "is not a model that"), ("cuda", "cannot be loaded on cuda:0 by")):
        with pytest.raises(ModelError, match=rf"m\.onnx {words} ONNX Runtime .*: Protobuf parsing failed"):
            OnnxRuntime(tmp_path / "m.onnx", threads=1, device=device)


def test_tensorrt_is_told_the_sizes_of_batches(tmp_path: Path, machine: FakeGpus, caplog: pytest.LogCaptureFixture) -> None:
    assert _runtime(tmp_path, device="tensorrt", max_batch=32).device == "tensorrt:0 (TensorrtExecutionProvider)"
    assert dict(machine.opened[-1])[TENSORRT_PROVIDER]["trt_profile_max_shapes"] == "x:32x8"
    assert not caplog.records
    path = models.save(models.identity(DType.FP32, ("N", "M")), tmp_path / "open.onnx")
    OnnxRuntime(path, threads=1, device="tensorrt")
    assert dict(machine.opened[-1])[TENSORRT_PROVIDER] == {"device_id": "0"}
    assert "open.onnx has open axes besides the rows" in caplog.text


def test_the_driver_is_asked_how_many_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(place: object) -> int:
        place._obj.value = 3  # type: ignore[attr-defined]
        return 0

    for driver, gpus in (
        (SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGetCount=count), 3),
        (SimpleNamespace(cuInit=lambda flags: 100, cuDeviceGetCount=count), 0),
    ):
        monkeypatch.setattr(ctypes, "CDLL", lambda name, driver=driver: driver)
        assert onnx._gpus() == gpus

    def none(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert onnx._gpus() == 0


# Models that no device moves


def test_what_is_not_placed_by_us_refuses_a_device(tmp_path: Path) -> None:
    path = small_network.save_python(tmp_path)
    small_network.assert_right(open_runtime(path, device="auto"))
    with pytest.raises(
        ModelError, match=r"device = 'cuda:1' does not move a Python class, .* \(run = 'process'\) it sees that"
    ):
        open_runtime(path, device="cuda:1")
    with pytest.raises(ModelError, match="gpu_memory_limit_mb cannot bind a Python class"):
        open_runtime(path, gpu_memory_limit_mb=100)
    with pytest.raises(ModelError, match="does not move a model that only takes time"):
        open_runtime("sleep:base=1ms", device="cuda")
