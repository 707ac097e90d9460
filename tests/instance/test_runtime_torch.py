"""TorchScript and exported programs: the small network's answers, signatures, element types, and what is refused."""

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlproxy.instance.batch import run_batch
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.specs import PythonSpec, load
from dlproxy.message import DType, TensorSpec
from dlproxy.tensors import bf16_to_fp32, fp32_to_bf16
from tests.instance import small_network
from tests.instance.small_network import (
    INPUTS,
    OUTPUTS,
    assert_passes_unchanged,
    refusal,
    request,
    save_torch_export,
    save_torchscript,
)

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

X3 = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """The setting is the process's: leave it as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _module(forward: Callable[..., Any]) -> Any:
    """A module that does what the function says; the function's first argument is the module."""
    import torch

    made = type("Made", (torch.nn.Module,), {"forward": forward})()
    return made.eval()


def _exported(path: Path, forward: Callable[..., Any], *example: Any, dynamic: Any = None) -> Runtime:
    return open_runtime(str(save_torch_export(_module(forward), path / "m.pt2", example, dynamic)))


def _traced(path: Path, forward: Callable[..., Any], *example: Any, inputs: dict[str, str], outputs: dict[str, str]) -> Runtime:
    return open_runtime(str(save_torchscript(_module(forward), path / "m.pt", example)), inputs=inputs, outputs=outputs)


# The small network


def _script(folder: Path) -> Runtime:
    path = save_torchscript(small_network.torch_module(), folder / "network.pt")
    options = {"path": str(path), "inputs": INPUTS, "outputs": OUTPUTS}
    return load(PythonSpec("dlproxy.instance.runtime.formats:open_runtime", options))


def _program(folder: Path) -> Runtime:
    import torch

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_network.torch_module()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.network(x)}

    dynamic = {"x": {0: torch.export.Dim("batch")}}
    return open_runtime(str(save_torch_export(Named().eval(), folder / "network.pt2", [torch.zeros(2, 8)], dynamic)))


@pytest.mark.parametrize("made", [_script, _program])
def test_the_small_network(tmp_path: Path, made: Callable[[Path], Runtime]) -> None:
    small_network.assert_as_every_runtime(made(tmp_path), "8")


def test_a_module_in_a_python_class(tmp_path: Path) -> None:
    (tmp_path / "network.py").write_text(
        "import torch\n"
        "class Doubling(torch.nn.Module):\n"
        "    inputs, outputs = {'x': 'FP32[-1,2]'}, {'y': 'FP32[-1,2]'}\n"
        "    def forward(self, x): return 2 * x\n"
        "    def predict(self, batch): return {'y': self(torch.from_numpy(batch['x'])).numpy()}\n"
        "class Silent(torch.nn.Module):\n"
        "    def forward(self, x): return x\n"
    )
    runtime = open_runtime(f"{tmp_path}/network.py:Doubling")
    assert runtime.run([X3])[0].tolist() == (2 * X3).tolist()
    with pytest.raises(ModelError, match=r"Silent has no method predict\(self, batch\)"):
        open_runtime(f"{tmp_path}/network.py:Silent")


# Signatures


def test_an_exported_program_knows_its_signature(tmp_path: Path) -> None:
    import torch

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    runtime = _exported(
        tmp_path,
        lambda self, tokens, scale: (tokens.sum(1), tokens.float() * scale),
        torch.zeros(3, 5, dtype=torch.int64),
        torch.zeros(3, 1, dtype=torch.float32),
        dynamic={"tokens": {0: batch, 1: length}, "scale": {0: batch}},
    )
    signature = runtime.signature
    assert signature.inputs == (TensorSpec("tokens", DType.INT64, (-1, -1)), TensorSpec("scale", DType.FP32, (-1, 1)))
    assert signature.outputs == (TensorSpec("output_0", DType.INT64, (-1,)), TensorSpec("output_1", DType.FP32, (-1, -1)))
    assert signature.batched
    total, scaled = runtime.run([np.ones((4, 2), np.int64), np.full((4, 1), 3, np.float32)])
    assert (total.tolist(), scaled.tolist()) == ([2] * 4, [[3.0, 3.0]] * 4)


