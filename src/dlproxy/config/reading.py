"""dlproxy.toml, the environment and options to a Config; a mistake is answered with its place, and the nearest known name.

Called by cli/, and for its messages by serve/control.py. Not aware of: what reads the values.
"""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from dlproxy.config.autopilot import AutopilotConfig
from dlproxy.config.cache import CacheConfig
from dlproxy.config.effects import check
from dlproxy.config.knobs import SECTIONS, Config, ModelConfig
from dlproxy.config.limits import HttpLimits, TenantConfig
from dlproxy.config.messages import explain, unknown_key, what_and_where
from dlproxy.config.node import NodeConfig
from dlproxy.config.paths import is_file, is_network, python_place
from dlproxy.config.pipelines import PIPELINE, StepConfig
from dlproxy.config.secrets import ENV, KEY_VARIABLE, hold
from dlproxy.config.security import AuthConfig, GrantConfig, IntegrityConfig, TlsConfig
from dlproxy.config.server import ServerConfig
from dlproxy.config.table import GLOBAL, knobs, option, tuned_knobs
from dlproxy.config.tracing import TracingConfig
from dlproxy.config.values import ConfigError, nearest

PREFIX = "DLPROXY_"
FILE_VARIABLE = "DLPROXY_CONFIG"
UPSTREAM_FILES = ("upstream_api_key", "upstream_ca", "upstream_cert", "upstream_cert_key")

_NUMBERS = {int: "a whole number", float: "a number", bool: "true or false", list[int]: "a list of whole numbers"}

Section = TypeVar("Section", bound=Struct)


def load(path: Path, text: str | None = None) -> Config:
    """Read a TOML file. Raises ConfigError naming the line and, for an unknown key, the nearest known one.

    `text`: what it holds, if it is not written yet.
    """
    text, data = _read(path, text)
    file = _File(path, text)
    for key in data:
        if key not in SECTIONS:
            raise file.error([key], unknown_key(key, SECTIONS))
    tenants = file.tables(["tenants"], data.get("tenants", {}))
    grants = file.tables(["grants"], data.get("grants", {}))
    models = file.tables(["models"], data.get("models", {}))
    pipelines = file.tables(["pipelines"], data.get("pipelines", {}))
    for name in pipelines:
        if name in models:
            raise file.error(["pipelines", name], f"pipelines.{name}: a model has this name; names are of one of them only")
    return Config(
        server=file.section(["server"], data.get("server", {}), ServerConfig),
        http=file.section(["http"], data.get("http", {}), HttpLimits),
        tls=_beside(path, file.section(["tls"], data.get("tls", {}), TlsConfig), "cert", "key", "client_ca"),
        auth=_beside(path, file.section(["auth"], data.get("auth", {}), AuthConfig), "keys", "jwks"),
        integrity=_integrity(path, file.section(["integrity"], data.get("integrity", {}), IntegrityConfig)),
        autopilot=_autopilot(path, file.section(["autopilot"], data.get("autopilot", {}), AutopilotConfig)),
        cache=file.section(["cache"], data.get("cache", {}), CacheConfig),
        tracing=file.section(["tracing"], data.get("tracing", {}), TracingConfig),
        node=file.section(["node"], data.get("node", {}), NodeConfig),
        grants={name: file.section(["grants", name], table, GrantConfig) for name, table in grants.items()},
        tenants={name: file.section(["tenants", name], table, TenantConfig) for name, table in tenants.items()},
        models={name: file.models(["models", name], table) for name, table in models.items()}
        | {name: file.pipelines(["pipelines", name], table) for name, table in pipelines.items()},
    )


def _beside(path: Path, section: Section, *files: str) -> Section:
    """With these files as seen from the configuration's folder. A URL stays one."""
    found = {name: str(path.parent / file) for name in files if (file := getattr(section, name)) and "://" not in file}
    return msgspec.structs.replace(section, **found)


def found_from(folder: Path, step: StepConfig) -> StepConfig:
    """With its files as seen from the configuration's folder."""
    options = {
        name: str(folder / value) if (name == "file" or name.endswith("_file")) and isinstance(value, str) else value
        for name, value in step.options.items()
    }
    place = python_place(step.call) or ""
    call = str(folder / step.call) if place.endswith(".py") or "/" in place else step.call
    return msgspec.structs.replace(step, call=call, options=options)


def _integrity(path: Path, section: IntegrityConfig) -> IntegrityConfig:
    """With its files as seen from the configuration's folder."""
    key = section.master_key
    if key.startswith("file:"):
        key = f"file:{path.parent / key.removeprefix('file:')}"
    return msgspec.structs.replace(section, trusted=[str(path.parent / file) for file in section.trusted], master_key=key)


def _autopilot(path: Path, section: AutopilotConfig) -> AutopilotConfig:
    networks = [name for name in ("policy", "challenger", "watch") if is_network(getattr(section, name))]
    return _beside(path, section, *networks, "record")


