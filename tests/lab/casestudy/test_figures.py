"""Figures of a turn, by hand, and changes between sides."""

from math import isnan

import pytest

from dlproxy.lab.casestudy.figures import change, change_of, figures
from dlproxy.lab.casestudy.record import DayRecord, Turn
from dlproxy.lab.casestudy.replay import FAILED, NONE, REFUSED
from tests.lab.casestudy import stand_ins


def _day() -> DayRecord:
    """Ten requests, the last five in a sale of 2 s."""
    day = stand_ins.day_record()
    day.at_s = [0.0, 1.0, 2.0, 3.0, 4.0, 8.0, 8.5, 9.0, 9.4, 9.5]
    day.kind = [0, 1, 1, 2, 2, 0, 0, 1, 1, 2]
    day.picture = [0, 1, 1, 2, 2, 3, 4, 5, 6, 1]
    day.right = [0, 1, 1, 2, 2, 3, 4, 5, 6, 1]
    day.length_s, day.sale_s = 10.0, (8.0, 10.0)
    return day


def _turn(day: DayRecord) -> Turn:
    turn = stand_ins.turn(stand_ins.day_record(), "dlproxy", 0, calm_ms=1.0, sale_in_time=1.0, wrong=0.0)
    turn.latency_ms = [10.0, 10.0, 10.0, 30.0, 500.0, 100.0, 60.0, -1.0, -1.0, -1.0]
    turn.answer = [0, 1, 5, 2, 2, 9, 4, REFUSED, NONE, FAILED]
    turn.rows, turn.cores = {"pixels": 7, "classifier": 5}, [1.0, 0.5]
    return turn


def test_by_hand() -> None:
    day = _day()
    found = figures(day, _turn(day))
    assert found.sale_rps == pytest.approx(2 / 2.0)
    assert found.day_rps == pytest.approx(6 / 10.0)
    assert found.day.mean == pytest.approx(720.0 / 7)
    assert found.calm.mean == pytest.approx(560.0 / 5)
    assert found.day.p50 == 30.0
    assert found.in_time == pytest.approx(0.6)
    assert found.urgent_in_time == pytest.approx(1.0)
    assert found.new_in_time == pytest.approx(2 / 4)
    assert found.refused == pytest.approx(0.1)
    assert found.lost == pytest.approx(0.2)
    assert found.wrong == pytest.approx((0.5 + 1.0) / 5)  # of pictures 0 to 4: 1 is half wrong, 3 is wrong
    assert found.useful == pytest.approx((7 * 2.0 + 5 * 10.0) * 1e-3 * (6 / 7) / (2 * 10.0))
    assert found.at_first == pytest.approx(6 * 12.0 * 1e-3 / 20.0)
    assert found.busy == pytest.approx(0.375)
    assert found.cost_s == pytest.approx(1.5 / 6)
    assert found.at_once == 1


def test_a_day_without_any_answer_has_figures_too() -> None:
    day = _day()
    turn = _turn(day)
    turn.latency_ms, turn.answer, turn.rows, turn.cores = [-1.0] * 10, [NONE] * 10, {}, []
    found = figures(day, turn)
    assert isnan(found.day.mean)
    assert isnan(found.wrong)
    assert (found.day_rps, found.useful, found.lost, found.at_once) == (0.0, 0.0, 1.0, 0)


def test_a_change_is_of_the_ratios_within_rounds() -> None:
    found = change_of([(10.0, 20.0), (100.0, 200.0), (1.0, 2.0)])
    assert (found.change, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    apart = change_of([(10.0, 15.0), (10.0, 25.0)])
    assert apart.low < apart.change < apart.high
    assert change_of([(0.0, 5.0)]).change == pytest.approx(99.0)
    assert change_of([(5.0, 0.0)]).change == pytest.approx(-0.99)
    assert change_of([(0.0, 0.0)]).change == 0.0
    one = change_of([(10.0, 5.0)])
    assert (one.low, one.change, one.high, one.rounds) == (-0.5, -0.5, -0.5, 1)


def test_a_side_that_has_no_common_round_has_no_change() -> None:
    study = stand_ins.study()
    study.turns = [turn for turn in study.turns if turn.side != "dlproxy" or turn.round == 7]
    assert change(study, "FastAPI", "dlproxy", lambda one: one.day_rps) is None
    found = change(study, "FastAPI", "all steps", lambda one: one.sale_rps)
    assert found is not None
    assert found.change > 1.0
