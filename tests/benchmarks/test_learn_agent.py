"""The comparison of the agent with the rules: what counts as no worse, and a pilot without guard rails."""

import pytest

from benchmarks.autopilot.scenarios import make
from benchmarks.learn.agent import Unguarded, beside, differing, is_better, row
from dlproxy.policy.tuning.agent import Agent
from dlproxy.policy.tuning.moves import MOVES, Move
from tests.policy.tuning.lanes import KNOBS, SPACE, window

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("agent", "better"),
    [
        ([100, 100, 100, 100, 100], True),
        ([100, 110, 100, 100, 96], True),
        ([100, 110, 100, 100, 94], False),  # in one far worse
        ([100, 110, 100, 99, 99], False),  # in too many a little worse
    ],
)
def test_it_takes_the_rules_place_if_it_is_seldom_worse_and_never_much(agent: list[int], better: bool) -> None:
    assert is_better(beside([100] * 5, agent)) == better


def test_a_row_counts_ties_and_what_is_far_worse() -> None:
    found = beside([100, 100, 100, 100], [100, 110, 90, 100])
    assert row("dqn", found) == "| dqn | 75.0% | 2 | 1 | 0.900 | 1.0000 | 1.100 | 1.0000 |"
    assert differing(found) == f"- 0.900 {make(3, 2).words()}\n- 1.100 {make(2, 2).words()}"
    assert differing(beside([100], [100])) == "Nowhere: it did as the rules did."


def test_without_guard_rails_a_proposal_holds_at_once() -> None:
    agent = Agent(lambda state: [float(move is Move.MORE_INSTANCES) for move in MOVES])
    pilot = Unguarded(agent, SPACE, KNOBS, 0.0)
    order = pilot.look(window(0.5, missed=50), 0.5)
    assert order is not None
    assert (order.act, order.knobs["instances"]) == ("finish", 2)
    assert pilot.look(window(1.0, missed=50), 1.0) is not None
    assert pilot.look(window(1.5, missed=50), 1.5) is None  # there are no more
    assert pilot.knobs["instances"] == 4
