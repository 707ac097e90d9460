"""Shares of the cores among models that take turns, on made-up windows in which a share decides what its model misses."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from dlproxy.autopilot.shares import SharedTurns
from dlproxy.policy.tuning.pilot import TICK_S
from dlproxy.policy.tuning.window import Window


class Model:
    """Wants `rate` requests per second of `core_s` each, and gets its share of one core, or what the other leaves."""

    def __init__(self, name: str, rate: int, core_s: float, weight: float = 1.0) -> None:
        self.rate, self.core_s = rate, core_s
        self.share = 1.0
        self.mode = "on"
        self.pilot: Any = None
        self.log: deque[Any] = deque()
        self.tuned = SimpleNamespace(name=name, version="1", turn_cores=lambda: 1.0, weight=lambda: weight, weigh=self._weigh)

    def _weigh(self, share: float) -> None:
        self.share = share

    def window(self, at: float, core: float) -> Window:
        arrived = round(self.rate * TICK_S)
        answered = min(arrived, round(core * TICK_S / self.core_s))
        return Window(
            at=at,
            seconds=TICK_S,
            arrived=arrived,
            answered=answered,
            in_time=answered,
            refused=arrived - answered,
            rows=answered,
            dispersion=1.0,
            costs={1: (answered, answered * self.core_s)},
        )


class Machine:
    """One core for these models."""

    def __init__(self, *models: Model) -> None:
        self.models = list(models)
        self.now = 0.0
        self.turns = SharedTurns(lambda: 1, lambda: self.now)

    def runs(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            total = sum(model.share for model in self.models)
            needs = {model: model.rate * model.core_s for model in self.models}
            windows = {}
            for model in self.models:
                others = sum(need for other, need in needs.items() if other is not model)
                windows[model] = model.window(self.now, max(model.share / total, 1.0 - others))
            self.turns.look(windows, self.now)  # type: ignore[arg-type]


def test_the_cores_go_to_where_most_is_answered() -> None:
    heavy, light = Model("heavy", 100, 0.01), Model("light", 900, 0.001)
    machine = Machine(heavy, light)
    machine.runs(60.0)
    assert light.share / (light.share + heavy.share) > 0.9
    assert [decision.kind for decision in light.log] == [decision.kind for decision in heavy.log] == ["tries", "keeps"]
    assert "heavy/1" in light.log[-1].changes


def test_answers_that_count_more_come_first() -> None:
    heavy, light = Model("heavy", 100, 0.01, weight=50.0), Model("light", 900, 0.001)
    machine = Machine(heavy, light)
    machine.runs(60.0)
    assert heavy.share / (light.share + heavy.share) > 0.9


def test_shares_stay_alike_where_everybody_has_enough() -> None:
    one, other = Model("one", 10, 0.01), Model("other", 400, 0.001)
    machine = Machine(one, other)
    machine.runs(60.0)
    assert one.share == other.share
    assert not one.log


def test_who_is_left_alone_or_is_only_advised_has_all() -> None:
    heavy, light = Model("heavy", 100, 0.01), Model("light", 900, 0.001)
    machine = Machine(heavy, light)
    machine.runs(60.0)
    assert heavy.share < 0.5
    light.mode = "advise"
    machine.runs(1.0)
    assert (heavy.share, light.share) == (1.0, 1.0)


def test_nothing_is_shared_out_anew_while_knobs_of_a_model_are_on_trial() -> None:
    heavy, light = Model("heavy", 100, 0.01), Model("light", 900, 0.001)
    heavy.pilot = SimpleNamespace(trying=True)
    machine = Machine(heavy, light)
    machine.runs(30.0)
    assert (heavy.share, light.share) == (1.0, 1.0)
    heavy.pilot.trying = False
    machine.runs(60.0)
    assert light.share > heavy.share


def test_a_third_that_comes_is_given_its_part() -> None:
    heavy, light = Model("heavy", 100, 0.01), Model("light", 500, 0.001)
    machine = Machine(heavy, light)
    machine.runs(60.0)
    third = Model("third", 3000, 0.0001)
    machine.models.append(third)
    machine.runs(60.0)
    total = heavy.share + light.share + third.share
    assert third.share / total == pytest.approx(0.33, abs=0.1)
    assert light.share / total > 0.4


def test_what_cannot_be_shared_out_ends_in_equal_shares() -> None:
    heavy, light = Model("heavy", 100, 0.01), Model("light", 900, 0.001)
    machine = Machine(heavy, light)
    machine.runs(60.0)
    machine.turns.end()
    assert (heavy.share, light.share) == (1.0, 1.0)
    assert not machine.turns.trying