def test_nested_inputs_are_taken_flat(tmp_path: Path) -> None:
    import torch

    runtime = _exported(tmp_path, lambda self, pair: pair["a"] - pair["b"], {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)})
    assert [spec.name for spec in runtime.signature.inputs] == ["pair_a", "pair_b"]
    assert runtime.run([X3[:2], np.ones((2, 2), np.float32)])[0].tolist() == (X3[:2] - 1).tolist()


def test_a_program_of_one_fixed_size_does_not_batch(tmp_path: Path) -> None:
    import torch

    runtime = _exported(tmp_path, lambda self, x: x + 1, torch.zeros(3, 2))
    assert not runtime.signature.batched
    assert runtime.signature.inputs[0].shape == (3, 2)
    assert runtime.run([X3])[0].tolist() == (X3 + 1).tolist()


def test_open_axes_of_different_sizes_do_not_batch(tmp_path: Path) -> None:
    import torch

    dynamic = {"x": {0: torch.export.Dim("rows")}}
    twice = _exported(tmp_path, lambda self, x: torch.cat([x, x]), torch.zeros(3, 2), dynamic=dynamic)
    assert not twice.signature.batched
    assert twice.run([X3])[0].shape == (6, 2)


def test_the_configuration_narrows_a_program(tmp_path: Path) -> None:
    import torch

    dynamic = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("width")}}
    path = save_torch_export(_module(lambda self, x: x + 1), tmp_path / "m.pt2", [torch.zeros(3, 2)], dynamic)
    runtime = open_runtime(str(path), inputs={"x": "FP32[-1,2]"}, outputs={"output": "FP32[-1,2]"})
    assert runtime.signature.batched
    assert runtime.signature.inputs[0].shape == (-1, 2)
    assert "but FP32[-1,-1] in the model" in refusal(path, inputs={"x": "INT8[-1,2]"})


def test_what_was_no_tensor_when_a_program_was_exported_stays_as_it_was(tmp_path: Path) -> None:
    import torch

    runtime = _exported(tmp_path, lambda self, n, x, mask=None: x + n, 3, torch.zeros(3, 2), None)
    assert [spec.name for spec in runtime.signature.inputs] == ["x"]
    assert runtime.run([X3])[0].tolist() == (X3 + 3).tolist()


def test_a_program_that_gives_more_than_tensors_is_refused(tmp_path: Path) -> None:
    import torch

    path = save_torch_export(_module(lambda self, x: (x, 3)), tmp_path / "m.pt2", [torch.zeros(3, 2)], None)
    assert "'output_1' is a int; dlproxy serves dense tensors" in refusal(path)
    path = save_torch_export(_module(lambda self, x: x.to(torch.complex64)), tmp_path / "m.pt2", [torch.zeros(3, 2)], None)
    assert "'output' is torch.complex64; dlproxy serves dense tensors" in refusal(path)
    path = save_torch_export(_module(lambda self, x: {"a": [x]}), tmp_path / "m.pt2", [torch.zeros(3, 2)], None)
    assert "'a' is a list; dlproxy serves dense tensors" in refusal(path)


def test_torchscript_wants_its_shapes_declared(tmp_path: Path) -> None:
    path = save_torchscript(small_network.torch_module(), tmp_path / "m.pt")
    assert "like inputs = { x = 'FP32[-1,784]' }" in refusal(path)
    assert "declare inputs and outputs" in refusal(path, inputs=INPUTS)
    assert "the configuration's inputs are a; forward takes x" in refusal(path, inputs={"a": "FP32[-1,8]"}, outputs=OUTPUTS)
    assert "'x' is declared as BYTES" in refusal(path, inputs={"x": "BYTES[-1]"}, outputs=OUTPUTS)


