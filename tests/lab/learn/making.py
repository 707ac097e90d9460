"""Experiments of ours on a small budget, and the modules that left as files: to compare with what is served."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from msgspec import Struct, structs

from dlproxy.lab.learn.experiment import Place, Run, find


class Made(Struct, frozen=True):
    """`modules`: by the name of the file that was written of each."""

    folder: Path
    run: Run
    modules: dict[str, Any]


def make(name: str, folder: Path, kind: ModuleType, *exporting: ModuleType, **changed: Any) -> Made:
    """Train seed 1 by `kind`, whose models leave by `exporting`, or by itself; `changed` of its settings."""
    modules: dict[str, Any] = {}
    one = find(name)
    with pytest.MonkeyPatch.context() as patch:
        for module in exporting or (kind,):
            export = module.export

            def kept(network: Any, path: Path, *more: Any, export: Any = export, **names: Any) -> None:
                modules[path.name] = network
                export(network, path, *more, **names)

            patch.setattr(module, "export", kept)
        experiment = structs.replace(one, settings=one.settings | changed)
        run: Run = kind.train(experiment, Place(folder=folder, seed=1, threads=1, tell=lambda _text: None))
    return Made(folder, run, modules)


def answered(told: dict[str, Any]) -> dict[str, Any]:
    """Outputs of an answer in JSON, by name."""
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in told["outputs"]}


def body(name: str, rows: Any) -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}]}
