"""A tuning as one HTML page: the picture of the front, the table with reasons, and how far the simulator was off.

Called by cli/tune.py. Not aware of: files.
"""

from collections.abc import Mapping
from math import inf

from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import Chart, linear, logarithmic
from dlproxy.lab.report.figures import Figure
from dlproxy.lab.report.page import charts, page, section, table, text, tiles
from dlproxy.lab.tune.search.problem import NEVER_S, Outcome
from dlproxy.lab.tune.search.report import HEADINGS, Row, error_lines, latency, rows
from dlproxy.lab.tune.search.tune import Tuned, in_words

HEADROOM = 1.05


def html(tuned: Tuned, said: Mapping[str, str]) -> str:
    """The page as text. `said`: by `why`."""
    problem, shown = tuned.problem, rows(tuned)
    asked = wording.duration(problem.objective_s * 1e3)
    title = f"Tuning of {wording.plain(problem.name, 60)} for p99 = {asked}"
    return page(
        title,
        [
            f"<header>\n<p>{text(f'{title}, {problem.load}')}</p>\n<h1>{text(_headline(tuned))}</h1>\n</header>",
            _notes(tuned),
            tiles(_tiles(tuned)),
            charts([figure for figure in (_front(tuned, shown), _error(tuned)) if figure is not None]),
            _table(shown),
            _reasons(tuned, said),
        ],
    )


def _headline(tuned: Tuned) -> str:
    point = tuned.chosen
    verb = "meets" if tuned.outcome.meets(tuned.problem.objective_s) else "comes nearest to"
    return f"{point.layout} with max_batch {point.max_batch} {verb} the objective: {in_words(tuned.outcome)}"


def _notes(tuned: Tuned) -> str:
    said = list(tuned.notes)
    if tuned.interrupted:
        said.append("The tuning was interrupted: this is the best that had been found.")
    if not said:
        return ""
    return section("Warnings", "<ul>" + "".join(f"<li>{text(line)}</li>" for line in said) + "</ul>", style="warnings")


def _tiles(tuned: Tuned) -> list[tuple[str, str, str]]:
    run, outcome = tuned.measured.get(tuned.chosen), tuned.outcome
    how = "measured" if run else "simulated"
    tiles = [
        ("goodput", wording.rate(outcome.goodput), f"{how}, of {wording.rate(outcome.rate)} offered"),
        ("p99", latency(outcome), how),
        ("cores", str(tuned.chosen.layout.cores), f"of {tuned.problem.cores}"),
    ]
    if run and run.memory_bytes:
        tiles.append(("memory", f"{wording.number(run.memory_bytes / 2**20)} MiB", "resident, server and workers"))
    if tuned.highest:
        tiles.append(("highest rate", wording.rate(tuned.highest), "that met the objective live"))
    tiles.append(("evaluations", f"{tuned.simulated:,}", f"simulated, of {tuned.total:,} configurations"))
    tiles.append(("live runs", str(tuned.runs), wording.duration(tuned.seconds * 1e3)))
    return tiles


def _front(tuned: Tuned, shown: list[Row]) -> Figure | None:
    """Goodput against p99: what was tried, and the front by its numbers in the table."""
    known = {point: outcome for point, outcome in tuned.known.items() if _seen(outcome)}
    if not known:
        return None
    objective_ms = tuned.problem.objective_s * 1e3
    p99s = [outcome.p99_s * 1e3 for outcome in known.values()]
    goodputs = [outcome.goodput for outcome in known.values()]
    low, high = min(goodputs), max(goodputs) * HEADROOM
    x = linear(low if low > 0.5 * high else 0.0, high, "goodput, answers within the objective per second", wording.number)
    y = logarithmic(min([*p99s, objective_ms]), max([*p99s, objective_ms]), "p99", wording.duration)
    chart = Chart(x, y)
    chart.level(objective_ms, f"objective {wording.duration(objective_ms)}")
    numbers = {row.point: row.number for row in shown}
    for point, outcome in known.items():
        if point not in numbers:
            chart.dot(outcome.goodput, outcome.p99_s * 1e3, "", "under")
    for point, number in reversed(numbers.items()):
        outcome = tuned.known[point]
        if _seen(outcome):
            style = "main" if point == tuned.chosen else "second"
            chart.dot(outcome.goodput, outcome.p99_s * 1e3, str(number), style)
    title = f"What was found at {wording.rate(tuned.rate)}: further right and lower is better"
    caption = "Numbers: the front, as in the table below; 1 is the choice. Pale: other configurations that were tried."
    return Figure(title=title, svg=chart.svg("front", title, caption), caption=caption)


def _seen(outcome: Outcome) -> bool:
    return 0.0 < outcome.p99_s < NEVER_S


def _error(tuned: Tuned) -> Figure | None:
    """Predicted p99 against measured."""
    runs = [run for run in tuned.measured.values() if _seen(run.outcome) and _seen(run.predicted)]
    if not runs:
        return None
    values = [one.p99_s * 1e3 for run in runs for one in (run.outcome, run.predicted)]
    low, high = min(values, default=1.0), max(values, default=inf)
    x = logarithmic(low, high, "predicted p99", wording.duration)
    y = logarithmic(low, high, "measured p99", wording.duration)
    chart = Chart(x, y)
    chart.line([(x.low, x.low), (x.high, x.high)], "", "level")
    for run in runs:
        style = "main" if run.point == tuned.chosen else "second"
        chart.dot(run.predicted.p99_s * 1e3, run.outcome.p99_s * 1e3, "1" if style == "main" else "", style)
    title = "What the simulator predicted, and what live runs measured"
    caption = "On the line both are equal. Each point: the longest run of a configuration, predicted just before it."
    return Figure(title=title, svg=chart.svg("error", title, caption), caption=caption)


def _table(shown: list[Row]) -> str:
    cells = ([text(cell).replace(" ", "\u00a0") for cell in row.cells()] for row in shown)
    reasons = ((str(row.number), text(row.reason)) for row in shown)
    front = section("The front", table(map(text, HEADINGS), cells))
    return front + section("Why", table(("", ""), reasons), style="words")


def _reasons(tuned: Tuned, said: Mapping[str, str]) -> str:
    lines = [(text(name), text(line.replace("\n", "; "))) for name, line in said.items() if line]
    lines += [("error", text("; ".join(error_lines(tuned))))]
    return section("What other values would give", table(("knob", ""), lines), style="words")
