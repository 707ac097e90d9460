"""A model archive of TorchServe: what its manifest says, and which files it has.

Called by torchserve.py. It is looked into, never unpacked. Not aware of: what becomes of it.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.lab.migrate.reading import MOST_BYTES, read, text_of, yaml_of

MANIFEST = "MAR-INF/MANIFEST.json"
_MOST_FILES = 10_000


class _Model(Struct, frozen=True, rename="camel"):
    model_name: str = ""
    serialized_file: str = ""
    handler: str = ""
    model_file: str = ""
    model_version: str = ""
    requirements_file: str = ""
    config_file: str = ""


class _Manifest(Struct, frozen=True):
    model: _Model


class Archive(Struct, frozen=True):
    """`files`: all that are in it. `settings`: what its configuration file says."""

    place: Path
    model: _Model
    files: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.model.model_name or self.place.stem


def is_archive(place: Path) -> bool:
    """Whether it is one, as far as its name tells, or the folder of one."""
    return (place.suffix == ".mar" and place.is_file()) or (place / MANIFEST).is_file()


def open_archive(place: Path) -> Archive:
    """Raises ConfigError for what is none."""
    if place.is_dir():
        files = tuple(sorted(one.name for one in place.iterdir()))
        model = _model(read(place / MANIFEST), f"{place / MANIFEST}")
        text = read(place / model.config_file) if model.config_file in files else ""
    else:
        try:
            with ZipFile(place) as opened:
                files = tuple(opened.namelist())
                if len(files) > _MOST_FILES:
                    raise ConfigError(f"{place}: it has {len(files)} files, more than {_MOST_FILES}")
                model = _model(_part(opened, MANIFEST, place), f"{place}: {MANIFEST}")
                text = _part(opened, model.config_file, place) if model.config_file in files else ""
        except OSError as error:
            raise ConfigError(f"{place} cannot be read: {error.strerror or error}") from None
        except (BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{place} is no model archive: {error}") from None
    settings = yaml_of(text, f"{place}: {model.config_file}") if text else {}
    return Archive(place, model, files, settings)


def _part(archive: ZipFile, name: str, place: Path) -> str:
    try:
        with archive.open(name) as opened:
            return text_of(opened.read(MOST_BYTES + 1), f"{place}: {name}")
    except KeyError:
        raise ConfigError(f"{place} is no model archive: it has no {name}") from None


def _model(text: str, where: str) -> _Model:
    try:
        model = msgspec.json.decode(text, type=_Manifest).model
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{where}: {str(error)[:200]}") from None
    for name in (model.serialized_file, model.model_file, model.handler, model.config_file, model.requirements_file):
        if name.startswith(("/", "-")) or ".." in PurePosixPath(name).parts:
            raise ConfigError(f"{where}: {name!r} is no file of the archive")
    return model
