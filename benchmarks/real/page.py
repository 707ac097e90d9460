"""A run as the page RESULTS.md: what the models are, what dlproxy chose, and how that compares. Called by __main__.py."""

import statistics

from benchmarks.harness.machine import summary
from benchmarks.harness.page import NONE, clean_reason, table
from benchmarks.harness.report import Ratio, Report
from benchmarks.real.ceiling import Ceiling
from benchmarks.real.comparison import CLIENTS, DEFAULT, HELD, LOOP, Facts, Findings, ratio_of
from benchmarks.real.embedding import CLIENTS as EMBEDDING_CLIENTS
from benchmarks.real.embedding import LOOP_NAME, NAME

ABOUT = f"""\
Each model was served by `dlproxy serve model.onnx`, and by dlproxy with every combination of `threads`, `instances` and `run`
set by hand. {CLIENTS} clients in a closed loop asked real inputs of mixed size; servers and clients shared all cores. A short
screening chose the best hand-set ones (and, where a request takes 2 ms or more, the best loop around ONNX Runtime without a
server); then they and the default took turns. A ratio is the median over these rounds, the lowest of the finalists'.
Every answer was compared with ONNX Runtime's own before that, alone and in batches. *On the loop* is the processor time for
which an inline batch holds the event loop, p99.9."""
EMBEDDING = f"""\
all-MiniLM-L6-v2, {EMBEDDING_CLIENTS} clients, sentences of 3 to 200 tokens. dlproxy has no configuration; each other server
is set up as its documentation shows, with batches where it has them, and in the best of several ways. All use all cores, and
so do the clients. Infinity takes text, the others tokens."""

NO_CEILING = "Ceiling: not measured, or on a machine that was busy just then, for something here was quicker."


def page(report: Report, findings: Findings, command: str) -> str:
    parts = [
        "# Models with real weights",
        f"Written by `{command}`; how and why: [README](../README.md#real-models).",
        f"{report.machine['date']}; {summary(report.machine)}.",
        *(f"**{note}.**" for note in report.notes),
    ]
    if findings.facts:
        parts += ["## Without configuration", ABOUT, _ratios(report, findings), "## The models", _models(findings)]
    if any(ratio.scenario == NAME for ratio in report.ratios):
        found = _ceiling(report, findings)
        parts += [
            "## MiniLM beside other servers",
            EMBEDDING,
            found.words if found else NO_CEILING,
            _embedding(report, findings),
        ]
    if report.failures:
        parts += ["## Not measured", "\n".join(f"- {clean_reason(failure)}" for failure in report.failures)]
    return "\n\n".join(parts) + "\n"


def _ratios(report: Report, findings: Findings) -> str:
    head = ["", "ms a request", "dlproxy chose", "requests/s", "/ best hand-set", "/ best loop", "on the loop, ms"]
    rows = []
    for name, facts in findings.facts.items():
        cells = [_lowest(report, findings, name, kind) for kind in ("settings", "loops")]
        held = _ratio(report, name, HELD)
        cells.append(NONE if held is None else f"{held.median:.2f}{_missed(held)}")
        rows.append([name, _single(facts), facts.ran or NONE, _rate(report, name, "dlproxy", DEFAULT), *cells])
    return table(head, rows)


def _single(facts: Facts) -> str:
    return " / ".join(f"{ms:.3g}" for ms in facts.single_ms.values())


def _lowest(report: Report, findings: Findings, name: str, kind: str) -> str:
    """Of the ratios to all finalists of a kind, with whom it is to."""
    prefix = ratio_of(kind, "")
    found = [ratio for ratio in report.ratios if ratio.scenario == name and ratio.what.startswith(prefix)]
    if not found:
        return NONE
    worst = min(found, key=lambda ratio: ratio.median)
    return f"{worst.median:.2f}{_missed(worst)} {worst.what.removeprefix(prefix)}"


def _models(findings: Findings) -> str:
    lines = []
    for name, facts in findings.facts.items():
        signature = ", ".join(f"`{tensor}`" for tensor in facts.signature)
        lines.append(f"- **{name}** ({facts.kind}): {facts.title}; {facts.requests} distinct requests; {signature}")
    return "\n".join(lines)


def _ceiling(report: Report, findings: Findings) -> Ceiling | None:
    """None too where something was quicker: then the machine was busy with something else when it was measured."""
    fastest = max((run.figures.requests_per_s for run in report.runs if run.scenario == NAME), default=0.0)
    return findings.ceiling if findings.ceiling and findings.ceiling.rate >= fastest else None


def _embedding(report: Report, findings: Findings) -> str:
    ceiling = _ceiling(report, findings)
    ways = [(name, name.partition(",")[0], way) for name, way in findings.best.get(NAME, {}).items()]
    ways += {(LOOP_NAME, run.subject, run.what) for run in report.runs if (run.scenario, run.subject) == (NAME, LOOP)}
    rows = []
    for name, subject, way in ways:
        ratio, p99 = _ratio(report, NAME, f"dlproxy / {name}"), _ratio(report, NAME, f"p99: dlproxy / {name}")
        cells = [NONE if found is None else f"{found.median:.2f}{_missed(found)}" for found in (ratio, p99)]
        rate = _median_rate(report, NAME, subject, way)
        at_most = NONE if rate is None or ceiling is None else f"{ceiling.rate / rate:.2f}"
        goal = NONE if ratio is None else str(ratio.goal)
        rows.append([name, way, _rate(report, NAME, subject, way), *cells, goal, at_most])
    head = ["", "set up", "its requests/s", "rate: dlproxy / it", "p99: dlproxy / it", "goal of the rate", "at most"]
    return table(head, rows)


def _ratio(report: Report, name: str, what: str) -> Ratio | None:
    return next((ratio for ratio in report.ratios if (ratio.scenario, ratio.what) == (name, what)), None)


def _rate(report: Report, name: str, subject: str, what: str) -> str:
    rate = _median_rate(report, name, subject, what)
    return NONE if rate is None else f"{rate:,.1f}"


def _median_rate(report: Report, name: str, subject: str, what: str) -> float | None:
    wanted = (name, subject, what)
    rates = [run.figures.requests_per_s for run in report.runs if (run.scenario, run.subject, run.what) == wanted]
    return statistics.median(rates) if rates else None


def _missed(ratio: Ratio) -> str:
    return " (missed)" if ratio.verdict == "miss" else ""
