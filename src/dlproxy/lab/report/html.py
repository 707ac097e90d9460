"""A result as one HTML page without scripts or anything from elsewhere: a sentence, key figures, charts, tables.

Called by cli/; lab/tune makes pages of the same parts. Not aware of: how charts are drawn (figures.py, chart.py), what a page
looks like (page.css).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from dlproxy import __version__
from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import sparkline
from dlproxy.lab.report.figures import Figure, figures
from dlproxy.lab.report.result import Result, ResultError

MOST_INSTANCES = 16  # more are summarised
MOST_ERRORS = 50
_BINS = 20
_LONGEST = 2000  # letters of any one text


def save_html(result: Result, path: Path) -> None:
    """Write the page. Raises ResultError if the file cannot be written."""
    save_page(html(result), path)


def save_page(text: str, path: Path) -> None:
    """Raises ResultError."""
    try:
        path.write_bytes(text.encode("utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def html(result: Result) -> str:
    """The page as text."""
    body = [
        _head(result),
        _warnings(result),
        _key_figures(result),
        charts(figures(result)),
        _search(result),
        _models(result),
        _faults(result),
        _instances(result.instances),
        side_by_side([_column(_errors(result) + _generator(result)), _column(_setup(result))]),
    ]
    return page(f"{result.kind} of {wording.plain(result.target, 100)}", body)


def page(title: str, body: Iterable[str]) -> str:
    """A whole page of these parts; empty ones are left out."""
    style = files("dlproxy.lab.report").joinpath("page.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + f"\n<footer>dlproxy {escaped(__version__)}</footer>"
        + "\n</main>\n</body>\n</html>\n"
    )


def escaped(text: object) -> str:
    """Escaped, and with numbers kept beside their units."""
    return re.sub(r"(?<=\d) (?=(?:[µm]?s|min|h|%|/s)\b|%|/s)", "\u00a0", escape(wording.plain(text, _LONGEST)))


def _head(result: Result) -> str:
    length = wording.duration(result.duration_s * 1e3)
    started = f", started {result.started}" if result.started else ""
    what = f"{result.kind} of {wording.plain(result.target)}, {length}{started}"
    return f"<header>\n<p>{escaped(wording.plain(what, 400))}</p>\n<h1>{escaped(wording.headline(result))}</h1>\n</header>"


def _warnings(result: Result) -> str:
    said = [wording.plain(warning, 1000) for warning in result.warnings]
    if result.interrupted:
        said.append(f"The run was stopped early; all figures cover {wording.duration(result.duration_s * 1e3)}.")
    if not said:
        return ""
    return as_section("Warnings", "<ul>" + "".join(f"<li>{escaped(text)}</li>" for text in said) + "</ul>", style="warnings")


def as_section(title: str, content: str, *, style: str = "") -> str:
    return f'<section class="{style or "plain"}">\n<h2>{escaped(title)}</h2>\n{content}\n</section>'


def _key_figures(result: Result) -> str:
    ended = wording.finished(result)
    tiles = [("answered", wording.rate(result.rate_rps), f"of {wording.rate(result.offered_rps)} offered")]
    if result.objective_ms is not None:
        in_time = wording.in_time(result)
        said = "no request ended" if in_time is None else f"{wording.share(in_time, 1.0)} in time"
        tiles.append((f"within {wording.duration(result.objective_ms)}", wording.rate(result.goodput_rps), said))
    known = result.latency_ms if result.ok else {}
    tiles += [
        (label, wording.duration(known[name]), said)
        for name, label, said in (
            ("p50", "p50", "half took at most this"),
            ("p90", "p90", "9 in 10 at most"),
            ("p99", "p99", "99 in 100 at most"),
            ("p99_9", "p99.9", "999 in 1,000 at most"),
            ("max", "slowest", "of all answers"),
            ("mean", "mean", "of all answers"),
        )
        if name in known
    ]
    tiles.append(("failed", wording.share(result.failed, ended), f"{result.failed:,} of {wording.count(ended, 'request')}"))
    if missing := wording.unanswered(result):
        tiles.append(("unanswered", f"{missing:,}", "when the run ended"))
    if (mean := wording.mean_batch(result)) is not None:
        tiles.append(("mean batch", wording.number(mean), wording.count(sum(result.batch_sizes.values()), "batch")))
    return key_figures(tiles)


def key_figures(tiles: Iterable[tuple[str, str, str]]) -> str:
    """Tiles: a name, its value, and what that means."""
    cells = "".join(
        f"<div><dt>{escaped(name)}</dt><dd><b>{escaped(value)}</b> <span>{escaped(said)}</span></dd></div>"
        for name, value, said in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def charts(drawn: Iterable[Figure]) -> str:
    parts = [
        f"<figure>\n<h2>{escaped(figure.title)}</h2>\n{figure.svg}\n"
        + (f"<figcaption>{escaped(figure.caption)}</figcaption>\n" if figure.caption else "")
        + "</figure>"
        for figure in drawn
    ]
    return side_by_side(parts)


def _column(content: str) -> str:
    return f"<div>{content}</div>" if content else ""


def side_by_side(parts: list[str]) -> str:
    """Side by side where there is room."""
    known = [part for part in parts if part]
    return '<div class="grid-of">\n' + "\n".join(known) + "\n</div>" if known else ""


def as_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose cells are HTML; the first of each row names it."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = []
    for row in rows:
        first, *rest = row
        body.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>\n")
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(body)}</tbody>\n</table></div>'


def _errors(result: Result) -> str:
    if not result.failed:
        return ""
    kinds = sorted(result.errors.items(), key=lambda item: -item[1])
    ended = wording.finished(result)
    rows = [(escaped(wording.plain(kind)), f"{times:,}", wording.share(times, ended)) for kind, times in kinds[:MOST_ERRORS]]
    if len(kinds) > MOST_ERRORS:
        rest = sum(times for _, times in kinds[MOST_ERRORS:])
        rows.append((f"{len(kinds) - MOST_ERRORS:,} other kinds", f"{rest:,}", wording.share(rest, ended)))
    return as_section("Errors", as_table(("kind", "requests", "share of all"), rows))


def _search(result: Result) -> str:
    if not result.trials:
        return ""
    rows = [
        (
            escaped(wording.rate(trial.rate)),
            escaped(wording.duration(trial.duration_s * 1e3)),
            f"{trial.sent:,}",
            f"{trial.failed:,}",
            "" if trial.p99_ms is None else escaped(wording.duration(trial.p99_ms)),
            "passed" if trial.passed else escaped(f"failed: {wording.plain(trial.reason)}"),
        )
        for trial in result.trials
    ]
    table = as_table(("rate", "length", "requests", "errors", "p99", "verdict"), rows)
    return as_section("The search for the highest rate", f"<p>{escaped(wording.search(result))}</p>\n{table}")


def _models(result: Result) -> str:
    if not result.models:
        return ""
    rows = ([escaped(cell) for cell in wording.model_cells(name, model)] for name, model in result.models.items())
    return as_section("Models", as_table(wording.MODEL_HEADINGS, rows))


def _faults(result: Result) -> str:
    if not result.faults:
        return ""
    return as_section("Faults", "<ul>" + "".join(f"<li>{escaped(fault)}</li>" for fault in result.faults) + "</ul>")


def _setup(result: Result) -> str:
    rows = {"kind": result.kind, "target": wording.plain(result.target), "started": wording.plain(result.started)}
    rows |= {"measured for": wording.duration(result.duration_s * 1e3), **wording.setup_rows(result.setup)}
    cells = ((escaped(name), escaped(value)) for name, value in rows.items() if value)
    return as_section("What was run", as_table(("option", "value"), cells), style="words")


def _generator(result: Result) -> str:
    generator = result.generator
    if generator is None:
        return ""
    rows = [("CPU time of its busiest process", escaped(f"{generator.cpu_share * 100:.0f} % of a core"))]
    if generator.late_max_ms > 0.0:  # in a closed loop nothing is due
        rows.append(("requests left late, p99", escaped(wording.duration(generator.late_p99_ms))))
        rows.append(("requests left late, at most", escaped(wording.duration(generator.late_max_ms))))
    return as_section("The load generator itself", as_table(("figure", "value"), rows))


def _instances(instances: dict[str, Any]) -> str:
    rows = list(_instance_rows(instances, ""))
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    if len(rows) <= MOST_INSTANCES:
        cells = ([escaped(wording.plain(path)), *(_figure(name, values.get(name)) for name in names)] for path, values in rows)
        return as_section("Instances", as_table(["instance", *map(_label, names)], cells))
    summary = [_summary(name, [(path, values[name]) for path, values in rows if name in values]) for name in names]
    table = as_table(("figure", "lowest", "median", "highest", "distribution"), summary)
    return as_section(f"{len(rows):,} instances", table)


def _instance_rows(values: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, figures) of every dict that holds any; a figure without a dict around it is an instance with one figure."""
    figures_here = {name: value for name, value in values.items() if not isinstance(value, dict)}
    if path and figures_here:
        yield path, figures_here
    elif figures_here:
        yield from ((name, {"value": value}) for name, value in figures_here.items())
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _instance_rows(value, f"{path} / {name}" if path else str(name))


