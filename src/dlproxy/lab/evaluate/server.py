"""The server that is evaluated, as far as the load does not show it: its control port, the CPU time that it takes, its cores.

Called by run.py, scalability.py and robustness.py. Not aware of: load, figures.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from dlproxy.cores import allowed_cores
from dlproxy.lab.load.settings import LoadError
from dlproxy.lab.load.target import Target

PROC = Path("/proc")


class State(Struct, frozen=True, kw_only=True):
    """One model as the control port tells it. `pids`: of its worker processes."""

    run: str
    slo: str
    instances: int
    autoscaled: bool
    pids: tuple[int, ...]


class Control(Protocol):
    """A server's control port. Every method raises LoadError with what the server said."""

    url: str
    is_here: bool

    def state(self, model: str) -> State: ...

    def scale(self, model: str, instances: int | None) -> None:
        """Returns when there are so many; None: as configured."""

    def load(self, model: str, path: str, knobs: dict[str, Any]) -> None:
        """Returns when it serves."""

    def unload(self, model: str) -> None: ...


def cpu_s(pid: int | None, control: Control | None, model: str) -> float | None:
    """Seconds that the server has computed so far with its workers: from /proc, else by its metrics; None if nobody tells."""
    if pid is not None and (PROC / str(pid) / "stat").exists():
        return sum(map(process_cpu_s, _family(pid)))
    if control is None:
        return None
    try:
        page = Target(control.url).ask("GET", "/metrics").body.decode(errors="replace")
        found = re.search(r"^process_cpu_seconds_total (\S+)$", page, re.MULTILINE)
        workers = control.state(model).pids
    except LoadError:
        return None
    if found is None or (workers and not control.is_here):
        return None
    return float(found[1]) + sum(map(process_cpu_s, workers))


def waited_s(pid: int | None) -> float | None:
    """Seconds that threads of the server and its workers were ready to run and others had the cores; None if nobody tells."""
    if pid is None or not (PROC / str(pid) / "schedstat").exists():
        return None
    waited_ns = 0
    for member in _family(pid):
        for file in (PROC / str(member) / "task").glob("*/schedstat"):
            with suppress(OSError, ValueError, IndexError):
                waited_ns += int(file.read_text("ascii").split()[1])
    return waited_ns * 1e-9


@contextmanager
def confined(cores: int) -> Iterator[None]:
    """Processes that are started inside may use so many cores only."""
    before = allowed_cores()
    os.sched_setaffinity(0, before[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def can_confine() -> bool:
    """Whether the system has such a call (Linux)."""
    return hasattr(os, "sched_setaffinity")


def _family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal() and (fields := _fields(int(folder.name))):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    family = [pid]
    for member in family:
        family += children.get(member, [])
    return family


def process_cpu_s(pid: int) -> float:
    """Seconds that one process has computed, with its children which have ended; 0 where the system does not say."""
    fields = _fields(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _fields(pid: int) -> list[str]:
    """Of its stat file from the state on, behind the name, which may hold anything; none if it has ended."""
    with suppress(OSError):
        return (PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return []
