"""What a benchmark run has found so far: every single run, the ratios with their goals, the table and the JSON file."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from benchmarks.harness.wrk import Figures

Verdict = Literal["pass", "miss", "-"]
LABEL_WIDTH = 52
BUSY_SHARE = 0.02
STOLEN_SHARE = 0.02


@dataclass
class Run:
    """One measurement of one subject; `command` made the load, `server_command` answered it.

    `stolen_share`: of the core that lost more of its time to other guests of the hypervisor. `left_out`: it lost too much.
    """

    scenario: str
    subject: str
    what: str
    figures: Figures
    command: list[str]
    server_command: list[str] | None = None
    idle_dlproxy_cpu_share: float | None = None
    stolen_share: float | None = None
    left_out: bool = False


@dataclass(frozen=True)
class Goal:
    limit: float
    at_least: bool
    aim: float | None = None

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        aim = "" if self.aim is None else f" (aim {self.aim:g})"
        return f"{'>=' if self.at_least else '<='} {self.limit:g}{aim}"


@dataclass(frozen=True)
class Ratio:
    """The median of `values`, one for each pair of runs (or each launch), against its goal if it has one."""

    scenario: str
    what: str
    values: list[float]
    goal: Goal | None = None
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> Verdict:
        if self.goal is None:
            return "-"
        return "pass" if self.goal.is_met(self.median) else "miss"


@dataclass
class Report:
    machine: dict[str, Any]
    options: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_ratio(self, scenario: str, what: str, value: float, goal: Goal | None = None, unit: str = "") -> None:
        """One more pair's value: kept at once, so that an interrupted run still has its ratios."""
        for ratio in self.ratios:
            if (ratio.scenario, ratio.what) == (scenario, what):
                ratio.values.append(value)
                return
        self.ratios.append(Ratio(scenario, what, [value], goal, unit))

    def missed(self) -> bool:
        return any(ratio.verdict == "miss" for ratio in self.ratios)

    def table(self) -> str:
        lines = ["", f"{'':{LABEL_WIDTH}} {'requests/s':>11} {'p50 ms':>9} {'p99 ms':>9} {'runs':>5}"]
        lines += [_rate_line(runs) for runs in self._grouped_runs()]
        lines += ["", f"{'median ratio':{LABEL_WIDTH}} {'value':>11} {'lowest':>9} {'highest':>9}  goal"]
        lines += [_ratio_line(ratio) for ratio in self.ratios]
        lines += [f"NOT MEASURED: {failure.splitlines()[0]}" for failure in self.failures]
        lines += [f"note: {note}" for note in self._all_notes()]
        return "\n".join(lines)

    def save(self, path: Path, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """`more`: what else this benchmark found."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = dict(more) | {
            "machine": self.machine,
            "options": self.options,
            "runs": [asdict(run) for run in self.runs],
            "medians": [_median_figures(runs) for runs in self._grouped_runs()],
            "ratios": [asdict(ratio) | {"median": ratio.median, "verdict": ratio.verdict} for ratio in self.ratios],
            "failures": self.failures,
            "notes": self._all_notes(),
        }
        path.write_text(json.dumps(content, indent=2, default=str) + "\n")

    def _grouped_runs(self) -> list[list[Run]]:
        groups: dict[tuple[str, str, str], list[Run]] = {}
        for run in self.runs:
            if not run.left_out:
                groups.setdefault((run.scenario, run.subject, run.what), []).append(run)
        return list(groups.values())

    def _all_notes(self) -> list[str]:
        return [*self.notes, *self._stolen_notes(), *self._busy_notes()]

    def _stolen_notes(self) -> list[str]:
        shares = [run.stolen_share for run in self.runs if run.stolen_share is not None and not run.left_out]
        notes = []
        if shares and max(shares) > STOLEN_SHARE:
            median, most = statistics.median(shares), max(shares)
            notes.append(f"of these runs the hypervisor took a core's time for others: median {median:.0%}, at most {most:.0%}")
        if left_out := sum(run.left_out for run in self.runs):
            notes.append(
                f"{left_out} of {len(self.runs)} runs are left out: the hypervisor took more than --max-stolen in their round"
            )
        return notes

    def _busy_notes(self) -> list[str]:
        shares = [run.idle_dlproxy_cpu_share for run in self.runs if run.idle_dlproxy_cpu_share is not None]
        if not shares or max(shares) <= BUSY_SHARE:
            return []
        return [f"idle dlproxy took up to {max(shares):.0%} of the server core while its yardstick was measured"]


def _median(runs: Sequence[Run], name: str) -> float:
    return float(statistics.median(getattr(run.figures, name) for run in runs))


def _median_figures(runs: Sequence[Run]) -> dict[str, Any]:
    names = ("requests_per_s", "p50_ms", "p99_ms")
    described = {"scenario": runs[0].scenario, "subject": runs[0].subject, "what": runs[0].what, "runs": len(runs)}
    return described | {name: _median(runs, name) for name in names}


def _rate_line(runs: Sequence[Run]) -> str:
    label = f"{runs[0].scenario}  {runs[0].subject}: {runs[0].what}"
    rate = _median(runs, "requests_per_s")
    shown = f"{rate:,.0f}" if rate >= 1000 else f"{rate:.1f}"
    p50, p99 = _median(runs, "p50_ms"), _median(runs, "p99_ms")
    return f"{label:{LABEL_WIDTH}} {shown:>11} {p50:>9.3f} {p99:>9.3f} {len(runs):>5}"


def _ratio_line(ratio: Ratio) -> str:
    label = f"{ratio.scenario}  {ratio.what}"
    shown = f"{ratio.median:.3f}{ratio.unit and ' ' + ratio.unit}"
    goal = "" if ratio.goal is None else f"  {ratio.goal}: {ratio.verdict}"
    return f"{label:{LABEL_WIDTH}} {shown:>11} {min(ratio.values):>9.3f} {max(ratio.values):>9.3f}{goal}"
