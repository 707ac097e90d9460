"""Where replicas are placed: constraints always, first things first, and nothing is moved without a reason."""

import pytest
from hypothesis import given, settings

from dlproxy.policy.placement.problem import ALONE, GONE, MOVE, SHORT, Model, Node, Placement, Problem
from dlproxy.policy.placement.solve import solve
from tests.policy.placement.clusters import problems


def at(**places: str) -> Placement:
    """`a="x y"`: a model and its nodes."""
    return {model: frozenset(nodes.split()) for model, nodes in places.items()}


def node(name: str, domain: str = "", capacity: float = 100.0, **has: float) -> Node:
    return Node(name=name, domain=domain, capacity=capacity, has=has)


def model(name: str, replicas: int = 1, load: float = 0.0, **takes: float) -> Model:
    return Model(name=name, replicas=replicas, load=load, takes=takes)


X, Y, Z = (node(name, memory_mb=10) for name in "xyz")


@given(problems())
def test_no_constraint_is_broken_and_what_was_there_costs_no_less(problem: Problem) -> None:
    found = solve(problem)
    assert problem.violations(found) == []
    if not problem.violations(problem.before):
        assert problem.cost(found) <= problem.cost(problem.before) + 1e-6


@given(problems())
def test_what_was_found_stays(problem: Problem) -> None:
    """So a placement does not swing while nothing changes."""
    found = solve(problem)
    again = Problem(problem.models.values(), problem.nodes.values(), found)
    assert (after := solve(again)) == found or again.cost(after) < again.cost(found) - 1e-6


@given(problems())
@settings(max_examples=50)
def test_every_lack_is_told_with_its_model(problem: Problem) -> None:
    found = solve(problem)
    short = {name for name, one in problem.models.items() if len(found[name]) < one.replicas}
    told = "\n".join(problem.lacks(found))
    assert {name for name in problem.models if f"model {name}: " in told} >= short


@pytest.mark.parametrize(
    ("models", "nodes", "before", "found"),
    [
        pytest.param([model("a", 2)], [X, Y], at(a="x y"), at(a="x y"), id="what is right stays"),
        pytest.param([model("a")], [X, Y], at(a="x y"), at(a="y"), id="what is too much goes"),
        pytest.param([model("a", 2)], [X, Z], at(a="x y"), at(a="x z"), id="a node that is lost is replaced"),
        pytest.param(
            [model("a", tpu=0.5), model("b", tpu=0.5)], [X, node("t", tpu=1)], at(), at(a="t", b="t"), id="by a made-up kind"
        ),
        pytest.param([model("a", tpu=1)], [X, node("t", tpu=0.5)], at(), at(a=""), id="too little of it"),
        pytest.param(
            [model("a", 2)],
            [node("x", "east"), node("y", "east"), node("z", "west")],
            at(a="x y"),
            at(a="y z"),
            id="not all in one domain",
        ),
        pytest.param(
            [model("big", memory_mb=8), model("small", memory_mb=4)],
            [X, node("y", memory_mb=5)],
            at(small="x"),
            at(big="x", small="y"),
            id="the small one makes room",
        ),
        pytest.param(
            [model("a", memory_mb=9), model("two", 2, memory_mb=9)],
            [X, Y],
            at(two="x y"),
            at(a="x", two="y"),
            id="a first replica goes before a second",
        ),
        pytest.param(
            [model("a", load=1.0), model("b", load=1.0)],
            [node("x", capacity=2), node("y", capacity=2)],
            at(a="x", b="x"),
            at(a="y", b="x"),
            id="load beyond what is planned for is spread",
        ),
        pytest.param(
            [model("a", load=0.6), model("b", load=0.6)],
            [node("x", capacity=2), node("y", capacity=2)],
            at(a="x", b="x"),
            at(a="x", b="x"),
            id="load within it is not",
        ),
        pytest.param([model("a", 0)], [X], at(a="x"), at(a=""), id="nothing is wanted"),
    ],
)
def test_placements(models: list[Model], nodes: list[Node], before: Placement, found: Placement) -> None:
    assert solve(Problem(models, nodes, before)) == found


def test_a_quicker_node_takes_more_load() -> None:
    """Capacities of 8 and 2, four models of 1.25 each: what is over is the same share of both."""
    models = [model(name, load=1.25) for name in "abcd"]
    found = solve(Problem(models, [node("fast", capacity=8), node("slow", capacity=2)]))
    assert sorted(found.values(), key=sorted).count(frozenset({"fast"})) == 3


def test_what_a_placement_costs() -> None:
    problem = Problem([model("a", 2), model("b", 2)], [node("x", "east"), node("y", "east"), node("z", "west")], at(a="x y"))
    assert problem.cost(at(a="x y", b="x z")) == ALONE + 2 * MOVE
    assert problem.cost(at(a="x z")) == MOVE + GONE + 2 * SHORT + ALONE


@pytest.mark.parametrize(
    ("models", "nodes", "words"),
    [
        (
            [model("a", tpu=2)],
            [X, Y, node("t", tpu=1)],
            "model a: 1 of 1 replicas find no place: x, y, t have less than 2 tpu",
        ),
        (
            [model("a", memory_mb=6), model("b", memory_mb=6)],
            [X],
            "model b: 1 of 1 replicas find no place: x have less than 6 memory_mb left",
        ),
        ([model("a", 2)], [X], "model a: 1 of 2 replicas find no place: there are no other nodes"),
        (
            [model("a", 2, tpu=1)],
            [node("x", "east", tpu=1), node("y", "east", tpu=1), node("z", "west")],
            "model a: all replicas are in east: z have less than 1 tpu",
        ),
        (
            [Model(name="a", barred={"x"})],
            [X],
            "model a: 1 of 1 replicas find no place: x could not load it lately",
        ),
        (
            [model("a", tpu=1)],
            [node(f"n{n}") for n in range(5)],
            "model a: 1 of 1 replicas find no place: n0, n1, n2 and 2 more have less than 1 tpu",
        ),
    ],
)
def test_what_lacks_is_said(models: list[Model], nodes: list[Node], words: str) -> None:
    problem = Problem(models, nodes)
    assert problem.lacks(solve(problem)) == [words]


def test_no_nodes_at_all() -> None:
    problem = Problem([model("a")], [])
    assert solve(problem) == at(a="")
    assert problem.lacks(solve(problem)) == ["model a: 1 of 1 replicas find no place: there are no other nodes"]
