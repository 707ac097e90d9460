"""Small clusters drawn at random, with a fake accelerator, for tests of placements."""

from hypothesis import strategies as st

from dlproxy.policy.placement.problem import Model, Node, Placement, Problem

KINDS = ("memory_mb", "tpu")  # the second is made up: a kind is a name


@st.composite
def nodes(draw: st.DrawFn, most: int = 5) -> list[Node]:
    return [
        Node(
            name=f"n{n}",
            has={"memory_mb": draw(st.integers(0, 12)), **({"tpu": draw(st.integers(1, 2))} if draw(st.booleans()) else {})},
            capacity=draw(st.sampled_from([1.0, 2.0, 8.0])),
            domain=draw(st.sampled_from(["", "east", "west"])),
        )
        for n in range(draw(st.integers(1, most)))
    ]


@st.composite
def problems(draw: st.DrawFn, most: int = 6) -> Problem:
    """`before`: of any kind, so that it may be too much for a node."""
    there = draw(nodes())
    models = [
        Model(
            name=f"m{m}",
            takes={"memory_mb": draw(st.integers(0, 8)), **({"tpu": 0.5} if draw(st.booleans()) else {})},
            replicas=draw(st.integers(0, 3)),
            load=draw(st.sampled_from([0.0, 0.5, 1.0, 4.0])),
            barred=draw(st.frozensets(st.sampled_from([node.name for node in there]), max_size=1)),
        )
        for m in range(draw(st.integers(1, most)))
    ]
    before: Placement = {
        model.name: draw(st.frozensets(st.sampled_from([node.name for node in there]))) - model.barred for model in models
    }
    return Problem(models, there, before)
