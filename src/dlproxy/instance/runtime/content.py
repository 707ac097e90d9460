"""What a model was loaded from, so that another worker of the same model does not load something else under its name.

Called by process/worker.py around loading. Not aware of: how a model is read, processes.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path

from msgspec import Struct

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.protobuf_fields import Span, fields

MOST_FILES = 500  # they are told to every worker in one message; those that are sorted behind are not looked at


class FileState(Struct, frozen=True, array_like=True):
    """A file when it was loaded. As long as `stamp` (size, inode, times of change) is the same, so is `digest` (SHA-256)."""

    stamp: tuple[int, int, int, int]
    digest: bytes


class Content(Struct):
    """`files`: by their paths what `path` was loaded from; empty before it is loaded for the first time."""

    path: str
    files: dict[str, FileState] = {}


Stamps = dict[str, tuple[int, int, int, int]]


def stamps_before(content: Content) -> Stamps:
    """Of the files that are about to be loaded. Raises ModelError if they are not those that were loaded first."""
    if not content.files:
        return {file: stamp_of(file) for file in model_files(content.path)}
    stamps = {}
    for file, known in content.files.items():
        try:
            stamps[file] = stamp_of(file)
            same = stamps[file] == known.stamp or digest_of(file) == known.digest
        except OSError as error:
            raise ModelError(f"{file}, which this model was loaded from, cannot be read any more: {error.strerror}") from None
        if not same:
            raise ModelError(
                f"{file} has changed since this model was loaded, and would be another one under the same version: put the old "
                "file back, or restart the server to serve the new one"
            )
    return stamps


def files_after(content: Content, before: Stamps, own: Sequence[str] = ()) -> dict[str, FileState]:
    """What has been loaded. `own`: files that the runtime names itself. Raises ModelError if they changed meanwhile."""
    files = list(content.files) or list(own)[:MOST_FILES] or list(before)
    try:
        stamps = {file: stamp_of(file) for file in files}
        found = {file: known.digest for file, known in content.files.items()} or {file: digest_of(file) for file in files}
        changed = [file for file in files if stamps[file] != before.get(file, stamps[file]) or stamps[file] != stamp_of(file)]
    except OSError as error:
        raise ModelError(f"{content.path} was removed while it was loaded: {error}") from None
    if changed:
        raise ModelError(f"{changed[0]} was changed while it was loaded; start again")
    return {file: FileState(stamps[file], found[file]) for file in files}


def model_files(path: str) -> list[str]:
    """The files that a model's path stands for: one, those in its folder, or with those that hold an ONNX model's weights."""
    model = Path(path)
    if model.is_dir():
        return [str(file) for file in sorted(model.rglob("*")) if file.is_file()][:MOST_FILES]
    if not model.is_file():  # a Python class, whose runtime says where it comes from, or nothing that is read
        return []
    beside = external_data(model) if model.suffix.lower() == ".onnx" else set()
    return [path, *(str(file) for name in sorted(beside) if (file := model.parent / name).is_file())][:MOST_FILES]


def stamp_of(file: str) -> tuple[int, int, int, int]:
    status = os.stat(file)
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def digest_of(file: str) -> bytes:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


# ONNX files name others that hold their weights

_FIELDS: Mapping[str, Mapping[int, str]] = {  # of onnx.proto: by message, the fields on the way to a tensor's external_data
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}


def external_data(model: Path) -> set[str]:
    """The names of those files, as the model has them: relative to its folder. Weights inside are stepped over, not read."""
    if not model.stat().st_size:
        return set()
    with model.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        return external_data_in(data)


def external_data_in(model: mmap | bytes) -> set[str]:
    """The same of a model in memory."""
    try:
        return {location.decode() for location in _locations(model, (0, len(model)), "model")}
    except (ValueError, IndexError):  # no protobuf: loading it says so, and better
        return set()


def _locations(data: mmap | bytes, span: Span, message: str) -> Iterator[bytes]:
    known, entry = _FIELDS[message], {}
    for number, value in fields(data, span):
        inner = known.get(number)
        if inner is None or isinstance(value, int):
            continue
        if message == "entry":
            entry[inner] = data[slice(*value)]
        else:
            yield from _locations(data, value, inner)
    if entry.get("key") == b"location":
        yield entry.get("value", b"")
