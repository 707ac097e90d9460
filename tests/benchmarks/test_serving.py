"""`make bench` without servers: which runs its comparisons pair, what they divide, what they judge."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import serving
from benchmarks.bench import MOST_TRIES, Bench
from benchmarks.harness.processes import BenchmarkError, Cores
from benchmarks.harness.report import Goal, Report, Run
from benchmarks.harness.servers import Server
from benchmarks.harness.stolen import StolenTime
from benchmarks.harness.wrk import Figures, Load, Mode
from benchmarks.scenarios import SHORTER, busy, many_connections, one_connection

RATES = {("dlproxy", 1): 70.0, ("dlproxy", 64): 100.0, ("dlproxy", 256): 80.0} | {
    ("bare", 1): 50.0,
    ("bare", 64): 160.0,
    ("bare", 256): 80.0,
}


class _Launcher:
    @contextmanager
    def dlproxy(self, models: dict[str, Path]) -> Iterator[Any]:
        yield SimpleNamespace(models=models)


@dataclass(frozen=True)
class _Bench(Bench):
    """Every subject answers at the rate that RATES has for it, with a latency that is its inverse.

    Half a core is stolen from the runs `disturbed`, the first being 0.
    """

    disturbed: Collection[int] = ()

    def load(self, connections: int, model: Path, mode: Mode = "same") -> Load:
        return Load(connections, self.seconds)

    def measure(self, scenario: str, subject: str, what: str, server: Server, load: Load) -> Run:
        rate = RATES[subject, load.connections]
        figures = Figures(rate, p50_ms=1000 / rate, p99_ms=3000 / rate, requests=1, seconds=load.seconds)
        stolen_share = 0.5 if len(self.report.runs) in self.disturbed else 0.03
        return self._keep(Run(scenario, subject, what, figures, [str(load.connections)], stolen_share=stolen_share))

    def measure_bare(self, scenario: str, what: str, model: Path, load: Load) -> Run:
        return self.measure(scenario, "bare", what, None, load)  # type: ignore[arg-type]

    def warm_up(self, server: Server, load: Load) -> None:
        """Nothing to warm."""

    def beside_idle(self, dlproxy: Server, measure: Callable[[], Run]) -> Run:
        return measure()


def _bench(pairs: int = 2, max_stolen: float | None = None, disturbed: Collection[int] = ()) -> Bench:
    launcher: Any = _Launcher()
    return _Bench(launcher, Report({}, {}), Path("mlp.onnx"), Path("slow.onnx"), 6, pairs, max_stolen, disturbed)


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


def test_a_round_that_lost_too_much_of_a_core_is_measured_again() -> None:
    bench = _bench(pairs=3, max_stolen=0.03, disturbed=(1, 4))
    busy(bench)
    assert [run.left_out for run in bench.report.runs] == [True, True, False, False, True, True, False, False, False, False]
    assert {len(ratio.values) for ratio in bench.report.ratios} == {3}
    table = bench.report.table()
    assert re.search(r"A  dlproxy: mlp, 64 connections .* 3\n", table)
    assert "note: 4 of 10 runs are left out" in table
    assert "median 3%, at most 3%" in table


def test_every_round_counts_unless_told_otherwise() -> None:
    bench = _bench(pairs=3, disturbed=range(99))
    busy(bench)
    assert (len(bench.report.runs), {len(ratio.values) for ratio in bench.report.ratios}) == (6, {3})
    assert "median 50%, at most 50%" in bench.report.table()


def test_a_machine_that_is_never_quiet_is_given_up_and_what_was_measured_is_kept() -> None:
    bench = _bench(pairs=2, max_stolen=0.03, disturbed=range(4, 999))
    with pytest.raises(BenchmarkError, match=r"only 2 of 6 rounds lost at most 3% of a core"):
        one_connection(bench)
    assert len(bench.report.runs) == 2 * MOST_TRIES * 6
    assert [len(ratio.values) for ratio in bench.report.ratios] == [2]


STAT = "cpu  9 0 0 0 0 0 0 {both} 0 0\ncpu0 1 0 0 0 0 0 0 {first} 0 0\ncpu1 8 0 0 0 0 0 0 {second} 0 0\nintr 1\n"


@pytest.mark.parametrize(
    ("cores", "share"), [(Cores(0, 1), 0.25), (Cores(0, None), 0.1), (Cores(None, None), None), (Cores(7, 8), None)]
)
def test_stolen_time_is_that_of_the_core_that_lost_more(tmp_path: Path, cores: Cores, share: float | None) -> None:
    stat = tmp_path / "stat"
    stat.write_text(STAT.format(both=30, first=10, second=20))
    stolen = StolenTime(cores, stat, clock=iter([5.0, 7.0]).__next__)
    stat.write_text(STAT.format(both=100, first=30, second=70))
    assert stolen.share() == share


def test_a_system_without_steal_time_says_nothing_of_it(tmp_path: Path) -> None:
    assert StolenTime(Cores(0, 1), tmp_path / "missing").share() is None


def test_rounds_cannot_be_left_out_where_nobody_tells_what_is_stolen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(serving, "wrk_is_installed", lambda: True)
    monkeypatch.setattr(serving, "choose_cores", lambda: Cores(None, None))
    assert serving.main(["--max-stolen", "0.03", "--json", str(tmp_path / "r.json")]) == serving.EXIT_UNUSABLE
    assert "--max-stolen needs Linux" in capsys.readouterr().err