def test_torchscript_whose_inputs_are_numbered(tmp_path: Path) -> None:
    import torch

    class Network(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return first - second

    path = tmp_path / "m.pt"
    torch.jit.script(Network()).save(path)
    x, y = np.float32([[5]]), np.float32([[3]])
    for names in (["second", "first"], ["INPUT__1", "INPUT__0"], ["b__1", "a__0"]):
        inputs = dict.fromkeys(names, "FP32[-1,1]")
        runtime = open_runtime(str(path), inputs=inputs, outputs={"OUTPUT__0": "FP32[-1,1]"})
        assert [spec.name for spec in runtime.signature.inputs] == names
        assert runtime.run([y, x])[0].tolist() == [[2.0]]
    for names in (["INPUT__0", "INPUT__2"], ["INPUT__0", "other__0"], ["INPUT__0", "second"], ["INPUT__0"], ["INPUT__0", "y"]):
        expected = f"the configuration's inputs are {', '.join(names)}; forward takes first, second"
        assert expected in refusal(path, inputs=dict.fromkeys(names, "FP32[-1,1]"), outputs=OUTPUTS)


@pytest.mark.parametrize(
    ("declared", "clue"),
    [
        ({"y": "FP64[-1,4]"}, "output 'y' is FP32[2,4] where the model declares FP64[-1,4]"),
        ({"y": "FP32[-1,5]"}, "output 'y' is FP32[2,4] where the model declares FP32[-1,5]"),
        ({"y": "FP32[-1,4]", "z": "FP32[-1]"}, "forward gave 1 outputs where the configuration declares y, z"),
    ],
)
def test_torchscript_that_does_not_keep_to_the_declaration(tmp_path: Path, declared: dict[str, str], clue: str) -> None:
    path = save_torchscript(small_network.torch_module(), tmp_path / "m.pt")
    result = run_batch(
        open_runtime(str(path), inputs=INPUTS, outputs=declared), [request(("x", DType.FP32, small_network.rows(2)))]
    )
    assert result.error is not None
    assert clue in result.error


def test_torchscript_with_several_outputs_by_place_and_by_name(tmp_path: Path) -> None:
    import torch

    declared = {"inputs": {"x": "FP32[-1,2]"}, "outputs": {"more": "FP32[-1,2]", "less": "FP32[-1,2]"}}
    by_place = _traced(tmp_path, lambda self, x: (x + 1, x - 1), torch.zeros(3, 2), **declared)
    assert [array.tolist() for array in by_place.run([X3])] == [(X3 + 1).tolist(), (X3 - 1).tolist()]

    def by_name(self: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"less": x - 1, "more": x + 1}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_module(by_name), (torch.zeros(3, 2),), strict=False)
        torch.jit.save(traced, tmp_path / "named.pt")
    named = open_runtime(str(tmp_path / "named.pt"), **declared)
    assert [array.tolist() for array in named.run([X3])] == [(X3 + 1).tolist(), (X3 - 1).tolist()]


# Element types and memory


@pytest.mark.parametrize("dtype", [one for one in DType if one is not DType.BYTES], ids=lambda dtype: dtype.value)
def test_every_element_type_passes_through(tmp_path: Path, dtype: DType) -> None:
    import torch

    from dlproxy.instance.runtime.torch import _DTYPES

    theirs = next(their for their, ours in _DTYPES.items() if ours is dtype)
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    runtime = _exported(tmp_path, lambda self, x: x.clone(), torch.zeros(2, 3).to(theirs), dynamic=dynamic)
    assert runtime.signature.inputs == (TensorSpec("x", dtype, (-1, 3)),)
    assert runtime.signature.batched
    assert_passes_unchanged(runtime, dtype)


def test_bf16_is_computed_with(tmp_path: Path) -> None:
    import torch

    runtime = _exported(tmp_path, lambda self, x: 2 * x, torch.zeros(3, 2, dtype=torch.bfloat16))
    (output,) = runtime.run([fp32_to_bf16(X3)])
    assert bf16_to_fp32(output).tolist() == (2 * X3).tolist()


