"""Windows of telemetry add up to what was counted, and the line through batch times is found again."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.tuning.window import Counts, Window, WindowMeter, fitted, joined
from tests.policy.tuning.lanes import window

NUMBERS = ("arrived", "answered", "in_time", "refused", "failed", "rows")

steps = st.tuples(
    st.floats(0.01, 10.0),  # seconds
    st.tuples(*[st.integers(0, 1000)] * len(NUMBERS)),
    st.lists(st.tuples(st.integers(1, 64), st.floats(0.001, 1.0)), max_size=5),  # batches
    st.lists(st.integers(0, 50), min_size=1, max_size=6),  # arrivals between looks
)


def measured(taken: list[tuple[float, tuple[int, ...], list[tuple[int, float]], list[int]]]) -> tuple[list[Window], Counts]:
    counts, meter, now, looked = Counts(), WindowMeter(0.0), 0.0, 0
    windows = []
    for seconds, more, batches, arrivals in taken:
        for name, value in zip(NUMBERS, more, strict=True):
            setattr(counts, name, getattr(counts, name) + value)
        for rows, batch_s in batches:
            counts.batch(rows, batch_s)
        for number in arrivals:
            looked += number
            meter.look(looked, 3.0)
        now += seconds
        windows.append(meter.window(now, counts, [0.1, 0.2], up=2))
    return windows, counts


@given(st.lists(steps, min_size=1, max_size=8))
def test_windows_add_up_to_what_was_counted(
    taken: list[tuple[float, tuple[int, ...], list[tuple[int, float]], list[int]]],
) -> None:
    windows, counts = measured(taken)
    whole = joined(windows)
    for name in NUMBERS:
        assert sum([getattr(one, name) for one in windows]) == getattr(whole, name) == getattr(counts, name)
    assert whole.seconds == pytest.approx(windows[-1].at)
    assert (whole.at, whole.up) == (windows[-1].at, 2)
    assert {rows: batches for rows, (batches, _) in whole.costs.items()} == {
        rows: batches for rows, (batches, _) in counts.costs.items()
    }
    for rows, (_, seconds) in counts.costs.items():
        assert whole.costs[rows][1] == pytest.approx(seconds)
    assert whole.ended == counts.answered + counts.refused + counts.failed
    assert whole.missed == counts.answered - counts.in_time + counts.refused


@given(st.lists(steps, min_size=1, max_size=8), st.data())
def test_joining_in_parts_is_joining_at_once(
    taken: list[tuple[float, tuple[int, ...], list[tuple[int, float]], list[int]]], data: st.DataObject
) -> None:
    windows, _ = measured(taken)
    cut = data.draw(st.integers(1, len(windows)))
    parts, whole = joined([joined(windows[:cut]), *windows[cut:]]), joined(windows)
    for name in (*NUMBERS, "p50_s", "p99_s", "in_flight", "seconds"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name)), name


def test_a_window_knows_what_was_under_way_and_how_even_arrivals_are() -> None:
    meter, counts = WindowMeter(10.0), Counts(arrived=40, answered=30, in_time=20, refused=5, failed=1, rows=60)
    for arrived, in_flight in ((0, 0.0), (10, 2.0), (20, 4.0), (40, 8.0)):
        meter.look(arrived, in_flight)
    counts.batch(4, 0.1)
    counts.batch(4, 0.3)
    found = meter.window(12.0, counts, [0.1 * number for number in range(1, 101)], up=3)
    assert (found.seconds, found.ended, found.missed, found.up) == (2.0, 36, 15, 3)
    assert (found.p50_s, found.p99_s) == (pytest.approx(5.1), pytest.approx(10.0))
    assert found.in_flight == pytest.approx(14.0 / 3)
    assert found.dispersion == pytest.approx(100 / 3 / (40 / 3))  # 10, 10, 20
    assert found.busy == pytest.approx(0.2)
    counts.batch(4, 0.2)
    after = meter.window(13.0, counts, [], up=3)
    assert (after.arrived, after.p99_s, after.dispersion, after.in_flight) == (0, 0.0, 0.0, 0.0)
    assert after.costs == {4: (1, pytest.approx(0.2))}


def test_quantiles_of_joined_windows_are_weighed_by_answers() -> None:
    few, many = window(1.0, arrived=10), window(2.0, arrived=90)
    slow = Window(at=0.5, seconds=0.5, arrived=100, answered=100, in_time=0, p50_s=1.0, p99_s=2.0)
    assert joined([slow, few, many]).p99_s == pytest.approx((100 * 2.0 + 100 * 0.05) / 200)


@given(
    st.floats(0.0, 1.0),
    st.floats(1e-4, 0.1),
    st.dictionaries(st.integers(1, 256), st.integers(1, 100), min_size=2, max_size=10),
)
def test_the_line_of_batch_times_is_found_again(base_s: float, row_s: float, sizes: dict[int, int]) -> None:
    costs = {rows: (batches, batches * (base_s + row_s * rows)) for rows, batches in sizes.items()}
    weight = sum(sizes.values())
    mean = sum([rows * batches for rows, batches in sizes.items()]) / weight
    found_base_s, found_row_s = fitted(costs)
    assert found_base_s + found_row_s * mean == pytest.approx(base_s + row_s * mean)
    if sum([batches * (rows - mean) ** 2 for rows, batches in sizes.items()]) > 0.06 * weight * mean:  # sizes tell enough
        assert (found_base_s, found_row_s) == (pytest.approx(base_s, abs=1e-6), pytest.approx(row_s, abs=1e-6))


@given(st.dictionaries(st.integers(1, 256), st.tuples(st.integers(1, 100), st.floats(1e-3, 10.0)), min_size=1))
def test_a_line_never_falls_and_never_begins_below_nothing(costs: dict[int, tuple[int, float]]) -> None:
    base_s, row_s = fitted(costs)
    assert row_s >= 0.0
    assert base_s >= -1e-9


def test_one_size_alone_is_half_base_and_nothing_at_all_is_endless() -> None:
    assert fitted({8: (10, 0.8)}) == (pytest.approx(0.04), pytest.approx(0.005))
    assert fitted({}) == (inf, inf)
