"""Pictures of one day: what was asked and answered, how quickly, by how many cores, how rightly, and what was decided.

Called by page.py. Not aware of: how a chart is drawn (lab/report/chart.py), what else is on the page.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from math import ceil, isnan

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.casestudy.record import DayRecord, Turn
from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import Axis, Chart, Point, linear, logarithmic, seconds
from dlproxy.lab.report.figures import Figure

HEADROOM = 1.05
SALE = "the sale"
STYLES = ("second", "main")

Floats = NDArray[np.float64]


class Seconds(Struct):
    """By the second in which requests were due; NaN where there is nothing to tell."""

    sent: Floats
    in_time: Floats
    p99_ms: Floats
    right: Floats
    cores: Floats


def by_second(day: DayRecord, turn: Turn) -> Seconds:
    """Each array has a value for each second of the day."""
    count = ceil(day.length_s)
    second = np.minimum(np.array(day.at_s).astype(np.int64), count - 1)
    latency_ms, answer, right = np.array(turn.latency_ms), np.array(turn.answer), np.array(day.right)
    answered = answer >= 0
    found = [[latency_ms[answered & (second == one)], (answer == right)[answered & (second == one)]] for one in range(count)]
    cores = np.full(count, np.nan)
    cores[: len(turn.cores[:count])] = turn.cores[:count]
    return Seconds(
        sent=np.bincount(second, minlength=count).astype(np.float64),
        in_time=np.bincount(second[answered & (latency_ms <= day.objective_ms)], minlength=count).astype(np.float64),
        p99_ms=np.array([np.quantile(times, 0.99) if times.size else np.nan for times, _ in found]),
        right=np.array([rights.mean() if rights.size else np.nan for _, rights in found]),
        cores=cores,
    )


def pictures(day: DayRecord, turns: Mapping[str, Turn]) -> list[Figure]:
    """Of the days of two sides, by their names: the earlier one, and the one that it is compared with."""
    told = {side: by_second(day, turn) for side, turn in turns.items()}
    first, *_, last = told.values()
    most = float(first.sent.max()) * HEADROOM
    return [
        _figure(
            day,
            "answered",
            f"In the sale {_sale_share(day, last)} of what came was answered in time, {_sale_share(day, first)} before",
            linear(0.0, most, "requests per second", wording.number),
            {"asked": (first.sent, "under"), **_lines(told, lambda one: one.in_time)},
            lambda values: wording.rate(values),
            f"Answers within {wording.duration(day.objective_ms)}, by the second in which they were asked for.",
            turns,
        ),
        _figure(
            day,
            "p99",
            "The slowest percent",
            _times_axis([one.p99_ms for one in told.values()]),
            _lines(told, lambda one: one.p99_ms),
            wording.duration,
            "99th percentile of the answers, by the second in which they were asked for.",
            level=(day.objective_ms, "objective"),
        ),
        _figure(
            day,
            "cores",
            "Cores that the servers had busy",
            linear(0.0, day.cores * HEADROOM, "cores", wording.number),
            _lines(told, lambda one: one.cores),
            wording.number,
            "Computing is not all useful: answers that came too late are in here, too.",
        ),
        _figure(
            day,
            "right",
            "Answers with the right category",
            linear(min(0.5, _lowest(told)), 1.0, "share of the answers", lambda value: f"{value:.0%}"),
            _lines(told, lambda one: one.right),
            lambda value: wording.share(value, 1.0),
            "Of what was answered, in time or not.",
        ),
    ]


def _sale_share(day: DayRecord, told: Seconds) -> str:
    since, until = round(day.sale_s[0]), round(day.sale_s[1])
    return wording.share(round(float(told.in_time[since:until].sum() / max(told.sent[since:until].sum(), 1.0)), 3), 1.0)


def _lowest(told: Mapping[str, Seconds]) -> float:
    return float(np.floor(min(np.nanmin(one.right) for one in told.values()) * 10.0) / 10.0)


def _lines(told: Mapping[str, Seconds], of: Callable[[Seconds], Floats]) -> dict[str, tuple[Floats, str]]:
    return {side: (of(one), style) for (side, one), style in zip(told.items(), STYLES, strict=False)}


def _times_axis(values: list[Floats]) -> Axis:
    known = np.concatenate(values)
    known = known[~np.isnan(known)]
    return logarithmic(float(max(known.min(), 0.1)), float(known.max()), "milliseconds", wording.number)


def _figure(
    day: DayRecord,
    key: str,
    title: str,
    y: Axis,
    lines: Mapping[str, tuple[Floats, str]],
    said: Callable[[float], str],
    caption: str,
    turns: Mapping[str, Turn] | None = None,
    level: tuple[float, str] | None = None,
) -> Figure:
    chart = Chart(seconds(0.0, day.length_s, "time"), y, names=True, longest=max(map(len, lines)))
    chart.shade(*day.sale_s, SALE)
    if level is not None:
        chart.level(*level)
    for name, (values, style) in lines.items():
        points: list[Point] = [(second + 0.5, None if isnan(value) else float(value)) for second, value in enumerate(values)]
        chart.line(points, name, style)
    for since, until in pairwise(range(ceil(day.length_s) + 1)):
        known = {name: values[since] for name, (values, _) in lines.items()}
        told = ", ".join(f"{name} {said(float(value))}" for name, value in known.items() if not isnan(value))
        chart.hover(float(since), float(until), f"{since} s: {told}")
    for turn in list((turns or {}).values())[-1:]:
        for at_s, model, words in turn.decisions:
            if 0.0 <= at_s <= day.length_s:
                chart.mark(at_s, f"{at_s:.0f} s, {model}: {words}")
    return Figure(title=title, svg=chart.svg(key, title, caption), caption=caption)
