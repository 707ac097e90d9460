"""One chart as inline SVG: axes with round ticks, lines, bars, a marked level, a shaded end, values to hover over.

Called by figures.py; styled by page.css. Not aware of: results, pages, what the values mean.
"""

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10

from msgspec import Struct

WIDTH, HEIGHT = 560.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 18.0, 30.0, 50.0
_NAMES = 50.0  # room at the right for the names of lines, or more if they are long
_LETTER = 7.0  # a letter of them, at most in the mean
_LABEL_GAP = 17.0  # between the names of two lines that end close to each other
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)

_STYLE = """text{font:12.5px system-ui,sans-serif;fill:#535c68}.end{text-anchor:end}.middle{text-anchor:middle}
.grid{stroke:#dfe3e8;fill:none}.base,.tick{stroke:#535c68;fill:none}.line{fill:none;stroke:#b9c2cd;stroke-width:2}
.hover rect{fill:none}
.main:not(path){fill:#1553b6}.second:not(path){fill:#9a4a00}.under:not(path){fill:#8a94a0}text.name{font-weight:600}"""
_COLOURS = (
    "#1553b6",
    "#9a4a00",
    "#1b7a3d",
    "#8a2be2",
    "#b3123b",
    "#00757f",
    "#6b6b00",
    "#535c68",
)  # of lines "s1", "s2" and so on

Point = tuple[float, float | None]  # None: a gap in the line


