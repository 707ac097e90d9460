"""The charts of a result: which values, on which axes, under a title that says what one sees.

Called by html.py. Not aware of: how a chart is drawn (chart.py), what else is on the page.
"""

from collections.abc import Callable
from math import ceil, floor, log10
from statistics import median

import numpy as np
from msgspec import Struct

from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import Axis, Chart, linear, logarithmic, seconds
from dlproxy.lab.report.result import Result, Second

MOST_POINTS = 300  # per line: more cannot be told apart on a screen
MOST_BARS = 40
_FEW_BARS = 8
_LOG_FROM = 20.0  # a latency axis is logarithmic where the largest is so many times the smallest
_MOST_NINES = 7
_KEPT_UP = 0.95  # part of the requests whose answers came before the end
_HEADROOM = 1.03  # so that no line runs along the upper edge
_MUCH = 0.98  # part of the requests; if as many ended within whole seconds of the run, the rest is not drawn over time


class Figure(Struct, kw_only=True):
    """A chart with its title and a remark below it (may be empty)."""

    title: str
    svg: str
    caption: str


def figures(result: Result) -> list[Figure]:
    """Every chart that the result has values for."""
    drawn = []
    if result.ok and wording.histogram_of(result).count:
        drawn.append(_distribution(result))
    points = _points(result)
    if points:
        if any(point.p99_ms is not None for point in points):
            drawn.append(_latency(result, points))
        drawn.append(_rate(result, points))
    if sum(result.batch_sizes.values()) > 0:
        drawn.append(_batches(result.batch_sizes))
    return drawn


def _distribution(result: Result) -> Figure:
    histogram = wording.histogram_of(result)
    nines_end = min(max(log10(histogram.count), 2.0), _MOST_NINES)
    places = np.linspace(0.0, nines_end, MOST_POINTS)
    latencies = [histogram.quantile_s(1.0 - 10.0**-place) * 1e3 for place in places]
    latencies[-1] = histogram.max_s * 1e3 if histogram.count <= 10**_MOST_NINES else latencies[-1]
    ticks = [(0.0, "0"), (log10(2.0), "50"), (1.0, "90")]
    ticks += [(float(nines), f"99.{'9' * (nines - 2)}".rstrip(".")) for nines in range(2, floor(nines_end) + 1)]
    x = Axis(low=0.0, high=nines_end, ticks=ticks, title="percent of the answers that took at most this long")
    chart = Chart(x, _latency_axis([*latencies, *_objective(result)]))
    _mark_objective(chart, result)
    chart.line(list(zip(places.tolist(), latencies, strict=True)), "", "main")
    for at, end, latency in zip(places, [*places[1:], nines_end], latencies, strict=True):
        chart.hover(float(at), float(end), f"{_percent(float(at))} took at most {wording.duration(latency)}")
    p50, p99, most = (wording.duration(result.latency_ms.get(name, 0.0)) for name in ("p50", "p99", "max"))
    if result.ok == 1:
        title = f"The only answer took {most}"
    else:
        title = f"Half of the answers took at most {p50}, 99 % at most {p99}, the slowest {most}"
    return Figure(title=title, svg=chart.svg("distribution", title, "Latency at each percentile of the answers."), caption="")


def _percent(nines: float) -> str:
    return f"{100 * (1 - 10.0**-nines):.{max(ceil(nines), 1)}f} %"


def _latency_axis(values_ms: list[float]) -> Axis:
    """An axis for latencies: from 0, or logarithmic if they differ much."""
    known = [value for value in values_ms if value > 0.0] or [1.0]
    low, high = min(known), max(known)
    if high / low > _LOG_FROM:
        return logarithmic(low, high, "latency", wording.duration)
    return linear(0.0, high * _HEADROOM, "latency", wording.duration)


def _objective(result: Result) -> list[float]:
    return [] if result.objective_ms is None else [result.objective_ms]


def _mark_objective(chart: Chart, result: Result) -> None:
    if result.objective_ms is not None:
        chart.level(result.objective_ms, f"objective {wording.duration(result.objective_ms)}")


