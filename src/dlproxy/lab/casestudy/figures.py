"""The figures of each turn, and what a side gains beside another: ratios within rounds, with intervals.

Called by page.py. Not aware of: how they are shown.
"""

from collections.abc import Callable, Iterable
from math import exp, log
from statistics import median

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.casestudy.day import Kind
from dlproxy.lab.casestudy.record import DayRecord, Study, Turn
from dlproxy.lab.casestudy.replay import NONE, REFUSED
from dlproxy.lab.learn.train import interval

PIXELS = "pixels"  # a JPEG to the model's input, among service times
_MOST = 100.0  # times as much: what was 0 before has no ratio


class Times(Struct, kw_only=True):
    """Of the answers, in milliseconds; NaN if there are none."""

    mean: float
    p50: float
    p99: float


class Figures(Struct, kw_only=True):
    """Of one turn. Rates are answers within the objective per second. `useful`: core-seconds of those by the cores' time, each
    counted as its models take alone on one core; `at_first`: as the shop's first model takes. `wrong`: of the pictures that
    were answered, each counted once. `new_in_time`: of requests in the sale for pictures that were not sent before. The other
    shares are of all requests. `cost_s`: core-seconds that the server took for each of those answers.
    `at_once`: the most of them that were under way at a time.
    """

    sale_rps: float
    day_rps: float
    day: Times
    calm: Times
    useful: float
    at_first: float
    busy: float
    cost_s: float
    wrong: float
    in_time: float
    urgent_in_time: float
    new_in_time: float
    refused: float
    lost: float
    at_once: int


class Change(Struct, kw_only=True):
    """`change`: by how much `after` is above `before` (-0.4: 40 % less), between `low` and `high` with 95 %, which are the same
    where there is one round. `rounds`: of how many.
    """

    before: float
    after: float
    change: float
    low: float
    high: float
    rounds: int


def figures(day: DayRecord, turn: Turn) -> Figures:
    """All of one turn."""
    at_s, latency_ms, answer = np.array(day.at_s), np.array(turn.latency_ms), np.array(turn.answer)
    answered = answer >= 0
    in_time = answered & (latency_ms <= day.objective_ms)
    sale = (at_s >= day.sale_s[0]) & (at_s < day.sale_s[1])
    urgent = np.array(day.kind) == Kind.CHECKOUT
    share = in_time.sum() / max(answered.sum(), 1)
    work_s = sum(rows * day.service_ms[name] for name, rows in turn.rows.items()) * 1e-3
    available_s = day.cores * day.length_s
    first_s = (day.service_ms["classifier"] + day.service_ms[PIXELS]) * 1e-3
    return Figures(
        sale_rps=float(in_time[sale].sum() / (day.sale_s[1] - day.sale_s[0])),
        day_rps=float(in_time.sum() / day.length_s),
        day=_times(latency_ms[answered]),
        calm=_times(latency_ms[answered & (at_s < day.sale_s[0])]),
        useful=float(work_s * share / available_s),
        at_first=float(in_time.sum() * first_s / available_s),
        busy=sum(turn.cores) / max(len(turn.cores), 1) / day.cores,
        cost_s=sum(turn.cores) / max(in_time.sum(), 1),
        wrong=_wrong(np.array(day.picture)[answered], (answer != np.array(day.right))[answered]),
        in_time=float(in_time.mean()),
        urgent_in_time=float(in_time[urgent].mean()),
        new_in_time=float(in_time[sale & _first(np.array(day.picture))].mean()),
        refused=float((answer == REFUSED).mean()),
        lost=float((answer <= NONE).mean() - (answer == REFUSED).mean()),
        at_once=_at_once(at_s[in_time], latency_ms[in_time] * 1e-3),
    )


def _times(latency_ms: NDArray[np.float64]) -> Times:
    if not latency_ms.size:
        return Times(mean=np.nan, p50=np.nan, p99=np.nan)
    p50, p99 = np.quantile(latency_ms, (0.5, 0.99))
    return Times(mean=float(latency_ms.mean()), p50=float(p50), p99=float(p99))


def _wrong(picture: NDArray[np.int64], wrong: NDArray[np.bool_]) -> float:
    """The mean over pictures of the share of their answers that were wrong."""
    if not picture.size:
        return float("nan")
    counts = np.bincount(picture)
    shares = np.bincount(picture, weights=wrong)[counts > 0] / counts[counts > 0]
    return float(shares.mean())


def _first(picture: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether none before it was for the same picture."""
    found = np.zeros(picture.size, bool)
    found[np.unique(picture, return_index=True)[1]] = True
    return found


def _at_once(begun_s: NDArray[np.float64], took_s: NDArray[np.float64]) -> int:
    """The most that had begun and not ended."""
    if not begun_s.size:
        return 0
    at = np.concatenate((begun_s, begun_s + took_s))
    steps = np.concatenate((np.ones(begun_s.size), -np.ones(begun_s.size)))
    return int(np.cumsum(steps[np.lexsort((steps, at))]).max())


def change(study: Study, before: str, after: str, of: Callable[[Figures], float]) -> Change | None:
    """Of one figure between two sides, round by round: the geometric mean of the ratios. None without a common round."""
    ours, theirs = study.of(after), study.of(before)
    pairs = [
        (of(figures(study.day, theirs[number])), of(figures(study.day, ours[number])))
        for number in sorted(ours.keys() & theirs)
    ]
    return None if not pairs else change_of(pairs)


def _ratio(before: float, after: float) -> float:
    if before == after:
        return 1.0
    return min(max(after / before, 1.0 / _MOST), _MOST) if before > 0.0 else _MOST


def change_of(pairs: Iterable[tuple[float, float]]) -> Change:
    """Of (before, after) of each round; ratios beyond 1 to 100 and 100 to 1 count as those."""
    known = list(pairs)
    ratios = [log(_ratio(before, after)) for before, after in known]
    mean, half = interval(ratios)
    return Change(
        before=median(before for before, _ in known),
        after=median(after for _, after in known),
        change=exp(mean) - 1.0,
        low=exp(mean - half) - 1.0,
        high=exp(mean + half) - 1.0,
        rounds=len(known),
    )