class Axis(Struct, frozen=True, kw_only=True):
    """A range of values, what is written beside it, and whether it is logarithmic."""

    low: float
    high: float
    ticks: list[tuple[float, str]]
    title: str
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends of the axis: 0 to 1."""
        if self.log:
            low, high, value = log10(self.low), log10(self.high), log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / (high - low), 0.0), 1.0)


def linear(low: float, high: float, title: str, label: Callable[[float], str], most: int = 6) -> Axis:
    """An axis from `low` to the round value at or above `high`, with at most so many steps of 1, 2 or 5."""
    span = high - low
    if span <= 0.0:
        span = abs(low) or 1.0
    step = _round_up(span / most)
    steps = ceil(span / step - 1e-9)
    ticks = [low + step * number for number in range(steps + 1)]
    return Axis(low=low, high=ticks[-1], ticks=[(tick, label(tick)) for tick in ticks], title=title)


def logarithmic(low: float, high: float, title: str, label: Callable[[float], str]) -> Axis:
    """An axis from the round value below `low`, which is above 0, to the one above `high`."""
    high = max(high, 2.0 * low)
    first, last = floor(log10(low) + 1e-9), ceil(log10(high) - 1e-9)
    last = max(last, first + 1)
    parts = (1, 2, 5) if last - first <= 2 else (1,)
    every = 1 if last - first <= 7 else 2
    values = [part * 10.0**power for power in range(first, last, every) for part in parts]
    values += [10.0**last] if (last - first) % every == 0 else []
    least = max((value for value in values if value <= low * (1 + 1e-9)), default=10.0**first)
    most = min((value for value in values if value >= high * (1 - 1e-9)), default=10.0**last)
    ticks = [(value, label(value)) for value in values if least <= value <= most]
    return Axis(low=least, high=most, ticks=ticks, title=f"{title} (log scale)", log=True)


def seconds(low: float, high: float, title: str, most: int = 6) -> Axis:
    """A time axis in seconds, minutes or hours, whose ends need not be round."""
    high = max(high, low + 1.0)
    step = next((step for step in _TIME_STEPS if (high - low) / step <= most), 0) or 86400 * ceil((high - low) / 86400 / most)
    ticks = [float(step * number) for number in range(ceil(low / step), floor(high / step) + 1)]
    return Axis(low=low, high=high, ticks=[(tick, _clock(tick, step)) for tick in ticks], title=title)


def _clock(value: float, step: int) -> str:
    if step >= 86400:
        return f"{value / 86400:g} d"
    if step >= 3600:
        return f"{value / 3600:g} h"
    return f"{value / 60:g} min" if step >= 60 else f"{value:g} s"


def _round_up(value: float) -> float:
    power = 10.0 ** floor(log10(value))
    return next(part * power for part in (1.0, 2.0, 5.0, 10.0) if value <= part * power * (1 + 1e-9))


class Chart:
    """Marks on two axes, drawn in the order in which they are added. `names`: whether its lines are named; `longest`: the
    characters of the longest name.
    """

    def __init__(self, x: Axis, y: Axis, *, names: bool = False, longest: int = 0) -> None:
        self.x = x
        self.y = y
        self._right = WIDTH - _RIGHT - (max(_NAMES, _LETTER * longest) if names else 0.0)
        self._marks: list[str] = []
        self._notes: list[str] = []  # text that nothing may cover
        self._hits: list[str] = []
        self._ends: list[tuple[float, str, str]] = []

    def line(self, points: Sequence[Point], name: str, style: str) -> None:
        """A line of this CSS class through the points, named at its right end if it has a name."""
        path: list[str] = []
        dots: list[str] = []  # points between gaps
        pen = "M"
        for number, (x, y) in enumerate(points):
            if y is None:
                pen = "M"
                continue
            path.append(f"{pen}{self._x(x):.1f} {self._y(y):.1f}")
            if pen == "M" and (number + 1 == len(points) or points[number + 1][1] is None):
                dots.append(f'<circle class="{style}" cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="3"/>')
            pen = "L"
        if path:
            self._marks += [f'<path class="line {style}" d="{"".join(path)}"/>', *dots]
            last = next(y for _, y in reversed(points) if y is not None)
            self._ends += [(self._y(last), name, style)] if name else []

    def dot(self, x: float, y: float, name: str, style: str) -> None:
        """A point of this CSS class with its name beside it."""
        left, top = self._x(x), self._y(y)
        self._marks.append(f'<circle class="{style}" cx="{left:.1f}" cy="{top:.1f}" r="4"/>')
        self._notes.append(f'<text class="name {style}" x="{left + 8:.1f}" y="{top + 4:.1f}">{escape(name)}</text>')

    def bar(self, low: float, high: float, value: float, text: str) -> None:
        """A bar from 0 up to the value, between two places on the x axis; `text` is shown when hovered over."""
        left, right, top = self._x(low), self._x(high), self._y(value)
        gap = min((right - left) * 0.1, 2.0)
        box = f'x="{left + gap:.1f}" y="{top:.1f}" width="{right - left - 2 * gap:.1f}" height="{HEIGHT - _BOTTOM - top:.1f}"'
        self._marks.append(f'<rect class="bar" {box}/>')
        self.hover(low, high, text)

    def level(self, value: float, text: str) -> None:
        """A horizontal line across the chart with its name on it."""
        y = self._y(value)
        self._marks.append(f'<path class="line level" d="M{_LEFT:g} {y:.1f}H{self._right:g}"/>')
        above = y - 6 if y > _TOP + 20 else y + 16
        self._notes.append(f'<text class="level" x="{_LEFT + 8:g}" y="{above:.1f}">{escape(text)}</text>')

    def shade(self, low: float, high: float, text: str) -> None:
        """A shaded part of the x axis; `text` is shown when hovered over."""
        left, right = self._x(low), self._x(high)
        box = f'x="{left:.1f}" y="{_TOP:g}" width="{right - left:.1f}" height="{HEIGHT - _TOP - _BOTTOM:g}"'
        self._marks.append(f'<rect class="shade" {box}><title>{escape(text)}</title></rect>')

    def mark(self, at: float, text: str) -> None:
        """A place on the x axis where something happened; `text` is shown when hovered over."""
        x, bottom = self._x(at), HEIGHT - _BOTTOM
        self._hits.append(
            f'<g class="mark"><path d="M{x:.1f} {_TOP:g}V{bottom:g}"/><circle cx="{x:.1f}" cy="{bottom:g}" r="5"/>'
            f"<title>{escape(text)}</title></g>"
        )

    def hover(self, low: float, high: float, text: str) -> None:
        """What is shown when this part of the x axis is hovered over."""
        left, right = self._x(low), self._x(high)
        self._hits.append(
            f'<rect x="{left:.1f}" y="{_TOP:g}" width="{max(right - left, 0.5):.1f}" height="{HEIGHT - _TOP - _BOTTOM:g}">'
            f"<title>{escape(text)}</title></rect>"
        )

    def svg(self, key: str, title: str, description: str) -> str:
        """The chart as an SVG element; `key` is unique on the page."""
        return (
            f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-labelledby="{key}-title {key}-desc">'
            f'<title id="{key}-title">{escape(title)}</title><desc id="{key}-desc">{escape(description)}</desc>'
            f"{self._axes()}{''.join(self._marks)}{''.join(self._notes)}{self._names()}"
            f'<g class="hover">{"".join(self._hits)}</g></svg>'
        )

    def _x(self, value: float) -> float:
        return _LEFT + self.x.share(value) * (self._right - _LEFT)

    def _y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - self.y.share(value) * (HEIGHT - _TOP - _BOTTOM)

    def _axes(self) -> str:
        right, bottom = self._right, HEIGHT - _BOTTOM
        parts = [f'<text class="axis" x="{_LEFT - 58:g}" y="14">{escape(self.y.title)}</text>']
        parts.append(f'<text class="axis end" x="{right:g}" y="{HEIGHT - 8:g}">{escape(self.x.title)}</text>')
        for value, label in self.y.ticks:
            y = self._y(value)
            parts.append(f'<path class="grid" d="M{_LEFT:g} {y:.1f}H{right:g}"/>')
            parts.append(f'<text class="end" x="{_LEFT - 7:g}" y="{y + 4:.1f}">{escape(label)}</text>')
        for value, label in self.x.ticks:
            x = self._x(value)
            parts.append(f'<path class="tick" d="M{x:.1f} {bottom:g}v5"/>')
            parts.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 19:g}">{escape(label)}</text>')
        parts.append(f'<path class="base" d="M{_LEFT:g} {bottom:g}H{right:g}"/>')
        return "".join(parts)

    def _names(self) -> str:
        """The names of the lines at their right ends, moved apart where they would overlap."""
        placed: list[str] = []
        ends = sorted(self._ends)
        room = HEIGHT - _BOTTOM + 4 - _LABEL_GAP * len(ends)
        free = 0.0
        for number, (y, name, style) in enumerate(ends):
            y = max(min(y + 4, room + _LABEL_GAP * (number + 1)), free)
            placed.append(f'<text class="name {style}" x="{self._right + 7:g}" y="{y:.1f}">{escape(name)}</text>')
            free = y + _LABEL_GAP
        return "".join(placed)


def standalone(svg: str) -> str:
    """A chart's element as a file. Its lines are grey but for those of the classes "s1" to "s8", which differ."""
    lines = "".join(
        [
            f".s{number}{{stroke:{colour}}}circle.s{number}{{fill:{colour}}}text.s{number}{{fill:{colour};stroke:none}}"
            for number, colour in enumerate(_COLOURS, 1)
        ]
    )
    style = f"<style>{_STYLE}{lines}</style>"
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{style}", 1) + "\n"


def sparkline(counts: Sequence[int], text: str) -> str:
    """A small histogram without axes for a table's cell."""
    most = max(max(counts, default=0), 1)
    width = 120.0 / max(len(counts), 1)
    bars = "".join(
        f'<rect class="bar" x="{number * width:.1f}" y="{28 - max(26 * times / most, 1):.1f}" '
        f'width="{width - 1:.1f}" height="{max(26 * times / most, 1):.1f}"/>'
        for number, times in enumerate(counts)
        if times
    )
    title = f"<title>{escape(text)}</title>"
    return f'<svg class="spark" viewBox="0 0 120 29" role="img" aria-label="{escape(text)}">{title}{bars}</svg>'
