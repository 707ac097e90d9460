"""Results as the page RESULTS.md: figures, ratios, what failed and why, how each system was set up.

Names no path, host or registry of the machine that it was made on.
"""

from collections.abc import Mapping, Sequence

from benchmarks.harness.machine import summary
from benchmarks.harness.page import NONE, clean_reason, table
from benchmarks.peers.registry import System
from benchmarks.peers.results import OURS, Results
from benchmarks.peers.workloads import WORKLOADS

EXPLANATION = """\
Requests a second, in brackets the median and the 99th percentile of the latency in milliseconds; medians over the repeats.
All servers ran on one core, pinned, with ONNX Runtime on one thread and batches of at most 64; wrk ran on the other core.
Every answer was compared with ONNX Runtime's own before each load. *Memory* is PSS of all of a system's processes after the
MLP loads, *start* the seconds from launch to the first right answer, *idle* the share of the core that it takes when nobody
asks. Absolute figures belong to this machine; what can be compared is rows, and best the ratios further down."""
RATIOS = """\
How many times as fast as the peer dlproxy is: requests a second, with one connection the median latency. The two took turns,
the other one stopped meanwhile, and the ratio is the median over these pairs. *The best peer* is the one with the lowest."""


def page(results: Results, systems: Mapping[str, System]) -> str:
    chosen = [systems[name] for name in results.systems]
    parts = [
        "# dlproxy beside other inference servers",
        f"Written by `{results.command}`; how and why: [README](../README.md#peers).",
        f"{results.machine['date']}; {summary(results.machine)}.",
        *(f"**{note}**" for note in results.notes),
        "## Figures",
        EXPLANATION,
        _figures(results, chosen),
        "## dlproxy against each peer",
        RATIOS,
        _ratios(results, chosen),
    ]
    if results.failures:
        parts += ["## Not measured", _failures(results, chosen)]
    parts += ["## How each was set up", _setups(chosen), "## Versions", _versions(results, chosen)]
    return "\n\n".join(parts) + "\n"


def _figures(results: Results, chosen: Sequence[System]) -> str:
    head = ["", *(WORKLOADS[name].title for name in results.workloads), "memory, MB", "start, s", "idle", "max. difference"]
    rows = []
    for system in chosen:
        name = system.name
        difference = results.differences.get(name)
        cells = [_cell(results, name, workload) for workload in results.workloads]
        cells += [_number(results.footprint(name, "pss_mb"), ".0f"), _number(results.footprint(name, "start_s"), ".2f")]
        cells += [_number(results.footprint(name, "idle_cpu_share"), ".1%"), _number(difference, ".0e")]
        rows.append([f"**{system.title}**" if name == OURS else system.title, *cells])
    figures = table(head, rows)
    for name, runs in results.yardsticks.items():
        rates = sorted(figures.requests_per_s for figures in runs)
        middle = rates[len(rates) // 2]
        figures += (
            f"\n\nYardstick: {name} answering 64 connections with a constant as large as the MLP's answer: {middle:,.0f}/s."
        )
    return figures


def _cell(results: Results, system: str, workload: str) -> str:
    if workload in results.failures.get(system, {}):
        return "failed"
    rate = results.median(system, workload, "requests_per_s")
    if rate is None:
        return NONE
    p50, p99 = (results.median(system, workload, figure) for figure in ("p50_ms", "p99_ms"))
    return f"{_rate(rate)} ({_milliseconds(p50)} / {_milliseconds(p99)})"


def _ratios(results: Results, chosen: Sequence[System]) -> str:
    titles = {system.name: system.title for system in chosen}
    rows = []
    for system in chosen:
        if system.name == OURS:
            continue
        failed = results.failures.get(system.name, {})
        ratios = [results.ratio(system.name, workload) for workload in results.workloads]
        cells = ["failed" if name in failed else _times(ratio) for name, ratio in zip(results.workloads, ratios, strict=True)]
        rows.append([system.title, *cells])
    best = [results.best_peer(workload) for workload in results.workloads]
    rows.append(
        ["**the best peer**", *(NONE if found is None else f"**{_times(found[1])}** {titles[found[0]]}" for found in best)]
    )
    return table(["dlproxy /", *(WORKLOADS[name].title for name in results.workloads)], rows)


def _failures(results: Results, chosen: Sequence[System]) -> str:
    titles = {system.name: system.title for system in chosen}
    lines = []
    for name, failed in results.failures.items():
        reasons: dict[str, list[str]] = {}
        for workload, reason in failed.items():
            reasons.setdefault(clean_reason(reason), []).append(workload)
        lines += [f"- {titles[name]} ({', '.join(workloads)}): {reason}" for reason, workloads in reasons.items()]
    return "\n".join(lines)


def _setups(chosen: Sequence[System]) -> str:
    rows = [[s.title, s.format.description, s.batching, f"[documentation]({s.documentation})"] for s in chosen]
    return table(["", "body", "batching", "after"], rows).replace("--:", "--")


def _versions(results: Results, chosen: Sequence[System]) -> str:
    lines = []
    for system in chosen:
        known = results.versions.get(system.name, {})
        named = [f"{package} {known[package]}" for package in (*system.packages, "onnxruntime", "numpy") if package in known]
        lines.append(f"- {system.title}: {', '.join(named) or 'not installed'}")
    lines.append(f"- load: {results.machine['wrk'].partition(' Copyright')[0]}; yardstick: {results.machine['nginx']}")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return NONE
    return f"{ratio:.0f} x" if ratio >= 10 else f"{ratio:.2f} x"
