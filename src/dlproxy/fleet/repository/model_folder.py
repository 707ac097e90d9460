"""What one model of a repository is: its versions, their files and their knobs, by whichever layout it has.

Called by scan.py. A mistake is that model's alone, or that version's. Not aware of: other models, what is served.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig, python_place
from dlproxy.config.paths import is_file
from dlproxy.config.pipelines import PIPELINE
from dlproxy.config.reading import ModelFile, found_from
from dlproxy.config.table import knobs
from dlproxy.fleet.repository.model_file import is_model, model_in, model_path
from dlproxy.fleet.repository.tree import MARK, Tree, content_of, fetch_file
from dlproxy.fleet.repository.triton_config import (
    TritonConfig,
    label_file,
    read_triton_config,
    read_triton_json,
    translated,
    warmups,
)
from dlproxy.fleet.repository.version_policy import VersionPolicy
from dlproxy.instance.samples import warmup_samples
from dlproxy.policy.wanted import MOST_VERSION, WantedModel, WantedVersion

SETTINGS = TRITON, OWN = "config.pbtxt", "dlproxy.toml"
WARMUP = "warmup"  # the folder of inputs that config.pbtxt names
POLICY = "serve_versions"  # beside the knobs in dlproxy.toml

FILES = {"class_names", "path", "samples", "steps"}  # knobs that name some, or code: who loads a model by name has no say in

Knobs = Mapping[str, Any]


class FoundModel(Struct, frozen=True):
    """`problem`: why it has no versions, or not the one that it is; what it then wants is one that says so.

    `newest_ns`: when what it was read from last changed. `warnings`: of what was left out.
    """

    wanted: WantedModel
    newest_ns: int = 0
    warnings: tuple[str, ...] = ()
    problem: str = ""


def read_model(
    tree: Tree,
    entry: str,
    is_folder: bool,
    suffixes: Collection[str],
    *,
    policy: VersionPolicy | None = None,
    override: Knobs | None = None,
) -> FoundModel:
    """The model in this file or folder of a repository. Raises nothing.

    `policy`: unless the folder says otherwise. `override`: knobs over those of dlproxy.toml, or Triton's configuration, as JSON
    has it, in place of config.pbtxt.
    """
    try:
        return _Model(tree, entry, is_folder, suffixes, override or {}).read(policy or VersionPolicy())
    except (ConfigError, OSError) as error:
        return broken(f"{tree.place}/{entry}".rstrip("/"), said(error))


def broken(place: str, problem: str) -> FoundModel:
    """A model that is there, and of which nothing more is known."""
    config = ModelConfig(path=printable(place))
    version = WantedVersion(config=config, stamp=MARK, problem=printable(problem))
    return FoundModel(WantedModel(versions={config.version: version}), problem=version.problem)


def printable(name: str) -> str:
    """A file's name as text that a log and JSON can take, whatever bytes it has."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def said(error: Exception) -> str:
    """An error in words."""
    if not isinstance(error, OSError):
        return str(error)
    file = str(error.filename or "")
    if isinstance(error, FileNotFoundError) and file:
        return f"{file} is a link to what is not there" if Path(file).is_symlink() else f"{file} is not there"
    return f"{file}: {error.strerror or error}".removeprefix(": ")