class _Span(Struct, kw_only=True):
    """One or more seconds of the timeline as a point of a line; rates per second."""

    at_s: float
    length_s: float
    sent: float
    ok: float
    failed: float
    p50_ms: float | None
    p99_ms: float | None

    @property
    def middle_s(self) -> float:
        return self.at_s + self.length_s / 2

    @property
    def when(self) -> str:
        start = f"{self.at_s:,.0f}"
        return f"{start} s" if self.length_s == 1.0 else f"{start} to {self.at_s + self.length_s:,.0f} s"


def _points(result: Result) -> list[_Span]:
    """The timeline without holes, at most MOST_POINTS of it."""
    drawn = _drawn(result)
    if not drawn:
        return []
    first, end = floor(drawn[0].at_s), floor(drawn[-1].at_s) + 1
    every = ceil((end - first) / MOST_POINTS)
    spans: dict[int, list[Second]] = {}
    for second in drawn:
        spans.setdefault((floor(second.at_s) - first) // every, []).append(second)
    starts = range(first, end, every)
    return [_span(spans.get(number, []), start, min(every, end - start)) for number, start in enumerate(starts)]


def _drawn(result: Result) -> list[Second]:
    """The whole seconds of the run; all there are, if much happened in others, as when a backlog was answered after the end."""
    whole = [second for second in result.timeline if second.at_s >= 0.0 and second.at_s + 1.0 <= result.duration_s]
    ended = sum(second.ok + second.failed for second in whole)
    return whole if whole and ended >= _MUCH * wording.finished(result) else result.timeline


def _span(inside: list[Second], at_s: int, every: int) -> _Span:
    answered = [second for second in inside if second.ok]
    return _Span(
        at_s=float(at_s),
        length_s=float(every),
        sent=sum(second.sent for second in inside) / every,
        ok=sum(second.ok for second in inside) / every,
        failed=sum(second.failed for second in inside) / every,
        p50_ms=median(second.p50_ms for second in answered) if answered else None,
        p99_ms=max(second.p99_ms for second in answered) if answered else None,
    )


def _time_chart(result: Result, points: list[_Span], y: Axis) -> Chart:
    end_s = points[-1].at_s + points[-1].length_s
    chart = Chart(seconds(min(points[0].at_s, 0.0), max(end_s, result.duration_s), "time since the start"), y, names=True)
    if end_s > result.duration_s:
        chart.shade(result.duration_s, end_s, "after the end, when only late answers came")
    return chart


def _latency(result: Result, points: list[_Span]) -> Figure:
    known = [value for point in points for value in (point.p50_ms, point.p99_ms) if value is not None]
    chart = _time_chart(result, points, _latency_axis([*known, *_objective(result)]))
    _mark_objective(chart, result)
    chart.line([(point.middle_s, point.p50_ms) for point in points], "p50", "second")
    chart.line([(point.middle_s, point.p99_ms) for point in points], "p99", "main")
    for point in points:
        if point.p50_ms is not None and point.p99_ms is not None:
            told = f"p50 {wording.duration(point.p50_ms)}, p99 {wording.duration(point.p99_ms)}"
        else:
            told = "no answers"
        chart.hover(point.at_s, point.at_s + point.length_s, f"{point.when}: {told}")
    title = _latency_title(_drawn(result))
    caption = ""
    if points[0].length_s > 1.0:
        caption = f"Each point covers {points[0].length_s:g} s: the median of their p50, and the largest p99 of one second."
    return Figure(title=title, svg=chart.svg("latency", title, "Median and 99th percentile over time."), caption=caption)


def _latency_title(drawn: list[Second]) -> str:
    known = [second for second in drawn if second.ok]
    worst = max(known, key=lambda second: second.p99_ms)
    least_ms, usual_ms = min(second.p99_ms for second in known), median(second.p99_ms for second in known)
    low, usual, high = wording.duration(least_ms), wording.duration(usual_ms), wording.duration(worst.p99_ms)
    if len(known) == 1:
        return f"p99 was {high}"
    if worst.p99_ms > 2.0 * usual_ms:
        return f"p99 was {usual} in the median second and rose to {high} at {worst.at_s:,.0f} s"
    return f"p99 stayed at {high}" if low == high else f"p99 stayed between {low} and {high} in every second"


def _rate(result: Result, points: list[_Span]) -> Figure:
    most = max(max(point.sent, point.ok, point.failed) for point in points)
    chart = _time_chart(result, points, linear(0.0, most * _HEADROOM, "requests per second", _short(most)))
    chart.line([(point.middle_s, point.sent) for point in points], "sent", "under")
    chart.line([(point.middle_s, point.ok) for point in points], "ok", "main")
    if result.failed:
        chart.line([(point.middle_s, point.failed) for point in points], "failed", "bad")
    for point in points:
        sent, ok, failed = map(wording.number, (point.sent, point.ok, point.failed))
        told = f"sent {sent}, ok {ok}, failed {failed} per second"
        chart.hover(point.at_s, point.at_s + point.length_s, f"{point.when}: {told}")
    title = _rate_title(result, _drawn(result))
    parts = [f"Each point is the mean of {points[0].length_s:g} s."] if points[0].length_s > 1.0 else []
    if points[-1].at_s + points[-1].length_s > result.duration_s:
        parts.append("Shaded: after the end, when only late answers came.")
    elif outside := wording.finished(result) - sum(second.ok + second.failed for second in _drawn(result)):
        parts.append(f"{wording.count(outside, 'request')} that ended after the last whole second: not shown.")
    caption = " ".join(parts)
    return Figure(title=title, svg=chart.svg("rate", title, "Requests sent, answered and failed per second."), caption=caption)


def _rate_title(result: Result, drawn: list[Second]) -> str:
    if not result.ok:
        return "No request succeeded"
    if result.failed:
        worst = max(drawn, key=lambda second: second.failed)
        most = f"at most {worst.failed:,} in one second (at {worst.at_s:,.0f} s)"
        return f"{wording.count(result.failed, 'request')} failed, {most}"
    ended = sum(second.ok for second in result.timeline if second.at_s < result.duration_s)
    if ended < _KEPT_UP * result.sent:
        return f"{result.sent - ended:,} of {wording.count(result.sent, 'request')} were not answered when the run ended"
    return f"The answers kept up with {wording.number(result.offered_rps)} requests per second"


def _short(most: float) -> Callable[[float], str]:
    """How an axis up to `most` is written: 1,000 or 20k or 1.5M."""
    sizes = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
    size, letter = next(((size, letter) for size, letter in sizes if most >= 10 * size), (1.0, ""))
    return lambda value: f"{wording.number(value / size)}{letter}" if value else "0"


def _batches(batch_sizes: dict[int, int]) -> Figure:
    total = sum(batch_sizes.values())
    low, high = min(batch_sizes), max(batch_sizes)
    every = ceil((high - low + 1) / MOST_BARS)
    bins: dict[int, int] = {}
    for size, times in batch_sizes.items():
        start = low + (size - low) // every * every
        bins[start] = bins.get(start, 0) + times
    shares = {start: 100.0 * times / total for start, times in sorted(bins.items())}
    edge = max(shares) + every
    chart = Chart(
        _sizes_axis(low, edge, every), linear(0.0, max(shares.values()), "share of the batches", lambda value: f"{value:g} %")
    )
    for start, percent in shares.items():
        name = f"size {start}" if every == 1 else f"size {start} to {start + every - 1}"
        chart.bar(
            start, start + every, percent, f"{name}: {wording.count(bins[start], 'batch')}, {wording.share(percent, 100.0)}"
        )
    mean = sum(size * times for size, times in batch_sizes.items()) / total
    title = f"The mean batch size is {wording.number(mean)}, the largest batch {high:,}"
    if low == high:
        title = f"Every batch is of size {low:,}"
    caption = f"Each bar covers {every} sizes." if every > 1 else ""
    return Figure(title=title, svg=chart.svg("batches", title, "How often each batch size occurred."), caption=caption)


def _sizes_axis(low: int, edge: int, every: int) -> Axis:
    """Ticks below the middle of single bars, or at the edges of grouped ones; few bars do not fill the width."""
    bars = (edge - low) // every
    step = every * ceil(bars / 10)
    shift = 0.5 if every == 1 else 0.0
    ticks = [(start + shift, f"{start:,}") for start in range(low, edge, step)]
    margin = max(_FEW_BARS - bars, 0) / 2
    return Axis(low=low - margin, high=edge + margin, ticks=ticks, title="batch size")