def _read(path: Path, text: str | None = None) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text("utf-8") if text is None else text
        return text, tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


class _File:
    """A TOML file whose tables are to become sections. Every method raises ConfigError."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def error(self, keys: list[str], message: str) -> ConfigError:
        return ConfigError(f"{self._path}{_line(self._text, keys)}: {message}")

    def tables(self, keys: list[str], table: Any) -> dict[str, Any]:
        if not isinstance(table, dict):
            raise self.error(keys, f"{'.'.join(keys)}: expected `object`, got `{_type_name(table)}`")
        return table

    def models(self, keys: list[str], table: Any) -> list[ModelConfig]:
        """A model's versions, oldest first: the table itself, if it has a path, and its changed copies below `versions`."""
        if not isinstance(table, dict) or "versions" not in table:
            return [self._model(keys, table)]
        own = {name: value for name, value in table.items() if name != "versions"}
        versions = self.tables([*keys, "versions"], table["versions"])
        models = [self._model(keys, own)] if "path" in own or not versions else []
        for version, changes in versions.items():
            place = [*keys, "versions", version]
            if not version.isdecimal():
                raise self.error(place, f"{'.'.join(place)}: a version is a number, such as {'.'.join(place[:-1])}.2")
            if "version" in self.tables(place, changes):
                raise self.error([*place, "version"], f"[{'.'.join(place)}] is version {version}: leave version out")
            if any(model.version == version for model in models):
                message = f"[{'.'.join(keys)}] is version {version}, too: give it another version, or no path"
                raise self.error(place, message)
            models.append(self._model(place, {**changes, "version": version}, own))
        return models

    def pipelines(self, keys: list[str], table: Any) -> list[ModelConfig]:
        """The same of a pipeline."""
        return self.models(keys, {"path": PIPELINE, **self.tables(keys, table)})

    def _model(self, keys: list[str], table: Any, inherited: Mapping[str, Any] | None = None) -> ModelConfig:
        model = self.model(keys, table, inherited)
        hold(model.upstream_api_key)
        folder = self._path.parent
        return msgspec.structs.replace(
            model,
            path=str(folder / model.path) if is_file(model.path) else model.path,
            class_names=str(folder / model.class_names) if model.class_names else "",
            samples=str(folder / model.samples) if model.samples else "",
            forecast=str(folder / model.forecast) if is_network(model.forecast) else model.forecast,
            steps={name: found_from(folder, step) for name, step in model.steps.items()},
            **{
                name: str(folder / file)
                for name in UPSTREAM_FILES
                if (file := getattr(model, name)) and not file.startswith(ENV)
            },
        )

    def _check_steps(self, keys: list[str], table: Any) -> None:
        steps = table.get("steps", {}) if isinstance(table, dict) else {}
        for name, step in steps.items() if isinstance(steps, dict) else ():
            self.section([*keys, "steps", name], self.tables([*keys, "steps", name], step), StepConfig)

    def model(self, keys: list[str], table: Any, inherited: Mapping[str, Any] | None = None) -> ModelConfig:
        """What stands in the tables is pinned."""
        self._check_steps(keys, table)
        model = self.section(keys, table, ModelConfig, inherited)
        try:
            return with_pins(model, {**(inherited or {}), **table})
        except ConfigError as error:
            raise self.error([*keys, "start"], str(error)) from None

    def section(
        self, keys: list[str], table: Any, struct: type[Section], inherited: Mapping[str, Any] | None = None
    ) -> Section:
        """`inherited`: knobs of the table two levels up, which hold unless this one has them."""

        def place(knob: str) -> list[str]:
            above = inherited is not None and knob in inherited and knob not in table
            return [*(keys[:-2] if above else keys), *filter(None, [knob])]

        try:
            section = msgspec.convert({**inherited, **table} if inherited else table, struct)
            check(section)
        except ConfigError as error:
            raise self.error(place(error.knob), str(error)) from None
        except msgspec.ValidationError as error:
            what, knob = what_and_where(error)
            unknown = re.search(r"unknown field `(.+)`", what)
            if unknown is None:
                at = place(knob)
                raise self.error(at, f"{'.'.join(at)}: {explain(what, struct, knob)}") from None
            at = place(unknown[1])
            where = f" in [{'.'.join(at[:-1])}]" if at[:-1] else ""
            raise self.error(at, unknown_key(unknown[1], knobs(struct), where)) from None
        return section


class ModelFile(_File):
    """The knobs of one model in a file of their own, as [models.NAME] has them. Every method raises ConfigError.

    `table`: given without a file, `path` is what messages call it.
    """

    def __init__(self, path: Path, table: Mapping[str, Any] | None = None) -> None:
        text, data = ("", dict(table)) if table is not None else _read(path)
        super().__init__(path, text)
        self.table: dict[str, Any] = data

    def config(self, below: Mapping[str, Any], above: Mapping[str, Any]) -> ModelConfig:
        """With what holds unless the file says otherwise, and what holds whatever it says."""
        return self.model([], {**below, **self.table, **above})


