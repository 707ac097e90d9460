"""Signed and encrypted models in every format: they answer as the plain ones do, and nothing is read of them twice."""

import importlib.util
import os
import py_compile
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy import Model, Proxy
from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.files import read_files
from dlproxy.instance.integrity.memory_folder import MemoryFolder
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.formats import open_runtime
from tests.instance import small_network
from tests.instance.small_network import INPUTS, OUTPUTS

from .keys import PLAIN, WIDTH, Keys, flipped, save_with_weights_beside

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this process keeps temporary files, of which nothing is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    yield folder
    assert sys.path == before  # nothing is imported from where models lie
    assert [path for path in folder.rglob("*") if not path.is_symlink() and path.is_file()] == []
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        if name.startswith(("dlproxy_model", "helper", "package")):
            del sys.modules[name]


def _onnx(folder: Path) -> str:
    return str(small_network.save_onnx(folder))


def _python(folder: Path) -> str:
    return small_network.save_python(folder)


def _torchscript(folder: Path) -> str:
    return str(small_network.save_torchscript(small_network.torch_module(), folder / "m.pt"))


def _torch_export(folder: Path) -> str:
    import torch

    dynamic = {"x": {0: torch.export.Dim("rows", max=1024)}}
    return str(small_network.save_torch_export(small_network.torch_module(), folder / "m.pt2", [torch.zeros(2, 8)], dynamic))


def _saved_model(folder: Path) -> str:
    small_network.import_tensorflow()
    return str(small_network.save_saved_model(folder))


def _keras(folder: Path) -> str:
    small_network.import_tensorflow()
    small_network.keras_model().save(folder / "m.keras")
    return str(folder / "m.keras")


EXTRA = pytest.mark.extras
FORMATS = [
    _onnx,
    _python,
    pytest.param(_torchscript, marks=EXTRA),
    pytest.param(_torch_export, marks=EXTRA),
    pytest.param(_saved_model, marks=EXTRA),
    pytest.param(_keras, marks=EXTRA),
]
Made = Callable[[Path], str]


def _opened(path: str, trust: Trust) -> Runtime:
    declared = {"inputs": INPUTS, "outputs": OUTPUTS} if path.endswith(".pt") else {}
    return open_runtime(path, trust=trust, **declared)


def _made(make: Made, folder: Path) -> str:
    folder.mkdir()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(tempfile, "tempdir", None)  # which frameworks use when they make a model
        try:
            return make(folder)
        except ImportError as error:
            pytest.skip(str(error))


def _moved(path: str, source: Path, target: Path) -> str:
    return str(target / Path(path).relative_to(source))


def _right(runtime: Runtime) -> None:
    for count in (1, 7):
        x = small_network.rows(count)
        np.testing.assert_allclose(runtime.run([x])[0], small_network.answer(x), atol=small_network.TOLERANCE)


def _signed(path: str, keys: Keys, source: Path) -> list[str]:
    """The files that are read of it."""
    keys.sign(path if Path(path).is_dir() else source)
    read = read_files(path, keys.trust())
    assert read is not None
    return read.paths


@pytest.mark.parametrize("make", FORMATS)
def test_signed_models_are_right_and_read_once(make: Made, keys: Keys, tmp_path: Path) -> None:
    source = tmp_path / "plain"
    path = _made(make, source)
    files = _signed(path, keys, source)
    runtime = _opened(path, keys.trust())
    for file in files:
        os.unlink(file)  # it needs nothing of them any more
    _right(runtime)
    assert set(getattr(runtime, "files", files)) == set(files)
    getattr(runtime, "close", lambda: None)()


