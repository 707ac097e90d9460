"""A result as one HTML page without scripts or anything from elsewhere: a sentence, key figures, charts, tables.

Called by cli/. Not aware of: how charts are drawn (figures.py, chart.py), what the page looks like (page.py, page.css).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import sparkline
from dlproxy.lab.report.compare import columns_of_figures
from dlproxy.lab.report.figures import Figure, figures
from dlproxy.lab.report.page import bullets, charts, column, grid, header, page, section, table, text, tiles, write
from dlproxy.lab.report.result import Result

MOST_INSTANCES = 16  # more are summarised
MOST_ERRORS = 50
_BINS = 20


def save_html(result: Result, path: Path) -> None:
    """Write the page. Raises ResultError if the file cannot be written."""
    write(html(result), path)


def save_columns_html(columns: Sequence[tuple[str, Result]], remarks: Sequence[str], path: Path) -> None:
    """Any number of results side by side as a page, with the charts of each. Raises ResultError."""
    headings, *rows = columns_of_figures(columns)
    target = wording.plain(columns[0][1].target, 100)
    title = f"what-if of {target}"
    body = [header(title, ", ".join(headings[1:])), table(map(text, headings), (map(text, row) for row in rows))]
    body.append("".join(f"<p>{text(remark)}</p>" for remark in remarks))
    body += [
        f"<h2>{text(name)}</h2>\n{charts(_without_ids(figures(result), number))}"
        for number, (name, result) in enumerate(columns)
    ]
    write(page(title, body), path)


def _without_ids(drawn: list[Figure], number: int) -> list[Figure]:
    """Charts whose names differ from those of others on the page."""
    return [
        Figure(
            title=figure.title,
            svg=re.sub(r"\b(\w+-(title|desc))\b", rf"\g<1>-{number}", figure.svg),
            caption=figure.caption,
        )
        for figure in drawn
    ]


def html(result: Result) -> str:
    """The page as text."""
    return page(
        f"{result.kind} of {wording.plain(result.target, 100)}",
        [
            _head(result),
            _warnings(result),
            _key_figures(result),
            charts(figures(result)),
            _search(result),
            _models(result),
            _faults(result),
            _instances(result.instances),
            grid([column(_errors(result) + _generator(result)), column(_setup(result))]),
        ],
    )


def _head(result: Result) -> str:
    length = wording.duration(result.duration_s * 1e3)
    started = f", started {result.started}" if result.started else ""
    what = f"{result.kind} of {wording.plain(result.target)}, {length}{started}"
    return header(wording.plain(what, 400), wording.headline(result))


def _warnings(result: Result) -> str:
    said = [wording.plain(warning, 1000) for warning in result.warnings]
    if result.interrupted:
        said.append(f"The run was stopped early; all figures cover {wording.duration(result.duration_s * 1e3)}.")
    return section("Warnings", bullets(said), style="warnings") if said else ""


def _key_figures(result: Result) -> str:
    ended = wording.finished(result)
    shown = [("answered", wording.rate(result.rate_rps), f"of {wording.rate(result.offered_rps)} offered")]
    if result.objective_ms is not None:
        in_time = wording.in_time(result)
        said = "no request ended" if in_time is None else f"{wording.share(in_time, 1.0)} in time"
        shown.append((f"within {wording.duration(result.objective_ms)}", wording.rate(result.goodput_rps), said))
    known = result.latency_ms if result.ok else {}
    shown += [
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
    shown.append(("failed", wording.share(result.failed, ended), f"{result.failed:,} of {wording.count(ended, 'request')}"))
    if missing := wording.unanswered(result):
        shown.append(("unanswered", f"{missing:,}", "when the run ended"))
    if (mean := wording.mean_batch(result)) is not None:
        shown.append(("mean batch", wording.number(mean), wording.count(sum(result.batch_sizes.values()), "batch")))
    for name, times in result.variants.items():
        shown.append((f"by {wording.plain(name, 40)}", f"{times:,}", "answers, as a variant"))
    return tiles(shown)


def _errors(result: Result) -> str:
    if not result.failed:
        return ""
    kinds = sorted(result.errors.items(), key=lambda item: -item[1])
    ended = wording.finished(result)
    rows = [(text(wording.plain(kind)), f"{times:,}", wording.share(times, ended)) for kind, times in kinds[:MOST_ERRORS]]
    if len(kinds) > MOST_ERRORS:
        rest = sum(times for _, times in kinds[MOST_ERRORS:])
        rows.append((f"{len(kinds) - MOST_ERRORS:,} other kinds", f"{rest:,}", wording.share(rest, ended)))
    return section("Errors", table(("kind", "requests", "share of all"), rows))


def _search(result: Result) -> str:
    if not result.trials:
        return ""
    rows = [
        (
            text(wording.rate(trial.rate)),
            text(wording.duration(trial.duration_s * 1e3)),
            f"{trial.sent:,}",
            f"{trial.failed:,}",
            "" if trial.p99_ms is None else text(wording.duration(trial.p99_ms)),
            "passed" if trial.passed else text(f"failed: {wording.plain(trial.reason)}"),
        )
        for trial in result.trials
    ]
    trials = table(("rate", "length", "requests", "errors", "p99", "verdict"), rows)
    return section("The search for the highest rate", f"<p>{text(wording.search(result))}</p>\n{trials}")


def _models(result: Result) -> str:
    if not result.models:
        return ""
    rows = ([text(cell) for cell in wording.model_cells(name, model)] for name, model in result.models.items())
    return section("Models", table(wording.MODEL_HEADINGS, rows))


def _faults(result: Result) -> str:
    return section("Faults", bullets(result.faults)) if result.faults else ""


def _setup(result: Result) -> str:
    rows = {"kind": result.kind, "target": wording.plain(result.target), "started": wording.plain(result.started)}
    rows |= {"measured for": wording.duration(result.duration_s * 1e3), **wording.setup_rows(result.setup)}
    cells = ((text(name), text(value)) for name, value in rows.items() if value)
    return section("What was run", table(("option", "value"), cells), style="words")


def _generator(result: Result) -> str:
    generator = result.generator
    if generator is None:
        return ""
    rows = [("CPU time of its busiest process", text(f"{generator.cpu_share * 100:.0f} % of a core"))]
    if generator.late_max_ms > 0.0:  # in a closed loop nothing is due
        rows.append(("requests left late, p99", text(wording.duration(generator.late_p99_ms))))
        rows.append(("requests left late, at most", text(wording.duration(generator.late_max_ms))))
    return section("The load generator itself", table(("figure", "value"), rows))


def _instances(instances: dict[str, Any]) -> str:
    rows = list(_instance_rows(instances, ""))
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    if len(rows) <= MOST_INSTANCES:
        cells = ([text(wording.plain(path)), *(_figure(name, values.get(name)) for name in names)] for path, values in rows)
        return section("Instances", table(["instance", *map(_label, names)], cells))
    summary = [_summary(name, [(path, values[name]) for path, values in rows if name in values]) for name in names]
    spread = table(("figure", "lowest", "median", "highest", "distribution"), summary)
    return section(f"{len(rows):,} instances", spread)


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
        return wording.share(value, 1.0) if _is_share(name) else text(wording.number(value))
    return text("" if value is None else wording.plain(value, 80))


def _is_share(name: str) -> bool:
    return name in ("utilisation", "utilization") or name.endswith("share")


def _label(name: object) -> str:
    return text(wording.plain(name, 60).replace("_", " "))


def _summary(name: str, values: list[tuple[str, Any]]) -> list[str]:
    """A row about many instances: extremes with their names, and how the rest is spread."""
    numbers = [(path, float(value)) for path, value in values if isinstance(value, int | float)]
    if not numbers:
        common = Counter(wording.plain(value, 80) for _, value in values).most_common(3)
        said = ", ".join(f"{text(value)} ({times:,})" for value, times in common)
        return [_label(name), said, "", "", ""]
    low, high = min(numbers, key=lambda item: item[1]), max(numbers, key=lambda item: item[1])
    bins = [0] * _BINS
    for _, value in numbers:
        bins[min(int((value - low[1]) / (high[1] - low[1]) * _BINS), _BINS - 1) if high[1] > low[1] else 0] += 1
    ends = [f"{_figure(name, value)} <small>{text(wording.plain(path, 60))}</small>" for path, value in (low, high)]
    told = f"{name} of {len(numbers):,} instances, from {wording.number(low[1])} to {wording.number(high[1])}"
    if high[1] == low[1]:
        return [_label(name), ends[0], _figure(name, low[1]), ends[1], "all the same"]
    middle = median(value for _, value in numbers)
    return [_label(name), ends[0], _figure(name, middle), ends[1], sparkline(bins, wording.plain(told))]
