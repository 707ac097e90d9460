"""A signed list of a model's files: their SHA-256 digests under one Ed25519 signature, in JSON beside them.

Written by `dlproxy models sign`, checked by files.py. Not aware of: how files are read, encryption.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.instance.integrity.ciphers import is_signed
from dlproxy.instance.runtime import ModelError

FORMAT = "dlproxy manifest 1"
OF_FOLDER = "dlproxy.manifest.json"  # in the folder whose files it lists
OF_FILE = ".manifest.json"  # behind the name of the file that is the model
MOST_BYTES = 1 << 24


class Listed(Struct, frozen=True, forbid_unknown_fields=True):
    """One file: its size in bytes and SHA-256, in hex."""

    bytes: int
    sha256: str


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`files`: by their names relative to the manifest. `model`, `version`: what it may be served as; empty: anything.

    `signer`: the id of the key. The signature is of all else.
    """

    format: str = FORMAT
    model: str = ""
    version: str = ""
    files: dict[str, Listed]
    signer: str = ""
    signature: bytes = b""

    def encoded(self) -> bytes:
        """The one way in which it is written: a manifest that is written otherwise is refused, so every byte is signed."""
        ordered = msgspec.structs.replace(self, files=dict(sorted(self.files.items())))
        return msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n"

    @property
    def signed(self) -> bytes:
        """What the signature is of."""
        return FORMAT.encode() + b"\0" + msgspec.structs.replace(self, signature=b"").encoded()


def key_id(public: bytes) -> str:
    """Short, for people: which key it was."""
    return hashlib.sha256(public).hexdigest()[:16]


def listed(data: bytes | bytearray) -> Listed:
    return Listed(len(data), hashlib.sha256(data).hexdigest())


def signed_manifest(files: Mapping[str, Listed], private: Any, *, model: str = "", version: str = "") -> Manifest:
    unsigned = Manifest(model=model, version=version, files=dict(files), signer=key_id(private.public_key().public_bytes_raw()))
    return msgspec.structs.replace(unsigned, signature=private.sign(unsigned.signed))


def place_of(path: Path) -> Path | None:
    """The manifest of the model in this file or folder: its own, or that of its folder or the one above; None if none is there.

    Above, since the file may stand in a folder that only holds one model, as in Triton's `1/model.onnx/model.onnx`.
    """
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    own = [] if path.is_dir() else [path.with_name(path.name + OF_FILE)]
    places = [*own, folder / OF_FOLDER, folder.parent / OF_FOLDER]
    return next((place for place in places if place.is_file()), None)


def checked(data: bytes, signers: Sequence[bytes], shown: Path) -> Manifest:
    """The manifest, if one of these has signed it. Raises ModelError."""
    try:
        found = msgspec.json.decode(data, type=Manifest)
        written = found.encoded()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ModelError(f"{shown} is not a manifest: {error}") from None
    if found.format != FORMAT:
        raise ModelError(f"{shown} has the format {found.format!r}; this dlproxy reads {FORMAT!r}")
    if written != data:
        raise ModelError(f"{shown} has been changed since it was signed: it is not written as `dlproxy models sign` writes it")
    if not any(is_signed(public, found.signature, found.signed) for public in signers):
        if found.signer not in map(key_id, signers):
            known = ", ".join(map(key_id, signers))
            raise ModelError(f"{shown} was signed with the key {found.signer or '?'}, which is not trusted; trusted is {known}")
        raise ModelError(f"{shown} has been changed since it was signed: its signature is not valid")
    for name in found.files:
        if not is_below(name):
            raise ModelError(f"{shown} lists {name!r}, which is not below its folder")
    return found


def names_in(file: Path) -> list[str]:
    """What a manifest lists, whoever may have written it; nothing if it is none. Raises OSError."""
    if file.stat().st_size > MOST_BYTES:
        return []
    try:
        return [name for name in msgspec.json.decode(file.read_bytes(), type=Manifest).files if is_below(name)]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []


def is_below(name: str) -> bool:
    """Whether it is the name of a file below the folder that it is relative to, in the plainest way to write it."""
    pure = PurePosixPath(name)
    return bool(name) and not pure.is_absolute() and ".." not in pure.parts and str(pure) == name and "\\" not in name
