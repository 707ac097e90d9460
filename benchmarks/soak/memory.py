"""What all processes of a server hold, sampled, and how fast it grows: a robust slope with its interval.

Called by soaking.py. Not aware of: load, faults.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 300
CONFIDENCE = 0.95
BLOCK_S = 60.0  # what is drawn together: samples that are neighbours depend on each other
LEAST_POINTS = 24
MOST_POINTS = 120  # of a life: more are averaged


class Held(Struct):
    """One process at a time. Memory in KB: `pss` shares what several have mapped out among them; `own` is in no file, nobody
    else's, and what a leak would be.
    """

    at: float
    pid: int
    role: str
    pss_kb: int
    rss_kb: int
    own_kb: int
    descriptors: int
    threads: int


class Slope(NamedTuple):
    """Growth an hour, and its interval; `lives`: processes that it was seen in."""

    low: float
    median: float
    high: float
    lives: int


def family(pid: int) -> list[int]:
    """A process and all that it and its children have started."""
    parents: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # one that has just ended
            parents[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += parents[each]
    return found


def held(at: float, pid: int, role: str) -> Held | None:
    """None if it has just ended."""
    process = Path("/proc") / str(pid)
    with suppress(OSError, KeyError):
        lines = dict(line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:])
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        kb = [int(lines[name].split()[0]) for name in ("Pss", "Rss", "Anonymous")]
        return Held(at, pid, role, *kb, len(os.listdir(process / "fd")), int(status["Threads"]))
    return None


def role_of(pid: int, root: int) -> str:
    """Of a dlproxy's processes."""
    if pid == root:
        return "keeper"
    with suppress(OSError):
        return "gateway" if b"dlproxy.cli.gateway" in (Path("/proc") / str(pid) / "cmdline").read_bytes() else "worker"
    return "gone"


def slope(lives: Sequence[tuple[Sequence[float], Sequence[float]]], *, seed: int = 28) -> Slope | None:
    """Theil-Sen: the median of the slopes of all pairs of points, here of pairs within one life. Each life: seconds and values.

    The interval is a bootstrap's over blocks of a minute of what is left beside the line (Künsch 1989). None: too few points.
    Source: P. K. Sen, Estimates of the regression coefficient based on Kendall's tau, JASA 63 (1968).
    """
    long = [(np.asarray(at, float) / 3600.0, np.asarray(value, float)) for at, value in lives if len(at) >= LEAST_POINTS]
    points = [_thinned(at, value) for at, value in long]
    if not points:
        return None
    median = _pooled(points)
    random = np.random.default_rng(seed)
    fits = [median * (at - at.mean()) for at, _ in points]
    rests = [value - fit for (_, value), fit in zip(points, fits, strict=True)]
    drawn = [
        _pooled([(at, fit + _drawn(rest, at, random)) for (at, _), fit, rest in zip(points, fits, rests, strict=True)])
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Slope(float(low), float(median), float(high), len(points))


def _thinned(at: Array, value: Array) -> tuple[Array, Array]:
    """Means of neighbours, so that there are not too many pairs."""
    size = -(-len(at) // MOST_POINTS)
    count = len(at) // size
    return at[: count * size].reshape(count, -1).mean(1), value[: count * size].reshape(count, -1).mean(1)


def _pooled(points: Sequence[tuple[Array, Array]]) -> float:
    slopes = []
    for at, value in points:
        one, other = np.triu_indices(len(at), 1)
        slopes.append((value[other] - value[one]) / (at[other] - at[one]))
    return float(np.median(np.concatenate(slopes)))


def _drawn(rest: Array, at: Array, random: np.random.Generator) -> Array:
    """As many as there are, in blocks from anywhere."""
    spacing_s = float(np.median(np.diff(at))) * 3600.0
    size = int(np.clip(round(BLOCK_S / spacing_s), 1, max(1, len(rest) // 3)))
    starts = random.integers(0, len(rest) - size + 1, -(-len(rest) // size))
    return rest[(starts[:, None] + np.arange(size)).ravel()[: len(rest)]]


def lives(samples: Sequence[Held], role: str, field: str, *, warm_s: float) -> list[tuple[list[float], list[float]]]:
    """Of each process of this role: when it was looked at and what it held, without its first so many seconds."""
    by_pid: dict[int, list[Held]] = defaultdict(list)
    for one in samples:
        if one.role == role:
            by_pid[one.pid].append(one)
    found = []
    for life in by_pid.values():
        settled = [one for one in life if one.at >= life[0].at + warm_s]
        found.append(([one.at for one in settled], [float(getattr(one, field)) for one in settled]))
    return found


def summed(samples: Sequence[Held], field: str, *, warm_s: float) -> tuple[list[float], list[float]]:
    """Of all processes together, at each look, without the first so many seconds."""
    sums: dict[float, float] = defaultdict(float)
    for one in samples:
        sums[one.at] += getattr(one, field)
    begin = min(sums, default=0.0) + warm_s
    settled = sorted((at, value) for at, value in sums.items() if at >= begin)
    return [at for at, _ in settled], [value for _, value in settled]
