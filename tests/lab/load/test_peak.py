"""The search for the highest rate, with runs that a formula answers: where it ends, and what ends it early."""

import re
from collections.abc import Callable
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from dlproxy.lab.load.generator import Progress
from dlproxy.lab.load.peak import MAX_TRIALS, Search
from dlproxy.lab.load.settings import LoadError, Settings, check
from dlproxy.lab.report import wording
from dlproxy.lab.report.result import Result, Tally, Trial, make_result

Outcome = tuple[float, dict[str, int]]  # p99 in seconds, errors


class FakeTest:
    """Runs that take no time; `respond` says how the server does at a rate."""

    def __init__(self, respond: Callable[[float], Outcome], duration_s: float = 10.0) -> None:
        self.settings = check(Settings(url="http://h", duration_s=duration_s))
        self.respond = respond
        self.alive = True
        self.runs: list[dict[str, Any]] = []
        self.model = SimpleNamespace(name="m")
        self.target = SimpleNamespace(model=self._describe)

    def _describe(self, name: str) -> None:
        if not self.alive:
            raise LoadError("cannot reach it")

    def run(self, interrupt: Any, watch: Callable[[Progress], bool], **changes: Any) -> Result:
        self.runs.append(changes)
        rate = changes["rate"] or 200.0
        p99_s, errors = self.respond(rate)
        tally = Tally(0.0, changes["duration_s"], 0.02)
        failed = sum(errors.values())
        sent = max(int(rate * changes["duration_s"]), 1)
        for number in range(sent):
            due_at = number / sent * changes["duration_s"]
            tally.sent_one(due_at, due_at)
            if number >= failed:
                tally.answered(due_at, due_at + p99_s)
        for kind, times in errors.items():
            for _ in range(min(times, sent)):
                tally.failed(kind, 0.0, changes["duration_s"])
        return make_result(tally, kind="load test", started="", target="m", setup={})


class Pressed:
    pressed = False


def _search(test: FakeTest, interrupt: Any = None) -> tuple[Search, list[Trial]]:
    told: list[Trial] = []
    made: Any = test
    return Search(made, 0.02, interrupt or Pressed(), told.append, lambda progress: True), told


@pytest.mark.parametrize("capacity", [3.0, 117.0, 2500.0])
def test_it_ends_just_below_the_capacity_with_a_full_run(capacity: float) -> None:
    test = FakeTest(lambda rate: (0.005 if rate <= capacity else 0.1, {}))
    search, told = _search(test)
    result = search.run()
    assert result.peak_rps is not None
    assert capacity / 1.06 <= result.peak_rps <= capacity
    assert result.trials == told
    assert told[-1].passed
    assert test.runs[-1]["duration_s"] == 10.0
    assert test.runs[-1]["objective_s"] == 0.02
    assert len(told) <= MAX_TRIALS
    assert {run["arrivals"] for run in test.runs[1:]} == {"poisson"}


def test_one_error_fails_a_trial() -> None:
    search, told = _search(FakeTest(lambda rate: (0.001, {"503 Service Unavailable": 1} if rate > 50.0 else {})))
    result = search.run()
    assert result.peak_rps is not None
    assert result.peak_rps <= 50.0
    assert any("503 Service Unavailable: 1 of" in trial.reason for trial in told)


def test_one_spoilt_trial_is_no_limit() -> None:
    count = 0

    def respond(rate: float) -> Outcome:
        nonlocal count
        count += 1
        return 0.5 if count % 3 == 0 or rate > 1000.0 else 0.001, {}

    search, _ = _search(FakeTest(respond))
    result = search.run()
    assert result.peak_rps is not None
    assert result.peak_rps > 900.0


def test_a_full_run_that_fails_lowers_the_rate() -> None:
    test = FakeTest(lambda rate: (0.001, {}))
    test.respond = lambda rate: (0.001 if rate <= (1000.0 if test.runs[-1]["duration_s"] < 10.0 else 700.0) else 1.0, {})
    search, _ = _search(test)
    result = search.run()
    assert result.peak_rps is not None
    assert 500.0 < result.peak_rps <= 700.0


def test_time_that_is_up_ends_it_with_what_was_tried() -> None:
    search, told = _search(FakeTest(lambda rate: (0.005, {})))
    result = search.run(100.0, until=monotonic())
    assert [trial.rate for trial in told] == [100.0]
    assert result.peak_rps is None
    assert not result.interrupted


def test_it_says_when_no_rate_will_do_and_stops_at_the_trials_that_it_was_given() -> None:
    search, told = _search(FakeTest(lambda rate: (1.0, {})))
    result = search.run(most=6)
    assert result.peak_rps is None
    assert len(told) <= 6
    assert "no rate met the objective" in " ".join(result.warnings)


def test_what_is_said_of_the_peak_is_an_interval_even_if_trials_contradict_each_other() -> None:
    test = FakeTest(lambda rate: (0.001, {}))
    whole = 0

    def respond(rate: float) -> Outcome:
        nonlocal whole
        whole += test.runs[-1]["duration_s"] == 10.0
        return (0.5 if rate > 1000.0 or 0 < whole <= 4 else 0.001), {}  # the first whole runs fail, whatever their rate

    test.respond = respond
    search, told = _search(test)
    result = search.run()
    assert result.peak_rps is not None
    failed = [trial.rate for trial in told if not trial.passed]
    assert max(trial.rate for trial in told if trial.passed) > min(failed), "the scene shall be contradictory"
    said = re.match(r"\d+ trials: ([\d,]+) /s held for a whole run, ([\d,]+) /s did not; ", wording.search(result))
    assert said is not None, wording.search(result)
    held, did_not = (float(number.replace(",", "")) for number in said.groups())
    assert held == pytest.approx(result.peak_rps, abs=1.0)
    assert held < did_not


def test_ctrl_c_before_the_first_run_is_no_result() -> None:
    interrupt = Pressed()
    interrupt.pressed = True
    search, _ = _search(FakeTest(lambda rate: (0.001, {})), interrupt)
    with pytest.raises(KeyboardInterrupt):
        search.run(100.0)


def test_a_server_that_goes_away_ends_it() -> None:
    test = FakeTest(lambda rate: (0.001, {}))

    def respond(rate: float) -> Outcome:
        if len(test.runs) >= 4:
            test.alive = False
            return 0.0, {"connection refused": int(rate * 100)}
        return 0.001, {}

    test.respond = respond
    search, told = _search(test)
    result = search.run()
    assert result.peak_rps is None
    assert len(told) == 3
    assert "cannot reach it" in " ".join(result.warnings)


def test_ctrl_c_ends_it_with_what_was_found() -> None:
    interrupt = Pressed()
    test = FakeTest(lambda rate: (0.001, {}))

    def respond(rate: float) -> Outcome:
        interrupt.pressed = len(test.runs) >= 4
        return 0.001, {}

    test.respond = respond
    search, told = _search(test, interrupt)
    result = search.run()
    assert result.interrupted
    assert len(told) == 2
    assert "interrupted; the highest rate that passed a trial is 200/s" in " ".join(result.warnings)
