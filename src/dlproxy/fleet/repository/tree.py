"""A repository as folders and files: those on this disk, and what of them tells one content from another.

Used by model_folder.py; remote.py has the same for object stores. Not aware of: what is a model, versions.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Protocol

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.instance.integrity.manifest import OF_FILE, names_in
from dlproxy.instance.runtime.content import external_data

MOST_FILES = 10_000  # of one version; somebody's whole disk is no model
MARK = "repository-"  # before every stamp that is made here


class Tree(Protocol):
    """Blocks: not for the event loop. Paths are relative, with slashes, empty for the top; all methods raise OSError."""

    place: str
    """As users name it."""

    def refresh(self) -> None:
        """What is asked from now on is as it is now, if somebody else keeps it."""
        ...

    def entries(self, folder: str) -> dict[str, bool]:
        """What lies there, by name, and whether it is a folder; without what is hidden."""
        ...

    def fetch(self, path: str) -> Path:
        """This file or folder, whole, on this disk."""
        ...


class Content(Struct, frozen=True):
    """`stamp`: of names, sizes and times of change, alike wherever the same files are. `newest_ns`: when one last changed."""

    stamp: str
    newest_ns: int


class LocalTree:
    """A folder on this disk, or mounted there."""

    def __init__(self, folder: Path) -> None:
        self.place = str(folder)
        self._folder = folder.absolute()  # links are followed each time anew: somebody may point them elsewhere

    def refresh(self) -> None:
        pass

    def entries(self, folder: str) -> dict[str, bool]:
        with os.scandir(self._folder / folder) as found:
            return {one.name: _is_folder(one) for one in sorted(found, key=lambda one: one.name) if is_visible(one.name)}

    def fetch(self, path: str) -> Path:
        return self._folder / path


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """A link that leads nowhere is none; whoever opens it says so."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_visible(name: str) -> bool:
    """Whether a file's or folder's name is one that somebody gave it to be seen, and not what a program leaves beside it."""
    return not name.startswith(".") and name not in ("__pycache__", "lost+found")


def fetch_file(tree: Tree, path: str) -> Path:
    """A model in one file, with those that hold its weights, or that its manifest lists. Raises OSError."""
    file, folder = tree.fetch(path), PurePosixPath(path).parent
    for name in weights_beside(file):
        tree.fetch(str(folder / name))
    with suppress(OSError):  # most have no manifest
        for name in names_in(tree.fetch(f"{path}{OF_FILE}"))[:MOST_FILES]:
            with suppress(FileNotFoundError):  # which is said where it is checked
                tree.fetch(str(folder / name))
    return file


def weights_beside(file: Path) -> list[str]:
    """The names of the files that hold an ONNX model's weights, without those that ONNX Runtime would refuse, too."""
    if file.suffix.lower() != ".onnx":
        return []
    status = file.stat()
    names = map(PurePosixPath, _external_data(file, status.st_size, status.st_mtime_ns))
    return sorted(str(name) for name in names if not (name.is_absolute() or ".." in name.parts))


@lru_cache(maxsize=4096)
def _external_data(file: Path, size: int, changed_ns: int) -> set[str]:
    """Read once for each content: the file is mapped, and whoever cuts it short meanwhile ends this process."""
    return external_data(file)


def content_of(path: Path, without: tuple[str, ...] = ()) -> Content:
    """Of a file with those that hold its weights, or of all that a folder holds but for the names `without` at its top.

    Raises OSError, and ConfigError for what is no model's content.
    """
    digest, newest_ns = blake2b(digest_size=12), 0
    for number, (name, file) in enumerate(_files(path, without)):
        if number == MOST_FILES:
            raise ConfigError(f"{path} holds more than {MOST_FILES} files")
        status = file.stat()
        if not os.access(file, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(None, "may not be read", str(file))
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        newest_ns = max(
            newest_ns, status.st_mtime_ns, status.st_ctime_ns
        )  # who copies a file may set the first, not the second
    return Content(MARK + digest.hexdigest(), newest_ns)


def _files(path: Path, without: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    if path.is_dir():
        yield from _below(path, "", without, ())
        return
    yield path.name, path
    yield from ((name, path.parent / name) for name in weights_beside(path))
    if (manifest := path.with_name(f"{path.name}{OF_FILE}")).is_file():
        yield manifest.name, manifest


def _below(
    folder: Path, prefix: str, without: tuple[str, ...], above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, Path]]:
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        raise ConfigError(f"{folder} is a link to a folder that it lies in itself")
    for name in sorted(os.listdir(folder)):
        if not is_visible(name) or name in without:
            continue
        path = folder / name
        if path.is_dir():
            yield from _below(path, f"{prefix}{name}/", (), (*above, here))
        else:
            yield f"{prefix}{name}", path
