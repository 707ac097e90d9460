"""A result as text of at most 100 columns: what the terminal shows when a run ends.

Called by cli/. Not aware of: files, terminals, colours.
"""

import textwrap
from collections.abc import Iterator, Sequence

from dlproxy.lab.report import wording
from dlproxy.lab.report.result import Generator, Result

WIDTH = 100
_INDENT = 13  # of what a row says, after its name
_SIZES_SHOWN = 8


def table(result: Result) -> str:
    """The result as lines of text, without a newline at the end."""
    lines = [
        *_what_ran(result),
        "",
        *_requests(result),
        *_rates(result),
        *_latencies(result),
        *_errors(result),
        *_models(result),
        *_steps(result),
        *_variants(result),
        *_batches(result),
        *_scaling(result),
        *_cache(result),
        *_faults(result),
        *_generator(result.generator),
        *_remarks(result),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(name: str, text: str) -> list[str]:
    """A named row, wrapped and indented where it is long."""
    filled = textwrap.wrap(text, WIDTH - _INDENT, break_on_hyphens=False) or [""]
    return [
        f"{name if not number else '':<{_INDENT}}{line.replace(wording.NO_BREAK, ' ')}" for number, line in enumerate(filled)
    ]


def _columns(name: str, cells: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Two lines: headings, and the values below them, right-aligned."""
    widths = [max(len(heading), len(value), 9) for heading, value in cells]
    yield " " * _INDENT + "  ".join(f"{heading:>{width}}" for (heading, _), width in zip(cells, widths, strict=True))
    yield f"{name:<{_INDENT}}" + "  ".join(f"{value:>{width}}" for (_, value), width in zip(cells, widths, strict=True))


def _what_ran(result: Result) -> Iterator[str]:
    length = wording.duration(result.duration_s * 1e3)
    started = f", started {result.started}" if result.started else ""
    yield wording.plain(f"{result.kind} of {wording.plain(result.target)}: {length}{started}", WIDTH)
    options = ", ".join(f"{name} {value}" for name, value in wording.setup_rows(result.setup, 40).items())
    filled = textwrap.wrap(options, WIDTH - 2, max_lines=2, placeholder=" …", break_on_hyphens=False)
    yield from (f"  {line}" for line in filled)


def _requests(result: Result) -> list[str]:
    parts = [f"{result.sent:,} sent", f"{result.ok:,} answered", f"{result.failed:,} failed"]
    if missing := wording.unanswered(result):
        parts.append(f"{missing:,} without an answer when the run ended")
    return _row("requests", ", ".join(parts))


def _rates(result: Result) -> Iterator[str]:
    cells = [("offered", wording.rate(result.offered_rps)), ("answered", wording.rate(result.rate_rps))]
    if result.objective_ms is not None:
        cells.append((f"within {wording.duration(result.objective_ms)}", wording.rate(result.goodput_rps)))
    yield ""
    yield from _columns("rate", cells)
    if aim := wording.objective(result):
        yield from _row("objective", aim)
    if found := wording.search(result):
        yield from _row("search", found)


def _latencies(result: Result) -> Iterator[str]:
    yield ""
    if not result.ok or not result.latency_ms:
        yield from _row("latency", "unknown: no request succeeded")
        return
    known = [(label, result.latency_ms[name]) for name, label in wording.QUANTILE_NAMES.items() if name in result.latency_ms]
    yield from _columns("latency", [(label, wording.duration(ms)) for label, ms in known])


def _errors(result: Result) -> Iterator[str]:
    yield ""
    ended = wording.finished(result)
    if not result.failed:
        yield from _row("errors", "none")
        return
    yield f"{'errors':<{_INDENT}}{result.failed:>9,}  {wording.share(result.failed, ended):>9}"
    for kind, times in sorted(result.errors.items(), key=lambda item: -item[1]):
        start = f"{'':<{_INDENT}}{times:>9,}  {wording.share(times, ended):>9}  "
        yield start + wording.plain(kind, WIDTH - len(start))


def _batches(result: Result) -> Iterator[str]:
    mean = wording.mean_batch(result)
    if mean is None:
        return
    batches = sum(result.batch_sizes.values())
    common = sorted(result.batch_sizes, key=lambda size: -result.batch_sizes[size])[:_SIZES_SHOWN]
    shares = ", ".join(
        f"{size}: {wording.share(result.batch_sizes[size], batches)}".replace(" ", wording.NO_BREAK) for size in sorted(common)
    )
    rest = batches - sum(result.batch_sizes[size] for size in common)
    others = f", others: {wording.share(rest, batches)}" if rest else ""
    yield ""
    yield from _row("batch size", f"mean {wording.number(mean)} of {wording.count(batches, 'batch')} ({shares}{others})")


def _models(result: Result) -> Iterator[str]:
    if not result.models:
        return
    rows = [wording.MODEL_HEADINGS, *(wording.model_cells(name, model) for name, model in result.models.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    yield ""
    for name, *cells in rows:
        yield f"{name:<{max(widths[0], _INDENT - 2)}}  " + "  ".join(
            f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)
        )


def _steps(result: Result) -> Iterator[str]:
    if result.steps:
        yield ""
    for name, step in result.steps.items():
        (w50, w99), (c50, c99) = (
            [wording.duration(times[key]) for key in ("p50", "p99")] for times in (step.waited_ms, step.computed_ms)
        )
        yield from _row(
            "step", f"{name}: ran {wording.count(step.ran, 'time')}, waited {w50} (p99 {w99}), computed {c50} (p99 {c99})"
        )


def _variants(result: Result) -> Iterator[str]:
    if result.variants:
        yield ""
    for name, answers in result.variants.items():
        share = wording.share(answers, result.ok)
        yield from _row("variant", f"{wording.plain(name)}: {answers:,} of {wording.count(result.ok, 'answer')}, {share}")


def _scaling(result: Result) -> Iterator[str]:
    if result.scaling:
        yield ""
    for name, scaling in result.scaling.items():
        mean = scaling.instance_s / result.duration_s if result.duration_s else 0.0
        yield from _row(
            "instances", f"{name}: {mean:.2f} on average, at most {scaling.most}, {wording.count(scaling.changes, 'change')}"
        )


def _cache(result: Result) -> Iterator[str]:
    if result.cache:
        yield ""
    for name, use in result.cache.items():
        of = use.hits + use.joined + use.misses
        hits, joined, misses = (wording.share(part, of) for part in (use.hits, use.joined, use.misses))
        yield from _row("cache", f"{name}: {hits} of {wording.count(of, 'request')} hit, {joined} joined another, {misses} ran")


def _faults(result: Result) -> Iterator[str]:
    if result.faults:
        yield ""
    for fault in result.faults:
        yield from _row("fault", wording.plain(fault))


def _generator(generator: Generator | None) -> Iterator[str]:
    if generator is None:
        return
    said = f"busiest process {generator.cpu_share * 100:.0f} % of a core"
    if generator.late_max_ms > 0.0:  # in a closed loop nothing is due
        late_p99, late_max = wording.duration(generator.late_p99_ms), wording.duration(generator.late_max_ms)
        said += f"; requests left {late_p99} late at p99, {late_max} at most"
    yield ""
    yield from _row("generator", said)


def _remarks(result: Result) -> Iterator[str]:
    if result.warnings or result.interrupted:
        yield ""
    for warning in result.warnings:
        yield from _row("warning", wording.plain(warning, 1000))
    if result.interrupted:
        yield from _row("interrupted", f"stopped early; the figures cover {wording.duration(result.duration_s * 1e3)}")
