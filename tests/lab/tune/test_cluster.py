"""The integer program of a cluster beside the search that does without scipy, and beside brute force."""

from itertools import chain, combinations, product

import pytest
from hypothesis import given, settings

from dlproxy.lab.tune.placement.cluster import solve_cluster
from dlproxy.policy.placement.problem import MOVE, Model, Node, Placement, Problem
from dlproxy.policy.placement.solve import solve
from tests.policy.placement.clusters import problems

pytest.importorskip("scipy")


@given(problems(most=3))
@settings(max_examples=40, deadline=None)
def test_it_is_the_optimum(problem: Problem) -> None:
    found, bound = solve_cluster(problem)
    assert problem.violations(found) == []
    least = min(problem.cost(one) for one in _all(problem))
    assert problem.cost(found) == pytest.approx(least, rel=1e-3, abs=1e-3)
    assert bound <= least * 1.001 + 1e-3


def _all(problem: Problem) -> list[Placement]:
    nodes = list(problem.nodes)
    sets = [
        [frozenset(one) for one in chain.from_iterable(combinations(nodes, size) for size in range(model.replicas + 1))]
        for model in problem.models.values()
    ]
    placements = (dict(zip(problem.models, choice, strict=True)) for choice in product(*sets))
    return [one for one in placements if not problem.violations(one)]


@given(problems())
@settings(max_examples=60, deadline=None)
def test_the_search_finds_a_place_for_all_where_there_is_one_for_two_moves_more_at_most(problem: Problem) -> None:
    """Where there is not, it may give the place of two small models to a large one."""
    found, (exact, bound) = solve(problem), solve_cluster(problem)
    assert problem.cost(found) >= bound - 1e-3
    assert sum(map(bool, found.values())) >= sum(map(bool, exact.values())) - 1
    if all(len(exact[name]) == model.replicas for name, model in problem.models.items()):
        assert problem.cost(found) <= problem.cost(exact) + 2.0 * MOVE + 0.1


def test_nothing_to_place() -> None:
    assert solve_cluster(Problem([], [Node(name="x")])) == ({}, 0.0)
    assert solve_cluster(Problem([Model(name="a")], []))[0] == {"a": frozenset()}
