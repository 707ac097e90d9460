"""A compression as one HTML page and as text: what each recipe came to beside the original, and why it was taken or not.

Called by cli/compress.py. Not aware of: how anything was measured.
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from dlproxy.compress.gate import Accuracy, Footprint, Measured, amount, in_bytes
from dlproxy.compress.manifest import Report, Run
from dlproxy.lab.report import wording
from dlproxy.lab.report.chart import Chart, linear
from dlproxy.lab.report.figures import Figure
from dlproxy.lab.report.page import bullets, charts, header, page, section, table, text, write

WIDTH = 100
_NAME = 40  # letters of a recipe's
_WHY = 400
_NONE = "-"
_FAR = 4  # times the most that may be lost: what loses more is drawn there


def save_html(report: Report, path: Path) -> None:
    """Write the page. Raises ResultError if the file cannot be written."""
    write(html(report), path)


def html(report: Report) -> str:
    """The page as text."""
    run = report.run
    title = f"Compression of {wording.plain(run.source, 100)}"
    headings, *rows = _rows(report)
    cells = ([text(cell).replace(" ", wording.NO_BREAK) for cell in row] for row in rows)
    said = ["The run was stopped early: not every recipe was tried."] if report.interrupted else []
    return page(
        title,
        [
            header(
                f"{title}, judged by {wording.plain(run.metric.name)} on {run.data.held_out:,} held-out examples",
                headline(report),
            ),
            section("Warnings", bullets(said), style="warnings") if said else "",
            section("What came of each recipe", table(map(text, headings), cells) + f"<p><small>{text(_BESIDE)}</small></p>"),
            section("Why", table(("recipe", ""), ((text(name), text(why)) for name, why in _reasons(report))), style="words"),
            charts(_charts(report)),
            section("How they were made", table(("recipe", ""), _steps(report)), style="words"),
            section("What was run", table(("", ""), ((text(name), text(value)) for name, value in _setup(run))), style="words"),
        ],
    )


def lines(report: Report) -> Iterator[str]:
    """For a terminal."""
    yield wording.plain(headline(report), _WHY)
    yield ""
    rows = [[wording.plain(cell, _NAME) for cell in row[:-1]] for row in _rows(report)]  # without load times: it is wide enough
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, status, *figures in rows:
        cells = [f"{name:<{widths[0]}}", f"{status:<{widths[1]}}"]
        cells += [f"{figure:>{width}}" for figure, width in zip(figures, widths[2:], strict=True)]
        yield "  ".join(cells).rstrip()
    yield ""
    for name, why in _reasons(report):
        yield from textwrap.wrap(f"{name}: {why}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def headline(report: Report) -> str:
    """What came of it in a sentence."""
    taken = [candidate for candidate in report.candidates if candidate.status == "accepted" and candidate.measured is not None]
    tried = wording.count(len(report.candidates), "recipe")
    if not taken:
        return f"Of {tried} none pays: the original stays as it is"
    best = max(taken, key=lambda candidate: _ratio(candidate.measured) or 0.0)
    assert best.measured is not None
    accuracy, sizes = best.measured.accuracy, (best.measured.candidate.file_bytes, best.measured.original.file_bytes)
    quicker = f"{_ratio(best.measured) or 1.0:.2f} times as quick"
    loses = f"for {amount(accuracy.metric, accuracy.loss)} of {accuracy.metric}" if accuracy.loss > 0.0 else "and no less right"
    return (
        f"{best.recipe} is {quicker} {loses}, in {in_bytes(sizes[0])} of {in_bytes(sizes[1])}; {len(taken)} of {tried} accepted"
    )


_BESIDE = (
    "Each candidate was measured in turns with the original, and its speed-up is of those rounds; the original's own row is "
    "from the first of them. In brackets: between these the loss on all examples lies, each end but for 5 %."
)


def _rows(report: Report) -> Iterator[list[str]]:
    """Headings, the original, and each candidate."""
    metric = report.run.metric.name
    known = next((candidate.measured for candidate in report.candidates if candidate.measured is not None), None)
    batches = [f"batch {speed.rows}" for speed in known.speeds] if known else []
    yield ["recipe", "", "file", metric, "lost", *batches, "speed-up", "memory", "load"]
    if known is not None:
        times = [wording.duration(speed.original_s * 1e3) for speed in known.speeds]
        yield ["original", "", *_row(known.accuracy.original, "", known.original, times, "1", metric)]
    for candidate in report.candidates:
        measured, start = candidate.measured, [candidate.recipe, candidate.status]
        if measured is None:
            yield [*start, *[_NONE] * (6 + len(batches))]
            continue
        times = [wording.duration(speed.candidate_s * 1e3) for speed in measured.speeds]
        quicker = " / ".join(f"{speed.ratio:.2f}" for speed in measured.speeds)
        lost = _lost(measured.accuracy)
        yield [*start, *_row(measured.accuracy.candidate, lost, measured.candidate, times, quicker, metric)]


def _row(value: float, lost: str, takes: Footprint, times: list[str], quicker: str, metric: str) -> list[str]:
    memory, load = in_bytes(takes.memory_bytes), wording.duration(takes.load_s * 1e3)
    return [in_bytes(takes.file_bytes), amount(metric, value), lost, *times, quicker, memory, load]


def _lost(accuracy: Accuracy) -> str:
    loss, low, high = (amount(accuracy.metric, value) for value in (accuracy.loss, accuracy.low, accuracy.high))
    return f"{loss} ({low.removesuffix(' %')}..{high.removesuffix(' %')})"


def _reasons(report: Report) -> Iterator[tuple[str, str]]:
    for candidate in report.candidates:
        said = [*candidate.reasons]
        if candidate.measured is not None:
            accuracy = candidate.measured.accuracy
            said.append(f"answers {wording.share(accuracy.agreement, 1.0)} of the examples as the original does")
            if accuracy.worst_class is not None:
                label, loss = accuracy.worst_class
                said.append(f"class {label} loses the most, {amount(accuracy.metric, loss)}")
        yield wording.plain(candidate.recipe, _NAME), wording.plain("; ".join([*said, *candidate.notes]), 3 * _WHY)


def _charts(report: Report) -> list[Figure]:
    """Loss against speed."""
    known = [(each, each.measured, ratio) for each in report.candidates if each.measured and (ratio := _ratio(each.measured))]
    if not known:
        return []
    metric, bar = report.run.metric.name, report.run.bar
    most = max(measured.accuracy.loss for _, measured, _ in known)
    y = linear(
        0.0,
        min(max(most, 2 * bar.most_loss), _FAR * bar.most_loss),
        f"{wording.plain(metric, _NAME)} lost",
        lambda value: amount(metric, value),
    )
    x = linear(
        0.0, max(1.05, *(ratio * 1.15 for *_, ratio in known)), "times as quick, at the batch where it is less", wording.number
    )
    chart = Chart(x, y)
    if not (bar.most_file_bytes or bar.most_memory_bytes):
        chart.shade(0.0, min(bar.least_ratio, x.high), "not quick enough")
    chart.level(bar.most_loss, f"at most {amount(metric, bar.most_loss)} may be lost")
    for candidate, measured, ratio in known:
        style = "main" if candidate.status == "accepted" else "bad"
        chart.dot(ratio, max(measured.accuracy.loss, 0.0), wording.plain(candidate.recipe, _NAME), style)
    title = "Further right and lower is better"
    caption = (
        "Blue: accepted, red: refused; shaded: not quick enough. What loses nothing or gains is drawn at 0, at the top what "
        f"loses more than {amount(metric, y.high)}."
    )
    return [Figure(title=title, svg=chart.svg("loss", title, caption), caption=caption)]


def _ratio(measured: Measured | None) -> float | None:
    """How many times as quick it is at the batch where that is less."""
    return min((speed.ratio for speed in measured.speeds), default=None) if measured is not None else None


def _steps(report: Report) -> Iterator[tuple[str, str]]:
    for candidate in report.candidates:
        steps = "; ".join(f"{step.name} by {step.by}{_settings(step.settings)}" for step in candidate.steps)
        yield text(wording.plain(candidate.recipe, _NAME)), text(steps or _NONE)


def _settings(settings: dict[str, object]) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in wording.setup_rows(settings, 60).items())})" if settings else ""


def _setup(run: Run) -> Iterator[tuple[str, str]]:
    bar, machine = run.bar, run.machine
    yield "original", f"{run.source}, SHA-256 {', '.join(listed.sha256 for listed in run.files.values())}"
    yield (
        "examples",
        f"{run.data.name}: {run.data.training:,} to learn from, {run.data.held_out:,} held out, SHA-256 {run.data.sha256}",
    )
    yield "metric", f"{run.metric.name} of '{run.metric.output}'" + (f", since {run.metric.why}" if run.metric.why else "")
    yield "may be lost", amount(run.metric.name, bar.most_loss)
    for what, most in (("file", bar.most_file_bytes), ("memory", bar.most_memory_bytes)):
        if most:
            yield what, f"at most {in_bytes(most)}"
    if not (bar.most_file_bytes or bar.most_memory_bytes):
        yield "times as quick", f"{bar.least_ratio:g} or more, at every batch size"
    yield "seed", str(run.seed)
    yield (
        "machine",
        f"{machine.processor}, {wording.count(machine.cores, 'core')}, {wording.count(machine.threads, 'thread')} a session",
    )
    yield "software", f"dlproxy {run.dlproxy}, onnxruntime {run.onnxruntime}"
