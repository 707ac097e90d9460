"""What of the machine this process may use: cores, how much of their time and of the memory its groups are allotted, and how
long it waited for a core (Linux).

Called by whatever derives a number from them. Not aware of: models, threads.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from math import inf
from pathlib import Path, PurePosixPath
from platform import machine, processor

ROOT = Path("/")

_sharers = 1


def usable_cores(root: Path = ROOT) -> int:
    """How many threads can compute at a time without being held up: at least 1.

    A quota of 1.5 cores counts as 1: two threads would use their time up after three quarters of each period and then stand
    still, which is what a caller of the slowest percent sees. `root`: the folder that has /proc and the control groups.
    """
    return max(int(min(len(allowed_cores()) or os.cpu_count() or 1, quota_cores(root))) // _sharers, 1)


def share_among(processes: int) -> None:
    """This one is one of so many of a server, each of which is to use its part of the cores."""
    global _sharers
    _sharers = processes


def allowed_cores() -> list[int]:
    """Those that this process may run on, by number; none where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@cache
def processor_model() -> str:
    """As far as the system tells."""
    with suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{machine()} {processor()}"


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
    groups = _control_groups(root, "cpu")
    return min([(_v2_cores if version == 2 else _v1_cores)(folder) for version, folder in groups], default=inf)


def spare_bytes(root: Path = ROOT) -> float:
    """Memory that this process may still take before the machine, or one of its groups, has none: pages of files do not count
    as taken. inf where nobody tells.
    """
    groups = _control_groups(root, "memory")
    spare = min([(_v2_spare if version == 2 else _v1_spare)(folder) for version, folder in groups], default=inf)
    with suppress(OSError, ValueError):
        available = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text("ascii"), re.MULTILINE)
        if available is not None:
            spare = min(spare, int(available[1]) * 1024)
    return spare


def give_back() -> None:
    """Memory that was freed goes back to the system, where the C library can do that (glibc)."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _control_groups(root: Path, controller: str) -> list[tuple[int, Path]]:
    """The folders of this process's groups that have a say, with the version of their interface."""
    try:
        memberships = (root / "proc/self/cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:  # no Linux
        return []
    found: list[tuple[int, Path]] = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += [(2, folder) for folder in _groups(root, mounts, "cgroup2", "", path)]
        elif controller in controllers.split(","):
            found += [(1, folder) for folder in _groups(root, mounts, "cgroup", controller, path)]
    return found


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


def _v2_spare(group: Path) -> float:
    with suppress(OSError, ValueError):  # the root of all has no such files; "max" is no number
        most = int((group / "memory.max").read_text("ascii"))
        taken = int((group / "memory.current").read_text("ascii"))
        return most - taken + _of_files(group, "inactive_file")
    return inf


def _v1_spare(group: Path) -> float:
    with suppress(OSError, ValueError):
        most, taken = (int((group / f"memory.{what}_in_bytes").read_text("ascii")) for what in ("limit", "usage"))
        return most - taken + _of_files(group, "total_inactive_file")
    return inf


def _of_files(group: Path, name: str) -> int:
    """Bytes of pages that the kernel gives up first."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
    return int(stat.get(name, 0))


def _cores(quota_us: int, period_us: int) -> float:
    return quota_us / period_us if quota_us > 0 and period_us > 0 else inf  # v1 writes -1 for no limit
