"""What a fault did to goodput, from samples of a steady load: how much was kept, and how long until it was back.

Called by robustness.py. Not aware of: what the fault was, servers, clocks.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

BACK = 0.95  # of the goodput before the fault
WINDOW_S = 0.5
LEAST_ANSWERS = 40  # in a window: one answer more or less shall not decide

Samples = Sequence[tuple[float, float]]
"""(instant, answers within the objective so far), in order."""


class Effect(Struct, frozen=True, kw_only=True):
    """Goodput per second before and during a fault; `recovery_s` after its end it was back, None: not while watched."""

    before_rps: float
    during_rps: float
    recovery_s: float | None
    watched_s: float


def rate(samples: Samples, start_at: float, end_at: float) -> float:
    """Answers per second between two instants."""
    if end_at <= start_at or len(samples) < 2:
        return 0.0
    start, end = _counts(samples, [start_at, end_at])
    return (end - start) / (end_at - start_at)


def effect(
    samples: Samples, offered_rps: float, quiet_until: float, begun_at: float, ended_at: float, over_at: float
) -> Effect:
    """Of a fault that was prepared from `quiet_until` on; goodput during it is measured until `ended_at`, and recovery counts
    from `over_at`. More answers than are offered come of a backlog, and are no goodput that a fault could cost.
    """
    if not samples:
        return Effect(before_rps=0.0, during_rps=0.0, recovery_s=None, watched_s=0.0)
    first, last = samples[0][0], samples[-1][0]
    before = min(rate(samples, first, min(quiet_until, last)), offered_rps)
    return Effect(
        before_rps=before,
        during_rps=rate(samples, min(begun_at, last), min(ended_at, last)),
        recovery_s=recovery_s(samples, over_at, before),
        watched_s=max(last - over_at, 0.0),
    )


def recovery_s(samples: Samples, over_at: float, before_rps: float) -> float | None:
    """Seconds after the end of a fault until the first window in which goodput is as before, but for 5 % and one answer."""
    if before_rps <= 0.0 or not samples:
        return None
    last = samples[-1][0]
    window_s = min(max(WINDOW_S, LEAST_ANSWERS / before_rps), max((last - over_at) / 2, WINDOW_S))
    starts = [over_at, *(at for at, _ in samples if over_at < at)]
    for at in starts:
        if at + window_s > last + 1e-9:
            return None
        if rate(samples, at, at + window_s) * window_s >= BACK * before_rps * window_s - 1.0:
            return at - over_at
    return None


def per_interval(samples: Samples, length_s: float) -> list[tuple[float, float]]:
    """(middle of an interval, answers per second in it), for a chart; instants count from the first sample."""
    if len(samples) < 2:
        return []
    first, last = samples[0][0], samples[-1][0]
    edges = np.arange(first, last + 1e-9, length_s)
    counts = _counts(samples, edges.tolist())
    return [
        (float(edges[number] - first + length_s / 2), (counts[number + 1] - counts[number]) / length_s)
        for number in range(len(edges) - 1)
    ]


def _counts(samples: Samples, instants: Sequence[float]) -> list[float]:
    at, counted = np.array(samples, dtype=np.float64).T
    counts: list[float] = np.interp(instants, at, counted).tolist()
    return counts
