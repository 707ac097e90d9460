"""dlproxy.toml that serves the parts of a model as a pipeline, each process on a core of its own.

Called by cli/split.py. Not aware of: how the parts were made.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlproxy.compress.publish import toml_key
from dlproxy.compress.split.search import Found, Stage
from dlproxy.cores import allowed_cores

OUTAGE_WAIT_S = 30.0  # a stage that is lost has its requests wait: without it nobody is answered


def configuration(found: Found, folder: Path) -> str:
    """In this folder, where the files of the parts are."""
    asked, layout = found.asked, found.layout
    cores = allowed_cores() or list(range(layout.cores))
    lines = [_head(found)]
    knobs = {"run": "process", "instances": layout.replicas, "threads": 1}
    if not found.stages:
        path = os.path.relpath(asked.model.resolve(), folder.resolve())
        lines += _section(f"models.{toml_key(asked.name)}", {"path": path, **knobs, "cores": cores[: layout.replicas]})
        return "\n".join(lines)
    for stage in found.stages:
        own = {"path": f"{stage.name}.onnx", **knobs, "cores": cores_of(stage, found, cores), "max_batch": asked.rows}
        own["outage_wait_s"] = OUTAGE_WAIT_S
        lines += _section(f"models.{toml_key(stage.name)}", own)
    pipeline = f"pipelines.{toml_key(asked.name)}"
    outputs = {name: f"{_step(found, name)}.{name}" for name in found.outputs}
    lines += _section(pipeline, {"part_rows": asked.rows, "inputs": found.inputs, "outputs": outputs})
    givers = {name: stage.name for stage, file in zip(found.stages, found.files, strict=True) for name in _given(file.gives)}
    for stage, file in zip(found.stages, found.files, strict=True):
        names = [name for taken in file.takes.values() for name in taken]
        inputs = {name: name if name in found.inputs else f"{step_of(givers[name])}.{name}" for name in names}
        lines += _section(f"{pipeline}.steps.{step_of(stage.name)}", {"model": stage.name, "inputs": inputs})
    return "\n".join(lines)


def cores_of(stage: Stage, found: Found, cores: list[int]) -> list[int]:
    """One for each replica: what is whole and the first share of products have the stage's first core."""
    layout = found.layout
    place = (stage.stage - 1) * layout.parts + max(stage.lane - 1, 0)
    each = layout.stages * layout.parts
    return [cores[(replica * each + place) % len(cores)] for replica in range(layout.replicas)]


def step_of(name: str) -> str:
    """Of a part's model: what follows the name of the whole, as steps are named."""
    return f"stage{name.rpartition('-stage')[2]}".replace("-", "_")


def _given(gives: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [name for names in gives.values() for name in names]


def _step(found: Found, output: str) -> str:
    return next(
        step_of(stage.name) for stage, file in zip(found.stages, found.files, strict=True) if output in file.part.outputs
    )


def _head(found: Found) -> str:
    layout, asked = found.layout, found.asked
    how = f"{layout.stages} stages, products in {layout.parts}, {layout.replicas} of each"
    how = how if found.stages else f"{layout.replicas} processes"
    return f"# {asked.name} as {how}: {found.gain:.2f} times as quick as one process on one core, by measured parts.\n"


def _section(name: str, values: Mapping[str, Any]) -> list[str]:
    return [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in values.items()), ""]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(name)} = {_value(one)}" for name, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
