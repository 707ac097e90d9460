"""Models as the command line names them: PATH or NAME=PATH. Called by cli/serve.py and cli/simulate.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlproxy.config import ModelConfig


def add_models(
    models: "dict[str, ModelConfig]", arguments: Sequence[str], slo: str, *, command: str
) -> "dict[str, ModelConfig]":
    """The models of the file and those of the command line (PATH or NAME=PATH). Raises ConfigError."""
    from dlproxy.config import SLEEP, ConfigError, ModelConfig, parse_slo

    parse_slo(slo)
    if slo and models and not arguments:
        raise ConfigError("--slo is for models given on the command line, and there are none; the file's models have their own")
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or "/" in name or argument.startswith(SLEEP):  # an equals sign in a folder's name
            name, path = "", argument
        name = name or (SLEEP.strip(":") if path.startswith(SLEEP) else Path(path).stem.partition(":")[0])
        if name in models:
            raise ConfigError(f"two models are named '{name}'; give them names: NAME=PATH")
        models[name] = ModelConfig(path=path, slo=slo)
    if not models:
        raise ConfigError(f"no model given; try: dlproxy {command} MODEL.onnx")
    for name in models:
        if "/" in name or not name.isprintable() or name.strip() != name or not name.strip("."):
            raise ConfigError(f"{name!r} cannot be a model's name: use printable text without a slash (NAME=PATH)")
    return models
