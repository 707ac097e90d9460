"""Cuts are the best there are, by trying all; layouts are those that fit, and the simplest of the best is taken."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.compress.split.plan import Chain, Layout, choose, cut, largest, shapes, stage_costs

seconds = st.floats(0.0, 10.0)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    """Nodes that each read of some before them, with a tensor each."""
    count = draw(st.integers(2, 7))
    handing = [draw(seconds) for _ in range(count)]
    reads = [
        [(one, f"t{one}", handing[one]) for one in sorted(draw(st.sets(st.integers(0, max(number - 1, 0)), max_size=2)))]
        if number
        else [(-1, "x", 0.5)]
        for number in range(count)
    ]
    last = {producer: number for number, found in enumerate(reads) for producer, _, _ in found}
    gives = [[(last.get(number, count), handing[number])] for number in range(count)]
    may = [0, *(place for place in range(1, count) if draw(st.booleans())), count]
    return Chain(np.array([draw(seconds) for _ in range(count)]), may, reads, gives)


def _by_hand(chain: Chain, start: int, end: int) -> float:
    comes = {name: handing_s for number in range(start, end) for one, name, handing_s in chain.reads[number] if one < start}
    goes = [handing_s for number in range(start, end) for reader, handing_s in chain.gives[number] if reader >= end]
    return float(chain.seconds[start:end].sum()) + sum(comes.values()) + sum(goes)


@given(chains(), st.integers(1, 4))
def test_the_slowest_stage_is_as_quick_as_can_be(chain: Chain, stages: int) -> None:
    costs = stage_costs(chain)
    inner = range(1, len(chain.may) - 1)
    ways = [[0, *some, len(chain.may) - 1] for some in combinations(inner, stages - 1)]
    if not ways:
        with pytest.raises(ValueError, match="at most"):
            cut(costs, stages)
        return
    found = cut(costs, stages)
    assert found in ways
    times = [max(_by_hand(chain, chain.may[one], chain.may[other]) for one, other in pairwise(way)) for way in ways]
    assert largest(costs, found) == pytest.approx(min(times))


def test_a_stage_that_gives_nothing_is_none() -> None:
    reads, gives = [[(-1, "x", 0.0)], [(-1, "x", 0.0)], [(1, "t", 0.0)]], [[], [(2, 0.0)], [(3, 0.0)]]
    costs = stage_costs(Chain(np.array([5.0, 1.0, 1.0]), [0, 1, 2, 3], reads, gives))
    assert cut(costs, 2) == [0, 2, 3]
    with pytest.raises(ValueError, match="fewer"):
        cut(costs, 3)


def test_shapes_fill_the_cores_and_keep_to_what_is_fixed() -> None:
    assert list(shapes(4)) == [(4, 1, 1), (2, 1, 2), (1, 1, 3), (1, 1, 4), (2, 2, 1), (1, 2, 2), (1, 3, 1), (1, 4, 1)]
    assert list(shapes(4, stages=2)) == [(2, 2, 1), (1, 2, 2)]
    assert list(shapes(2, stages=2, parts=2)) == []


def _layout(replicas: int, stages: int, parts: int, slowest_s: float, latency_s: float) -> Layout:
    return Layout(replicas=replicas, stages=stages, parts=parts, slowest_s=slowest_s, latency_s=latency_s, weights=0)


@pytest.mark.parametrize(("latency", "expected"), [(False, (2, 1, 1)), (True, (1, 1, 2))])
def test_of_equally_good_layouts_the_simpler_is_taken(latency: bool, expected: tuple[int, int, int]) -> None:
    layouts = [_layout(1, 2, 1, 0.99, 2.0), _layout(2, 1, 1, 2.0, 2.0), _layout(1, 1, 2, 1.2, 1.2)]
    chosen = choose(layouts, latency=latency)
    assert (chosen.replicas, chosen.stages, chosen.parts) == expected
