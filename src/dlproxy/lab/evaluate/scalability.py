"""Throughput over clients, instances and cores: which numbers are tried, and what law they follow. Called by run.py.

Not aware of: how a load is run, servers.
"""

from dlproxy.lab.evaluate.evaluation import Moment, Point, Series
from dlproxy.lab.evaluate.usl import fit

LEVELS = {2: (1, 64), 3: (1, 8, 64), 4: (1, 4, 16, 64), 7: (1, 2, 4, 8, 16, 32, 64), 9: (1, 2, 4, 8, 16, 32, 64, 128, 256)}
"""Clients of a closed loop, by how many levels there is time for."""


def levels(seconds: float, each_s: float) -> tuple[int, ...]:
    """The most that so much time is enough for if each takes at least so long; at least two."""
    room = seconds / each_s
    return LEVELS[max((count for count in LEVELS if count <= room), default=min(LEVELS))]


def doubled(most: int) -> list[int]:
    """1, 2, 4 ... and the most itself."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most <= 1 else [*counts, most]


def point(n: int, moment: Moment) -> Point:
    """What so many got."""
    return Point(n=n, rate_rps=moment.rate_rps, p99_ms=moment.latency_ms.get("p99"))


def conclude(series: Series) -> None:
    """The law of what was measured, if there is enough of it."""
    series.fit = fit([(point.n, point.rate_rps) for point in series.points])
