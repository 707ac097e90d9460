"""Signed models: a change of any file, of the manifest or of who signed is refused, in words that say which."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.files import ModelFiles, read_files, verified
from dlproxy.instance.integrity.manifest import OF_FILE, OF_FOLDER, checked
from dlproxy.instance.runtime import ModelError

from .keys import Keys, flipped, save_with_weights_beside


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


def _read(path: object, trust: Trust) -> ModelFiles:
    files = read_files(str(path), trust)
    assert files is not None
    return files


def _refusal(path: object, trust: Trust) -> str:
    with pytest.raises(ModelError) as caught:
        read_files(str(path), trust)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["file", "folder"])
def signed(request: pytest.FixtureRequest, keys: Keys, tmp_path: Path) -> tuple[Path, Path]:
    """A model with its weights in another file, and its manifest: its own, or the folder's."""
    model = save_with_weights_beside(tmp_path / "m")
    return model, keys.sign(model if request.param == "file" else model.parent)


def test_what_is_read_is_what_was_signed(signed: tuple[Path, Path], keys: Keys) -> None:
    model, manifest = signed
    files = _read(model, keys.trust())
    assert files.data == {name: (model.parent / name).read_bytes() for name in ("m.onnx", "weights.bin")}
    assert sorted(verified(model, keys.trust().signers).files) == ["m.onnx", "weights.bin"]
    assert manifest.name in (OF_FOLDER, f"m.onnx{OF_FILE}")