def test_a_model_that_writes_to_its_input_or_gives_it_back_leaves_the_request_alone(tmp_path: Path) -> None:
    import torch

    declared = {"inputs": {"x": "FP32[-1,2]"}, "outputs": {"y": "FP32[-1,2]"}}
    runtime = _traced(tmp_path, lambda self, x: x.add_(1), torch.zeros(3, 2), **declared)
    x = np.frombuffer(X3.tobytes(), np.float32).reshape(3, 2)
    assert runtime.run([x])[0].tolist() == (X3 + 1).tolist()
    assert x.tolist() == X3.tolist()


def test_each_model_runs_with_its_own_threads(tmp_path: Path) -> None:
    import torch

    path = str(save_torchscript(small_network.torch_module(), tmp_path / "m.pt"))
    one, two = (open_runtime(path, threads=number, inputs=INPUTS, outputs=OUTPUTS) for number in (1, 2))
    for runtime, threads in ((one, 1), (two, 2), (one, 1)):
        runtime.run([small_network.rows(2)])
        assert torch.get_num_threads() == threads


def test_a_model_that_raises_says_why_in_a_line(tmp_path: Path) -> None:
    import torch

    class Strict(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool(x.sum() > 5):
                raise ValueError("the sum is too large")
            return x

    path = save_torchscript(Strict().eval(), tmp_path / "m.pt")
    runtime = open_runtime(str(path), inputs={"x": "FP32[-1,2]"}, outputs={"y": "FP32[-1,2]"})
    result = run_batch(runtime, [request(("x", DType.FP32, X3))])
    assert result.error is not None
    assert result.error.endswith("the sum is too large")
    assert "\n" not in result.error
    assert runtime.run([0 * X3])[0].tolist() == (0 * X3).tolist()


# Devices


@pytest.mark.parametrize(
    ("device", "clue"),
    [
        ("cuda:99", "device 'cuda:99' is not there: torch"),
        ("gpu", "device 'gpu' is not understood"),
        ("tensorrt", "device 'tensorrt' is for ONNX models"),
    ],
)
def test_a_device_that_is_not_there(tmp_path: Path, device: str, clue: str) -> None:
    path = save_torchscript(small_network.torch_module(), tmp_path / "m.pt")
    assert clue in refusal(path, inputs=INPUTS, outputs=OUTPUTS, device=device)


def test_a_gpu_is_chosen_and_its_memory_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from dlproxy.instance.runtime.torch import _device, _limit_memory

    path = save_torchscript(small_network.torch_module(), tmp_path / "m.pt")
    runtime = open_runtime(str(path), device="cpu", gpu_memory_limit_mb=100, inputs=INPUTS, outputs=OUTPUTS)
    assert getattr(runtime, "device", None) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(_device(path, device)) for device in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    set_to: list[tuple[float, str]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000 * 2**20))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, on: set_to.append((share, str(on))))
    for limit_mb in (250, 4000):
        _limit_memory(torch.device("cuda:1"), limit_mb * 2**20)
    assert set_to == [(0.25, "cuda:1"), (1.0, "cuda:1")]


