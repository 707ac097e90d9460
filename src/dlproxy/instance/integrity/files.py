"""A model's files read once, checked against its manifest and decrypted: what was checked is what is loaded, from memory.

Called by runtime/formats.py before a model is opened. Not aware of: frameworks.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import normpath

from dlproxy.config import SLEEP, is_address, python_place
from dlproxy.config.paths import is_file, scheme_of
from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.encryption import decrypt, is_encrypted, starts_encrypted
from dlproxy.instance.integrity.manifest import MOST_BYTES, OF_FILE, OF_FOLDER, Manifest, checked, is_below, listed, place_of
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import MOST_FILES, external_data_in, model_files

CODE = ".py"


class ModelFiles:
    """`data`: contents by name, relative to `folder`. `main`: the model's own file; empty if the folder is the model.

    `secret`: names of those that lie there encrypted.
    """

    def __init__(
        self, folder: Path, main: str, data: Mapping[str, bytes | bytearray], secret: frozenset[str] = frozenset()
    ) -> None:
        self.folder = folder
        self.main = main
        self.data = data
        self.secret = secret

    @property
    def model(self) -> bytes:
        """The model's own file."""
        return bytes(self.data[self.main])

    @property
    def paths(self) -> list[str]:
        """Where they lie."""
        return [str(self.folder / name) for name in self.data]


def place_in(path: str) -> Path | None:
    """The file or folder that a model's path means; None for what lies in no file."""
    place = python_place(path)
    return Path(path if place is None else place) if is_file(path) else None


def read_files(path: str, trust: Trust) -> ModelFiles | None:
    """The files of this model, if it must be signed or is encrypted; None for one that may be loaded as it lies there.

    Raises ModelError for whatever is not as it was signed or encrypted.
    """
    place = place_in(path)
    if place is None:
        if trust.signers and not path.startswith(SLEEP) and not is_address(path):
            what = f"{scheme_of(path)}:// names no file" if scheme_of(path) else "a module of the Python path, not a file"
            raise ModelError(f"{path} cannot be checked for a signature ({what}): give the path of a signed file.py:MyModel")
        return None
    if not place.exists():  # opening it says so, and better
        return None
    try:
        if trust.signers:
            return _Reading(place, trust).signed()
        return _Reading(place, trust).decrypted() if _any_encrypted(place) else None
    except OSError as error:
        raise ModelError(f"{error.filename or place} cannot be read: {error.strerror}") from None


def _any_encrypted(place: Path) -> bool:
    """Of a Python class its own file tells: whatever stands beside it may be somebody else's."""
    return any(starts_encrypted(file) for file in model_files(str(place)))


def is_secret(path: str) -> bool:
    """Whether this model is encrypted, so that nothing of it may be kept. What cannot be read is none."""
    place = place_in(path)
    try:
        return place is not None and place.exists() and _any_encrypted(place)
    except OSError:
        return False


def verified(place: Path, signers: Sequence[bytes]) -> Manifest:
    """The manifest of this file or folder, if all that it lists is as it says, encrypted or not. Raises ModelError, OSError."""
    reading = _Reading(place, Trust(signers=tuple(signers)))
    manifest = reading.manifest()
    for name in manifest.files:
        reading.as_listed(name)
    return manifest


