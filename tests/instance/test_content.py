"""What a model was loaded from is recognised again, however it was touched, and what is not that is refused."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from dlproxy.instance.process.messages import Frames, Load, Loaded, Order, Report, frame
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import (
    MOST_FILES,
    Content,
    FileState,
    external_data,
    files_after,
    model_files,
    stamps_before,
)
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.warmup import WarmUp
from dlproxy.message import Signature

OLD, NEW = b"weights of old", b"weights of new"


def _loaded(path: Path) -> Content:
    content = Content(str(path))
    content.files = files_after(content, stamps_before(content))
    return content


@pytest.fixture(params=["file", "folder"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A model's path, and one of its files."""
    if request.param == "file":
        path = file = tmp_path / "m.pt"
    else:
        path = tmp_path / "saved"
        file = path / "variables" / "variables.data-00000-of-00001"
        file.parent.mkdir(parents=True)
        (path / "saved_model.pb").write_bytes(b"graph")
    file.write_bytes(OLD)
    return path, file


def _touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def _copy_over(file: Path) -> None:
    shutil.copy(file, file.with_name("copy"))
    os.replace(file.with_name("copy"), file)


def _write_anew(file: Path) -> None:
    file.write_bytes(OLD)


@pytest.mark.parametrize("how", [_touch, _copy_over, _write_anew, lambda file: os.chmod(file, 0o600)])
def test_the_same_content_is_the_same_model(model: tuple[Path, Path], how: Callable[[Path], None]) -> None:
    path, file = model
    content = _loaded(path)
    before = {name: state.digest for name, state in content.files.items()}
    how(file)
    content.files = files_after(content, stamps_before(content))
    assert {name: state.digest for name, state in content.files.items()} == before
    assert content.files[str(file)].stamp[2] == file.stat().st_mtime_ns, "the next look is a quick one again"


def _replace(file: Path) -> None:
    file.with_name("new").write_bytes(NEW)
    os.replace(file.with_name("new"), file)


def _overwrite(file: Path) -> None:
    file.write_bytes(NEW)


def _overwrite_secretly(file: Path) -> None:
    """Of the same size, in place, with its time set back."""
    before = file.stat()
    file.write_bytes(NEW)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _append(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b".")


@pytest.mark.parametrize("how", [_replace, _overwrite, _overwrite_secretly, _append])
def test_other_content_is_refused_by_the_files_name(model: tuple[Path, Path], how: Callable[[Path], None]) -> None:
    path, file = model
    content = _loaded(path)
    how(file)
    with pytest.raises(ModelError, match=r"has changed since this model was loaded.*or restart the server") as caught:
        stamps_before(content)
    assert str(caught.value).startswith(str(file))
    file.write_bytes(OLD)
    assert set(stamps_before(content)) == set(content.files)


@pytest.mark.parametrize("how", [_replace, _overwrite_secretly, Path.unlink])
@pytest.mark.parametrize("first", [True, False])
def test_a_change_while_it_is_loaded_is_noticed(model: tuple[Path, Path], how: Callable[[Path], None], first: bool) -> None:
    path, file = model
    content = Content(str(path)) if first else _loaded(path)
    before = stamps_before(content)
    how(file)
    with pytest.raises(ModelError, match=r"was changed while it was loaded; start again|was removed while it was loaded"):
        files_after(content, before)


def test_a_file_that_is_gone_is_told(model: tuple[Path, Path]) -> None:
    path, file = model
    content = _loaded(path)
    file.unlink()
    with pytest.raises(ModelError, match="cannot be read any more: No such file"):
        stamps_before(content)


@pytest.mark.parametrize("path", ["sleep:base=1ms", "my_module:MyModel", "/nowhere/m.onnx"])
def test_paths_that_name_no_file_mean_none(path: str) -> None:
    assert model_files(path) == []
    assert files_after(Content(path), stamps_before(Content(path))) == {}


# ONNX models with weights in other files


def _tensor(name: str, location: str | None) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), name)
    if location is not None:
        set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    return tensor