def test_a_gpus_steps_are_taken_in_order_on_a_stream_of_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fakes where the hardware would be: pin, copy there, compute, copy back to pinned memory, wait."""
    import torch

    from dlproxy.instance.runtime.torch import _Cuda

    steps: list[str] = []
    streams: list[Any] = []
    empty = torch.empty

    class Stream:
        def __init__(self, device: Any) -> None:
            streams.append(self)

        def synchronize(self) -> None:
            steps.append("wait")

    def pin(tensor: Any) -> Any:
        steps.append("pin")
        return tensor

    def pinned(*shape: Any, pin_memory: bool, **options: Any) -> Any:
        assert pin_memory
        steps.append("back")
        return empty(*shape, **options)

    def call(tensors: list[Any]) -> Any:
        steps.append("compute")
        return tensors[0] * 2, tensors[0] + 1

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch, "empty", pinned)
    gpu = _Cuda(torch.device("cpu"))
    for _ in range(2):
        outputs = gpu.run(call, [torch.from_numpy(X3)])
        assert {name: tensor.tolist() for name, tensor in outputs.items()} == {
            "output_0": (2 * X3).tolist(),
            "output_1": (X3 + 1).tolist(),
        }
    assert steps == ["pin", "compute", "back", "back", "wait"] * 2
    other = Thread(target=gpu.run, args=(call, [torch.from_numpy(X3)]))
    other.start()
    other.join(10)
    assert len(streams) == 2


# What cannot be loaded


class Evil:
    """Reading its pickle would raise; a test that passes has not read it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the pickle was run')",)


def test_pickles_are_refused_unread(tmp_path: Path) -> None:
    import torch

    for name, new in (("new.pt", True), ("old.pth", False)):
        torch.save(Evil(), tmp_path / name, _use_new_zipfile_serialization=new)
        assert "reading it would run whatever code it names" in refusal(tmp_path / name)


def _repacked(source: Path, target: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for member in old.namelist():
            new.writestr(member, change(member, old.read(member)))
        for member, content in (extra or {}).items():
            new.writestr(f"{old.namelist()[0].partition('/')[0]}/{member}", content)
    return target


def test_pickles_and_compiled_code_inside_an_exported_program_are_refused_unread(tmp_path: Path) -> None:
    import torch

    source = save_torch_export(small_network.torch_module(), tmp_path / "good.pt2", [torch.zeros(2, 8)], None)
    evil = io.BytesIO()
    torch.save(Evil(), evil)

    def sample(member: str, content: bytes) -> bytes:
        return evil.getvalue() if member.endswith("sample_inputs/model.pt") else content

    def pickled(member: str, content: bytes) -> bytes:
        if not member.endswith("model_weights_config.json"):
            return evil.getvalue() if member.endswith("weight_0") else content
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    def same(member: str, content: bytes) -> bytes:
        return content

    target = tmp_path / "odd.pt2"
    assert "its example inputs are a pickle of more than tensors" in refusal(_repacked(source, target, sample))
    assert "first.weight is pickled, and reading a pickle runs code" in refusal(_repacked(source, target, pickled))
    for member in ("data/aotinductor/model/a.so", "data/weights/model.pt", "data/constants/opaque_obj_0"):
        found = refusal(_repacked(source, target, same, {member: pickle.dumps(Evil())}))
        assert f"its archive holds {member}, which may be code" in found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "two members of one name" in refusal(_repacked(source, target, same, {"models/model.json": b"{}"}))
    assert open_runtime(str(_repacked(source, target, same))).run([np.zeros((2, 8), np.float32)])[0].shape == (2, 4)


@pytest.mark.parametrize("name", ["m.pt", "m.pt2"])
def test_a_damaged_model_is_refused_in_a_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    if name == "m.pt":
        source = save_torchscript(small_network.torch_module(), tmp_path / f"good-{name}")
    else:
        source = save_torch_export(small_network.torch_module(), tmp_path / f"good-{name}", [torch.zeros(2, 8)], None)
    options = {"inputs": INPUTS, "outputs": OUTPUTS} if name == "m.pt" else {}
    with zipfile.ZipFile(source) as archive:
        members = [member for member in archive.namelist() if len(archive.read(member)) > 16]
    capfd.readouterr()
    for wrong in members:
        if "debug_pkl" in wrong or "serialization_id" in wrong or re.search(r"^[^/]+/data/\d|/weight_", wrong):
            continue  # nothing reads it, or any bytes are weights

        def change(member: str, content: bytes, wrong: str = wrong) -> bytes:
            return b"{garbage" if member == wrong else content

        assert str(tmp_path / name) in refusal(_repacked(source, tmp_path / name, change), **options)
    assert capfd.readouterr() == ("", "")
