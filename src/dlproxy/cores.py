"""The cores that this process may use, how much of their time its groups are allotted, and how long it waited for one (Linux).

Called by whatever derives a number from them. Not aware of: models, threads.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """How many threads can compute at a time without being held up: at least 1.

    A quota of 1.5 cores counts as 1: two threads would use their time up after three quarters of each period and then stand
    still, which is what a caller of the slowest percent sees. `root`: the folder that has /proc and the control groups.
    """
    return max(int(min(len(allowed_cores()) or os.cpu_count() or 1, quota_cores(root))), 1)


def allowed_cores() -> list[int]:
    """Those that this process may run on, by number; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def waited_s(thread: str = "thread-self", root: Path = ROOT) -> float:
    """Seconds that a thread, else the one that asks, was ready to run and others had the cores; 0 where nobody tells."""
    with suppress(OSError, ValueError, IndexError):
        return int((root / "proc" / thread / "schedstat").read_text("ascii").split()[1]) / 1e9
    return 0.0


def all_waited_s(root: Path = ROOT) -> dict[str, float]:
    """The same of every thread of this process."""
    with suppress(OSError):
        return {thread: waited_s(f"self/task/{thread}", root) for thread in os.listdir(root / "proc/self/task")}
    return {}


def quota_cores(root: Path = ROOT) -> float:
    """Cores' time that the kernel allots this process: the least that any of its groups has (cgroup v1 and v2); inf for all."""
    try:
        memberships = (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # no Linux
        return inf
    least = inf
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            least = min(least, *map(_v2_cores, _groups(root, mounts, "cgroup2", "", path)), inf)
        elif "cpu" in controllers.split(","):
            least = min(least, *map(_v1_cores, _groups(root, mounts, "cgroup", "cpu", path)), inf)
    return least


def _groups(root: Path, mounts: list[str], kind: str, controller: str, path: str) -> Iterator[Path]:
    """The folders of the group at `path` and of all above it that can be seen.

    A container may see its own group alone, mounted where the machine has the root of all; in a name space of its own, or
    moved out of it, it knows itself by a path that is not below what is mounted. Then the mount is what there is to look at.
    """
    elsewhere: list[Path] = []
    seen = False
    for mount in mounts:
        fields, _, source = mount.partition(" - ")
        mounted, point = map(_unescaped, fields.split()[3:5])
        found, *rest = source.split()
        if found != kind or (controller and controller not in rest[-1].split(",")):
            continue
        folder = root / point.lstrip("/")
        try:
            parts = PurePosixPath(path).relative_to(mounted).parts
        except ValueError:
            parts = ("..",)
        if ".." in parts:
            elsewhere.append(folder)
            continue
        seen = True
        yield folder
        for part in parts:
            folder /= part
            yield folder
    yield from () if seen else elsewhere


def _unescaped(text: str) -> str:
    """As mountinfo writes blanks: \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _v2_cores(group: Path) -> float:
    with suppress(OSError, ValueError):  # the root of all has no such file; a quota of "max" is no number
        quota, period = (group / "cpu.max").read_text("ascii").split()
        return _cores(int(quota), int(period))
    return inf


def _v1_cores(group: Path) -> float:
    with suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{what}_us").read_text("ascii") for what in ("quota", "period"))
        return _cores(int(quota), int(period))
    return inf


def _cores(quota_us: int, period_us: int) -> float:
    return quota_us / period_us if quota_us > 0 and period_us > 0 else inf  # v1 writes -1 for no limit
