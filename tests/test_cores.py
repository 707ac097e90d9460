"""How many cores there are to use: the affinity mask, and what the control groups of either version allot; made-up /proc."""

import os
from math import inf
from pathlib import Path

import pytest

from dlproxy import cores
from dlproxy.cores import all_waited_s, allowed_cores, quota_cores, spare_bytes, usable_cores, waited_s
from dlproxy.fleet.processes import _cores_of

V2 = "42 30 0:26 {root} {point} rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate"
V1 = "33 25 0:29 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "34 25 0:30 {root} {point} rw,relatime shared:9 - cgroup cgroup rw,memory"
AT = "/sys/fs/cgroup"


def _machine(root: Path, cgroup: str, mounts: list[str], limits: dict[str, str]) -> Path:
    """A folder with /proc and groups. A limit: of v2 as cpu.max has it, of v1 as `quota period`, by the group's folder."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text("\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts]) + "\n")
    for group, limit in limits.items():
        folder = root / group.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        if "cgroup/cpu" in group:
            for what, number in zip(("quota", "period"), limit.split(), strict=True):
                (folder / f"cpu.cfs_{what}_us").write_text(number + "\n")
        else:
            (folder / "cpu.max").write_text(limit + "\n")
    return root


def _v2(root: str = "/", point: str = AT) -> list[str]:
    return [V2.format(root=root, point=point)]


def _v1(root: str = "/", point: str = f"{AT}/cpu,cpuacct") -> list[str]:
    return [MEMORY.format(root=root, point=f"{AT}/memory"), V1.format(root=root, point=point)]


@pytest.mark.parametrize(
    ("cgroup", "mounts", "limits", "allotted"),
    [
        # version 2, as the machine sees it
        ("0::/a/b\n", _v2(), {}, inf),
        ("0::/a/b\n", _v2(), {f"{AT}/a/b": "max 100000"}, inf),
        ("0::/a/b\n", _v2(), {f"{AT}/a/b": "150000 100000"}, 1.5),
        ("0::/a/b\n", _v2(), {f"{AT}/a/b": "max 100000", f"{AT}/a": "50000 100000"}, 0.5),
        ("0::/a/b\n", _v2(), {f"{AT}/a/b": "300000 100000", f"{AT}/a": "800000 100000"}, 3.0),
        ("0::/a/b\n", _v2(), {f"{AT}/other": "1000 100000", f"{AT}/a/b/below": "1000 100000"}, inf),
        ("0::/a/b\n", _v2(), {f"{AT}/a/b": "5000 10000"}, 0.5),
        ("0::/a/b\n", _v2(), {f"{AT}/a/b": "what is this"}, inf),
        ("0::/a b/c\n", _v2(point="/mnt/c\\040g"), {"/mnt/c g/a b/c": "200000 100000"}, 2.0),
        # in a container: a name space of its own, the machine's path, moved out of the name space, two mounts
        ("0::/\n", _v2(), {AT: "200000 100000"}, 2.0),
        ("0::/docker/1\n", _v2("/docker/1"), {AT: "200000 100000"}, 2.0),
        ("0::/docker/1/x\n", _v2("/docker/1"), {AT: "200000 100000", f"{AT}/x": "100000 100000"}, 1.0),
        ("0::/docker/10\n", _v2("/docker/1"), {AT: "200000 100000", f"{AT}/0": "100000 100000"}, 2.0),
        ("0::/../2\n", _v2(), {AT: "200000 100000", "/sys/fs/2": "100000 100000"}, 2.0),
        ("0::/a\n", [*_v2("/b", "/mnt"), *_v2()], {"/mnt": "100000 100000", f"{AT}/a": "400000 100000"}, 4.0),
        ("0::/a\n", [*_v2(), *_v2("/b", "/mnt")], {"/mnt": "100000 100000", f"{AT}/a": "400000 100000"}, 4.0),
        # version 1
        ("4:memory:/m\n2:cpu,cpuacct:/a/b\n", _v1(), {}, inf),
        ("2:cpu,cpuacct:/a/b\n", _v1(), {f"{AT}/cpu,cpuacct/a/b": "-1 100000"}, inf),
        ("2:cpu,cpuacct:/a/b\n", _v1(), {f"{AT}/cpu,cpuacct/a/b": "250000 100000"}, 2.5),
        ("2:cpu,cpuacct:/a/b\n", _v1(), {f"{AT}/cpu,cpuacct/a/b": "-1 100000", f"{AT}/cpu,cpuacct/a": "50000 50000"}, 1.0),
        ("2:cpu,cpuacct:/docker/1\n", _v1("/docker/1"), {f"{AT}/cpu,cpuacct": "200000 100000"}, 2.0),
        ("2:cpu,cpuacct:/kubepods/pod/1\n", _v1("/docker/1"), {f"{AT}/cpu,cpuacct": "200000 100000"}, 2.0),
        ("2:cpuset:/a\n", _v1(), {f"{AT}/cpu,cpuacct/a": "100000 100000"}, inf),
        # both: the lesser
        ("2:cpu,cpuacct:/a\n0::/\n", [*_v1(), *_v2(point=f"{AT}/unified")], {f"{AT}/cpu,cpuacct/a": "100000 100000"}, 1.0),
        ("0::/\n2:cpu,cpuacct:/a\n", [*_v1(), *_v2(point=f"{AT}/unified")], {f"{AT}/unified": "50000 100000"}, 0.5),
        # neither is mounted, or a process of no group
        ("0::/a\n", [], {f"{AT}/a": "100000 100000"}, inf),
        ("", _v2(), {AT: "100000 100000"}, inf),
    ],
)
def test_the_least_quota_of_all_groups_counts(
    tmp_path: Path, cgroup: str, mounts: list[str], limits: dict[str, str], allotted: float
) -> None:
    assert quota_cores(_machine(tmp_path, cgroup, mounts, limits)) == allotted


def test_without_procfs_there_is_no_quota(tmp_path: Path) -> None:
    assert quota_cores(tmp_path) == inf


@pytest.mark.parametrize(
    ("quota", "usable"),
    [("max", 8), ("50000", 1), ("100000", 1), ("150000", 1), ("199999", 1), ("200000", 2), ("790000", 7), ("9900000", 8)],
)
def test_cores_are_whole_within_the_mask_and_at_least_one(
    tmp_path: Path, quota: str, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _machine(tmp_path, "0::/a\n", _v2(), {f"{AT}/a": f"{quota} 100000"})
    monkeypatch.setattr(cores, "allowed_cores", lambda: list(range(10, 18)))
    assert usable_cores(root) == usable


def test_where_the_system_has_no_masks_all_cores_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert (allowed_cores(), usable_cores(tmp_path)) == ([], 6)
    assert _cores_of(0, 2, allowed_cores()) == ()
    assert [_cores_of(number, 2, [3, 5, 6]) for number in range(2)] == [(3, 5), (6, 3)]
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores(tmp_path) == 1


def test_nothing_else_counts_cores() -> None:
    own = Path(cores.__file__)
    words = ("cpu_count", "sched_getaffinity", "cpu.max", "cfs_quota")
    found = {
        (path.name, line.strip())
        for path in own.parent.rglob("*.py")
        if path != own
        for line in path.read_text("utf-8").splitlines()
        if any(word in line for word in words)
    }
    tensorflow = "all_of_them = len(allowed_cores()) or os.cpu_count() or 1  # TensorFlow knows of no quota"
    bentoml = 'if name == "workers" and value == "cpu_count":'  # a word of its files
    assert found == {("tensorflow.py", tensorflow), ("bentoml.py", bentoml)}, (
        "use dlproxy.cores, which knows what containers are allotted"
    )


def test_how_long_threads_waited_for_a_core(tmp_path: Path) -> None:
    assert (waited_s(root=tmp_path), all_waited_s(tmp_path)) == (0.0, {}), "where nobody tells"
    for place, text in (("thread-self", "7 1500000000 3"), ("self/task/11", "7 1500000000 3"), ("self/task/12", "")):
        (tmp_path / "proc" / place).mkdir(parents=True)
        (tmp_path / "proc" / place / "schedstat").write_text(text + "\n")
    assert waited_s(root=tmp_path) == 1.5
    assert all_waited_s(tmp_path) == {"11": 1.5, "12": 0.0}


MEMINFO = "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\n"


def _memory(group: Path, most: str, taken: int, files: int, *, version: int) -> None:
    group.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, text in zip(names, (most, str(taken)), strict=True):
        (group / name).write_text(text + "\n")
    name = "inactive_file" if version == 2 else "total_inactive_file"
    (group / "memory.stat").write_text(f"anon 1\n{name} {files}\n")


@pytest.mark.parametrize(
    ("version", "most", "taken", "files", "spare"),
    [
        (2, "1000000", 600_000, 100_000, 500_000),
        (2, "max", 600_000, 100_000, 8000 * 1024),
        (2, "100000000", 600_000, 0, 8000 * 1024),
        (2, "1000", 6000, 0, -5000),
        (1, "1000000", 600_000, 100_000, 500_000),
        (1, "9223372036854771712", 600_000, 0, 8000 * 1024),
    ],
)
def test_spare_memory_is_the_least_of_machine_and_groups(
    tmp_path: Path, version: int, most: str, taken: int, files: int, spare: float
) -> None:
    mounts = _v2() if version == 2 else _v1()
    root = _machine(tmp_path, "0::/a\n" if version == 2 else "4:memory:/a\n", mounts, {})
    (root / "proc/meminfo").write_text(MEMINFO)
    _memory(root / ("sys/fs/cgroup/a" if version == 2 else "sys/fs/cgroup/memory/a"), most, taken, files, version=version)
    assert spare_bytes(root) == spare


def test_where_nobody_tells_memory_is_not_bounded(tmp_path: Path) -> None:
    assert spare_bytes(tmp_path) == inf


def test_this_machine_has_some() -> None:
    assert spare_bytes() > 0
