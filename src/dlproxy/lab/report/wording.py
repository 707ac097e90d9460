"""The numbers of a Result in words: units, shares, the one sentence that sums a run up. Shared by table, html and compare.

Not aware of: where the words are shown.
"""

import re
from collections.abc import Iterator
from math import floor, isfinite, log10
from typing import Any

from dlproxy.lab.report.histogram import Histogram
from dlproxy.lab.report.result import ModelResult, Result

NO_BREAK = "\u00a0"
QUANTILE_NAMES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99_9": "p99.9", "max": "max", "mean": "mean"}


def number(value: float) -> str:
    """Three significant digits, and no fewer than the whole number has: 1,234 or 12.3 or 0.00123."""
    if not isfinite(value):
        return str(value)
    if value == 0.0:
        return "0"
    places = 2 - floor(log10(abs(value)))
    rounded = round(value, places)
    if abs(rounded) >= 100.0:
        return f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.3g}"
    if abs(rounded) < 1e-4:
        return f"{value:.3g}"
    places = 2 - floor(log10(abs(rounded)))
    text = f"{rounded:.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def duration(ms: float) -> str:
    """Milliseconds in the unit that suits their size: 350 us, 12.3 ms, 1.25 s, 20 min, 3 h."""
    size = abs(ms)
    if size == 0.0:
        return "0 ms"
    if size < 0.9995:
        return f"{number(ms * 1e3)} µs"
    if size < 999.5:
        return f"{number(ms)} ms"
    if size < 600e3:
        return f"{number(ms * 1e-3)} s"
    if size < 180 * 60e3:
        return f"{number(ms / 60e3)} min"
    return f"{number(ms / 3600e3)} h"


def rate(per_second: float) -> str:
    """Per second: 1,234 /s."""
    return f"{number(per_second)} /s"


def share(part: float, whole: float) -> str:
    """A percentage that is never rounded to "none" or "all" unless it is: 0.002 %, 99.998 %."""
    if whole <= 0.0 or part == 0.0:
        return "0 %"
    percent = 100.0 * part / whole
    if percent == 100.0:
        return "100 %"
    if percent < 1e-4:
        return "< 0.0001 %"
    if 99.0 < percent < 100.0:
        missing = max(100.0 - percent, 1e-4)
        return f"{100.0 - missing:.{min(1 - floor(log10(missing)), 5)}f}".rstrip("0").rstrip(".") + " %"
    return f"{number(percent)} %"


def count(value: int, noun: str) -> str:
    """A number and its noun: 1 request, 2,000 requests."""
    if value == 1:
        return f"1 {noun}"
    return f"{value:,} {noun[:-1]}ies" if noun.endswith("y") else f"{value:,} {noun}{'es' if noun.endswith('ch') else 's'}"


