"""What a trial says: clear differences soon, and hardly ever one that is not there, however bursty the arrivals."""

import random
from itertools import cycle

import numpy as np
import pytest

from dlproxy.policy.tuning.evidence import Evidence
from dlproxy.policy.tuning.rules import Cost
from dlproxy.policy.tuning.window import Window
from tests.policy.tuning.lanes import simulated, window

SLICES = 16
MOST_WRONG = 0.05


def says_better(windows: list[Window], begin: int) -> bool:
    """Whether a trial of slices in turns ever does, looked at after each; nothing differs between them."""
    evidence, turns = Evidence(by_rate=False), cycle([False, True])
    for one in windows[begin : begin + SLICES]:
        evidence.add(one, new=next(turns))
        if evidence.verdict() == "better":
            return True
    return False


def share_that_says_better(windows: list[Window], step: int) -> float:
    begins = range(0, len(windows) - SLICES, step)
    return sum([says_better(windows, begin) for begin in begins]) / len(begins)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("dispersion", [1.0, 20.0])
def test_equal_sides_are_hardly_ever_said_to_differ(share: float, dispersion: float) -> None:
    """Arrivals that are overdispersed, and requests that miss the objective by fours, as those of one batch do."""
    draw = np.random.default_rng(1)
    windows = []
    for number in range(4 * 1000):
        mean = 100.0 if dispersion == 1.0 else draw.gamma(100.0 / (dispersion - 1.0), dispersion - 1.0)
        arrived = int(draw.poisson(mean))
        missed = min(4 * int(draw.binomial(arrived // 4, share)), arrived)
        windows.append(window(0.5 * number, arrived=arrived, missed=missed, dispersion=dispersion))
    assert share_that_says_better(windows, 4) < MOST_WRONG


@pytest.mark.parametrize(
    ("arrivals", "rate"),
    [
        pytest.param("poisson", 370.0, id="Poisson, a little overloaded"),
        pytest.param("gamma:cv=4.5", 250.0, id="bursts"),
        pytest.param("gamma:cv=4.5", 120.0, id="bursts, mostly idle"),
    ],
)
def test_equal_sides_of_a_lane_are_hardly_ever_said_to_differ(arrivals: str, rate: float) -> None:
    windows = simulated(Cost(0.002, 0.0025), 1, arrivals, rate, 0.1, 250.0)
    assert 0.0 < sum([one.missed for one in windows]) / sum([one.ended for one in windows]) < 0.5
    assert share_that_says_better(windows, 1) < MOST_WRONG


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        pytest.param(50, 0, "better", id="half missed, then none"),
        pytest.param(0, 50, "worse", id="none missed, then half"),
        pytest.param(5, 5, "unclear", id="no difference yet"),
    ],
)
def test_what_is_plain_is_said_after_a_few_slices(old: int, new: int, verdict: str) -> None:
    evidence = Evidence(by_rate=False)
    for number in range(3):
        evidence.add(window(number, missed=old), new=False)
        evidence.add(window(number, missed=new), new=True)
    assert evidence.verdict() == verdict
    assert f"{3 * 100}" in evidence.words()


def test_nothing_is_said_of_a_handful_of_requests() -> None:
    evidence = Evidence(by_rate=False)
    evidence.add(window(0.5, arrived=1000, missed=1000), new=False)
    evidence.add(window(1.0, arrived=9), new=True)
    assert evidence.verdict() == "unclear"


def test_many_that_fare_alike_are_alike() -> None:
    evidence = Evidence(by_rate=False)
    for new in (False, True):
        evidence.add(window(1.0, arrived=200_000, missed=200), new=new)
    assert evidence.verdict() == "alike"


def test_failures_of_the_model_count_as_well() -> None:
    evidence = Evidence(by_rate=False)
    evidence.add(window(0.5, arrived=1000), new=False)
    evidence.add(window(1.0, arrived=1000, failed=500), new=True)
    assert evidence.verdict() == "worse"


@pytest.mark.parametrize(("times", "verdict"), [(2.0, "better"), (0.5, "worse"), (1.0, "unclear")])
def test_by_rate_more_answers_in_time_are_better(times: float, verdict: str) -> None:
    draw, evidence = random.Random(1), Evidence(by_rate=True)
    for number in range(4):
        arrived = 500 + draw.randrange(10)
        evidence.add(window(number, arrived=arrived), new=False)
        evidence.add(window(number, arrived=int(times * arrived)), new=True)
    assert evidence.verdict() == verdict
