"""Makes keys, signs models and encrypts them: what `dlproxy models keygen`, `sign` and `encrypt` do.

Not aware of: command-line arguments, how models are loaded.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlproxy.instance.integrity import encryption
from dlproxy.instance.integrity.ciphers import key_pair
from dlproxy.instance.integrity.files import names_below, place_in
from dlproxy.instance.integrity.manifest import OF_FILE, OF_FOLDER, Listed, Manifest, is_below, signed_manifest
from dlproxy.instance.integrity.settings import new_master_key
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import digest_of, external_data

SETTINGS = ("config.pbtxt", "dlproxy.toml")  # which a repository is read by before any model is: they stay as they are
PRIVATE, PUBLIC = 0o600, 0o644


def make_key_pair(name: Path) -> tuple[Path, Path]:
    """Files of a new private and a new public key. Raises OSError, also if one is there."""
    private, public = name.with_name(f"{name.name}.key"), name.with_name(f"{name.name}.pub")
    pems = key_pair()
    _write_new(private, pems[0], PRIVATE)
    try:
        _write_new(public, pems[1], PUBLIC)
    except OSError:
        private.unlink()
        raise
    return private, public


def make_master_key(file: Path) -> None:
    """Raises OSError, also if it is there."""
    _write_new(file, new_master_key().encode() + b"\n", PRIVATE)


def sign(path: str, private: Any, *, beside: Sequence[Path] = (), model: str = "", version: str = "") -> tuple[Path, Manifest]:
    """Write the manifest of the model at this path. `beside`: files that belong to it, too. Raises ModelError, OSError."""
    place = existing(path)
    folder = place if place.is_dir() else place.parent
    names = names_below(place) if place.is_dir() else _names_of(place, folder)
    for file in beside:
        names.append(_below(file, folder))
    files = {name: Listed((folder / name).stat().st_size, digest_of(str(folder / name)).hex()) for name in names}
    if not files:
        raise ModelError(f"{place} holds no files to sign")
    manifest = signed_manifest(files, private, model=model, version=version)
    target = place / OF_FOLDER if place.is_dir() else place.with_name(place.name + OF_FILE)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".manifest-", delete=False) as written:
        written.write(manifest.encoded())
    os.chmod(written.name, PUBLIC)
    os.replace(written.name, target)
    return target, manifest


def encrypt(path: str, target: Path, master_key: bytes) -> list[str]:
    """Write the model encrypted, as another file or folder, and return its files' names. Raises ModelError, OSError."""
    place = existing(path)
    if target.exists():
        raise ModelError(f"{target} is there already: give the name of a new file or folder")
    whole = place.is_dir()
    source, into = (place, target) if whole else (place.parent, target.parent)
    names = {name: name for name in (names_below(place) if whole else _names_of(place, source))}
    if not whole:
        names[place.name] = target.name
    for name in names:
        if encryption.starts_encrypted(source / name):
            raise ModelError(f"{source / name} is encrypted already")
    written: list[Path] = []
    try:
        for name, new in names.items():
            file = into / new
            if file.exists():
                raise ModelError(f"{file} is there already: encrypt into another folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            written.append(file)
            if whole and name in SETTINGS:
                shutil.copyfile(source / name, file)
            else:
                encryption.encrypt(source / name, file, new, master_key)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    return list(names.values())


def existing(path: str) -> Path:
    """The file or folder that a model's path means. Raises ModelError."""
    place = place_in(path)
    if place is None or not place.exists():
        raise ModelError(f"{path} is not the path of a model's file or folder")
    return place


def _names_of(file: Path, folder: Path) -> list[str]:
    """A model in one file, with the files that it says its weights are in."""
    weights = external_data(file) if file.suffix.lower() == ".onnx" else set()
    return [file.name, *(_below(folder / name, folder) for name in sorted(weights))]


def _below(file: Path, folder: Path) -> str:
    name = os.path.relpath(file, folder).replace(os.sep, "/")
    if not is_below(name) or not file.is_file():
        raise ModelError(f"{file} is not a file in {folder}, where what belongs to the model has to be")
    return name


def _write_new(file: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
        stream.write(data)
