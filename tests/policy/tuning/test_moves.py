"""The moves of a learnt policy: each does what its name says, and none leads where knobs may not be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.policy.tuning.moves import MOVES, Move, moved
from dlproxy.policy.tuning.protocol import Knobs, point_of
from tests.policy.tuning.lanes import KNOBS, SPACE
from tests.policy.tuning.test_knob_policies import begun, spaces

by_move = pytest.mark.parametrize("move", MOVES)


@by_move
@given(spaces(), st.integers(0, 300), st.data())
def test_wherever_it_begins_a_move_leads_to_what_may_hold_or_nowhere(
    move: Move, space: st.DataObject, suiting: int, data: st.DataObject
) -> None:
    knobs, advised = begun(space, data), begun(space, data)
    after = moved(knobs, move, space, suiting=suiting, advised=advised)
    if after is not None:
        assert space.allows(after, knobs)
        assert after != knobs
        closed = replace(space, closed=frozenset([point_of(after)]))
        assert moved(knobs, move, closed, suiting=suiting, advised=advised) is None


@pytest.mark.parametrize(
    ("move", "knobs", "after"),
    [
        (Move.LEAVE, {}, None),
        (Move.ADVISED, {}, {"max_batch": 64}),
        (Move.NO_WAIT, {"max_wait_s": 0.02}, {"max_wait_s": 0.0}),
        (Move.NO_WAIT, {}, None),
        (Move.LONGER_WAIT, {}, {"max_wait_s": 0.1 / 64.0}),
        (Move.LONGER_WAIT, {"max_wait_s": 0.02}, None),
        (Move.SHORTER_WAIT, {"max_wait_s": 0.02}, {"max_wait_s": 0.01}),
        (Move.SHORTER_WAIT, {"max_wait_s": 0.002}, None),
        (Move.MOST_ROWS, {}, {"max_batch": 64}),
        (Move.SUITING_ROWS, {}, {"max_batch": 12}),
        (Move.HALF_ROWS, {"max_batch": 64}, {"max_batch": 6}),
        (Move.QUARTER_ROWS, {}, {"max_batch": 2}),
        (Move.QUARTER_ROWS, {"max_batch": 1}, None),
        (Move.TWICE_ROWS, {"max_batch": 40}, {"max_batch": 64}),
        (Move.MORE_INSTANCES, {}, {"instances": 2}),
        (Move.MORE_INSTANCES, {"instances": 4}, None),
        (Move.FEWER_INSTANCES, {"instances": 4}, {"instances": 2}),
        (Move.MORE_THREADS, {}, {"threads": 2}),
        (Move.FEWER_THREADS, {"threads": 4}, {"threads": 2}),
        (Move.INTO_THREADS, {"instances": 4}, {"instances": 2, "threads": 2}),
        (Move.INTO_INSTANCES, {"threads": 4}, {"instances": 2, "threads": 2}),
        (Move.ALL_INSTANCES, {}, {"instances": 4}),
        (Move.ALL_THREADS, {"instances": 4}, {"instances": 1, "threads": 4}),
        (Move.SHORT_FIRST, {}, {"discipline": "sjf"}),
        (Move.DUE_FIRST, {}, None),
    ],
)
def test_moves(move: Move, knobs: Knobs, after: Knobs | None) -> None:
    before = {**KNOBS, "discipline": "edf", **knobs}
    found = moved(before, move, SPACE, suiting=12, advised={**before, "max_batch": 64})
    assert found == (None if after is None else {**before, **after})


def test_what_is_pinned_and_what_a_model_does_not_have_stays() -> None:
    pinned = replace(SPACE, pinned=frozenset({"max_batch", "instances", "threads", "max_wait_s"}))
    assert [move for move in MOVES if moved({**KNOBS, "max_wait_s": 0.02}, move, pinned, suiting=12) is not None] == []
    assert moved(KNOBS, Move.SHORT_FIRST, SPACE) is None  # it has no such knob