def from_environment(path: Path | None, environment: Mapping[str, str]) -> tuple[Config, list[str]]:
    """The file's configuration, or the defaults, with the DLPROXY_… variables on top, and what to warn of. Raises ConfigError.

    `path`: that of the option; without it DLPROXY_CONFIG names the file.
    """
    file = path or (Path(environment[FILE_VARIABLE]) if environment.get(FILE_VARIABLE) else None)
    config = load(file) if file is not None else Config()
    ours = sorted(name for name in environment if name.startswith(PREFIX) and name not in (FILE_VARIABLE, KEY_VARIABLE))
    given = {name: environment[name] for name in ours}
    sections, known = {}, [FILE_VARIABLE]
    for section in GLOBAL:
        names = {variable(section, knob): knob for knob in knobs(SECTIONS[section])}
        texts = {knob: given.pop(name) for name, knob in names.items() if name in given}
        sections[section] = override(getattr(config, section), texts, partial(variable, section))
        known += names
    warnings = [f"the environment variable {name} sets nothing; {nearest(name, known)}" for name in given]
    return msgspec.structs.replace(config, **sections), warnings


def variable(section: str, knob: str) -> str:
    """The environment variable that sets a knob of a section that there is once."""
    return PREFIX + option(section, knob).upper()


def override(section: Section, values: Mapping[str, Any], label: Callable[[str], str]) -> Section:
    """A section with other values, those as text included. Raises ConfigError that names them by their `label`."""
    table = knobs(type(section))
    split = {
        name: [part.strip() for part in value.split(",") if part.strip()]
        if table[name].type in (list[str], list[int]) and isinstance(value, str)
        else value
        for name, value in values.items()
    }
    try:
        changed = msgspec.convert({**msgspec.to_builtins(section), **split}, type(section), strict=False)
        check(changed)
    except msgspec.ValidationError as error:
        what, knob = what_and_where(error)
        if what.endswith("got `str`"):
            what = f"{values[knob]!r} is not {_NUMBERS[table[knob].type]}"
        raise ConfigError(f"{label(knob)}: {explain(what, type(section), knob)}") from None
    except ConfigError as error:
        raise ConfigError(f"{label(error.knob) if error.knob in values else error.knob}: {error}") from None
    return changed


def model_of(values: Mapping[str, Any], stated: Collection[str] | None = None) -> ModelConfig:
    """The knobs of [models.NAME] as they came over an interface. Raises ConfigError that names the nearest known knob.

    `stated`: which of them somebody has said, and so are pinned; None: all.
    """
    try:
        model = msgspec.convert(values, ModelConfig)
    except msgspec.ValidationError as error:
        what, knob = what_and_where(error)
        unknown = re.search(r"unknown field `(.+)`", what)
        if unknown is not None:
            raise ConfigError(f"unknown knob '{unknown[1]}'; {nearest(unknown[1], knobs(ModelConfig))}") from None
        raise ConfigError(f"{knob}: {explain(what, ModelConfig, knob)}") from None
    check(model)
    return with_pins(model, values if stated is None else stated)


def with_pins(model: ModelConfig, stated: Collection[str]) -> ModelConfig:
    """The autopilot leaves alone what somebody has stated. Raises ConfigError for knobs that `start` has a value for, too."""
    for name in model.start:
        if name in stated:
            raise ConfigError(f"start has a first value of {name}, which is set as well: leave one of them out", "start")
    pinned = [name for name in tuned_knobs() if name in stated or name in model.pinned]
    return msgspec.structs.replace(model, pinned=pinned) if pinned != model.pinned else model


def _type_name(value: Any) -> str:
    return "array" if isinstance(value, list) else type(value).__name__


def _line(text: str, keys: list[str]) -> str:
    """ ":LINE" of a key in TOML text, or of the table in braces that it stands in; empty if neither is found."""
    wanted, section, around = ".".join(keys), "", ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*(.+?)\s*\]", line)
        key = re.match(r"\s*([^\s#=][^#=]*?)\s*=", line)
        if header:
            section = _plain(header[1])
            if f"{section}.".startswith(f"{wanted}."):
                return f":{number}"
        elif key:
            place = f"{section}.{_plain(key[1])}".removeprefix(".")
            if f"{place}.".startswith(f"{wanted}."):
                return f":{number}"
            if wanted.startswith(f"{place}."):
                around = f":{number}"
    return around


def _plain(key: str) -> str:
    """A dotted key without quotes, and spaces around its dots."""
    return re.sub(r"\s*\.\s*", ".", re.sub("[\"']", "", key))
