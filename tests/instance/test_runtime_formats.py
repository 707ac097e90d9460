"""Which runtime a path means, and what is said where there is none. Needs no framework."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dlproxy import Model
from dlproxy.config import ConfigError, load, parse_devices
from dlproxy.instance.runtime import ModelError, formats
from dlproxy.instance.runtime.declared import Found, parse_spec, refine, spec_of, written
from dlproxy.instance.runtime.formats import format_of, open_runtime
from dlproxy.message import DType, TensorSpec
from tests.instance import small_network
from tests.instance.small_network import assert_a_line


def _zip(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in members:
            archive.writestr(member, b"")
    return buffer.getvalue()


SCRIPT = _zip("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version")
PROGRAM = _zip("m/archive_format", "m/models/model.json", "m/version")
PICKLE = _zip("m/data.pkl", "m/version", "m/data/0")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("sleep:base=1ms", "sleep"),
        ("my_module:MyModel", "python"),
        ("my.package.module:MyModel", "python"),
        ("folder/file.py:MyModel", "python"),
        ("/a b/ü.py:M", "python"),
        ("folder/file.py", "python"),
    ],
)
def test_paths_that_need_no_file(path: str, kind: str) -> None:
    assert format_of(path).name == kind


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.onnx", b"", "onnx"),
        ("m.ONNX", b"", "onnx"),
        ("m.keras", b"", "keras"),
        ("m.pt", SCRIPT, "torchscript"),
        *((f"m{ending}", SCRIPT, "torchscript") for ending in formats._TORCH),
        *((f"m{ending}", PROGRAM, "torch_export") for ending in formats._TORCH),
        ("m.jit", SCRIPT, "torchscript"),
        ("m.JIT", SCRIPT, "torchscript"),
        ("m.pt2", PROGRAM, "torch_export"),
        ("m.pt", PROGRAM, "torch_export"),
        ("m.pt2", SCRIPT, "torchscript"),
    ],
)
def test_files_by_ending_and_content(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert format_of(str(tmp_path / name)).name == kind


def test_a_folder_with_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").write_bytes(b"")
    assert format_of(str(tmp_path / "net")).name == "saved_model"
    with pytest.raises(ModelError, match=r"is a directory without saved_model.pb; did you mean .*/net\?"):
        format_of(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "clue"),
    [
        ("m.onxx", b"", "no models with the ending '.onxx'; did you mean .onnx?"),
        ("m.kera", b"", "did you mean .keras?"),
        ("m", b"", "no models with no ending; it takes .onnx, an ONNX model; .pt2, a program saved by torch.export.save"),
        ("m.docx", b"", "a Python class, as file.py:MyModel or my_module:MyModel"),
        ("m.safetensors", b"", "weights without a network: write a Python class that loads it (path file.py:MyModel)"),
        ("m.h5", b"", "load it in Keras and save it as .keras"),
        ("m.pb", b"", "give the folder that holds saved_model.pb"),
        ("m.pkl", b"", "a pickle, which runs code when it is read"),
        ("m.pt", PICKLE, "was written by torch.save and holds a pickle; reading it would run whatever code it names"),
        *((f"m{ending}", PICKLE, "was written by torch.save and holds a pickle") for ending in formats._TORCH),
        *((f"m{ending}", b"no", "is not a model that torch can load: it is not a zip archive") for ending in formats._TORCH),
        ("m.jitt", b"", "did you mean .jit?"),
        ("m.torchscrip", b"", "did you mean .torchscript?"),
        ("m.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80", "is a pickle; reading it would run whatever code it names"),
        ("m.pt", b"not a model", "is not a model that torch can load: it is not a zip archive"),
        ("m.pt2", b"", "is not a model that torch can load"),
        ("m.pt", SCRIPT[:-30], "is not a model that torch can load"),
        ("m.pt2", _zip("version", "serialized_exported_program.json"), "was saved by a torch before 2.8"),
        ("m.pt", _zip("a.txt"), "is a zip archive, but neither TorchScript nor a program saved by torch.export.save"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, clue: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        format_of(str(path))
    assert clue in str(caught.value)
    assert_a_line(str(caught.value), path)


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"digit\.onnx does not exist; did you mean .*/digits\.onnx\?"):
        format_of(str(tmp_path / "digit.onnx"))
    with pytest.raises(ModelError, match=r"does not exist \(nor does the folder .*/nowhere\)"):
        format_of(str(tmp_path / "nowhere" / "digits.onnx"))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a directory without saved_model\.pb; dlproxy takes \.onnx"):
        format_of(str(tmp_path))
    (tmp_path / "saved_model.pbtxt").write_bytes(b"")
    with pytest.raises(ModelError, match="is a SavedModel as text"):
        format_of(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "name", "package"), [(SCRIPT, "m.pt", "torch"), (PROGRAM, "m.pt2", "torch"), (b"", "m.keras", "tensorflow")]
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str, package: str
) -> None:
    for module in ("torch", "tensorflow", "keras"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"dlproxy.instance.runtime.{package}", raising=False)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        open_runtime(str(tmp_path / name))
    assert str(caught.value) == f"{tmp_path / name} needs {package}, which is not installed: pip install 'dlproxy[{package}]'"


def test_a_broken_extra_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dlproxy.instance.runtime.torch", raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    (tmp_path / "m.pt").write_bytes(SCRIPT)
    with pytest.raises(ModelError, match=r"torch, which is installed but cannot be imported: libcudart"):
        open_runtime(str(tmp_path / "m.pt"))


def test_open_runtime_opens_each_light_kind(tmp_path: Path) -> None:
    small_network.assert_right(open_runtime(str(small_network.save_onnx(tmp_path)), threads=1))
    small_network.assert_right(open_runtime(small_network.save_python(tmp_path), inputs=small_network.INPUTS))
    assert open_runtime("sleep:base=1ms").signature.platform == "sleep"
    with pytest.raises(ModelError, match="m:M: 'x' is declared as 'FP32'; write it like"):
        open_runtime("m:M", inputs={"x": "FP32"})
    with pytest.raises(ModelError, match="sleep:row=1ms says its own inputs and outputs"):
        open_runtime("sleep:row=1ms", outputs={"x": "FP32[-1]"})


def test_deciding_imports_no_framework() -> None:
    code = "import sys, dlproxy.instance.runtime.formats; sys.exit(bool({'torch', 'keras', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


# What the configuration declares


@pytest.mark.parametrize(
    ("written_as", "dtype", "shape"),
    [
        ("FP32[-1,784]", DType.FP32, (-1, 784)),
        ("fp32 [ -1 , 784 ]", DType.FP32, (-1, 784)),
        ("BYTES[-1]", DType.BYTES, (-1,)),
        ("int64[]", DType.INT64, ()),
        ("BF16[0]", DType.BF16, (0,)),
        ("uint16[2]", DType.UINT16, (2,)),
        ("bool[2]", DType.BOOL, (2,)),
    ],
)
def test_a_spec_is_read(written_as: str, dtype: DType, shape: tuple[int, ...]) -> None:
    spec = parse_spec("x", written_as)
    assert spec == TensorSpec("x", dtype, shape)
    assert parse_spec("x", written(spec)) == spec


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        *(("TEXT[-1]", True), ("text[-1]", True), ("BYTES[-1]", False)),
        *(((kind, (-1,)), True) for kind in ("TEXT", str, np.str_, "U5", np.dtypes.StringDType())),
        *(((kind, (-1,)), False) for kind in ("BYTES", bytes, np.bytes_, "S5", object, np.object_)),
    ],
)
def test_bytes_are_text_where_that_is_said(declared: object, text: bool) -> None:
    spec = spec_of("x", declared)
    assert spec == TensorSpec("x", DType.BYTES, (-1,), text)
    assert spec_of("x", written(spec)) == spec


@pytest.mark.parametrize(
    "text", ["", "FP32", "[3]", "FP32[3", "FP32[3,]", "FP32[a b]", "FP32[1][2]", "FP33[1]", "FP32[-2]", "FP32[1.5]"]
)
def test_a_spec_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="'x' is declared"):
        parse_spec("x", text)


def test_the_configuration_may_narrow_what_a_file_says_but_not_contradict_it() -> None:
    found = [Found("x", DType.FP32, (-1, -1)), Found("n", DType.INT64, None)]
    narrowed = [TensorSpec("n", DType.INT64, (-1,)), TensorSpec("x", DType.FP32, (-1, 3))]
    assert refine(found, narrowed, "inputs") == tuple(reversed(narrowed))
    with pytest.raises(ModelError, match=r"'n' may have any number of axes; give its shape: inputs = \{ n = "):
        refine(found, [], "inputs")
    for given, clue in (
        ([TensorSpec("x", DType.FP32, (-1, 3))], "the configuration's inputs are x; the model's are x, n"),
        (
            [TensorSpec("x", DType.FP64, (-1, 3)), narrowed[0]],
            r"'x' is FP64\[-1,3\] in the configuration, but FP32\[-1,-1\] in",
        ),
        ([TensorSpec("x", DType.FP32, (3,)), narrowed[0]], r"'x' is FP32\[3\] in the configuration"),
        ([narrowed[1], TensorSpec("n", DType.INT32, ())], r"but INT64 of any shape in the model"),
    ):
        with pytest.raises(ModelError, match=clue):
            refine(found, given, "inputs")
    with pytest.raises(ModelError, match=r"FP32\[-1\] in the configuration, but FP32\[3\] in the model"):
        refine([Found("x", DType.FP32, (3,))], [TensorSpec("x", DType.FP32, (-1,))], "inputs")


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("my_module:MyModel", True),
        ("my.package.module:MyModel", True),
        ("my-module:MyModel", True),
        ("sleep:base=1ms", True),
        ("http://localhost:8000/m", True),
        ("file.py:MyModel", False),
        ("folder/file.py:MyModel", False),
        ("file.py", False),
        ("folder/m.onnx", False),
        ("net", False),
    ],
)
def test_a_configurations_paths_are_relative_to_it_but_for_modules(tmp_path: Path, path: str, kept: bool) -> None:
    (tmp_path / "dlproxy.toml").write_text(f'[models.m]\npath = "{path}"\n', "utf-8")
    assert load(tmp_path / "dlproxy.toml").models["m"][0].path == (path if kept else str(tmp_path / path))


@pytest.mark.parametrize("device", ["gpu", "cuda:0,gpu", "cuda:x", ""])
def test_a_configurations_device_is_checked_where_it_stands(tmp_path: Path, device: str) -> None:
    (tmp_path / "dlproxy.toml").write_text(f'[models.m]\npath = "m.onnx"\ndevice = "{device}"\n', "utf-8")
    with pytest.raises(ConfigError, match=r"dlproxy\.toml:3: device '.*' is not understood; it is auto, cpu, cuda, cuda:N"):
        load(tmp_path / "dlproxy.toml")
    with pytest.raises(ConfigError, match="is not understood"):
        Model("m.onnx", device=device)


def test_several_devices_are_a_list(tmp_path: Path) -> None:
    (tmp_path / "dlproxy.toml").write_text('[models.m]\npath = "m.onnx"\ndevice = "cuda:0, openvino:GPU.1,auto"\n', "utf-8")
    assert parse_devices(load(tmp_path / "dlproxy.toml").models["m"][0].device) == ["cuda:0", "openvino:GPU.1", "auto"]
