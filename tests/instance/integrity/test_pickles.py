"""Pickles that would make a folder: nothing that dlproxy reads of models and inputs runs them, unless it is allowed to."""

import io
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.cli.arrays import ValuesError, _file
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError, archives
from dlproxy.instance.runtime.archives import refuse_unsafe
from dlproxy.instance.runtime.formats import format_of, open_runtime
from dlproxy.instance.samples import read_samples
from dlproxy.message import DType, TensorSpec
from tests.instance import small_network
from tests.instance.small_network import INPUTS, OUTPUTS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

ALLOWED = Trust(pickle=True)


class Evil:
    """Its pickle makes a folder when it is read."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._marker),))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the pickle was run"


def _refused(path: object, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        open_runtime(str(path), **options)
    return str(caught.value)


def test_the_pickle_is_what_it_is_said_to_be(marker: Path) -> None:
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()


@pytest.mark.parametrize("name", ["m.pkl", "m.pickle", "m.joblib", "m.pt", "m.pth", "m.pt2", "m.bin", "m.ckpt"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_bare_pickles(name: str, protocol: int, tmp_path: Path, marker: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Evil(marker), protocol))
    _refused(tmp_path / name)
    assert not marker.exists()


def test_arrays_of_objects(tmp_path: Path, marker: Path) -> None:
    objects = np.empty(1, object)
    objects[0] = Evil(marker)
    np.savez(tmp_path / "evil.npz", x=objects)
    np.save(tmp_path / "evil.npy", objects)
    with pytest.raises(ModelError, match=r"cannot be read as \.npz, or holds pickles"):
        read_samples(str(tmp_path / "evil.npz"), [TensorSpec("x", DType.BYTES, (-1,))])
    for name in ("evil.npz", "evil.npy"):
        with pytest.raises(ValuesError, match="cannot be read"):
            _file(str(tmp_path / name), "x")
    assert not marker.exists()


@pytest.mark.extras
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved(zipped: bool, tmp_path: Path, marker: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "m.pt"
    torch.save(Evil(marker), file, _use_new_zipfile_serialization=zipped)
    assert 'set [integrity] pickle = "allow"' in _refused(file)
    assert not marker.exists()
    assert "it holds a NoneType, not a module" in _refused(file, trust=ALLOWED)
    assert marker.exists()


@pytest.mark.extras
def test_a_module_that_torch_saved_is_served_where_that_is_allowed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "m.pt"
    module = torch.nn.Sequential(torch.nn.Linear(8, 4))
    torch.save(module, file)
    assert "holds a pickle" in _refused(file)
    assert format_of(str(file), pickle=True).name == "torch_pickle"
    runtime = open_runtime(str(file), inputs={"input": "FP32[-1,8]"}, outputs={"y": "FP32[-1,4]"}, trust=ALLOWED)
    x = small_network.rows(3)
    np.testing.assert_allclose(runtime.run([x])[0], module(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


def _with(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for member in old.namelist():
            new.writestr(member, change(member, old.read(member)))
    return target


@pytest.mark.extras
@pytest.mark.parametrize("member", ["data.pkl", "constants.pkl"])
def test_torchscript_reads_its_pickles_without_python(member: str, tmp_path: Path, marker: Path) -> None:
    pytest.importorskip("torch")
    source = small_network.save_torchscript(small_network.torch_module(), tmp_path / "good.pt")
    evil = pickle.dumps(Evil(marker), 2)
    path = _with(source, tmp_path / "m.pt", lambda name, data: evil if name.endswith(f"/{member}") else data)
    for trust in (Trust(), ALLOWED):
        _refused(path, inputs=INPUTS, outputs=OUTPUTS, trust=trust)
    assert not marker.exists()


@pytest.mark.extras
@pytest.mark.parametrize("where", ["weights", "example"])
def test_pickles_in_an_exported_program(where: str, tmp_path: Path, marker: Path) -> None:
    torch = pytest.importorskip("torch")
    source = small_network.save_torch_export(small_network.torch_module(), tmp_path / "good.pt2", [torch.zeros(2, 8)], None)
    written = io.BytesIO()
    torch.save(Evil(marker), written)

    def change(name: str, data: bytes) -> bytes:
        if where == "example":
            return written.getvalue() if name.endswith("sample_inputs/model.pt") else data
        if name.endswith("model_weights_config.json"):
            config = json.loads(data)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return written.getvalue() if name.endswith("weight_0") else data

    path = _with(source, tmp_path / "m.pt2", change)
    assert "pickle" in _refused(path)
    assert not marker.exists()
    if where == "weights":
        _refused(path, trust=ALLOWED)  # what it holds is no tensor
        assert marker.exists()


@pytest.mark.extras
def test_lambdas_of_keras(tmp_path: Path, marker: Path) -> None:
    small_network.import_tensorflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras

        x = keras.Input((2,), name="x")
        written = eval(f"lambda v: (open({str(marker)!r}, 'w').close(), v)[1]")
        model = keras.Model(x, keras.layers.Lambda(written, output_shape=(2,))(x))
        model.save(tmp_path / "m.keras")
        marker.unlink(missing_ok=True)
        assert "it holds a Lambda, which is code" in _refused(tmp_path / "m.keras")
        assert not marker.exists()
        open_runtime(str(tmp_path / "m.keras"), trust=ALLOWED)
        assert marker.exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["../evil.py"], "leads out of it"),
        (["a/../../evil"], "leads out of it"),
        (["/etc/passwd"], "leads out of it"),
        (["a\\..\\b"], "leads out of it"),
        (["C:evil"], "leads out of it"),
        (["a", "a"], "two members of one name"),
    ],
)
def test_archives_that_lead_elsewhere(names: list[str], words: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        warnings.simplefilter("ignore")
        for name in names:
            archive.writestr(name, b"x")
    assert words in _refused(tmp_path / "m.pt")


def test_archives_with_links_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.pt", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "its archive holds a link, 'link'" in _refused(tmp_path / "link.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 22))
    size = (tmp_path / "bomb.pt").stat().st_size
    with zipfile.ZipFile(tmp_path / "bomb.pt") as archive:
        refuse_unsafe(archive, size)  # so little may be inside whatever the ratio
    monkeypatch.setattr(archives, "SMALL_BYTES", 1 << 20)
    assert f"its archive of {size} bytes would unpack to {1 << 22}" in _refused(tmp_path / "bomb.pt")
