"""A quick run of benchmarks/placement, and that its page has every figure."""

import pytest

from benchmarks.placement import __main__ as benchmark
from benchmarks.placement.page import Line, page


def test_small_run_prints_a_line_for_every_solver_and_objective(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(["--size", "3x2", "--seconds", "0.05"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| 3 x 2")]
    assert [row[1] for row in rows] == ["exact", "first fit", "annealing", "genetic", "ants"] * 2
    assert all(float(row[2]) >= 0.999 for row in rows)
    assert rows[0][2] == rows[5][2] == "1.000"


def test_page_names_command_machine_and_versions() -> None:
    options = benchmark.parse_options(["--size", "2x2", "--seconds", "0.02"])
    lines: list[Line] = []
    benchmark.measure(options, lines)
    written = page(lines, date="today", command="the command")
    for words in (
        "`the command` on today",
        "cores (load average",
        "Python 3.",
        "scipy 1.",
        "## Objective: utilisation",
    ):
        assert words in written


@pytest.mark.parametrize("options", [["--size", "20"], ["--size", "0x5"], ["--size", "5x5", "--write"]])
def test_wrong_options_are_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.parse_options(options)