def plain(text: object, most: int = 200) -> str:
    """Text from outside on one line: no control characters, no longer than `most` letters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def with_units(text: str) -> str:
    """The same with numbers kept beside their units, by spaces that do not break."""
    return re.sub(r"(?<=\d) (?=(?:[µm]?s|min|h|[kMG]?B)\b|%|/s)", NO_BREAK, text)


def setup_rows(setup: dict[str, Any], most: int = 200) -> dict[str, str]:
    """Options as name and value, nested ones by their path (`model.slo`); those that were not given are left out."""
    return {plain(name, most): _value(value, most) for name, value in _leaves(setup, "") if value is not None and value != ""}


def _leaves(values: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _value(value: object, most: int) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return plain(", ".join(_value(item, most) for item in value), most)
    return plain(value, most)


def finished(result: Result) -> int:
    """Requests that ended, well or not."""
    return result.ok + result.failed


def unanswered(result: Result) -> int:
    """Requests that were sent and had not ended when the run did."""
    return max(result.sent - finished(result), 0)


def mean_batch(result: Result) -> float | None:
    """Mean batch size; None if no batches are known."""
    batches = sum(result.batch_sizes.values())
    return sum(size * times for size, times in result.batch_sizes.items()) / batches if batches > 0 else None


def search(result: Result) -> str:
    """What a search for the highest rate found, as a sentence; empty if there was none."""
    if not result.trials:
        return ""
    return f"{count(len(result.trials), 'trial')}: {_found(result)}; the figures are of the last run"


def _found(result: Result) -> str:
    """The rates between which the peak lies. A rate that failed below one that was confirmed was disturbed, and is no bound."""
    peak, verdicts = result.peak_rps, {trial.rate: trial.passed for trial in result.trials}  # the last of each rate
    failed = [at for at, good in verdicts.items() if not good]
    if peak is None:
        short = [trial.rate for trial in result.trials if trial.passed]
        if not short:
            return f"no rate passed, {rate(min(verdicts))} was the lowest tried"
        whole = [trial.rate for trial in result.trials if trial.whole]
        lowest = f", {rate(min(whole))} was the lowest tried" if whole else ""
        return f"short trials passed at up to {rate(max(short))}, but no whole run did{lowest}"
    above, below = [at for at in failed if at > peak], [at for at in failed if at < peak]
    found = [f"{rate(peak)} held for a whole run"]
    found += [f"{rate(min(above))} did not"] if above else ["no higher rate failed"]
    found += [f"lower rates that failed ({', '.join(map(rate, sorted(below)))}) were disturbed"] if below else []
    return ", ".join(found)


def histogram_of(result: Result) -> Histogram:
    """The latencies; an empty histogram if they cannot be read."""
    try:
        return Histogram.decode(result.histogram)
    except ValueError:
        return Histogram()


def in_time(result: Result) -> float | None:
    """Share of the requests that ended which were answered within the objective; None without objective or requests."""
    if result.objective_ms is None or not finished(result):
        return None
    return histogram_of(result).share_within(result.objective_ms * 1e-3) * result.ok / finished(result)


def objective(result: Result) -> str:
    """Whether the objective was met, as a clause; empty if there was none."""
    within = in_time(result)
    if result.objective_ms is None:
        return ""
    limit = duration(result.objective_ms)
    if within is None:
        return f"whether the objective of {limit} was met is unknown: no request ended"
    if within >= result.objective_share:
        return f"the objective of {limit} was met: {share(within, 1.0)} in time"
    return f"the objective of {limit} was missed: {share(within, 1.0)} in time instead of {share(result.objective_share, 1.0)}"


MODEL_HEADINGS = ("model", "sent", "answered", "failed", "p50", "p99", "in time")


def model_cells(name: str, model: ModelResult) -> tuple[str, ...]:
    """One model of several under MODEL_HEADINGS."""
    latencies = (duration(model.latency_ms[key]) if key in model.latency_ms else "-" for key in ("p50", "p99"))
    in_time = "-"
    if model.in_time is not None and model.objective_ms is not None:
        in_time = f"{share(model.in_time, 1.0)} within {duration(model.objective_ms)}"
    return (plain(name, 40), f"{model.sent:,}", rate(model.rate_rps), f"{model.failed:,}", *latencies, in_time)


def headline(result: Result) -> str:
    """The run in one sentence: rate, p99, errors, objective."""
    if not result.sent:
        return "No requests were sent."
    if not finished(result):
        return f"None of {count(result.sent, 'request')} ended before the run did."
    if not result.ok:
        what = "The only request" if finished(result) == 1 else f"All {count(finished(result), 'request')}"
        clauses = f"{what} failed: {_commonest(result)}"
    else:
        clauses = f"{number(result.rate_rps)} requests/s answered, {_latency(result)}, {_errors(result)}"
    aim = objective(result)
    return f"{clauses}; {aim}." if aim else f"{clauses}."


def _latency(result: Result) -> str:
    if result.ok == 1:
        return f"the only answer took {duration(result.latency_ms.get('max', 0.0))}"
    return f"99 % of them within {duration(result.latency_ms.get('p99', 0.0))}"


def _errors(result: Result) -> str:
    if not result.failed:
        return "no errors"
    return f"{share(result.failed, finished(result))} errors ({_commonest(result)})"


def _commonest(result: Result) -> str:
    kind = max(result.errors, key=lambda name: result.errors[name])
    others = f" and {count(len(result.errors) - 1, 'other kind')}" if len(result.errors) > 1 else ""
    return f"{plain(kind, 60)}{others}"