def versions_in(entries: Mapping[str, bool], suffixes: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Of what lies in a model's folder, each version with its file or folder, and warnings of what is none."""
    versions: dict[str, str] = {}
    others: list[str] = []
    warnings: list[str] = []
    for name, is_folder in entries.items():
        number = name if is_folder else Path(name).stem if is_model(name, suffixes) else ""
        if not (number.isascii() and number.isdecimal() and int(number) <= MOST_VERSION):
            others += [name] * (is_folder and not (name == WARMUP and TRITON in entries))
        elif (version := str(int(number))) in versions:
            warnings.append(f"{name} is left out: {versions[version]} is version {version}, too")
        else:
            versions[version] = name
    if versions:
        warnings += [f"the folder {printable(name)} is left out: it is no version, which is a whole number" for name in others]
    return versions, warnings


@lru_cache(maxsize=4096)
def _triton_config(file: Path, size: int, changed_ns: int) -> TritonConfig:
    """Parsed once for each content: it takes longer than all else of a look at a model. Raises ConfigError, OSError."""
    return read_triton_config(file.read_text("utf-8", "replace"), str(file))


class _Model:
    """One model while it is read. All methods raise ConfigError and OSError."""

    def __init__(self, tree: Tree, entry: str, is_folder: bool, suffixes: Collection[str], override: Knobs) -> None:
        self._tree = tree
        self._entry = entry
        self._suffixes = suffixes
        self._newest_ns = 0
        entries = tree.entries(entry) if is_folder else {}
        self._is_folder = {"": is_folder, **entries}
        self._versions, self._warnings = versions_in(entries, suffixes)
        self._own = ModelFile(Path(tree.place, entry), {})
        self._triton: TritonConfig | None = None
        if OWN in entries:
            self._own = ModelFile(self._settings(OWN))
        for knob in FILES & override.keys():
            raise ConfigError(f"{knob} cannot be given: the files are those of the repository")
        if not override.keys() <= {*knobs(ModelConfig), POLICY}:
            self._triton = read_triton_json(override, "the configuration given")
        else:
            self._own.table.update(override)
            if TRITON in entries:
                file = self._settings(TRITON)
                status = file.stat()
                self._triton = _triton_config(file, status.st_size, status.st_mtime_ns)

    def read(self, policy: VersionPolicy) -> FoundModel:
        """All of it. `policy`: unless the model's own files say otherwise."""
        own_policy = self._own_policy()
        if not self._versions:
            version = self._own.table.get("version", "1")
            if not (isinstance(version, str) and version.isascii() and version.isdecimal()):
                raise self._own.error(["version"], f"version = {version!r} is not a whole number in quotes")
            only = self._version(version, "", flat=True)
            return self._found({version: only}, only.problem)
        if "version" in self._own.table:
            raise self._own.error(["version"], "the names of the folders are the versions: leave version out")
        triton_policy = self._triton.version_policy.policy() if self._triton is not None else None
        policy = own_policy or triton_policy or policy
        chosen = policy.chosen(self._versions)
        if not chosen:
            known = ", ".join(sorted(self._versions, key=int))
            raise ConfigError(f"version {', '.join(policy.specific)} is to be served, which is not there; there are: {known}")
        return self._found({number: self._version(number, self._versions[number]) for number in chosen})

    def _found(self, versions: dict[str, WantedVersion], problem: str = "") -> FoundModel:
        return FoundModel(WantedModel(versions=versions), self._newest_ns, tuple(dict.fromkeys(self._warnings)), problem)

    def _version(self, number: str, name: str, *, flat: bool = False) -> WantedVersion:
        """`name`: of its file or folder. `flat`: it is the model's own."""
        path, stamp = self._at(name), MARK
        try:
            local = self._tree.fetch(path) if self._is_folder[name] else fetch_file(self._tree, path)
            content = content_of(local, SETTINGS if flat else ())
            stamp, self._newest_ns = content.stamp, max(self._newest_ns, content.newest_ns)
            config = self._config(number, local, flat)
            if printable(config.path) != config.path:
                raise ConfigError(f"{config.path} is a name in another encoding than UTF-8")
            return WantedVersion(config=config, stamp=stamp)
        except (ConfigError, OSError) as error:
            config = ModelConfig(path=printable(f"{self._tree.place}/{path}"), version=number)
            return WantedVersion(config=config, stamp=stamp, problem=printable(said(error)))

    def _config(self, number: str, local: Path, flat: bool) -> ModelConfig:
        below: dict[str, Any] = {}
        above: dict[str, Any] = {"version": number}
        path = self._own.table.get("path", PIPELINE if "steps" in self._own.table else None)
        if self._triton is not None:
            below = self._translated(self._triton, local, path is not None)
        if isinstance(path, str) and is_file(path):
            above["path"] = self._own_path(path, local)
        elif path is None and "path" in below:
            above["path"] = PIPELINE if below["path"] == PIPELINE else model_path(Path(below["path"]))
        elif path is None:
            missing = "model, nor a folder with a version's number" if flat else "model"
            above["path"] = model_in(local, self._suffixes, missing) if local.is_dir() else model_path(local)
        elif path == PIPELINE:
            above["path"] = path
        for knob in ("class_names", "samples"):
            name = self._own.table.get(knob)
            if isinstance(name, str) and name and not Path(name).is_absolute():
                above[knob] = str(self._tree.fetch(self._at(name)))
        config = self._own.config(below, above)
        folder = local if local.is_dir() else local.parent
        return msgspec.structs.replace(config, steps={name: found_from(folder, one) for name, one in config.steps.items()})

    def _translated(self, triton: TritonConfig, version: Path, has_path: bool) -> dict[str, Any]:
        """Knobs. `has_path`: dlproxy.toml says which model it is, even if it is none for Triton's configuration."""
        try:
            config, _, warnings = translated(triton, version.parent if self._versions else version, version)
        except ConfigError as error:
            if not has_path:
                raise
            self._warnings.append(f"{TRITON} has no effect: {error}")
            return {}
        if has_path and config.path == PIPELINE:
            self._warnings.append(f"{TRITON} has no effect: it is an ensemble, and {OWN} says otherwise")
            return {}
        self._warnings += warnings
        try:
            samples = warmup_samples(warmups(triton, lambda name: self._settings(f"{WARMUP}/{name}")))
            config = msgspec.structs.replace(config, samples=samples)
        except (ConfigError, OSError) as error:
            self._warnings.append(f"its model_warmup has no effect: {said(error)}")
        try:
            if name := label_file(triton):
                config = msgspec.structs.replace(config, class_names=str(self._settings(name)))
        except (ConfigError, OSError) as error:
            self._warnings.append(f"its label_filename has no effect: {said(error)}")
        found: dict[str, Any] = msgspec.to_builtins(config)
        defaults = msgspec.to_builtins(ModelConfig(path=""))
        return {knob: value for knob, value in found.items() if value != defaults[knob]}

    def _own_path(self, path: str, local: Path) -> str:
        """`path`: as dlproxy.toml has it, of a file in the version's folder."""
        folder = local if local.is_dir() else local.parent
        file = folder / (python_place(path) or path)
        if not file.exists():
            raise self._own.error(["path"], f"path = {path!r}: {file} is not there")
        return str(folder / path) if python_place(path) not in (None, path) else model_path(file)

    def _own_policy(self) -> VersionPolicy | None:
        value = self._own.table.pop(POLICY, None)
        match value:
            case None:
                return None
            case "all":
                return VersionPolicy(latest=0)
            case int() if value > 0 and value is not True:
                return VersionPolicy(latest=value)
            case [_, *_] if all(isinstance(one, int) and one >= 0 for one in value):
                return VersionPolicy(specific=tuple(map(str, value)))
        message = f'{POLICY} = {value!r} is not understood; write a number (so many of the latest), [3, 5] or "all"'
        raise self._own.error([POLICY], message)

    def _at(self, name: str) -> str:
        return f"{self._entry}/{name}".strip("/")

    def _settings(self, name: str) -> Path:
        """A file beside the versions."""
        file = self._tree.fetch(self._at(name))
        status = file.stat()
        self._newest_ns = max(self._newest_ns, status.st_mtime_ns, status.st_ctime_ns)
        return file
