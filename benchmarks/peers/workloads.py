"""The workloads: which model, how many connections. Builds the models into a folder that git ignores."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks import models

CACHE = Path(__file__).with_name(".cache")


@dataclass(frozen=True)
class Workload:
    name: str
    title: str
    model: str
    connections: int
    longer: int = 1  # times the seconds of the others: a slow model needs more of them for as many answers
    by_latency: bool = False  # compared by the median latency, not by the rate

    @property
    def steady(self) -> bool:
        """Whether rounds of answers are so few that the first and the cut-off last one must not count."""
        return self.longer > 1


WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        found.name: found
        for found in (
            Workload("mlp64", "MLP, 64 connections", "mlp", 64),
            Workload("mlp1", "MLP, 1 connection", "mlp", 1, by_latency=True),
            Workload("mlp256", "MLP, 256 connections", "mlp", 256),
            Workload("cnn64", "CNN, 64 connections", "cnn", 64),
            Workload("resnet8", "ResNet-50, 8 connections", "resnet50", 8, longer=2),
        )
    }
)
BUILDERS: Mapping[str, Callable[[Path], Path]] = MappingProxyType(
    {"mlp": models.build_mlp, "cnn": models.build_cnn, "resnet50": models.build_resnet50}
)


def model_path(name: str) -> Path:
    """Built once for each version of benchmarks/models.py."""
    version = hashlib.sha256(inspect.getsource(models).encode()).hexdigest()[:12]
    path = CACHE / f"{name}-{version}.onnx"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".part")
        BUILDERS[name](unfinished)
        for old in CACHE.glob(f"{name}-*.onnx"):
            old.unlink()
        unfinished.replace(path)
    return path
