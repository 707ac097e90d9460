"""What a run says of a model: more cores miss less, and who aims at fewer cores takes fewer."""

import pytest

from dlproxy.lab.learn.pareto.runs import AIMS, REFERENCE, Aim, outcome
from dlproxy.lab.simulate.scenario import Phase, Scenario
from dlproxy.policy.tuning.rules import Rules

PHASE_S = 8.0
LOAD = Phase(60.0, "poisson", 0.0, 1.0, 4)
MODEL = Scenario(1, 0.02, 0.005, 0.1, 0.2, (4, 1, 8, 0.0), "nothing", (LOAD, LOAD))


def test_more_instances_miss_less_and_take_more() -> None:
    one, four = (outcome(MODEL, (count, 1, 1, 0.0), 1, phase_s=PHASE_S) for count in (1, 4))
    assert one[0] > 0.2 > 0.02 > four[0]
    assert (one[2], four[2]) == (0.25, 1.0)
    assert four[1] < one[1] <= REFERENCE[1]


def test_an_aim_steers_a_policy() -> None:
    most, fewest = (outcome(MODEL, Rules(), 1, phase_s=2 * PHASE_S, aim=Aim(1.0, prefers)) for prefers in ("", "cores"))
    assert fewest[2] < most[2] == 1.0
    assert fewest[0] < 0.1
    assert len(set(AIMS)) == len(AIMS)


@pytest.mark.extras
def test_the_search_finds_what_is_not_dominated() -> None:
    from dlproxy.lab.learn.pareto.search import search

    found = search(MODEL, 1, trials=16, phase_s=4.0)
    assert found
    assert all(instances * threads <= MODEL.cores for instances, threads, *_ in found)
