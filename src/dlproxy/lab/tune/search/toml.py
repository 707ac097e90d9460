"""A model's configuration as a table of dlproxy.toml, with a comment on each line that has one.

Used for the servers of the live phase, and for what the tuner writes. Not aware of: where the values come from.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlproxy.config import ModelConfig
from dlproxy.config.paths import is_file
from dlproxy.config.table import knobs

NONE: Mapping[str, str] = {}


def model_table(
    name: str, config: ModelConfig, folder: Path, *, comments: Mapping[str, str] = NONE, always: tuple[str, ...] = ()
) -> str:
    """[models.NAME] with every knob that has not its default, and those named `always`; paths as seen from the folder."""
    lines = [f"[models.{_key(name)}]"]
    for knob in knobs(ModelConfig).values():
        value = getattr(config, knob.name)
        if value == knob.default and knob.name not in always:
            continue
        if (knob.name == "path" and is_file(value)) or (knob.name == "samples" and value):
            value = os.path.relpath(value, folder)
        line = f"{knob.name} = {toml_value(value)}"
        comment = comments.get(knob.name, "")
        lines += [*(f"# {part}" for part in comment.splitlines()), line]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def toml_value(value: Any) -> str:
    """On one line, tables inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {toml_value(item)}" for name, item in value.items()) + "}"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
