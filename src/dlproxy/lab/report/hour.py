"""The last hour of a running server as one HTML page, for a colleague or a review: models, charts, events, slow requests.

Called by cli/report.py with what the control port told. Not aware of: HTTP, how charts are drawn (chart.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from msgspec import Struct

from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import Axis, Chart, Point, linear, logarithmic
from dlproxy.lab.report.figures import Figure
from dlproxy.lab.report.page import charts, header, page, section, table, text, tiles, write

CHARTED = 6  # models that have charts, the most asked
MOST_EVENTS = 200
MOST_REQUESTS = 20
LOG_FROM = 20.0  # a latency axis is logarithmic where the largest is so many times the smallest
STEPS_S = (1, 5, 10, 30, 60, 120, 300, 600, 900)  # from one time that is written to the next

Told: TypeAlias = Mapping[str, Any]


class Hour(Struct, kw_only=True):
    """What the control port told. `now`: all that the dashboard shows; `histories`: of the models that were asked, the most
    asked first; `requests`: that were slow or failed; `why_not`: why there are none, if the server does not tell.
    """

    where: str
    minutes: int
    now: Told
    histories: Sequence[Told]
    requests: Sequence[Told] = ()
    why_not: str = ""

    @property
    def since_at(self) -> float:
        """In seconds since 1970; not before the server was started."""
        asked_at: float = self.now["at"] - self.minutes * 60.0
        return max(asked_at, float(self.now["server"]["started_at"]))

    @property
    def seconds(self) -> float:
        return max(float(self.now["at"]) - self.since_at, 1.0)


def save_html(hour: Hour, path: Path) -> str:
    """Write the page; returns its headline. Raises ResultError if the file cannot be written."""
    headline = _headline(hour)
    write(html(hour, headline), path)
    return headline


def html(hour: Hour, headline: str) -> str:
    """The page as text."""
    since, until = _local(hour.since_at), _local(hour.now["at"])
    when = f"{since:%Y-%m-%d %H:%M} to {until:%H:%M} ({until:%Z})"
    server = hour.now["server"]
    what = f"{hour.where}, {when}; dlproxy {server['version']} on {wording.count(server['cores'], 'core')}"
    return page(
        f"dlproxy, {when}",
        [
            header(what, headline),
            _alarms(hour),
            _key_figures(hour),
            section("Models", _models(hour)),
            *_charted(hour),
            _slow(hour),
            _happened(hour),
            _upstreams(hour.now["upstreams"]),
            _tenants(hour.now["tenants"]),
        ],
    )


# In one sentence


def _headline(hour: Hour) -> str:
    answered, refused, failed = _totals(hour.histories)
    ended = answered + refused + failed
    if not ended:
        return f"Nothing was asked in the last {wording.duration(hour.seconds * 1e3)}."
    parts = [f"{wording.count(round(answered), 'request')} answered in {wording.duration(hour.seconds * 1e3)}"]
    parts += [f"{wording.share(number, ended)} {what}" for number, what in ((refused, "refused"), (failed, "failed")) if number]
    missed = [name for name, model in hour.now["models"].items() if _is_missed(model)]
    if missed:
        parts.append(f"{_names(missed)} missed {'its objective' if len(missed) == 1 else 'their objectives'}")
    elif any((model.get("objective") or {}).get("met") is not None for model in hour.now["models"].values()):
        parts.append("every objective was met")
    return "; ".join(parts) + "."


def _is_missed(model: Told) -> bool:
    objective = model.get("objective") or {}
    met, share = objective.get("met"), objective.get("share", 0.0)
    return met is not None and met < share


def _names(names: Sequence[str]) -> str:
    told = [name.removesuffix("/1") for name in names[:3]] + ([f"{len(names) - 3} more"] if len(names) > 3 else [])
    return " and ".join(filter(None, (", ".join(told[:-1]), told[-1])))


def _totals(histories: Iterable[Told]) -> tuple[float, float, float]:
    """Requests that were answered, refused and failed."""
    sums = [[_sum(one, name) for name in ("rate", "rejects_rate", "failures_rate")] for one in histories]
    answered, refused, failed = [sum(column) for column in zip(*sums, strict=True)] if sums else (0.0, 0.0, 0.0)
    return answered, refused, failed


def _sum(history: Told, column: str) -> float:
    """Of a rate, over the time."""
    return float(sum(value * step_s for value, step_s in zip(history[column], history["step_s"], strict=True)))


def _known(history: Told, column: str) -> list[float]:
    return [value for value in history[column] if value is not None]


def _alarms(hour: Hour) -> str:
    said = [f"{name}: {model['alarm']}" for name, model in hour.now["models"].items() if model.get("alarm")]
    said += [f"{name}: {model['reason']}" for name, model in hour.now["models"].items() if model["state"] == "failed"]
    return (
        section("Wrong now", "<ul>" + "".join(f"<li>{text(one)}</li>" for one in said) + "</ul>", style="warnings")
        if said
        else ""
    )


def _key_figures(hour: Hour) -> str:
    answered, refused, failed = _totals(hour.histories)
    server, models = hour.now["server"], hour.now["models"].values()
    up = sum(model["state"] == "up" for model in models)
    memory = f"{server['memory_bytes'] / 2**20:,.0f} MiB"
    most = max((max(one["rate"], default=0.0) for one in hour.histories), default=0.0)
    return tiles(
        [
            ("answered", wording.rate(answered / hour.seconds), f"at most {wording.rate(most)} of one model"),
            ("refused", f"{refused:,.0f}", "for lack of time or room, or by a quota"),
            ("failed", f"{failed:,.0f}", "in the model, or with no instance up"),
            ("models up", f"{up:,}", f"of {len(models):,}"),
            ("cores busy now", wording.number(server["cpu"]), f"of {server['cores']}; {memory} of memory"),
        ]
    )


# Models


def _models(hour: Hour) -> str:
    known = {f"{one['name']}/{one['version']}": one for one in hour.histories}
    names = [*known, *sorted(hour.now["models"].keys() - known.keys())]
    rows = [_model(name, hour.now["models"].get(name), known.get(name)) for name in names]
    headings = (
        "model",
        "state",
        "answered",
        "refused",
        "failed",
        "p99, mostly",
        "p99, worst",
        "batch",
        "objective",
        "budget left",
    )
    return table(headings, rows)


def _model(name: str, model: Told | None, history: Told | None) -> list[str]:
    cells = [name.removesuffix("/1"), "gone" if model is None else model["state"]]
    if history is None:
        return [text(cell) for cell in [*cells, "0", "0", "0", "", "", "", *_objective(model)]]
    p99_s, rows = _known(history, "p99_s"), _known(history, "batch_rows")
    cells += [f"{_sum(history, column):,.0f}" for column in ("rate", "rejects_rate", "failures_rate")]
    cells += [wording.duration(median(p99_s) * 1e3), wording.duration(max(p99_s) * 1e3)] if p99_s else ["", ""]
    cells += [wording.number(median(rows)) if rows else "", *_objective(model)]
    return [text(cell) for cell in cells]


def _objective(model: Told | None) -> list[str]:
    objective = None if model is None else model.get("objective")
    if objective is None:
        return ["", ""]
    aim = f"{wording.share(objective['share'], 1.0)} in {wording.duration(objective['seconds'] * 1e3)}"
    if objective["met"] is None:
        return [aim, ""]
    left = objective["budget_left"]
    return [
        f"{aim}: {wording.share(objective['met'], 1.0)}",
        "" if left is None else wording.share(left, 1.0) if left > 0 else "none",
    ]


# Charts


def _charted(hour: Hour) -> list[str]:
    """A heading and four charts for each of the most asked."""
    drawn = []
    for number, history in enumerate(hour.histories[:CHARTED]):
        name = f"{history['name']}/{history['version']}"
        events = [event for event in _events(hour) if event["model"] == history["name"]]
        objective = (hour.now["models"].get(name) or {}).get("objective")
        figures = [
            _rate(hour, history, events, number),
            _latency(hour, history, events, number, objective),
            _busy(hour, history, events, number),
            _batches(hour, history, events, number),
        ]
        drawn.append(f"<h2>{text(name.removesuffix('/1'))}</h2>\n{charts(figures)}")
    return drawn


def _time(hour: Hour) -> Axis:
    since, until = _local(hour.since_at), _local(hour.now["at"])
    step_s = next((step_s for step_s in STEPS_S if hour.seconds / step_s <= 6), STEPS_S[-1])
    mark = since.replace(minute=0, second=0, microsecond=0)
    ticks = []
    while mark <= until:
        ticks += [(mark.timestamp(), f"{mark:%H:%M:%S}" if step_s < 60 else f"{mark:%H:%M}")] if mark >= since else []
        mark += timedelta(seconds=step_s)
    return Axis(low=hour.since_at, high=hour.now["at"], ticks=ticks, title=f"time of day ({until:%Z})")


def _local(at: float) -> datetime:
    return datetime.fromtimestamp(at).astimezone()


def _line(hour: Hour, history: Told, values: Sequence[float | None]) -> list[Point]:
    """What lies on the time axis."""
    points = zip(history["at"], values, strict=True)
    return [(at, value) for at, value in points if hour.since_at <= at <= hour.now["at"]]


def _marked(chart: Chart, events: Sequence[Told], history: Told, told: Sequence[str]) -> None:
    """What is told when a point is hovered over, and the events."""
    ends, steps = history["at"], history["step_s"]
    for at, step_s, words in zip(ends, steps, told, strict=True):
        chart.hover(at - step_s, at, f"{datetime.fromtimestamp(at):%H:%M:%S}: {words}")
    for event in events:
        chart.mark(event["at"], f"{datetime.fromtimestamp(event['at']):%H:%M:%S}: {wording.plain(event['words'])}")


def _rate(hour: Hour, history: Told, events: Sequence[Told], number: int) -> Figure:
    bad = [refused + failed for refused, failed in zip(history["rejects_rate"], history["failures_rate"], strict=True)]
    most = max([*history["rate"], *bad], default=0.0)
    chart = Chart(_time(hour), linear(0.0, most or 1.0, "requests per second", wording.number), names=any(bad), longest=8)
    chart.line(_line(hour, history, history["rate"]), "answered" if any(bad) else "", "main")
    if any(bad):
        chart.line(_line(hour, history, bad), "not", "bad")
    told = [f"{wording.rate(rate)}, {wording.rate(not_)} not" for rate, not_ in zip(history["rate"], bad, strict=True)]
    _marked(chart, events, history, told)
    refused, failed = _sum(history, "rejects_rate"), _sum(history, "failures_rate")
    title = f"{_sum(history, 'rate'):,.0f} answered, {refused:,.0f} refused, {failed:,.0f} failed"
    return Figure(title=title, svg=chart.svg(f"rate-{number}", title, "Requests per second over the time."), caption="")


def _latency(hour: Hour, history: Told, events: Sequence[Told], number: int, objective: Told | None) -> Figure:
    known_ms = [value * 1e3 for column in ("p50_s", "p99_s") for value in _known(history, column)] or [1.0]
    aim_ms = [objective["seconds"] * 1e3] if objective else []
    low, high = min(known_ms), max([*known_ms, *aim_ms])
    y = (logarithmic if high / low > LOG_FROM else _from_zero)(low, high, "latency", wording.duration)
    chart = Chart(_time(hour), y, names=True, longest=4)
    if aim_ms:
        chart.level(aim_ms[0], f"objective {wording.duration(aim_ms[0])}")
    for column, name, style in (("p50_s", "p50", "under"), ("p99_s", "p99", "main")):
        chart.line(_line(hour, history, [None if value is None else value * 1e3 for value in history[column]]), name, style)
    told = [
        "nothing answered" if p50 is None else f"p50 {wording.duration(p50 * 1e3)}, p99 {wording.duration(p99 * 1e3)}"
        for p50, p99 in zip(history["p50_s"], history["p99_s"], strict=True)
    ]
    _marked(chart, events, history, told)
    p99_s = _known(history, "p99_s")
    title = (
        f"p99 was mostly {wording.duration(median(p99_s) * 1e3)}, at worst {wording.duration(max(p99_s) * 1e3)}"
        if p99_s
        else "Latency"
    )
    caption = "Quantiles are as near as the histograms' buckets tell."
    return Figure(title=title, svg=chart.svg(f"latency-{number}", title, "Latency over the time."), caption=caption)


def _from_zero(low: float, high: float, title: str, label: Any) -> Axis:
    return linear(0.0, high * 1.03, title, label)


def _busy(hour: Hour, history: Told, events: Sequence[Told], number: int) -> Figure:
    percent = [value * 100.0 for value in history["utilisation"]]
    chart = Chart(_time(hour), linear(0.0, 100.0, "percent of the instances' time", wording.number))
    chart.line(_line(hour, history, percent), "", "main")
    _marked(chart, events, history, [f"{busy:.0f} % busy" for busy in percent])
    title = f"Busy for {sum(percent) / max(len(percent), 1):.0f} % of the time, at most {max(percent, default=0.0):.0f} %"
    return Figure(title=title, svg=chart.svg(f"busy-{number}", title, "Utilisation over the time."), caption="")


def _batches(hour: Hour, history: Told, events: Sequence[Told], number: int) -> Figure:
    rows, queued = _known(history, "batch_rows"), history["queued"]
    most = max([*rows, *queued], default=0.0)
    chart = Chart(_time(hour), linear(0.0, most or 1.0, "rows, requests", wording.number), names=True, longest=7)
    chart.line(_line(hour, history, queued), "queued", "second")
    chart.line(_line(hour, history, history["batch_rows"]), "batches", "main")
    told = [
        f"{wording.count(round(waiting), 'request')} queued, batches of {wording.number(size or 0.0)} rows"
        for waiting, size in zip(queued, history["batch_rows"], strict=True)
    ]
    _marked(chart, events, history, told)
    usual = wording.number(median(rows)) if rows else ""
    mostly = f"Batches of mostly {usual} {'row' if usual == '1' else 'rows'}" if rows else "No batches"
    title = f"{mostly}, at most {wording.count(round(max(queued, default=0.0)), 'request')} queued"
    return Figure(title=title, svg=chart.svg(f"batches-{number}", title, "Batches and the queue over the time."), caption="")


# What happened


def _events(hour: Hour) -> list[Told]:
    """The newest first."""
    return [event for event in reversed(hour.now["events"]) if event["at"] >= hour.since_at]


def _happened(hour: Hour) -> str:
    events = _events(hour)
    if not events:
        return section("What happened", "<p>Nothing came, went, or was changed.</p>")
    rows = [
        (f"{datetime.fromtimestamp(event['at']):%H:%M:%S}", text(event["model"]), text(event["kind"]), text(event["words"]))
        for event in events[:MOST_EVENTS]
    ]
    more = f"<p>{len(events) - MOST_EVENTS:,} older ones are left out.</p>" if len(events) > MOST_EVENTS else ""
    return section("What happened", table(("time", "model", "kind", "what"), rows) + more, style="words happened")


def _slow(hour: Hour) -> str:
    if hour.why_not:
        return section("Slow and failed requests", f"<p>{text(hour.why_not)}</p>")
    recent = [one for one in hour.requests if one["at"] >= hour.since_at]
    failed = [one for one in recent if one["outcome"] == "failed"]
    slow = sorted((one for one in recent if one["outcome"] != "failed"), key=lambda one: -one["seconds"])
    if not recent:
        return section("Slow and failed requests", "<p>None is kept.</p>")
    rows = [_request(one) for one in [*slow[:MOST_REQUESTS], *failed[:MOST_REQUESTS]]]
    headings = ("request", "time", "model", "took", "mostly in", "why")
    return section("Slow and failed requests", table(headings, rows), style="words happened")


def _request(one: Told) -> list[str]:
    phases = sorted(one["phases"].items(), key=lambda pair: -pair[1])[:2]
    where = ", ".join(f"{name} {wording.duration(seconds * 1e3)}" for name, seconds in phases if seconds > 0.0)
    why = "; ".join(cause["words"] for cause in one["causes"][:3])
    if one["failure"]:
        why = "; ".join(filter(None, (one["failure"]["message"], why)))
    name = one["request_id"] or one["id"]
    took = wording.duration(one["seconds"] * 1e3)
    return [text(cell) for cell in (name, f"{datetime.fromtimestamp(one['at']):%H:%M:%S}", one["model"], took, where, why)]


def _upstreams(upstreams: Sequence[Told]) -> str:
    if not upstreams:
        return ""
    rows = [(text(one["model"]), text(one["address"]), text(one["state"]), f"{one['busy']:,}") for one in upstreams]
    return section("Other servers now", table(("model", "address", "state", "batches under way"), rows))


def _tenants(tenants: Sequence[Told]) -> str:
    if not tenants:
        return ""
    rows = [(text(one["name"]), text(one["of"]), f"{one['admitted']:,}", f"{one['refused']:,}") for one in tenants]
    return section("Quotas, since the start", table(("who", "is a", "admitted", "refused"), rows))
