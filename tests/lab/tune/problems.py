"""Small placement problems for the tests: models and nodes with usual values, and random ones."""

from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.lab.tune.placement.problem import Model, Node, PlacementError, Problem

GIB = 1 << 30


def model(name: str = "m", **values: Any) -> Model:
    usual = {"rate": 100.0, "base_s": 0.008, "row_s": 0.002, "slo_s": 0.1, "memory_bytes": GIB, "most_copies": 2}
    return Model(name=name, **(usual | values))


def node(name: str = "n", **values: Any) -> Node:
    return Node(name=name, **({"cores": 4.0, "memory_bytes": 8 * GIB} | values))


@st.composite
def models(draw: st.DrawFn, name: str) -> Model:
    base_ms, row_ms = draw(st.integers(0, 20)), draw(st.integers(1, 10))
    return model(
        name,
        base_s=base_ms * 1e-3,
        row_s=row_ms * 1e-3,
        slo_s=(base_ms + row_ms) * 1e-3 * draw(st.sampled_from([2, 3, 5, 10])),
        rate=float(draw(st.integers(5, 300))),
        memory_bytes=draw(st.integers(0, 4)) * GIB,
        cores=draw(st.sampled_from([0.5, 1.0, 2.0])),
        accelerators=draw(st.sampled_from([0.0, 0.5, 1.0])),
        most_copies=draw(st.integers(1, 2)),
    )


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    return node(
        name,
        cores=float(draw(st.integers(1, 4))),
        memory_bytes=draw(st.integers(1, 8)) * GIB,
        speed=draw(st.sampled_from([0.5, 1.0, 2.0])),
        accelerators=float(draw(st.integers(0, 1))),
        accelerator_speed=4.0,
    )


@st.composite
def problems(draw: st.DrawFn, most_models: int = 3, most_nodes: int = 2) -> Problem:
    """Models that fit nowhere are left out; a last one fits everywhere, so that something is left."""
    fleet = [draw(nodes(f"n{n}")) for n in range(draw(st.integers(1, most_nodes)))]
    drawn = [draw(models(f"m{m}")) for m in range(draw(st.integers(0, most_models - 1)))]
    small = model("small", cores=0.5, memory_bytes=0, rate=float(draw(st.integers(1, 400))))
    kept = [one for one in drawn if fits_somewhere(one, fleet)]
    return Problem([*kept, small], fleet)


def fits_somewhere(one: Model, fleet: list[Node]) -> bool:
    try:
        Problem([one], fleet)
    except PlacementError:
        return False
    return True


def enlarged(problem: Problem, *, cores: float, gib: int, copies: int) -> Problem:
    """The same models on nodes that have more."""
    more = [replace(one, cores=one.cores + cores, memory_bytes=one.memory_bytes + gib * GIB) for one in problem.nodes]
    return Problem([replace(one, most_copies=one.most_copies + copies) for one in problem.models], more)
