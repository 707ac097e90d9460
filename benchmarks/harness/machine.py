"""What a run was measured on: figures from two machines, or two versions, are not to be compared."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.harness.processes import Cores
from benchmarks.harness.servers import find_nginx

PACKAGES = ("dlproxy", "onnxruntime", "numpy", "uvloop", "httptools", "msgspec")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _program_version(*command: str) -> str:
    try:
        finished = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "not installed"
    lines = (finished.stdout + finished.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def describe_machine(cores: Cores) -> dict[str, Any]:
    nginx = find_nginx()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "load_core": cores.load,
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in PACKAGES},
        "wrk": _program_version("wrk", "-v"),
        "nginx": _program_version(nginx, "-v") if nginx else "not installed",
    }


def summary(machine: dict[str, Any]) -> str:
    pinning = "nothing pinned: needs taskset and two cores"
    if machine["server_core"] is not None:
        pinning = f"servers on core {machine['server_core']}, load from core {machine['load_core']}"
    versions = f"Python {machine['python']}, ONNX Runtime {machine['packages']['onnxruntime']}"
    return f"{machine['cpu']}, {machine['cores']} cores ({pinning}); {versions}"
