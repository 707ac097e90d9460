"""The learnt policy around its network: it proposes the best of what is possible, and as the rules do if it trusts them."""

from math import nan

import pytest

from dlproxy.policy.tuning.agent import Agent, Eyes, best
from dlproxy.policy.tuning.features import NAMES
from dlproxy.policy.tuning.moves import MOVES, Move
from dlproxy.policy.tuning.rules import Cost, Rules
from tests.policy.tuning.lanes import KNOBS, SPACE, simulated, window


def liking(*moves: Move) -> Agent:
    """The earlier, the better."""
    scores = [float(len(moves) - moves.index(move)) if move in moves else -1.0 for move in MOVES]
    return Agent(lambda state: scores)


def test_one_that_trusts_the_rules_proposes_what_they_propose() -> None:
    seen = simulated(Cost(0.01, 0.002), 1, "poisson", 300.0, SPACE.objective_s, 20.0, max_batch=8)
    agent, rules = liking(Move.ADVISED), Rules()
    for one in seen:
        assert agent.act(one, KNOBS, SPACE, one.at) == rules.act(one, KNOBS, SPACE, one.at)
    assert any(rules.act(one, KNOBS, SPACE, one.at) for one in seen)


def test_the_best_move_is_proposed_and_one_that_is_not_possible_leaves_the_knobs() -> None:
    busy = window(5.0, arrived=400, missed=200)
    found = liking(Move.MORE_INSTANCES, Move.TWICE_ROWS).act(busy, KNOBS, SPACE, 5.0)
    assert found is not None
    assert found.knobs == {**KNOBS, "instances": 2}
    assert found.gain > 0.0
    assert liking(Move.FEWER_INSTANCES, Move.TWICE_ROWS).act(busy, KNOBS, SPACE, 5.0) is None


def test_freeing_cores_is_harmless_only_while_the_objective_is_met() -> None:
    fewer, knobs = MOVES.index(Move.FEWER_INSTANCES), {**KNOBS, "instances": 4}
    for missed, harmless in ((0, True), (50, False)):
        option = Eyes().see(window(5.0, missed=missed), knobs, SPACE, 5.0).options[fewer]
        assert option is not None
        assert option.harmless == harmless


def test_without_advice_there_is_none_to_follow() -> None:
    busy = window(5.0, arrived=400, missed=200)
    one, other = Eyes().see(busy, KNOBS, SPACE, 5.0), Eyes(advised=False).see(busy, KNOBS, SPACE, 5.0)
    advised = MOVES.index(Move.ADVISED)
    assert (one.possible[advised], other.possible[advised]) == (True, False)
    assert one.state[NAMES.index("advised")] == 1.0
    assert other.state[NAMES.index("advised")] == 0.0
    assert len(one.state) == len(NAMES)


def test_scores_are_numbers_one_for_each_move() -> None:
    assert best([1.0, 3.0, 3.0, 0.0], [True, True, True, True]) == 1
    assert best([1.0, 3.0, 3.0, 9.0], [True, True, True, False]) == 0
    with pytest.raises(ValueError, match="all of them numbers"):
        best([1.0, nan], [True, True])
    with pytest.raises(ValueError, match="2 scores are needed"):
        best([1.0], [True, True])
