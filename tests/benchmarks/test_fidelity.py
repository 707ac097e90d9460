"""The fidelity benchmark's own arithmetic: a trace in parts, figures over several runs, and what agrees."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity.live import Cell, Part, Run, cut_trace, order
from benchmarks.fidelity.simulated import agrees, apart, figures, nearest
from dlproxy.lab.load.arrivals import make_arrivals, read_trace
from dlproxy.lab.report.result import Result, Tally, make_result


def result(latencies_s: list[float], *, failed: int = 0, seconds: float = 1.0) -> Result:
    tally = Tally(0.0, seconds)
    for latency_s in latencies_s:
        tally.sent_one(0.0, 0.0)
        tally.answered(0.0, latency_s)
    for _ in range(failed):
        tally.sent_one(0.0, 0.0)
        tally.failed("deadline", 0.0, 0.0)
    return make_result(tally, kind="bench", started="", target="m", setup={})


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_a_trace_in_parts_keeps_every_gap_within_them(tmp_path: Path, parts: int) -> None:
    instants = np.cumsum(np.random.default_rng(1).exponential(0.25, 100))
    whole = tmp_path / "whole.csv"
    whole.write_text("".join(f"{instant!r}\n" for instant in instants.tolist()))
    files = cut_trace(whole, parts, tmp_path)
    pieces = [np.concatenate(list(read_trace(file).chunks(np.inf))) for file in files]
    assert sum(piece.size for piece in pieces) == 100
    assert max(piece.size for piece in pieces) - min(piece.size for piece in pieces) <= 1
    first = 0
    for piece in pieces:
        assert piece == pytest.approx(instants[first : first + piece.size] - instants[first])
        first += piece.size


@pytest.mark.parametrize("parts", [2, 5, 8])
def test_each_part_has_its_turn_and_those_of_the_trace_have_two_far_apart(parts: int) -> None:
    cells = [Cell("poisson", 0.3, ()), Cell("trace", 0.3, ()), Cell("trace", 1.2, ())]
    sent = list(order(cells, parts))
    assert sorted(sent) == sorted([(cell, part) for cell in (0, 1, 1, 2, 2) for part in range(parts)])


def test_the_nearest_runs_are_those_of_other_parts_next_in_time() -> None:
    parts = [Part(make_arrivals("poisson", rate=1.0, seed=seed), 1.0, ()) for seed in range(3)]
    runs = [Run(parts[part], result([0.001]), float(at), at + 1.0) for at, part in enumerate((0, 1, 1, 2, 0))]
    assert [[other.began_at for other in nearest(run, runs)] for run in runs] == [[1, 2], [0, 3], [3, 0], [2, 4], [3, 2]]


def test_figures_of_several_runs_are_those_of_one_long_run() -> None:
    quick, slow = [0.001] * 90, [0.100] * 10
    together = figures([result(quick, seconds=1.0), result(slow, failed=25, seconds=3.0)])
    assert together == pytest.approx({"rate": 25.0, "p50": 1.0, "p99": 100.0, "shed": 0.2}, rel=0.01)
    assert together == pytest.approx(figures([result(quick + slow, failed=25, seconds=4.0)]))


@pytest.mark.parametrize(
    ("name", "factor", "agree"), [("rate", 1.04, True), ("rate", 0.94, False), ("p50", 0.86, True), ("p99", 1.16, False)]
)
def test_one_figure_outside_of_its_band_is_enough(name: str, factor: float, agree: bool) -> None:
    live = {"rate": 100.0, "p50": 2.0, "p99": 9.0, "shed": 0.5}
    simulated = {**live, name: live[name] * factor, "shed": 0.0}
    assert apart(simulated, live)[name] == pytest.approx(factor - 1.0)
    assert agrees(simulated, live) is agree


def test_nothing_agrees_with_no_answer_at_all() -> None:
    assert not agrees({"rate": 1.0, "p50": 1.0, "p99": 1.0}, {"rate": 0.0, "p50": 0.0, "p99": 0.0})
