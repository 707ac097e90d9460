"""What is made of scores: alarms, delays and false alarms are counted as a server would raise them."""

import numpy as np
import pytest

from dlproxy.lab.learn.anomalies.judge import MARGIN, WEEK_S, alarms_at, begun, judged, limit
from dlproxy.lab.learn.anomalies.scenarios import FAULTS, Plan, Recorded, plan, simulate, told
from dlproxy.policy.watch.detectors import Charts
from dlproxy.policy.watch.features import NAMES
from dlproxy.policy.watch.usual import FIRST
from dlproxy.policy.watch.watcher import CALM, ENOUGH, WINDOW_S


def record(length: int, wrong: range | None) -> Recorded:
    truth = np.zeros(length, np.bool_)
    if wrong is not None:
        truth[wrong] = True
    return Recorded(None if wrong is None else "slow", np.zeros((length, len(NAMES)), np.float32), truth)


def test_an_alarm_needs_enough_of_the_last_scores() -> None:
    scores = np.array([0.0, 3.0, 1.0, 2.0, 2.5, 0.0, 0.0, 0.0])
    assert alarms_at(scores).tolist() == [0.0, 0.0, 0.0, 1.0, 2.0, 1.0, 0.0, 0.0]
    assert begun(scores, 2.0) == [4]
    assert begun(scores, 2.1) == []
    assert limit([scores, scores / 2.0]) == MARGIN * 2.0


@pytest.mark.parametrize(
    ("loud", "found", "false"),
    [
        (range(20, 40), [(True, ENOUGH * WINDOW_S)], 0),
        (range(25, 40), [(True, (5 + ENOUGH) * WINDOW_S)], 0),
        (range(15, 40), [(False, 20 * WINDOW_S)], 1),  # it was on already: nothing was found
        (range(41, 60), [(False, 20 * WINDOW_S)], 0),
        (range(2), [(False, 20 * WINDOW_S)], 0),
    ],
)
def test_a_fault_is_found_by_an_alarm_that_begins_while_it_lasts(
    loud: range, found: list[tuple[bool, float]], false: int
) -> None:
    scores = np.zeros(100)
    scores[loud] = 1.0
    faults, per_week = judged([scores], [record(100, range(20, 40))], 1.0)
    assert [(one.detected, one.delay_s) for one in faults] == found
    assert per_week == pytest.approx(false / (20 * WINDOW_S) * WEEK_S)


def test_false_alarms_are_counted_over_all_normal_time() -> None:
    scores = np.zeros(200)
    scores[50:60] = scores[60 + CALM + 5 : 60 + CALM + 9] = 1.0
    faults, per_week = judged([scores, np.zeros(100)], [record(200, None), record(100, range(50, 60))], 1.0)
    assert per_week == pytest.approx(2 / (250 * WINDOW_S) * WEEK_S)
    assert [one.detected for one in faults] == [False]


def of_load(fault: str | None) -> Plan:
    """Long enough for a fault of some windows; little enough to be quick."""
    seconds = (FIRST + 60) * WINDOW_S
    planned = plan(np.random.default_rng(4), seconds, fault)  # type: ignore[arg-type]
    values = {name: getattr(planned, name) for name in Plan.__struct_fields__}
    from_s = (FIRST + 20) * WINDOW_S
    changes = {"rate": 8.0, "base_s": 0.05, "row_s": 0.01, "instances": 1, "objective_s": 0.4, "heavy": 0.0, "gap_cv": 1.0}
    much = {"much": 0.9, "from_s": from_s, "until_s": from_s + 60.0, "load": np.ones_like(planned.load), "tuned": False}
    return Plan(**{**values, **changes, **much, "cached": fault == "stampede"})


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_each_fault_shows_in_what_a_watcher_is_told_while_it_lasts_and_not_before(fault: str | None) -> None:
    trace = simulate(of_load(fault), 1)
    seen = told(trace)
    assert len(trace.seen) - FIRST - 5 <= len(seen.off) == len(seen.wrong) <= len(trace.seen) - FIRST, "few were idle"
    charts = Charts()
    scores = np.array([charts.observe(row, 0.0) for row in seen.off.tolist()])
    assert seen.wrong.any() == (fault is not None)
    calm = scores[: int(np.flatnonzero(seen.wrong)[0])] if fault else scores
    assert (calm < 1.0).mean() > 0.9
    if fault:
        assert scores[seen.wrong].max() > max(2.0 * np.median(calm), 0.9 * calm.max())