@pytest.mark.parametrize("make", FORMATS)
def test_a_changed_byte_is_refused(make: Made, keys: Keys, tmp_path: Path) -> None:
    source = tmp_path / "plain"
    path = _made(make, source)
    files = _signed(path, keys, source)
    for file in files:
        flipped(Path(file), os.path.getsize(file) // 2)
        with pytest.raises(ModelError, match="has been changed, or exchanged"):
            _opened(path, keys.trust())
        flipped(Path(file), os.path.getsize(file) // 2)
    _right(_opened(path, keys.trust()))


@pytest.mark.parametrize("make", FORMATS)
def test_encrypted_models_are_right(make: Made, keys: Keys, tmp_path: Path) -> None:
    source, target = tmp_path / "plain", tmp_path / "sealed"
    path = _made(make, source)
    keys.encrypt(source, target)
    sealed = _moved(path, source, target)
    for trust, words in ((Trust(), "is encrypted"), (keys.trust(signed=False, master=keys.other_master), "another master key")):
        with pytest.raises(ModelError, match=words):
            _opened(sealed, trust)
    if make is _keras:
        with pytest.raises(ModelError, match=r"Keras unpacks parts of \.keras files to disk"):
            _opened(sealed, keys.trust(signed=False))
        return
    _right(_opened(sealed, keys.trust(signed=False)))
    _signed(sealed, keys, target)
    _right(_opened(sealed, keys.trust()))


@pytest.mark.extras
def test_a_saved_model_in_the_signed_folder_of_its_version(keys: Keys, tmp_path: Path) -> None:
    path = _made(_saved_model, tmp_path / "1")
    keys.sign(tmp_path / "1")
    _right(_opened(path, keys.trust()))
    flipped(Path(path) / "saved_model.pb", 20)
    with pytest.raises(ModelError, match="has been changed"):
        _opened(path, keys.trust())


def test_weights_beside_an_onnx_model_come_from_memory(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would else look for them in the working folder."""
    model = save_with_weights_beside(tmp_path / "plain", scale=2.0)
    sealed = keys.encrypt(model, tmp_path / "sealed" / "m.onnx")
    save_with_weights_beside(tmp_path / "wrong", scale=3.0)
    monkeypatch.chdir(tmp_path / "wrong")
    keys.sign(model)
    for path, trust in ((model, keys.trust()), (sealed, keys.trust(signed=False))):
        (output,) = open_runtime(str(path), trust=trust).run([np.ones((1, WIDTH), np.float32)])
        assert set(output.ravel()) == {2.0 * WIDTH}


PARTS = """
import package.inner
from helper import doubled


class Model:
    inputs = {"x": "FP32[-1,2]"}
    outputs = {"y": "FP32[-1,2]"}

    def predict(self, batch):
        if batch["x"][0, 0] < 0:
            raise ValueError("a secret sentence")  # what nobody may read
        import package.later

        return {"y": doubled(batch["x"]) + package.inner.ONE + package.later.TEN}
"""


def _parts(folder: Path) -> str:
    (folder / "package").mkdir(parents=True)
    (folder / "m.py").write_text(PARTS)
    (folder / "helper.py").write_text("def doubled(x):\n    return 2 * x\n")
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "inner.py").write_text("ONE = 1\n")
    (folder / "package" / "later.py").write_text("TEN = 10\n")
    return f"{folder}/m.py:Model"


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_class_imports_what_stands_beside_it_from_memory(keys: Keys, tmp_path: Path, encrypted: bool) -> None:
    source = tmp_path / "plain"
    path = _parts(source)
    if encrypted:
        keys.encrypt(source, tmp_path / "sealed")
        source, path = tmp_path / "sealed", _moved(path, source, tmp_path / "sealed")
    keys.sign(source)
    runtime: Any = open_runtime(path, trust=keys.trust())
    for name in ("m.py", "helper.py", "package/later.py"):
        (source / name).write_text("raise SystemExit('not what was signed')")
    np.testing.assert_array_equal(runtime.run([np.ones((1, 2), np.float32)])[0], [[13.0, 13.0]])
    with pytest.raises(RuntimeError, match=r"ValueError: a secret sentence \(m\.py, line 12\)") as caught:
        runtime.run([-np.ones((1, 2), np.float32)])
    assert caught.value.__cause__ is not None
    step = traceback.extract_tb(caught.value.__cause__.__traceback__)[-1]
    assert (step.filename, step.lineno, step.name) == (str(source / "m.py"), 12, "predict")
    assert not list(source.rglob("*.pyc"))
    runtime.close()
    with pytest.raises(ModelError):
        open_runtime(path, trust=keys.trust())


def test_tracebacks_show_no_line_of_an_encrypted_file(keys: Keys, tmp_path: Path) -> None:
    source = tmp_path / "plain"
    path = _moved(_parts(source), source, keys.encrypt(source, tmp_path / "sealed"))
    runtime = open_runtime(path, trust=keys.trust(signed=False))
    with pytest.raises(RuntimeError) as caught:
        runtime.run([-np.ones((1, 2), np.float32)])
    shown = "".join(traceback.format_exception(caught.value))
    assert f'File "{tmp_path}/sealed/m.py", line 12, in predict' in shown
    assert PLAIN.decode() not in shown


def test_a_poisoned_cache_of_bytecode_is_not_read(keys: Keys, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    path = _parts(folder)
    evil = tmp_path / "evil.py"
    evil.write_text("def doubled(x):\n    return -x\n")
    cache = importlib.util.cache_from_source(str(folder / "helper.py"))
    py_compile.compile(str(evil), cfile=cache, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    keys.sign(folder)
    runtime = open_runtime(path, trust=keys.trust())
    np.testing.assert_array_equal(runtime.run([np.ones((1, 2), np.float32)])[0], [[13.0, 13.0]])


def test_neighbours_do_not_replace_what_is_installed_nor_the_other_way_round(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "plain"
    path = _parts(source)
    for name in ("queue", "looptime"):
        (source / f"{name}.py").write_text("raise SystemExit('the neighbour')")
    (source / "m.py").write_text("import queue\nimport looptime\n" + (source / "m.py").read_text())
    keys.sign(source)
    for name in ("queue", "looptime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(source)])  # as the working folder may be
        runtime = open_runtime(path, trust=keys.trust())
        assert type(sys.modules["helper"].__loader__).__name__ == "MemoryModules"
        (source / "package" / "later.py").write_text("raise SystemExit('not what was signed')")
        np.testing.assert_array_equal(runtime.run([np.ones((1, 2), np.float32)])[0], [[13.0, 13.0]])


def test_a_neighbour_that_was_not_signed_is_not_imported(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "plain"
    path = _parts(source)
    keys.sign(source / "m.py")
    with pytest.raises(ModelError, match="have it signed with it"):
        open_runtime(path, trust=keys.trust())


def test_a_memory_folder_goes_with_its_owner(temporary: Path) -> None:
    folder = MemoryFolder({"a/b": PLAIN, "c": b""})
    assert (folder.path / "a" / "b").read_bytes() == PLAIN
    assert (folder.path / "c").read_bytes() == b""
    assert folder.path.parent == temporary
    assert folder.path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(PermissionError):
        (folder.path / "a" / "b").write_bytes(b"other")
    descriptors = set(os.listdir("/proc/self/fd"))
    folder.close()
    folder.close()
    assert len(descriptors - set(os.listdir("/proc/self/fd"))) >= 2
    assert list(temporary.iterdir()) == []
    MemoryFolder({"a": PLAIN})
    assert list(temporary.iterdir()) == []


async def test_the_library_checks_as_servers_do(keys: Keys, tmp_path: Path) -> None:
    model = save_with_weights_beside(tmp_path / "m", scale=2.0)
    integrity = {"trusted": [str(keys.public)]}
    with pytest.raises(ModelError, match="is not signed"):
        async with Proxy([Model(model)], integrity=integrity):
            pass
    keys.sign(model)
    async with Proxy([Model(model)], integrity=integrity) as proxy:
        answer = await proxy.infer("m", {"x": np.ones((1, WIDTH), np.float32)})
        assert set(answer["y"].ravel()) == {2.0 * WIDTH}
