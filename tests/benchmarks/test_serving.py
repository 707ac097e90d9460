"""`make bench` without servers: which runs its comparisons pair, what they divide, what they judge."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import serving
from benchmarks.bench import Bench
from benchmarks.processes import BenchmarkError
from benchmarks.report import Goal, Report, Run
from benchmarks.scenarios import SHORTER, busy, many_connections, one_connection
from benchmarks.servers import Server
from benchmarks.wrk import Figures, Load, Mode

RATES = {("dlproxy", 1): 70.0, ("dlproxy", 64): 100.0, ("dlproxy", 256): 80.0} | {
    ("bare", 1): 50.0,
    ("bare", 64): 160.0,
    ("bare", 256): 80.0,
}


class _Launcher:
    @contextmanager
    def dlproxy(self, models: dict[str, Path]) -> Iterator[Any]:
        yield SimpleNamespace(models=models)


class _Bench(Bench):
    """Every subject answers at the rate that RATES has for it, with a latency that is its inverse."""

    def load(self, connections: int, model: Path, mode: Mode = "same") -> Load:
        return Load(connections, self.seconds)

    def measure(self, scenario: str, subject: str, what: str, server: Server, load: Load) -> Run:
        rate = RATES[subject, load.connections]
        figures = Figures(rate, p50_ms=1000 / rate, p99_ms=3000 / rate, requests=1, seconds=load.seconds)
        return self._keep(Run(scenario, subject, what, figures, [str(load.connections)]))

    def measure_bare(self, scenario: str, what: str, model: Path, load: Load) -> Run:
        return self.measure(scenario, "bare", what, None, load)  # type: ignore[arg-type]

    def warm_up(self, server: Server, load: Load) -> None:
        """Nothing to warm."""

    def beside_idle(self, dlproxy: Server, measure: Callable[[], Run]) -> Run:
        return measure()


def _bench(pairs: int = 2, seconds: int = 6) -> Bench:
    return _Bench(_Launcher(), Report({}, {}), Path("mlp.onnx"), Path("slow.onnx"), seconds, pairs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scenario", "found"),
    [
        (
            busy,
            {"mlp, 64 connections: dlproxy / bare": (0.625, "pass"), "mlp, 64 connections: dlproxy p99 / p50": (3.0, "pass")},
        ),
        (
            many_connections,
            {
                "mlp: dlproxy at 256 / at 64 connections": (0.8, "miss"),
                "mlp: bare at 256 / at 64 connections": (0.5, "-"),
            },
        ),
        (one_connection, {"mlp, one connection: p50 dlproxy / bare": (50 / 70, "pass")}),
    ],
)
def test_a_comparison_finds_its_ratios_and_judges_them(
    scenario: Callable[[Bench], None], found: dict[str, tuple[float, str]]
) -> None:
    bench = _bench()
    scenario(bench)
    ratios = {ratio.what: (ratio.median, ratio.verdict) for ratio in bench.report.ratios}
    expected: dict[str, Any] = {what: (pytest.approx(median), verdict) for what, (median, verdict) in found.items()}
    assert ratios == expected


def test_subjects_take_turns() -> None:
    bench = _bench()
    busy(bench)
    assert [run.subject for run in bench.report.runs] == ["dlproxy", "bare"] * 2


def test_pairs_of_many_and_few_connections_change_their_order() -> None:
    bench = _bench()
    many_connections(bench)
    ours = [int(run.command[0]) for run in bench.report.runs if run.subject == "dlproxy"]
    assert ours == [256, 64, 64, 256] * SHORTER
    assert {run.figures.seconds for run in bench.report.runs} == {2}


@pytest.mark.parametrize(("goal", "verdict"), [(Goal(2, at_least=True), "pass"), (Goal(1.9, at_least=False), "miss")])
def test_a_goal_is_held_against_the_median(goal: Goal, verdict: str) -> None:
    report = Report({}, {})
    for value in (9.0, 2.0, 1.0):
        report.add_ratio("X", "what", value, goal)
    assert ([ratio.verdict for ratio in report.ratios], report.missed()) == ([verdict], verdict == "miss")


def test_a_comparison_that_fails_is_reported_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> None:
        raise BenchmarkError("no server")

    bench = _bench()
    monkeypatch.setattr(serving, "SCENARIOS", {"A": broken, "C": one_connection})
    serving._run_scenarios(bench, ["A", "C"])
    assert bench.report.failures == ["A  no server"]
    assert "NOT MEASURED: A  no server" in bench.report.table()
    assert [ratio.scenario for ratio in bench.report.ratios] == ["C"]
