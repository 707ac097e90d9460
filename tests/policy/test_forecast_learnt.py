"""A learnt forecast: what it is asked, what it says between its horizons, and that nonsense is Holt-Winters' turn."""

from collections.abc import Sequence
from math import inf, nan

import pytest

from dlproxy.policy.forecast import ABSURD, MOST_FAULTS, Asked, Form, HoltWinters, Learnt, Steps

FORM = Form(step_s=5.0, length=3, horizons_s=(2.0, 10.0, 60.0), quantiles=(0.5, 0.9, 0.99), season_s=80.0)
WARM_S = 15  # until the window is full


class Network:
    """Says the same at all horizons, or raises, and remembers what it was asked."""

    def __init__(self, says: float | list[float] | Exception) -> None:
        self.says = says
        self.asked: list[Asked] = []

    def __call__(self, asked: Asked) -> Sequence[Sequence[float]]:
        self.asked.append(asked)
        if isinstance(self.says, Exception):
            raise self.says
        says = self.says if isinstance(self.says, list) else [self.says] * 3
        return [[0.0, one, inf] for one in says]


class Scene:
    """A learnt forecast and Holt-Winters alone, told of the same samples of every second."""

    def __init__(self, says: float | list[float] | Exception) -> None:
        self.network = Network(says)
        self.told: list[str] = []
        self.learnt = Learnt(FORM, self.network, HoltWinters(), self.told.append)
        self.alone = HoltWinters()
        self.now = 0

    def pass_s(self, seconds: int, load: float = 4.0) -> None:
        for _ in range(seconds):
            self.now += 1
            self.learnt.observe(load, float(self.now))
            self.alone.observe(load, float(self.now))
            self.learnt.load_at(self.now + 10.0)

    def falls_back(self) -> bool:
        at = self.now + 10.0
        return self.learnt.load_at(at) == self.alone.load_at(at)


def test_the_window_holds_means_and_bursts_of_whole_steps_and_what_was_a_season_ago() -> None:
    steps, ended = Steps(FORM), []
    for second in range(1, 111):
        if steps.observe(float(second), float(second)):
            ended.append(second)
            assert steps.ended_at == second
    asked = steps.asked()
    assert ended == list(range(5, 111, 5))
    assert asked is not None
    assert asked.rates == [98.0, 103.0, 108.0]  # of the seconds 96 to 100, 101 to 105, 106 to 110
    assert asked.bursts == pytest.approx([2.5 / 98.0, 2.5 / 103.0, 2.5 / 108.0])
    # 80 s before: 16 to 30; then five steps around those from 31, 41 and 91 on
    assert asked.season == pytest.approx([23.0, 33.0, 43.0, 93.0])


def test_nothing_is_known_of_a_season_before_there_was_one_and_nothing_at_all_before_a_window() -> None:
    steps = Steps(FORM)
    for second in range(1, WARM_S):
        steps.observe(1.0, float(second))
        assert steps.asked() is None
    steps.observe(1.0, float(WARM_S))
    asked = steps.asked()
    assert asked == Asked([1.0] * 3, [0.0] * 3, [-1.0] * 4)


def test_a_sample_of_a_long_time_stands_for_the_steps_in_it() -> None:
    steps = Steps(FORM)
    steps.observe(1.0, 1.0)
    steps.observe(3.0, 21.0)
    asked = steps.asked()
    assert asked is not None
    assert asked.rates == [3.0, 3.0, 3.0]
    assert steps.highest == 3.0


def test_its_sure_quantile_counts_and_between_horizons_goes_in_proportion() -> None:
    scene = Scene([2.0, 10.0, 20.0])
    scene.pass_s(WARM_S)
    for ahead, expected in ((0.0, 2.0), (2.0, 2.0), (6.0, 6.0), (10.0, 10.0), (35.0, 15.0), (60.0, 20.0), (600.0, 20.0)):
        assert scene.learnt.load_at(WARM_S + ahead) == pytest.approx(expected)
    assert scene.told == []


def test_it_is_asked_once_a_step_and_only_if_somebody_wants_to_know() -> None:
    scene = Scene(5.0)
    scene.pass_s(WARM_S - 1)
    assert scene.falls_back()
    scene.pass_s(51)
    assert len(scene.network.asked) == 11
    for second in range(scene.now + 1, scene.now + 100):
        scene.learnt.observe(4.0, float(second))
    assert len(scene.network.asked) == 11


@pytest.mark.parametrize(
    "says",
    [nan, inf, -0.1, ABSURD * 4.0 * 1.2, [5.0, 5.0], [5.0, nan, 5.0], RuntimeError("out\nof memory"), TypeError()],
)
def test_nonsense_is_holt_winters_turn_and_told_once(says: float | list[float] | Exception) -> None:
    scene = Scene(says)
    scene.pass_s(WARM_S + 100)
    assert scene.falls_back()
    assert scene.learnt.load_at(scene.now + 10.0) > 0.0
    (told,) = scene.told
    assert "Holt-Winters in its place" in told
    assert "\n" not in told
    assert len(scene.network.asked) == MOST_FAULTS


def test_one_fault_is_forgiven() -> None:
    scene = Scene(5.0)
    for _ in range(MOST_FAULTS + 2):
        scene.network.says = nan
        scene.pass_s(WARM_S if scene.now == 0 else 5)
        assert scene.falls_back()
        scene.network.says = 5.0
        scene.pass_s(5)
        assert scene.learnt.load_at(scene.now + 10.0) == 5.0
    assert len(scene.told) == 1
