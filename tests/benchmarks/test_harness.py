"""What the benchmarks share: options that name things, turns, and what a run that fails or is interrupted exits with."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from benchmarks.harness.checks import Check, as_page
from benchmarks.harness.options import Names, options_of, positive
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.running import INTERRUPTS, run
from benchmarks.harness.turns import in_turn


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in INTERRUPTS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "only"),
    [([], ["A", "B", "C"]), (["--only", "c, a"], ["A", "C"]), (["--only", "C", "--only", "B"], ["B", "C"])],
)
def test_names_are_in_the_order_of_what_there_is(arguments: list[str], only: list[str]) -> None:
    parser = options_of("serving", None)
    parser.add_argument("--only", action=Names, known=["A", "B", "C"])
    assert parser.parse_args(arguments).only == only


@pytest.mark.parametrize("value", ["0", "-1"])
def test_nothing_lasts_no_time(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = options_of("serving", None)
    parser.add_argument("--seconds", type=positive(float))
    with pytest.raises(SystemExit):
        parser.parse_args([f"--seconds={value}"])
    assert "must be above 0" in capsys.readouterr().err


def test_each_side_is_first_in_its_turn() -> None:
    assert [in_turn("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def _fail() -> None:
    raise BenchmarkError("no server")


@pytest.mark.parametrize(
    ("measure", "code", "said"),
    [
        (lambda: None, 0, ""),
        (_fail, 2, "failed: no server"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 130, "interrupted"),
    ],
)
def test_a_run_ends_with(
    measure: Callable[[], None], code: int, said: str, signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(measure) == code
    assert capsys.readouterr().err.strip() == said


def test_a_page_has_its_sections_with_figures_and_details() -> None:
    check = Check(group="Speed", result="rate", expected=None, low=1.0, high=2.0, measured=3.0)
    text = as_page(["# Title"], [("Speed", "How quick.", [check], ["- more"])])
    assert text.startswith("# Title\n\n## Speed\n\nHow quick.\n\n| result |")
    assert "| rate |  | 1.00 to 2.00 | 3.00 | MISS |\n\n- more\n" in text