@pytest.mark.parametrize("name", ["m.onnx", "weights.bin"])
def test_every_file_counts(signed: tuple[Path, Path], keys: Keys, name: str) -> None:
    file = signed[0].parent / name
    size = file.stat().st_size
    for at in (0, size // 2, size - 1):
        flipped(file, at)
        assert f"{file} has been changed, or exchanged for another" in _refusal(signed[0], keys.trust())
        flipped(file, at)
    whole = file.read_bytes()
    for other in (whole[:-1], whole + b"\0", b""):
        file.write_bytes(other)
        _refusal(signed[0], keys.trust())
    file.write_bytes(whole)
    _read(signed[0], keys.trust())
    file.unlink()
    if name == "weights.bin":
        assert f"{file} is missing" in _refusal(signed[0], keys.trust())


def test_every_byte_of_the_manifest_counts(signed: tuple[Path, Path], keys: Keys) -> None:
    model, manifest = signed
    for at in range(manifest.stat().st_size):
        flipped(manifest, at)
        assert str(manifest) in _refusal(model, keys.trust())
        flipped(manifest, at)
    text = manifest.read_bytes()
    for other in (text + b"\n", text.rstrip(), text.replace(b" ", b""), text[:-9], b"", b"[" * 100_000):
        manifest.write_bytes(other)
        _refusal(model, keys.trust())
    manifest.write_bytes(text)
    _read(model, keys.trust())


def _rewrite(place: Path, **changes: str) -> None:
    """A manifest, as it should be written."""
    found = msgspec.json.decode(place.read_bytes()) | changes
    place.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")


def test_the_signature_of_another_manifest_does_not_fit(keys: Keys, tmp_path: Path) -> None:
    one, two = (save_with_weights_beside(tmp_path / name, scale=scale) for name, scale in (("a", 1.0), ("b", 2.0)))
    place, other = keys.sign(one), keys.sign(two)
    _rewrite(place, signature=msgspec.json.decode(other.read_bytes())["signature"])
    assert f"{place} has been changed since it was signed: its signature is not valid" in _refusal(one, keys.trust())


def test_files_of_one_model_cannot_be_exchanged(keys: Keys, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz", "m.py"):
        (tmp_path / name).write_bytes(name.encode())
    keys.sign(tmp_path)
    (tmp_path / "a.npz").rename(tmp_path / "c")
    (tmp_path / "b.npz").rename(tmp_path / "a.npz")
    (tmp_path / "c").rename(tmp_path / "b.npz")
    assert "exchanged for another" in _refusal(f"{tmp_path}/m.py:Model", keys.trust())


def test_a_model_in_the_place_of_another(keys: Keys, tmp_path: Path) -> None:
    model = save_with_weights_beside(tmp_path / "m")
    keys.sign(model, model="digits", version="3")
    _read(model, keys.trust(model="digits", version="3"))
    assert "is the manifest of model 'digits', and must not be served as 'letters'" in _refusal(
        model, keys.trust(model="letters")
    )
    old = keys.trust(model="digits", version="4")
    assert "is the manifest of version '3', and must not be served as '4'" in _refusal(model, old)


def test_what_was_added_to_a_folder_is_refused(keys: Keys, tmp_path: Path) -> None:
    model = save_with_weights_beside(tmp_path / "m")
    keys.sign(model.parent)
    for hidden in (".hidden", "__pycache__"):
        (model.parent / hidden).mkdir()
        (model.parent / hidden / "x.py").write_text("x = 1")
    _read(model, keys.trust())  # nothing of it is loaded
    (model.parent / "sub").mkdir()
    (model.parent / "sub" / "helper.py").write_text("x = 1")
    assert f"{model.parent}/sub/helper.py is not in" in _refusal(model, keys.trust())
    shutil.rmtree(model.parent / "sub")
    os.symlink(tmp_path, model.parent / "link")
    assert "is a link to a folder" in _refusal(model, keys.trust())


@pytest.mark.parametrize("layout", ["1/model.onnx/m.onnx", "1/m.onnx"])
def test_the_folder_of_a_version_is_signed(keys: Keys, tmp_path: Path, layout: str) -> None:
    model = save_with_weights_beside(tmp_path / Path(layout).parent)
    manifest = keys.sign(tmp_path / "1")
    files = _read(model, keys.trust())
    assert sorted(files.data) == ["m.onnx", "weights.bin"]
    assert files.folder == model.parent
    assert len(verified(model, keys.trust().signers).files) == 2
    (tmp_path / "1" / "more").touch()
    assert f"{tmp_path}/1/more is not in {manifest}" in _refusal(model, keys.trust())
    (tmp_path / "1" / "more").unlink()
    flipped(model.with_name("weights.bin"), 3)
    assert f"{model.with_name('weights.bin')} has been changed" in _refusal(model, keys.trust())


def test_another_signer_and_none(keys: Keys, tmp_path: Path) -> None:
    model = save_with_weights_beside(tmp_path / "m")
    manifest = tmp_path / "m" / f"m.onnx{OF_FILE}"
    assert f"is not signed, which [integrity] trusted asks for: there is no {manifest}" in _refusal(model, keys.trust())
    keys.sign(model, strange=True)
    assert "which is not trusted; trusted is" in _refusal(model, keys.trust())
    both = msgspec.structs.replace(keys.trust(), signers=(*keys.trust().signers, *_signers_of(keys.strangers_public)))
    _read(model, both)  # any of several


def _signers_of(public: Path) -> tuple[bytes, ...]:
    from dlproxy.instance.integrity.settings import read_signers

    return read_signers([str(public)])


def test_a_manifest_cannot_claim_to_be_of_a_trusted_signer(keys: Keys, tmp_path: Path) -> None:
    model = save_with_weights_beside(tmp_path / "m")
    place = keys.sign(model)
    trusted = msgspec.json.decode(place.read_bytes())["signer"]
    _rewrite(keys.sign(model, strange=True), signer=trusted)
    assert "its signature is not valid" in _refusal(model, keys.trust())


@pytest.mark.parametrize("name", ["../m.onnx", "/etc/passwd", "a/../../b", "./m.onnx", "a//b", "", "a\\b"])
def test_no_manifest_leads_out_of_its_folder(keys: Keys, tmp_path: Path, name: str) -> None:
    from dlproxy.instance.integrity.ciphers import private_key
    from dlproxy.instance.integrity.manifest import listed, signed_manifest

    signed = signed_manifest({name: listed(b"")}, private_key(keys.signer.read_bytes()))
    with pytest.raises(ModelError, match="which is not below its folder"):
        checked(signed.encoded(), keys.trust().signers, tmp_path / "manifest")


def test_what_is_no_file_cannot_be_signed(keys: Keys) -> None:
    assert "cannot be checked for a signature (a module of the Python path" in _refusal("my_module:MyModel", keys.trust())
    assert "ray:// names no file" in _refusal("ray://model", keys.trust())
    for path in ("sleep:base=1ms", "http://127.0.0.1:1", "grpc://127.0.0.1:1"):  # nothing is loaded of them
        assert read_files(path, keys.trust()) is None


@pytest.mark.parametrize("path", ["m.onnx", "sub", "m.py:Model"])
def test_without_a_wish_plain_models_are_not_read(keys: Keys, tmp_path: Path, path: str) -> None:
    save_with_weights_beside(tmp_path)
    save_with_weights_beside(tmp_path / "sub")
    (tmp_path / "m.py").write_text("class Model: ...")
    (tmp_path / f"m.onnx{OF_FILE}").write_text("not a manifest")
    assert read_files(str(tmp_path / path), Trust()) is None
    assert read_files(str(tmp_path / path), keys.trust(signed=False)) is None


@pytest.mark.parametrize("change", [lambda file: flipped(file, -1), lambda file: file.write_bytes(file.read_bytes()[:-20])])
@pytest.mark.parametrize("name", ["m.onnx", "weights.bin"])
def test_encrypted_weights_beside_a_model(keys: Keys, tmp_path: Path, name: str, change: Callable[[Path], object]) -> None:
    plain = save_with_weights_beside(tmp_path / "plain")
    model = keys.encrypt(plain, tmp_path / "sealed" / "m.onnx")
    files = _read(model, keys.trust(signed=False))
    assert files.data == {one: plain.with_name(one).read_bytes() for one in ("m.onnx", "weights.bin")}
    assert files.secret == {"m.onnx", "weights.bin"}
    assert "under another master key" in _refusal(model, keys.trust(signed=False, master=keys.other_master))
    assert "say in [integrity] master_key" in _refusal(model, Trust())
    assert "is not signed" in _refusal(model, keys.trust())
    change(model.with_name(name))
    assert f"{model.with_name(name)} has been changed, or cut short" in _refusal(model, keys.trust(signed=False))


def test_encrypted_files_of_one_model_cannot_be_exchanged(keys: Keys, tmp_path: Path) -> None:
    source = tmp_path / "plain"
    source.mkdir()
    for name in ("a.npz", "b.npz", "m.py"):
        (source / name).write_bytes(name.encode())
    folder = keys.encrypt(source, tmp_path / "sealed")
    shutil.copy(folder / "a.npz", folder / "b.npz")
    refusal = _refusal(f"{folder}/m.py:Model", keys.trust(signed=False))
    assert f"{folder}/b.npz was encrypted as 'a.npz': it has been renamed, or put in the place of another" in refusal


def test_a_model_that_names_weights_elsewhere_is_refused(keys: Keys, tmp_path: Path) -> None:
    model = save_with_weights_beside(tmp_path / "m")
    model.write_bytes(model.read_bytes().replace(b"weights.bin", b"../weights."))
    shutil.copy(model.with_name("weights.bin"), tmp_path / "weights.")
    with pytest.raises(ModelError, match="where what belongs to the model has to be"):
        keys.sign(model)
    keys.sign(model.parent)
    assert "keeps weights in '../weights.', which is not below its folder" in _refusal(model, keys.trust())