def _everywhere() -> onnx.ModelProto:
    """A tensor in each place that the format has for one."""
    inner = helper.make_graph([], "then", [], [], [_tensor("deep", "deep.bin")])
    sparse = onnx.SparseTensorProto(values=_tensor("v", "values.bin"), indices=_tensor("i", "indices.bin"), dims=[3])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=_tensor("c", "constant.bin")),
        helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node(
            "Custom", [], ["d"], tensors=[_tensor("t", "list.bin")], graphs=[inner], sparse=sparse, plain=3, text="a"
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [],
        [_tensor("a", "a b/ü.bin"), _tensor("a2", "a b/ü.bin"), _tensor("inside", None)],
        doc_string="location",
    )
    graph.sparse_initializer.append(onnx.SparseTensorProto(values=_tensor("s", "sparse.bin")))
    constant = helper.make_node("Constant", [], ["f"], value=_tensor("f", "function.bin"))
    function = helper.make_function("d", "F", [], ["f"], [constant], [helper.make_opsetid("", 17)])
    made = helper.make_model(graph, functions=[function])
    made.training_info.add().algorithm.initializer.append(_tensor("train", "training.bin"))
    return made


def test_files_with_weights_are_found_wherever_a_tensor_may_stand(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(_everywhere().SerializeToString())
    inner = ("constant", "deep", "list", "values", "indices", "sparse", "function", "training")
    names = ["a b/ü.bin", *(f"{name}.bin" for name in inner)]
    assert external_data(path) == set(names)
    assert model_files(str(path)) == [str(path)], "what is not there is for ONNX Runtime to complain about"
    (tmp_path / "a b").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert model_files(str(path)) == [str(path), *(str(tmp_path / name) for name in sorted(names))]


@given(st.binary(max_size=200), st.integers(0, 5000))
def test_what_is_no_onnx_file_has_none(tmp_path_factory: pytest.TempPathFactory, noise: bytes, cut: int) -> None:
    path = tmp_path_factory.mktemp("noise") / "m.onnx"
    whole = _everywhere().SerializeToString()
    for data in (noise, whole[:cut], whole[:cut] + noise):
        path.write_bytes(data)
        assert all(isinstance(name, str) for name in external_data(path))


# Python classes


def test_a_python_class_is_its_file_and_what_that_imports_from_beside_it(tmp_path: Path) -> None:
    (tmp_path / "net_parts").mkdir()
    (tmp_path / "net_parts" / "__init__.py").write_text("")
    (tmp_path / "net_parts" / "layer_of_test_content.py").write_text("GAIN = 2\n")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "net.py").write_text(
        "import json\nfrom net_parts.layer_of_test_content import GAIN\n\n\nclass Net:\n    inputs = {'x': 'FP32[-1,1]'}\n"
        "    outputs = {'y': 'FP32[-1,1]'}\n\n    def predict(self, batch):\n        return {'y': batch['x'] * GAIN}\n"
    )
    runtime = open_runtime(f"{tmp_path / 'net.py'}:Net")
    names = ["net.py", "net_parts/__init__.py", "net_parts/layer_of_test_content.py"]
    assert runtime.files == [str(tmp_path / name) for name in names]  # type: ignore[attr-defined]


def test_as_many_files_as_are_looked_at_fit_into_an_order() -> None:
    content = Content("m", {})
    folder = "/" + "f" * 120
    for number in range(MOST_FILES):
        content.files[f"{folder}/{number}"] = FileState((2**40, 2**50 + number, 2**60, 2**60), bytes(32))
    order = Load(PythonSpec("m:M"), WarmUp(), (), 0, 1, content)
    assert len(frame(order)) < 150_000, "a socket takes some 200 KiB at once"
    assert Frames(Order).feed(frame(order)) == [order]
    report = Loaded(Signature((), (), batched=False, platform="fake"), None, "cpu", content.files)
    assert Frames(Report).feed(frame(report)) == [report]