def _figure(name: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return wording.share(value, 1.0) if _is_share(name) else escaped(wording.number(value))
    return escaped("" if value is None else wording.plain(value, 80))


def _is_share(name: str) -> bool:
    return name in ("utilisation", "utilization") or name.endswith("share")


def _label(name: object) -> str:
    return escaped(wording.plain(name, 60).replace("_", " "))


def _summary(name: str, values: list[tuple[str, Any]]) -> list[str]:
    """A row about many instances: extremes with their names, and how the rest is spread."""
    numbers = [(path, float(value)) for path, value in values if isinstance(value, int | float)]
    if not numbers:
        common = Counter(wording.plain(value, 80) for _, value in values).most_common(3)
        said = ", ".join(f"{escaped(value)} ({times:,})" for value, times in common)
        return [_label(name), said, "", "", ""]
    low, high = min(numbers, key=lambda item: item[1]), max(numbers, key=lambda item: item[1])
    bins = [0] * _BINS
    for _, value in numbers:
        bins[min(int((value - low[1]) / (high[1] - low[1]) * _BINS), _BINS - 1) if high[1] > low[1] else 0] += 1
    ends = [f"{_figure(name, value)} <small>{escaped(wording.plain(path, 60))}</small>" for path, value in (low, high)]
    told = f"{name} of {len(numbers):,} instances, from {wording.number(low[1])} to {wording.number(high[1])}"
    if high[1] == low[1]:
        return [_label(name), ends[0], _figure(name, low[1]), ends[1], "all the same"]
    middle = median(value for _, value in numbers)
    return [_label(name), ends[0], _figure(name, middle), ends[1], sparkline(bins, wording.plain(told))]
