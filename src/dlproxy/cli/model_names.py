"""Models as the command line names them: PATH, NAME=PATH or NAME:VERSION=PATH. Called by cli/serve.py and cli/simulate.py."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlproxy.config import ModelConfig

NO_KNOBS: Mapping[str, Any] = MappingProxyType({})


def add_models(
    models: "dict[str, list[ModelConfig]]",
    arguments: Sequence[str],
    slo: str,
    *,
    command: str,
    knobs: Mapping[str, Any] = NO_KNOBS,
    others: bool = False,
) -> "dict[str, list[ModelConfig]]":
    """The models of the file and those of the command line, by name, the latest version last. Raises ConfigError.

    `knobs`: of those of the command line, as options gave them. `others`: whether there may be none, because models come from
    elsewhere, too.
    """
    from dlproxy.config import ConfigError, ModelConfig, parse_goal
    from dlproxy.config.paths import is_model_name
    from dlproxy.config.reading import override

    parse_goal(slo)
    given = {"slo": slo, **knobs} if slo else knobs
    if given and models and not arguments:
        option = _option(next(iter(given)))
        raise ConfigError(
            f"{option} is for models given on the command line, and there are none; the file's models have their own"
        )
    models = {name: list(versions) for name, versions in models.items()}
    for argument in arguments:
        name, version, path = _parsed(argument)
        versions = models.setdefault(name, [])
        if any(model.version == version for model in versions):
            raise ConfigError(
                f"two models are named '{name}' in version {version}; give them names, NAME=PATH, or versions, NAME:2=PATH"
            )
        versions.append(override(ModelConfig(path=path, slo=slo, version=version), knobs, _option))
    if not models and not others:
        raise ConfigError(f"no model given; try: dlproxy {command} MODEL.onnx")
    for name in models:
        if not is_model_name(name):
            raise ConfigError(f"{name!r} cannot be a model's name: use printable text without a slash (NAME=PATH)")
    return models


def _option(knob: str) -> str:
    return f"--{knob.replace('_', '-')}"


def _parsed(argument: str) -> tuple[str, str, str]:
    """Name, version and path. What stands before an equals sign is part of the path if it has a slash, as folders may."""
    from dlproxy.config import SLEEP

    versioned = re.fullmatch(r"([^/=]+):([0-9]+)=(.*)", argument, re.DOTALL)
    if versioned is not None:
        return versioned[1], versioned[2], versioned[3]
    name, equals, path = argument.partition("=")
    if not equals or "/" in name or argument.startswith(SLEEP):
        name, path = "", argument
    return name or (SLEEP.strip(":") if path.startswith(SLEEP) else Path(path).stem.partition(":")[0]), "1", path
