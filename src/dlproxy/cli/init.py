"""`dlproxy init`: a dlproxy.toml to begin with, for the models that lie here, with the knobs that most people want.

Not aware of: what the knobs do; the table says it.
"""

import argparse
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.config import ModelConfig

KINDS = (".onnx", ".pt", ".pt2", ".keras")
SERVER = ("host", "http_port", "grpc_port", "control_port")
MODEL = ("slo", "max_batch", "instances", "threads", "run", "max_queue_rows", "cache", "autoscale")
OTHERS = {"autopilot": ("mode",), "auth": ("keys",), "tls": ("cert", "key")}


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    init = commands.add_parser(
        "init",
        help="write a dlproxy.toml to begin with",
        description="Write a configuration for the models named, or for those in this folder. Knobs that most people look for "
        "are in it with their defaults, as comments.",
    )
    init.add_argument("models", nargs="*", metavar="MODEL", help="as for `dlproxy serve` (default: the models in this folder)")
    init.add_argument("--slo", default="", metavar="p99=20ms", help="the objective of these models")
    init.add_argument("--out", type=Path, default=Path("dlproxy.toml"), metavar="FILE", help="default: dlproxy.toml")
    init.set_defaults(command=_init)


def _init(args: argparse.Namespace) -> int:
    from dlproxy.cli.model_names import add_models
    from dlproxy.config import ConfigError

    try:
        found = args.models or [str(path) for path in sorted(Path().iterdir()) if path.suffix in KINDS]
        if not found:
            raise ConfigError("there is no model in this folder; name one: dlproxy init MODEL.onnx")
        models = add_models({}, found, args.slo, command="init")
        with args.out.open("x", encoding="utf-8") as file:
            file.write("\n".join(lines(models, args.out)))
    except FileExistsError:
        complain(f"{args.out} is there already; name another file (--out)")
        return USER_ERROR
    except (ConfigError, OSError) as error:
        complain(str(error))
        return USER_ERROR
    say(f"written: {args.out}   (dlproxy check --config {args.out}, then dlproxy serve --config {args.out})")
    return OK


def lines(models: "dict[str, list[ModelConfig]]", out: Path) -> Iterator[str]:
    """Of the file."""
    from dlproxy.config import ModelConfig
    from dlproxy.config.knobs import SECTIONS

    yield f"# What dlproxy serves, and how: dlproxy serve --config {out}"
    yield "# Knobs behind a # have their defaults. All there are: docs/reference/configuration.md"
    yield ""
    yield "[server]"
    yield from _knobs(SECTIONS["server"], SERVER, {})
    for name, versions in models.items():
        for model in versions:
            yield ""
            key = name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)
            yield f"[models.{key}]" if model.version == "1" else f"[models.{key}.versions.{model.version}]"
            yield from _knobs(ModelConfig, ("path", *MODEL), {"path": _beside(model.path, out), "slo": model.slo})
    for section, names in OTHERS.items():
        yield ""
        yield f"# [{section}]"
        yield from _knobs(SECTIONS[section], names, {})
    yield ""


def _beside(path: str, out: Path) -> str:
    """As the file has to say it, from whose folder paths count."""
    file, colon, name = path.partition(":")
    if not Path(file).exists():  # the address of a model elsewhere
        return path
    return os.path.relpath(file, out.parent) + colon + name


def _knobs(section: type, names: Iterable[str], given: dict[str, Any]) -> Iterator[str]:
    from dlproxy.config.table import knobs

    table = knobs(section)
    for name in names:
        knob, value = table[name], given.get(name)
        written = f"{name} = {json.dumps(value)}" if value else f"# {name} = {json.dumps(knob.default)}"
        yield f"{written:<28}  # {knob.description}"
