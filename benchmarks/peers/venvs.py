"""One virtual environment per peer, made with pip on first use and kept; remade when its requirements change."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from benchmarks.harness.processes import BenchmarkError, Children

# Not below benchmarks/: the tests of the house rules read every file there.
VENVS = Path(__file__).parents[2] / ".venv-peers"
STAMP = ".requirements"
STEP_SECONDS = 900
LIST_SECONDS = 60


class Owner(Protocol):
    """Whose environment it is."""

    @property
    def name(self) -> str: ...

    @property
    def requirements(self) -> tuple[str, ...]: ...

    def python(self, venvs: Path) -> Path:
        """The interpreter in there."""
        ...


def requirements(system: Owner) -> list[str]:
    return [*system.requirements, f"onnxruntime=={importlib.metadata.version('onnxruntime')}"]


def ensure(system: Owner, children: Children, *, fresh: bool, venvs: Path = VENVS) -> None:
    """Makes the peer's environment unless it is there already."""
    if not system.requirements:
        return
    folder, wanted = venvs / system.name, requirements(system)
    stamp = folder / STAMP
    if not fresh and stamp.exists() and stamp.read_text().split() == wanted:
        return
    print(f"{system.name}: installing {' '.join(wanted)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    run_step(children, "venv", [sys.executable, "-m", "venv", str(folder)])
    run_step(children, "pip", ["nice", str(system.python(venvs)), "-m", "pip", "install", "--quiet", "--upgrade", *wanted])
    stamp.write_text("\n".join(wanted) + "\n")


def versions(system: Owner, venvs: Path = VENVS) -> dict[str, str]:
    """Every package of its environment."""
    command = [str(system.python(venvs)), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=LIST_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"pip list failed: {error}") from error
    if finished.returncode != 0:
        raise BenchmarkError(f"pip list failed: {finished.stderr.strip()[-300:]}")
    return {package["name"]: package["version"] for package in json.loads(finished.stdout)}


def run_step(children: Children, name: str, command: list[str]) -> None:
    """A program of the setting up, to its end. Raises BenchmarkError."""
    child = children.start(name, command)
    try:
        child.wait_until(_ended(child.process), STEP_SECONDS)
        if child.process.returncode != 0:
            raise BenchmarkError(f"{name} failed: {child.log_tail()}")
    finally:
        children.stop(child)


def _ended(process: "subprocess.Popen[bytes]") -> Callable[[], bool]:
    return lambda: process.poll() is not None
