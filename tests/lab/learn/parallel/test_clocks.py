"""How far workers may be apart, whatever the order in which they end their steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.lab.learn.parallel.clocks import Clocks


@given(st.integers(1, 5), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=200))
def test_none_is_more_than_the_bound_and_a_step_ahead_and_one_may_always_go_on(size: int, bound: int, who: list[int]) -> None:
    clocks, ended = Clocks(range(size), bound), [0] * size
    for number in who:
        worker = number % size
        if clocks.may_begin(worker):
            clocks.ended(worker)
            ended[worker] += 1
        assert max(ended) - min(ended) <= bound + 1
        assert any(map(clocks.may_begin, range(size)))


@pytest.mark.parametrize(("bound", "steps"), [(0, 1), (2, 3), (float("inf"), 50)])
def test_one_alone_goes_as_far_as_the_bound_lets_it(bound: float, steps: int) -> None:
    clocks, ended = Clocks([0, 1], bound), 0
    while ended < 50 and clocks.may_begin(0):
        clocks.ended(0)
        ended += 1
    assert ended == steps


def test_one_that_has_left_is_not_waited_for() -> None:
    clocks = Clocks([0, 1], 0)
    clocks.ended(0)
    assert not clocks.may_begin(0)
    clocks.leave(1)
    assert clocks.may_begin(0)
    assert len(clocks) == 1
