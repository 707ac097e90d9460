"""Repositories of files that are no real models: nothing here loads one."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time_ns

from dlproxy.fleet.repository.model_folder import FoundModel
from dlproxy.fleet.repository.scan import listed, scan
from dlproxy.fleet.repository.tree import LocalTree
from dlproxy.policy.wanted import Wanted

ONNX = b"an ONNX model"
CLASS = b"class Net:\n    def predict(self, batch): return batch\n"


def put(root: Path, *files: str, content: bytes = ONNX) -> None:
    """Write these files, with their folders."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def remove(path: Path) -> None:
    """A file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def found_in(root: Path) -> dict[str, FoundModel]:
    return scan(listed(LocalTree(root)))


def paths(root: Path, found: FoundModel) -> dict[str, str]:
    """The versions of a model that can be served, with their paths as seen from the root."""
    return {
        number: os.path.relpath(version.config.path, root)
        for number, version in found.wanted.versions.items()
        if not version.problem
    }


def problems(found: FoundModel) -> dict[str, str]:
    return {number: version.problem for number, version in found.wanted.versions.items() if version.problem}


def much_later() -> int:
    """When no file is young any more."""
    return time_ns() + 3600 * 10**9


class Store:
    """What is wanted, with how often it was changed."""

    def __init__(self, wanted: Wanted | None = None) -> None:
        self.wanted = wanted or Wanted()
        self.changes = 0

    async def change(self, edit: Callable[[Wanted], Wanted]) -> Wanted:
        edit(self.wanted)  # an edit may be tried more than once
        self.wanted = edit(self.wanted)
        self.changes += 1
        return self.wanted

    @property
    def served(self) -> Mapping[str, list[str]]:
        return {name: list(model.versions) for name, model in self.wanted.models.items()}
