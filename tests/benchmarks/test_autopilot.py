"""The comparison of the autopilot with static configurations, on seconds in place of minutes."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from benchmarks.autopilot import compare
from benchmarks.autopilot.__main__ import SCENARIOS, STEADY_SCENARIOS, numbers, parse_options
from benchmarks.autopilot.compare import CACHE, Comparison, Half, Steadiness, changed, most_within, references
from benchmarks.autopilot.page import as_steady_table, as_table, failures, line, page, steady_page
from benchmarks.autopilot.runs import run_static, run_steady
from benchmarks.autopilot.scenarios import make, statics
from dlproxy.lab.simulate.scenario import MOST_BATCH, Part, Scenario, Static
from dlproxy.policy.tuning import KNOB_POLICIES, make_knob_policy
from dlproxy.policy.tuning.pilot import Decision

GOOD = Half(1.0, 0.01, 0.0, (4, 1, 256, 0.0))
WELL = Comparison(1, "bursts", "#1: a model", (GOOD, GOOD), 1.5, 2, 3)
SLOW = Comparison(2, "bursts", "#2: another", (GOOD, replace(GOOD, ratio=0.9)), 1.2, 1, 3)
COSTLY = Comparison(3, "3 x the load", "#3: a third", (replace(GOOD, missed=0.2, reference=0.05), GOOD), 0.5, 0, 9)


def test_scenarios_are_as_their_number_says() -> None:
    assert make(7, 1) == make(7, 1) != make(8, 1)
    for number in range(1, 50):
        scenario = make(number, 1)
        assert scenario.start[0] * scenario.start[1] <= scenario.cores
        assert len(statics(scenario)) >= 24
        assert scenario.objective_s > scenario.base_s + scenario.row_s
        assert str(number) in scenario.words()


def test_more_instances_answer_more_in_time() -> None:
    scenario = make(1, 1)
    few, many = (run_static(scenario, (count, 1, MOST_BATCH, 0.0), 0, 1, 65.0) for count in (1, 4))
    assert few.sent == many.sent > 1_000
    assert few.good < many.good


@pytest.mark.parametrize("policy", KNOB_POLICIES)
def test_each_policy_flies_for_a_while(policy: str) -> None:
    log = run_steady(make(1, 1), make_knob_policy(policy), 1, 20.0)
    assert "tries" in [decision.kind for decision in log]


def test_best_statics_are_searched_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    searched = []

    def best(scenario: Scenario, phase: int, seed: int) -> tuple[Part, Static]:
        searched.append((scenario.number, phase))
        return Part(100, 90 + phase), (1, 1, 1, 0.005)

    monkeypatch.setattr(compare, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(compare, "best_static", best)
    scenario = make(1, 1)
    found = references(scenario, 1)
    assert found == ((Part(100, 90), (1, 1, 1, 0.005)), (Part(100, 91), (1, 1, 1, 0.005)))
    assert references(scenario, 1) == found
    assert searched == [(1, 0), (1, 1)]
    references(replace(scenario, objective_s=1.0), 1)
    references(scenario, 2)
    references(scenario, 1, again=True)
    assert len(searched) == 8
    assert (CACHE.parent.name, CACHE.name) == ("autopilot", ".cache")


def test_failures_are_told_one_by_one() -> None:
    assert WELL.failures() == []
    assert SLOW.failures() == ["second phase: 90.0% of what (4, 1, 256, 0.0) answers in time"]
    missing, without = COSTLY.failures()
    assert missing == "first phase: misses 20.00% of its requests, at most 11.00% are allowed"
    assert without == "50.0% of what is answered in time without it"
    text = page([WELL, SLOW, COSTLY], policy="rules", date="today", command="it")
    assert "- #2: another: second phase" in text
    assert "- #3: a third: first phase" in text
    assert "- #1" not in text
    assert "| all | 3 | 100.0% | 90.0% | 83.3% | 1.20 | 0.50 | 1 | 2 | 1 of 3 |" in text
    assert "| bursts | 2 |" in as_table([WELL, SLOW, COSTLY])
    assert failures([WELL]) == "No scenario fails."
    assert [line(one).split()[1] for one in (WELL, SLOW)] == ["ok", "FAILS"]


def test_changes_under_a_steady_load_are_counted_once_it_has_settled() -> None:
    assert most_within([]) == 0
    assert most_within([1.0, 100.0, 119.0]) == 0
    assert most_within([130.0, 400.0, 729.0, 731.0, 1300.0]) == 3
    restless = Steadiness(4, "#4: a fourth", 3, 2, 9)
    assert restless.failures() == ["3 changes kept in ten minutes, at most 2 are allowed"]
    assert "FAILS" in line(restless)
    assert as_steady_table([restless]) in steady_page([restless], policy="rules", date="today", command="it")


@pytest.mark.parametrize(
    ("kind", "reason", "counts"),
    [("keeps", "it helps", True), ("undoes", "after some seconds it did harm", True), ("undoes", "it did harm", False)],
)
def test_what_changes_knobs_counts(kind: str, reason: str, counts: bool) -> None:
    assert changed(Decision(at=1.0, kind=kind, reason=reason)) is counts  # type: ignore[arg-type]


def test_options() -> None:
    assert len(numbers(parse_options([]))) == SCENARIOS
    assert len(numbers(parse_options(["--steady"]))) == STEADY_SCENARIOS
    assert numbers(parse_options(["--scenarios", "3"])) == [1, 2, 3]
    assert numbers(parse_options(["--only", "7", "9"])) == [7, 9]
    with pytest.raises(SystemExit):
        parse_options(["--only", "7", "--write"])
