"""The models of models.py as two repositories of the same names: one for Triton, one for dlproxy. Called by its users here."""

import re
import shutil
from pathlib import Path
from typing import Any

from tests.conformance.models import MAX_ROWS, MODELS

HERE = Path(__file__).parent
BATCH = "batch"


def for_triton(folder: Path) -> Path:
    """config.pbtxt, 1/model.py and what that imports."""
    for name, model in MODELS.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copy(HERE / "triton_model.py", version / "model.py")
        shutil.copy(HERE / "models.py", version / "conformance_models.py")
        (folder / name / "config.pbtxt").write_text(_config(name, model), "utf-8")
    return folder


def for_dlproxy(folder: Path) -> Path:
    """dlproxy.toml and 1/models.py."""
    for name, model in MODELS.items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copy(HERE / "models.py", version / "models.py")
        lines = [f'path = "models.py:{model.__name__}"', 'run = "thread"']
        if _rows(model):
            lines += ['batching = "on"', f"max_batch = {MAX_ROWS}", f"max_request_rows = {MAX_ROWS}"]
        else:
            lines += ['batching = "off"']
        (folder / name / "dlproxy.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def _rows(model: Any) -> bool:
    return any(BATCH in declared for declared in model.inputs.values())


def _config(name: str, model: Any) -> str:
    rows = _rows(model)
    lines = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {MAX_ROWS if rows else 0}"]
    for kind, declared in (("input", model.inputs), ("output", model.outputs)):
        lines += [f"{kind} [", ",\n".join(_tensor(*each) for each in declared.items()), "]"]
    lines.append("instance_group [{ kind: KIND_CPU }]")
    if getattr(model, "streams", False):
        lines.append("model_transaction_policy { decoupled: true }")
    elif rows or name == "slow":
        lines.append("dynamic_batching { default_queue_policy { allow_timeout_override: true } }")
    return "\n".join(lines) + "\n"


def _tensor(name: str, declared: str) -> str:
    found = re.fullmatch(r"(\w+)\[(.*)\]", declared)
    assert found is not None, declared
    kind = "STRING" if found[1] == "BYTES" else found[1]
    dims = [size for size in found[2].split(",") if size != BATCH]
    return f'  {{ name: "{name}" data_type: TYPE_{kind} dims: [{", ".join(dims)}] }}'
