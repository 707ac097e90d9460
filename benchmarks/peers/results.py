"""What a comparison has found so far, with the medians and ratios that follow from it, and its JSON file.

A failure is a result: it keeps the place of the figure that it prevented.
"""

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.wrk import Figures
from benchmarks.peers.workloads import WORKLOADS

OURS = "dlproxy"


@dataclass(frozen=True)
class Measurement:
    system: str
    workload: str
    pair: str  # the two of a pair, one of them dlproxy's, were taken right after each other
    figures: Figures


@dataclass(frozen=True)
class Footprint:
    system: str
    start_s: float
    pss_mb: float
    idle_cpu_share: float  # of the server's core, taken while nobody asks anything of it


@dataclass
class Results:
    machine: dict[str, Any]
    command: str
    systems: list[str]
    workloads: list[str]
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    footprints: list[Footprint] = field(default_factory=list)
    differences: dict[str, float] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    yardsticks: dict[str, list[Figures]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def fail(self, system: str, workloads: list[str], reason: str) -> None:
        for workload in workloads:
            self.failures.setdefault(system, {}).setdefault(workload, reason)

    def note_difference(self, system: str, difference: float) -> None:
        self.differences[system] = max(self.differences.get(system, 0.0), difference)

    def median(self, system: str, workload: str, figure: str) -> float | None:
        """None where it was not measured, or not to the end: half of a failed measurement is none."""
        if workload in self.failures.get(system, {}):
            return None
        found = [m.figures for m in self.measurements if (m.system, m.workload) == (system, workload)]
        return statistics.median(getattr(figures, figure) for figures in found) if found else None

    def ratio(self, peer: str, workload: str) -> float | None:
        """How many times as fast dlproxy is: the median over the pairs."""
        if workload in self.failures.get(peer, {}):
            return None
        mine = {m.pair: m.figures for m in self.measurements if (m.system, m.workload) == (OURS, workload)}
        theirs = {m.pair: m.figures for m in self.measurements if (m.system, m.workload) == (peer, workload)}
        pairs = [(mine[pair], theirs[pair]) for pair in theirs if pair in mine]
        if not pairs:
            return None
        if WORKLOADS[workload].by_latency:
            return statistics.median(their.p50_ms / my.p50_ms for my, their in pairs)
        return statistics.median(my.requests_per_s / their.requests_per_s for my, their in pairs)

    def best_peer(self, workload: str) -> tuple[str, float] | None:
        """The peer that dlproxy is ahead of by least (or behind), with that ratio."""
        ratios = {peer: self.ratio(peer, workload) for peer in self.systems if peer != OURS}
        measured = {peer: ratio for peer, ratio in ratios.items() if ratio is not None}
        return min(measured.items(), key=lambda found: found[1]) if measured else None

    def footprint(self, system: str, figure: str) -> float | None:
        found = [getattr(footprint, figure) for footprint in self.footprints if footprint.system == system]
        return statistics.median(found) if found else None

    def save(self, path: Path) -> None:
        ratios = {peer: {name: self.ratio(peer, name) for name in self.workloads} for peer in self.systems if peer != OURS}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self) | {"ratios": ratios}, indent=2, default=str) + "\n")
