"""Into which parts rows are split, what tickets parts have, and how many rows a request may have."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config import ModelConfig
from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.partition import most_rows, part_size, parts, split


@pytest.mark.parametrize(
    ("rows", "part_rows", "expected"),
    [(100, 32, [25, 25, 25, 25]), (33, 32, [17, 16]), (64, 32, [32, 32]), (32, 32, [32]), (5, 1, [1] * 5), (7, 3, [3, 2, 2])],
)
def test_parts_are_few_and_equal(rows: int, part_rows: int, expected: list[int]) -> None:
    assert parts(rows, part_rows) == expected


@given(rows=st.integers(1, 10_000), part_rows=st.integers(1, 10_000))
def test_parts_hold_every_row_and_are_as_few_and_as_equal_as_can_be(rows: int, part_rows: int) -> None:
    made = parts(rows, part_rows)
    assert sum(made) == rows
    assert max(made) <= part_rows
    assert max(made) - min(made) <= 1
    assert (len(made) - 1) * part_rows < rows, "one part fewer would do"


def test_parts_have_the_terms_of_the_whole() -> None:
    whole = Ticket(7, 1.0, 2.0, 10, 3, "ann", (5,), None, "session", 4, (9,), 2.5)
    first, second, third = split(whole, 4, count(20))
    assert [(part.id, part.rows) for part in (first, second, third)] == [(7, 4), (20, 3), (21, 3)]
    assert [part.follows for part in (first, second, third)] == [False, True, True]
    for part in (first, second, third):
        assert (part.part_of, part.whole_rows) == (7, 10)
        for field in set(whole.__struct_fields__) - {"id", "rows", "part_of", "whole_rows"}:
            assert getattr(part, field) == getattr(whole, field), field
    assert not whole.follows


@pytest.mark.parametrize(("part_rows", "size"), [(0, 64), (32, 32), (64, 64), (65, 64)])
def test_no_part_is_larger_than_a_batch(part_rows: int, size: int) -> None:
    assert part_size(LaneKnobs(max_batch=64, part_rows=part_rows)) == size


@pytest.mark.parametrize(
    ("knobs", "where_split", "else_"),
    [
        ({}, 8192, 256),
        ({"max_batch": 64, "max_queue_rows": 1000}, 1000, 64),
        ({"max_batch": 64, "max_queue_rows": 10}, 64, 64),
        ({"max_batch": 64, "max_request_rows": 64}, 64, 64),
        ({"max_batch": 64, "max_request_rows": 8}, 8, 8),
        ({"max_batch": 64, "max_queue_rows": 1000, "max_request_rows": 5000}, 5000, 64),
    ],
)
def test_how_many_rows_a_request_may_have(knobs: dict[str, int], where_split: int, else_: int) -> None:
    config = ModelConfig(path="m.onnx", **knobs)  # type: ignore[arg-type]
    assert most_rows(config, splits=True) == where_split
    assert most_rows(config, splits=False) == else_
