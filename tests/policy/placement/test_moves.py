"""The way from one placement to another: loads first, few at a time; who counts, what load wants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.placement.moves import Health, Loads, Move, Phase, moves, waiting, wanted
from dlproxy.policy.placement.problem import Placement, Problem
from dlproxy.policy.placement.solve import solve
from tests.policy.placement.clusters import problems
from tests.policy.placement.test_solve import X, Y, at, model


def load(name: str, node: str) -> Move:
    return Move(name, node, load=True)


def unload(name: str, node: str) -> Move:
    return Move(name, node, load=False)


@given(problems(), st.integers(1, 3))
def test_each_step_is_bounded_fits_and_takes_no_model_below_what_it_had_or_wants(problem: Problem, most: int) -> None:
    """Carried out to the end: then what there is is the target, but for what waits for room."""
    before = solve(Problem(problem.models.values(), problem.nodes.values(), problem.before))
    target = solve(Problem(problem.models.values(), list(problem.nodes.values())[::-1], {}))
    posed = Problem(problem.models.values(), problem.nodes.values(), before)
    there: dict[tuple[str, str], Phase] = {(name, node): "up" for name, places in before.items() for node in places}
    for _ in range(100):
        step = moves(posed, target, there, most=most)
        assert len(step) <= most
        if not step:
            break
        for move in step:
            if move.load:
                there[move.model, move.node] = "up"
            else:
                del there[move.model, move.node]
                assert len(_placed(there, problem)[move.model]) >= min(len(before[move.model]), len(target[move.model]))
        assert not [wrong for wrong in posed.violations(_placed(there, problem)) if wrong.startswith("node")]
    else:
        raise AssertionError("it has no end")
    assert _placed(there, problem) == target or waiting(posed, target, there)


def _placed(there: dict[tuple[str, str], Phase], problem: Problem) -> Placement:
    return {name: frozenset(node for model, node in there if model == name) for name in problem.models}


@pytest.mark.parametrize(
    ("there", "target", "found"),
    [
        ({}, at(a="x", b="y"), [load("a", "x"), load("b", "y")]),
        ({("a", "x"): "up"}, at(a="x", b="y"), [load("b", "y")]),
        ({("a", "x"): "up"}, at(a="y", b=""), [load("a", "y")]),
        ({("a", "x"): "up", ("a", "y"): "coming"}, at(a="y", b=""), []),
        ({("a", "x"): "up", ("a", "y"): "up"}, at(a="y", b=""), [unload("a", "x")]),
        ({("a", "x"): "up"}, at(a="", b=""), []),  # the last one of a model that is wanted stays
        ({("b", "x"): "leaving"}, at(a="x", b=""), []),  # it still holds what it takes
        ({("b", "x"): "up", ("b", "y"): "up"}, at(a="x", b="y"), [unload("b", "x")]),  # which makes room
        ({("b", "x"): "up"}, at(a="x", b="y"), [load("b", "y")]),
    ],
)
def test_moves(there: dict[tuple[str, str], Phase], target: Placement, found: list[Move]) -> None:
    problem = Problem([model("a", memory_mb=6), model("b", memory_mb=6)], [X, Y])
    assert moves(problem, target, there, most=2) == found


def test_what_waits_for_room_is_said() -> None:
    problem = Problem([model("a", memory_mb=6), model("b", memory_mb=6)], [X, Y])
    swap: dict[tuple[str, str], Phase] = {("a", "x"): "up", ("b", "y"): "up"}
    assert moves(problem, at(a="y", b="x"), swap, most=2) == []
    assert waiting(problem, at(a="y", b="x"), swap) == [
        "model a waits for room on y, where others have to leave first",
        "model b waits for room on x, where others have to leave first",
    ]


@pytest.mark.parametrize(
    ("load_", "now", "replicas"),
    [
        (None, 2, 2),
        (None, 0, 1),
        (0.0, 1, 1),
        (0.7, 1, 1),
        (0.71, 1, 2),
        (5.0, 1, 4),  # at most
        (1.2, 3, 3),  # two would do, and be more than half full
        (0.99, 3, 2),
        (0.4, 3, 1),
    ],
)
def test_replicas_for_a_load(load_: float | None, now: int, replicas: int) -> None:
    assert wanted(load_, each=1.0, now=now, least=1, most=4) == replicas


@given(st.floats(0, 20), st.integers(1, 8), st.floats(0.5, 4.0))
def test_a_constant_load_asks_for_the_same_again(load_: float, now: int, each: float) -> None:
    first = wanted(load_, each=each, now=now, least=1, most=50)
    assert wanted(load_, each=each, now=first, least=1, most=50) == first


def test_a_node_is_lost_after_patience_and_counts_again_once_it_is_steady() -> None:
    health = Health(patience_s=10.0, steady_s=60.0)
    looks = [(0, True), (5, False), (9, False), (10, False), (20, True), (79, True), (80, True), (85, False), (86, True)]
    counts = []
    for at_s, answers in looks:
        health.look(answers, at_s)
        counts.append(health.counts(at_s))
    assert counts == [True, True, True, False, False, False, True, True, True]


def test_each_loss_makes_it_wait_twice_as_long() -> None:
    health, now, waits = Health(patience_s=1.0, steady_s=10.0), 0.0, []
    health.look(True, now)
    for _ in range(5):
        now += 1.0
        health.look(False, now)
        assert health.lost
        health.look(True, now)
        waits.append(health.steady_s)
    assert waits == [10.0, 20.0, 40.0, 80.0, 80.0]


def test_a_node_that_has_never_answered_is_waited_for_once() -> None:
    health = Health(patience_s=10.0, steady_s=60.0)
    health.look(False, 0.0)
    assert (health.known, health.counts(0.0)) == (False, False)
    health.look(False, 10.0)
    assert (health.known, health.lost) == (True, True)


def test_load_is_what_counters_rise_by() -> None:
    loads = Loads(window_s=10.0)
    weight = {"x": 1.0, "y": 2.0}.__getitem__
    loads.look("x", {"a": 100.0}, 0.0)
    assert loads.of("a", ["x"], weight) is None
    for now in (5.0, 10.0, 20.0):
        loads.look("x", {"a": 100.0 + 0.4 * now}, now)
        loads.look("y", {"a": 0.5 * now}, now)
    assert loads.of("a", ["x"], weight) == pytest.approx(0.4)
    assert loads.of("a", ["x", "y"], weight) == pytest.approx(0.4 + 2 * 0.5)
    loads.look("x", {"a": 1.0}, 25.0)  # the node was restarted
    assert loads.of("a", ["x", "y"], weight) is None
    loads.look("x", {}, 30.0)  # and has it no more
    loads.look("x", {"a": 2.0}, 35.0)
    assert loads.of("a", ["x"], weight) is None
    assert loads.of("a", [], weight) == 0.0
