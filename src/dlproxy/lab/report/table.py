"""A result as text of at most 100 columns: what the terminal shows when a run ends.

Called by cli/. Not aware of: files, terminals, colours.
"""

import textwrap
from collections.abc import Iterator, Sequence

from dlproxy.lab.report import words
from dlproxy.lab.report.result import Generator, Result

WIDTH = 100
_INDENT = 13  # of what a row says, after its name
_SIZES_SHOWN = 8
_NO_BREAK = "\u00a0"


def table(result: Result) -> str:
    """The result as lines of text, without a newline at the end."""
    lines = [
        *_what_ran(result),
        "",
        *_requests(result),
        *_rates(result),
        *_latencies(result),
        *_errors(result),
        *_batches(result),
        *_generator(result.generator),
        *_remarks(result),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, text: str) -> list[str]:
    """A named row, wrapped and indented where it is long."""
    filled = textwrap.wrap(text, WIDTH - _INDENT, break_on_hyphens=False) or [""]
    return [f"{name if not number else '':<{_INDENT}}{line.replace(_NO_BREAK, ' ')}" for number, line in enumerate(filled)]


def _columns(name: str, cells: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Two lines: headings, and the values below them, right-aligned."""
    widths = [max(len(heading), len(value), 9) for heading, value in cells]
    yield " " * _INDENT + "  ".join(f"{heading:>{width}}" for (heading, _), width in zip(cells, widths, strict=True))
    yield f"{name:<{_INDENT}}" + "  ".join(f"{value:>{width}}" for (_, value), width in zip(cells, widths, strict=True))


def _what_ran(result: Result) -> Iterator[str]:
    length = words.duration(result.duration_s * 1e3)
    started = f", started {result.started}" if result.started else ""
    yield words.plain(f"{result.kind} of {words.plain(result.target)}: {length}{started}", WIDTH)
    options = ", ".join(f"{name} {value}" for name, value in words.setup_rows(result.setup, 40).items())
    filled = textwrap.wrap(options, WIDTH - 2, max_lines=2, placeholder=" …", break_on_hyphens=False)
    yield from (f"  {line}" for line in filled)


def _requests(result: Result) -> list[str]:
    parts = [f"{result.sent:,} sent", f"{result.ok:,} answered", f"{result.failed:,} failed"]
    if missing := words.unanswered(result):
        parts.append(f"{missing:,} without an answer when the run ended")
    return _row("requests", ", ".join(parts))


def _rates(result: Result) -> Iterator[str]:
    cells = [("offered", words.rate(result.offered_rps)), ("answered", words.rate(result.rate_rps))]
    if result.objective_ms is not None:
        cells.append((f"within {words.duration(result.objective_ms)}", words.rate(result.goodput_rps)))
    yield ""
    yield from _columns("rate", cells)
    if aim := words.objective(result):
        yield from _row("objective", aim)
    if found := words.search(result):
        yield from _row("search", found)


def _latencies(result: Result) -> Iterator[str]:
    yield ""
    if not result.ok or not result.latency_ms:
        yield from _row("latency", "unknown: no request succeeded")
        return
    known = [(label, result.latency_ms[name]) for name, label in words.QUANTILE_NAMES.items() if name in result.latency_ms]
    yield from _columns("latency", [(label, words.duration(ms)) for label, ms in known])


def _errors(result: Result) -> Iterator[str]:
    yield ""
    ended = words.finished(result)
    if not result.failed:
        yield from _row("errors", "none")
        return
    yield f"{'errors':<{_INDENT}}{result.failed:>9,}  {words.share(result.failed, ended):>9}"
    for kind, times in sorted(result.errors.items(), key=lambda item: -item[1]):
        start = f"{'':<{_INDENT}}{times:>9,}  {words.share(times, ended):>9}  "
        yield start + words.plain(kind, WIDTH - len(start))


def _batches(result: Result) -> Iterator[str]:
    mean = words.mean_batch(result)
    if mean is None:
        return
    batches = sum(result.batch_sizes.values())
    common = sorted(result.batch_sizes, key=lambda size: -result.batch_sizes[size])[:_SIZES_SHOWN]
    shares = ", ".join(
        f"{size}: {words.share(result.batch_sizes[size], batches)}".replace(" ", _NO_BREAK) for size in sorted(common)
    )
    rest = batches - sum(result.batch_sizes[size] for size in common)
    others = f", others: {words.share(rest, batches)}" if rest else ""
    yield ""
    yield from _row("batch size", f"mean {words.number(mean)} of {words.count(batches, 'batch')} ({shares}{others})")


def _generator(generator: Generator | None) -> Iterator[str]:
    if generator is None:
        return
    said = f"busiest process {generator.cpu_share * 100:.0f} % of a core"
    if generator.late_max_ms > 0.0:  # in a closed loop nothing is due
        late_p99, late_max = words.duration(generator.late_p99_ms), words.duration(generator.late_max_ms)
        said += f"; requests left {late_p99} late at p99, {late_max} at most"
    yield ""
    yield from _row("generator", said)


def _remarks(result: Result) -> Iterator[str]:
    if result.warnings or result.interrupted:
        yield ""
    for warning in result.warnings:
        yield from _row("warning", words.plain(warning, 1000))
    if result.interrupted:
        yield from _row("interrupted", f"stopped before its time; the figures are of {words.duration(result.duration_s * 1e3)}")
