"""Zip archives that models come in: what of them is refused before a framework unpacks it.

Called by formats.py, and of .keras files by tensorflow.py. Imports no framework.
"""

import json
import stat
import zipfile
from pathlib import Path
from typing import Any

from dlproxy.instance.runtime import ModelError

MOST_RATIO = 200  # of what is inside to the archive's size; weights of zeros are compressed well, too
SMALL_BYTES = 1 << 30  # less than this may be inside whatever the ratio

_KERAS = "keras"  # the package that what a Keras model is made of comes from
_CODE = ("Lambda", "__lambda__", "function")
_LOADERS = ("TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer")  # of what others have pickled or saved elsewhere


def refuse_unsafe(archive: zipfile.ZipFile, size_bytes: int) -> None:
    """Refuse names that lead elsewhere or are there twice, links, and what would unpack to far more than it is."""
    names: set[str] = set()
    for member in archive.infolist():
        name = member.filename
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name.partition("/")[0]:
            raise ModelError(f"its archive holds {name!r}, which leads out of it")
        if name in names:
            raise ModelError("its archive holds two members of one name")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ModelError(f"its archive holds a link, {name!r}")
        names.add(name)
    inside = sum(member.file_size for member in archive.infolist())
    if inside > max(SMALL_BYTES, MOST_RATIO * size_bytes):
        raise ModelError(f"its archive of {size_bytes} bytes would unpack to {inside}")


def refuse_code(path: Path) -> None:
    """Of a .keras file: refuse lambdas and whatever is not Keras' own, before Keras imports it. Raises ModelError."""
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_unsafe(archive, path.stat().st_size)
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RecursionError):  # Keras says so, and better
        return
    for part in _parts(config):
        name, module = part.get("class_name"), part.get("module")
        if name in _CODE or name in _LOADERS:
            raise ModelError(f"it holds a {name}, which is code, or loads some: {_instead()}")
        if isinstance(module, str) and module.partition(".")[0] != _KERAS:
            raise ModelError(f"it is made of {module}.{name}, which is not Keras' own and would be imported: {_instead()}")


def _instead() -> str:
    return (
        'model.export() a SavedModel, which holds no Python, or if you trust whoever wrote it, set [integrity] pickle = "allow"'
    )


def _parts(config: Any) -> "list[dict[str, Any]]":
    """Every table in it, however deep."""
    found, rest = [], [config]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            found.append(one)
            rest += one.values()
        elif isinstance(one, list):
            rest += one
    return found
