"""Results side by side: two with ratios, what differed in their setup, and how far one pair can be trusted; or any number.

Called by cli/. Not aware of: files, and whether a larger figure is the better one for the reader.
"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.report import wording
from dlproxy.lab.report.result import FORMAT, Result, Second

WIDTH = 100
_LEAST_SECONDS = 5  # whole seconds in each run, below which their spread says nothing
_SHORT = 12  # letters of a name that may head a column in any case
_AT_ONCE = 7  # columns of a table that must not be wider
_ALIKE = 0.05  # durations and offered rates that differ by less are called the same


def compare(a: Result, b: Result) -> str:
    """Lines of text of at most 100 columns, without a newline at the end."""
    sections = [_what(a, b), _figures(a, b), _noise(a, b), _remarks(a, b)]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


def _what(a: Result, b: Result) -> Iterator[str]:
    for name, result in (("a", a), ("b", b)):
        started = f", started {result.started}" if result.started else ""
        length = wording.duration(result.duration_s * 1e3)
        yield f"{name}  " + wording.plain(f"{result.kind} of {wording.plain(result.target)}: {length}{started}", WIDTH - 3)
    options_a, options_b = wording.setup_rows(a.setup, 40), wording.setup_rows(b.setup, 40)
    differing = [name for name in {**options_a, **options_b} if options_a.get(name) != options_b.get(name)]
    if not differing:
        yield "same options"
    for name in differing:
        yield from _wrapped("   ", f"{name}: {options_a.get(name, 'not given')} in a, {options_b.get(name, 'not given')} in b")


def _figures(a: Result, b: Result) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("", "a", "b", "b / a")]
    rows.append(("offered", wording.rate(a.offered_rps), wording.rate(b.offered_rps), _ratio(a.offered_rps, b.offered_rps)))
    rows.append(("answered", wording.rate(a.rate_rps), wording.rate(b.rate_rps), _ratio(a.rate_rps, b.rate_rps)))
    goodputs = [None if result.objective_ms is None else result.goodput_rps for result in (a, b)]
    if goodputs != [None, None]:
        cells = ["-" if known is None else wording.rate(known) for known in goodputs]
        rows.append(("within objective", *cells, _ratio(*goodputs)))
    for key, label in wording.QUANTILE_NAMES.items():
        known_a, known_b = _latency(a, key), _latency(b, key)
        if known_a is not None or known_b is not None:
            rows.append((label, *(_said(known) for known in (known_a, known_b)), _ratio(known_a, known_b)))
    shares = [result.failed / ended if (ended := wording.finished(result)) else None for result in (a, b)]
    rows.append(("errors", *("-" if known is None else wording.share(known, 1.0) for known in shares), _ratio(*shares)))
    batch_a, batch_b = wording.mean_batch(a), wording.mean_batch(b)
    if batch_a is not None or batch_b is not None:
        means = ("-" if known is None else wording.number(known) for known in (batch_a, batch_b))
        rows.append(("mean batch", *means, _ratio(batch_a, batch_b)))
    yield from aligned(rows)


def aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lines of columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *cells in rows:
        line = "".join(f"   {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield f"{name:<{widths[0]}}{line}".rstrip()


class Columns(Struct, kw_only=True):
    """Results side by side as a JSON file has them, by name."""

    format: int = FORMAT
    kind: str = "what-if"
    columns: dict[str, Result]
    remarks: list[str]


def side_by_side(columns: Sequence[tuple[str, Result]]) -> str:
    """The figures of any number of results, a column each; names that are too long for that become letters."""
    rows = columns_of_figures(columns)
    lines = list(aligned(rows))
    if max(map(len, lines)) <= WIDTH:
        return "\n".join(lines)
    letters = [chr(ord("a") + index % 26) if len(name) > _SHORT else name for index, (name, _) in enumerate(columns)]
    legend = [f"{letter}: {name}" for letter, (name, _) in zip(letters, columns, strict=True) if letter != name]
    rows = [("", *letters), *rows[1:]]
    tables = [
        list(aligned([(row[0], *row[first : first + _AT_ONCE]) for row in rows])) for first in range(1, len(rows[0]), _AT_ONCE)
    ]
    return "\n\n".join("\n".join(table) for table in [*tables, legend])


def columns_of_figures(columns: Sequence[tuple[str, Result]]) -> list[tuple[str, ...]]:
    """A row for each figure, headings first, as text."""
    results = [result for _, result in columns]
    rows: list[tuple[str, ...]] = [("", *(wording.plain(name, 200) for name, _ in columns))]
    rows.append(("offered", *(wording.rate(result.offered_rps) for result in results)))
    rows.append(("throughput", *(wording.rate(result.rate_rps) for result in results)))
    if any(result.objective_ms is not None for result in results):
        rows.append(("objective", *(_said(result.objective_ms) for result in results)))
        rows.append(("goodput", *(wording.rate(result.goodput_rps) for result in results)))
        rows.append(
            ("missed", *(_share(None if (kept := wording.in_time(result)) is None else 1 - kept) for result in results))
        )
    rows += [(key, *(_said(_latency(result, key)) for result in results)) for key in ("p50", "p90", "p99")]
    rows.append(
        ("failed", *(_share(result.failed / ended if (ended := wording.finished(result)) else None) for result in results))
    )
    rows.append(
        ("mean batch", *("-" if (mean := wording.mean_batch(result)) is None else wording.number(mean) for result in results))
    )
    rows.append(("utilisation", *(_share(_utilisation(result)) for result in results)))
    for name in results[0].models if results else ():
        models = [result.models.get(name) for result in results]
        rows.append((wording.plain(name, 30), *("" for _ in models)))
        rows.append(("  throughput", *("-" if one is None else wording.rate(one.rate_rps) for one in models)))
        for key in ("p50", "p99"):
            rows.append((f"  {key}", *(_said(None if one is None else one.latency_ms.get(key)) for one in models)))
        rows.append(("  missed", *(_share(None if one is None or one.in_time is None else 1 - one.in_time) for one in models)))
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else wording.share(max(value, 0.0), 1.0)


def _utilisation(result: Result) -> float | None:
    """Of the average instance."""
    known = list(_utilisations(result.instances))
    return sum(known) / len(known) if known else None


def _utilisations(values: dict[str, Any]) -> Iterator[float]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _utilisations(value)
        elif name == "utilisation":
            yield float(value)


def _latency(result: Result, key: str) -> float | None:
    return result.latency_ms.get(key) if result.ok else None


def _said(ms: float | None) -> str:
    return "-" if ms is None else wording.duration(ms)


def _ratio(a: float | None, b: float | None) -> str:
    if a is None or b is None or a <= 0.0:
        return "-"
    ratio = b / a
    return f"{ratio:.2f}" if 0.1 <= ratio < 100.0 else wording.number(ratio)


def _noise(a: Result, b: Result) -> Iterator[str]:
    """What the spread of the single seconds says about each difference, without claiming more."""
    seconds_a, seconds_b = _whole_seconds(a), _whole_seconds(b)
    if min(len(seconds_a), len(seconds_b)) < _LEAST_SECONDS:
        yield f"Too short to tell a difference from noise: {_LEAST_SECONDS} whole seconds with answers are needed."
        return
    rows: list[tuple[str, ...]] = [("second by second", "median", "from", "to", "worst", "")]
    for name, field in (("answered", "ok"), ("p50", "p50_ms"), ("p99", "p99_ms")):
        of_a, of_b = (np.array([float(getattr(second, field)) for second in known]) for known in (seconds_a, seconds_b))
        rows.append((f"{name:<13}a", *_spread(of_a, field), ""))
        rows.append((f"{'':<13}b", *_spread(of_b, field), _verdict(of_a, of_b)))
    yield from aligned(rows)
    yield ""
    yield from _wrapped(
        "",
        "Nine in ten seconds lie within from and to. Where these overlap, the difference may be noise. How much whole runs "
        "differ cannot be seen in one pair: repeat both before you rely on it.",
    )


def _spread(values: NDArray[np.float64], field: str) -> list[str]:
    unit, worst = (wording.rate, values.min()) if field == "ok" else (wording.duration, values.max())
    return [unit(float(value)) for value in (*np.quantile(values, (0.5, 0.05, 0.95)), worst)]


def _whole_seconds(result: Result) -> list[Second]:
    return [second for second in result.timeline if second.ok and second.at_s >= 0.0 and second.at_s + 1.0 <= result.duration_s]


def _verdict(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
    (low_a, middle_a, high_a), (low_b, middle_b, high_b) = (np.quantile(values, (0.05, 0.5, 0.95)) for values in (a, b))
    if low_b > high_a or high_b < low_a:
        return "clear of each other"
    if not (low_a <= middle_b <= high_a or low_b <= middle_a <= high_b):
        return "mostly apart"
    return "overlap: may be noise"


def _remarks(a: Result, b: Result) -> Iterator[str]:
    for text in _doubts(a, b):
        yield from _wrapped("warning  ", text)


def _doubts(a: Result, b: Result) -> Iterator[str]:
    if a.kind != b.kind:
        yield f"not comparable: a is a {wording.plain(a.kind, 40)}, b a {wording.plain(b.kind, 40)}"
    if _models(a) != _models(b):
        yield f"not comparable: the model is {_models(a) or 'unknown'} in a, {_models(b) or 'unknown'} in b"
    loops = [result.setup.get("loop", "open") for result in (a, b)]
    if loops[0] != loops[1]:
        yield "not comparable: in an open loop requests come at their rate, in a closed loop each waits for an answer"
    elif loops[0] == "open" and _differ(a.offered_rps, b.offered_rps):
        yield "the offered rates differ, and latency depends on the load: compare at the same rate"
    if a.objective_ms != b.objective_ms:
        yield "the objectives differ, so what is within them cannot be compared"
    if _differ(a.duration_s, b.duration_s):
        yield f"the runs lasted {wording.duration(a.duration_s * 1e3)} and {wording.duration(b.duration_s * 1e3)}"
    for name, result in (("a", a), ("b", b)):
        if result.interrupted:
            yield f"{name} was interrupted"
        if not result.ok:
            yield f"{name} has no successful request"
        yield from (f"{name}: {wording.plain(text, 1000)}" for text in result.warnings)


def _models(result: Result) -> str:
    """The models' names, as a load test, a simulation or a replay says them."""
    one, many = result.setup.get("model"), result.setup.get("models")
    if isinstance(many, dict):
        return wording.plain(", ".join(sorted(many)))
    return wording.plain(one.get("name", "") if isinstance(one, dict) else one or "")


def _differ(a: float, b: float) -> bool:
    return abs(a - b) > _ALIKE * max(abs(a), abs(b))