class _Reading:
    """Of one model's files. All methods raise ModelError and OSError."""

    def __init__(self, place: Path, trust: Trust) -> None:
        self._place = place
        self._trust = trust
        self._folder, self._main = (place, "") if place.is_dir() else (place.parent, place.name)
        self._manifest: Manifest | None = None
        self._shown = ""  # the manifest, for messages
        self._above, self._prefix = self._folder, ""  # where the manifest is, and what it has before this folder's names
        self._secret: set[str] = set()

    def signed(self) -> ModelFiles:
        names, prefix = self.manifest().files, self._prefix
        return self._files([name.removeprefix(prefix) for name in names if name.startswith(prefix)])

    def manifest(self) -> Manifest:
        """By a trusted signer, of files that are there."""
        found = place_of(self._place)
        if found is None:
            beside = OF_FOLDER if not self._main else f"{self._main}{OF_FILE}"
            raise ModelError(
                f"{self._place} is not signed, which [integrity] trusted asks for: there is no {self._folder / beside}; "
                f"see `dlproxy models sign`"
            )
        if found.stat().st_size > MOST_BYTES:
            raise ModelError(f"{found} is too large for a manifest")
        manifest = checked(found.read_bytes(), self._trust.signers, found)
        self._manifest, self._shown, self._above = manifest, str(found), found.parent
        if found.parent != self._folder.absolute() and found.name == OF_FOLDER:
            self._prefix = f"{self._folder.absolute().name}/"
        for what, meant, wanted in (
            ("model", manifest.model, self._trust.model),
            ("version", manifest.version, self._trust.version),
        ):
            if meant and wanted and meant != wanted:
                raise ModelError(f"{found} is the manifest of {what} {meant!r}, and must not be served as {wanted!r}")
        if self._main and self._prefix + self._main not in manifest.files:
            raise ModelError(f"{found} does not list {self._main}: sign it anew")
        if found.name == OF_FOLDER:
            self._same_names(set(manifest.files))
        return manifest

    def decrypted(self) -> ModelFiles:
        if not self._main or self._main.endswith(CODE):
            return self._files(names_below(self._folder))
        return self._files([self._main])

    def _same_names(self, names: set[str]) -> None:
        there = set(names_below(self._above))
        for name in sorted(there - names):
            raise ModelError(f"{self._above / name} is not in {self._shown}: it was added since that was signed")
        for name in sorted(names - there):
            raise ModelError(f"{self._above / name} is missing, which {self._shown} lists")

    def _files(self, names: Sequence[str]) -> ModelFiles:
        """Of a model in one file that is no code, only that and what it names: others in its folder are not its own."""
        if not self._main or self._main.endswith(CODE):
            data: dict[str, bytes | bytearray] = {name: self._read(name) for name in sorted(names)}
        else:
            model = bytes(self._read(self._main))
            data = {self._main: model}
            if self._place.suffix.lower() == ".onnx":
                data.update({name: self._external(name) for name in sorted(external_data_in(model))})
        return ModelFiles(self._folder, self._main, data, frozenset(self._secret))

    def _external(self, name: str) -> bytearray:
        """By the name that the model has for it."""
        plain = normpath(name)
        if not is_below(plain):
            raise ModelError(f"{self._place} keeps weights in {name!r}, which is not below its folder")
        return self._read(plain)

    def _read(self, name: str) -> bytearray:
        data = self.as_listed(self._prefix + name)
        if is_encrypted(data):
            self._secret.add(name)
            decrypt(data, self._folder / name, self._trust.master_key)
        return data

    def as_listed(self, name: str) -> bytearray:
        """As it lies there, and as the manifest lists it, if there is one."""
        file = self._above / name
        if self._manifest is not None and name not in self._manifest.files:
            raise ModelError(
                f"{file} belongs to the model, but {self._shown} does not list it: sign its folder, or it --with the others"
            )
        if not file.is_file():  # a pipe would be waited for
            why = f"which {self._shown} lists" if self._manifest is not None else f"which {self._place} needs"
            raise ModelError(f"{file} is missing, {why}")
        data = _whole(file)
        if self._manifest is not None and listed(data) != self._manifest.files[name]:
            raise ModelError(f"{file} has been changed, or exchanged for another, since {self._shown} was signed")
        return data


def _whole(file: Path) -> bytearray:
    """To be changed where it stands."""
    with file.open("rb") as stream:
        data = bytearray(os.fstat(stream.fileno()).st_size)
        del data[stream.readinto(data) :]
        data += stream.read()  # what was written to it meanwhile
    return data


def names_below(folder: Path) -> list[str]:
    """Files that can belong to a model, relative to its folder: without what is hidden, caches and manifests.

    Raises OSError, and ModelError for more than a model has.
    """
    names = []
    for name in _below(folder, ""):
        names.append(name)
        if len(names) > MOST_FILES:
            raise ModelError(f"{folder} holds more than {MOST_FILES} files: give the model a folder of its own")
    return sorted(names)


def _below(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in ("__pycache__", "lost+found"):
                continue
            if entry.is_dir():
                if entry.is_symlink():
                    raise ModelError(f"{entry.path} is a link to a folder, of which nobody can say what belongs to the model")
                yield from _below(Path(entry.path), f"{prefix}{entry.name}/")
            elif not entry.name.endswith(OF_FILE):  # nor OF_FOLDER
                yield f"{prefix}{entry.name}"
