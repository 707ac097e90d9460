"""An evaluation as one HTML page: key figures, charts of scalability and of each fault, and the five groups as tables.

Called by cli/evaluate.py. Not aware of: how charts are drawn, what the page looks like (lab/report).
"""

from math import ceil
from pathlib import Path

from dlproxy.lab.evaluate.evaluation import Evaluation, FaultReport, Series
from dlproxy.lab.evaluate.wording import Group, groups, headline
from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import Axis, Chart, linear, logarithmic, seconds
from dlproxy.lab.report.figures import Figure
from dlproxy.lab.report.page import bullets, charts, header, page, section, table, text, tiles, write

_CURVE = 60  # points of a law that is drawn


def save_html(found: Evaluation, path: Path) -> None:
    """Write the page. Raises ResultError if the file cannot be written."""
    write(html(found), path)


def html(found: Evaluation) -> str:
    """The page as text."""
    length = wording.duration(found.seconds * 1e3)
    said = [*found.warnings, *(["The evaluation was stopped early."] if found.interrupted else [])]
    curves = [
        _curve(name, series)
        for name, series in (("clients", found.clients), ("instances", found.by_instances), ("cores", found.by_cores))
        if len(series.points) > 1
    ]
    return page(
        f"evaluation of {found.target}",
        [
            header(f"evaluation of {wording.plain(found.target)}, {length}, started {found.started}", headline(found)),
            section("Warnings", bullets(said), style="warnings") if said else "",
            tiles(_tiles(found)),
            charts([*curves, *(_timeline(number, report) for number, report in enumerate(found.faults) if report.timeline)]),
            *(_group(number, group) for number, group in enumerate(groups(found), start=1)),
        ],
    )


def _tiles(found: Evaluation) -> list[tuple[str, str, str]]:
    shown = []
    if found.ready_s is not None:
        shown.append(("until ready", wording.duration(found.ready_s * 1e3), "from the start of the process"))
    if found.calm is not None and "p50" in found.calm.latency_ms:
        shown.append(("calm p50", wording.duration(found.calm.latency_ms["p50"]), "at 10 % of the highest rate"))
    if found.busy is not None and "p99" in found.busy.latency_ms:
        shown.append(("busy p99", wording.duration(found.busy.latency_ms["p99"]), "at 70 % of the highest rate"))
    if found.peak_rps is not None and found.objective_ms is not None:
        shown.append(("highest rate", wording.rate(found.peak_rps), f"with p99 = {wording.duration(found.objective_ms)}"))
    if found.full is not None:
        clients = wording.count(found.full_clients, "client")
        shown.append(("closed loop", wording.rate(found.full.rate_rps), f"{clients} that wait"))
    if found.busy is not None and found.busy.useful is not None:
        shown.append(("useful", wording.share(found.busy.useful, 1.0), "of the cores, at 70 % of the highest rate"))
    kept = [report for report in found.faults if report.kept is not None]
    if kept:
        worst = min(kept, key=lambda report: report.kept or 0.0)
        shown.append(("kept at worst", wording.share(min(worst.kept or 0.0, 1.0), 1.0), f"of the goodput: {worst.name}"))
    return shown


def _group(number: int, group: Group) -> str:
    parts = [f"<p>{text(group.meaning)}</p>"]
    parts += [table(map(text, one.headings), ([text(cell) for cell in row] for row in one.rows)) for one in group.tables]
    if group.remarks:
        parts.append(bullets(group.remarks))
    return section(f"{number}. {group.title}", "\n".join(parts), style="measured")


def _curve(name: str, series: Series) -> Figure:
    points = [(float(point.n), point.rate_rps) for point in series.points]
    law = series.fit
    first, last = points[0][0], points[-1][0]
    steps = [first * (last / first) ** (step / _CURVE) for step in range(_CURVE + 1)]
    most = max([rps for _, rps in points] + ([law.at(n) for n in steps] if law is not None else []))
    chart = Chart(_numbers(name, [point.n for point in series.points]), linear(0.0, most * 1.05, "answers per second", _short))
    if law is not None:
        chart.line([(n, law.at(n)) for n in steps], "", "second")
    else:
        chart.line(list(points), "", "main")
    for n, rps in points:
        chart.dot(n, rps, "", "main")
        chart.hover(n / 1.2, n * 1.2, f"{n:g} {name}: {wording.rate(rps)}")
    best = max(points, key=lambda point: point[1])
    title = f"Throughput over {name}: most at {best[0]:g}, {wording.rate(best[1])}"
    caption = "Dots: measured. Dashed: the scalability law." if law is not None else "Too few points for a scalability law."
    return Figure(title=title, svg=chart.svg(f"over-{name}", title, f"Answers per second over {name}."), caption=caption)


def _numbers(name: str, known: list[int]) -> Axis:
    """1, 2, 4, 8 at even distances, each of those measured with a tick."""
    ticks = [(float(n), f"{n}") for n in known]
    axis = logarithmic(1.0, float(max(*known, 2)), name, lambda value: f"{value:g}")
    return Axis(low=0.9, high=max(known) * 1.1, ticks=ticks, title=axis.title, log=True)


def _timeline(number: int, report: FaultReport) -> Figure:
    most = max(rps for _, rps in report.timeline)
    end_s = ceil(report.timeline[-1][0])
    chart = Chart(
        seconds(0.0, end_s, "time since the start"), linear(0.0, max(most, 1.0) * 1.05, "good answers per second", _short)
    )
    chart.shade(report.from_s, max(report.to_s, report.from_s + 0.02 * end_s), report.name)
    chart.line(list(report.timeline), "", "main")
    effect = report.effect
    if effect is None or effect.recovery_s is None:
        back = "not back while it was watched"
    else:
        back = "back at once" if effect.recovery_s < 0.1 else f"back after {wording.duration(effect.recovery_s * 1e3)}"
    title = f"{report.name.capitalize()}: {back}"
    told = "Goodput of the steady load, of 70 % of the highest rate; shaded: the fault."
    return Figure(title=title, svg=chart.svg(f"fault-{number}", title, told), caption=f"{told} {report.note}.")


def _short(value: float) -> str:
    return f"{wording.number(value / 1e3)}k" if value >= 1e4 else wording.number(value)
