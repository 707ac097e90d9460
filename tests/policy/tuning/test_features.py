"""What a learnt policy sees: finite whatever comes, the same for models that differ in scale alone."""

from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.policy.tuning.features import MOST, NAMES, features, suiting
from dlproxy.policy.tuning.protocol import Proposal, Space
from dlproxy.policy.tuning.rules import CostBook
from dlproxy.policy.tuning.window import Window
from tests.policy.tuning.lanes import KNOBS, SPACE, window
from tests.policy.tuning.test_knob_policies import begun, spaces

count = st.integers(0, 10**6)
number = st.floats(0.0, 1e12)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    answered = draw(count)
    costs = st.dictionaries(st.integers(1, 1024), st.tuples(st.integers(1, 10**5), st.floats(1e-6, 1e6)), max_size=4)
    return Window(
        at=draw(number),
        seconds=draw(st.floats(1e-9, 1e6)),
        arrived=draw(count),
        answered=answered,
        in_time=draw(st.integers(0, answered)),
        refused=draw(count),
        failed=draw(count),
        rows=draw(count),
        p50_s=draw(number),
        p99_s=draw(st.floats(allow_nan=True, allow_infinity=True)),
        in_flight=draw(number),
        dispersion=draw(number),
        up=draw(st.integers(0, 64)),
        costs=draw(costs),
    )


@settings(deadline=None)
@given(windows(), spaces(), st.data())
def test_whatever_a_window_says_every_feature_is_finite_and_bounded(seen: Window, space: Space, data: st.DataObject) -> None:
    knobs, book = begun(space, data), CostBook()
    advice = data.draw(st.sampled_from([None, Proposal(knobs=begun(space, data), reason="why not", gain=0.5)]))
    for _ in range(2):
        found = features(seen, knobs, space, book, advice)
        assert len(found) == len(NAMES) == len(set(NAMES))
        assert all(isfinite(value) and -MOST <= value <= MOST for value in found)
        book.observe((int(knobs["instances"]), int(knobs["threads"])), seen)


@given(st.sampled_from([0.1, 0.5, 4.0]))
def test_a_model_ten_times_as_slow_with_ten_times_the_objective_looks_the_same(factor: float) -> None:
    def seen(times: float) -> tuple[float, ...]:
        one = window(5.0, missed=3)
        slow = replace(
            one,
            seconds=one.seconds * times,
            p50_s=one.p50_s * times,
            p99_s=one.p99_s * times,
            costs={rows: (batches, seconds * times) for rows, (batches, seconds) in one.costs.items()},
        )
        book = CostBook()
        book.observe((1, 1), slow)
        return features(slow, KNOBS, replace(SPACE, objective_s=SPACE.objective_s * times), book)

    assert seen(factor) == pytest.approx(seen(1.0), abs=1e-6)


def test_what_misses_less_by_the_fitted_cost_is_seen() -> None:
    book, busy = CostBook(), window(5.0, arrived=800, missed=600)
    assert suiting(KNOBS, SPACE, book) == 0
    book.observe((1, 1), busy)
    named = dict(zip(NAMES, features(busy, KNOBS, SPACE, book), strict=True))
    assert suiting(KNOBS, SPACE, book) > KNOBS["max_batch"]
    assert named["utilisation"] > 0.0
    assert named["all_instances_misses_less"] > named["more_instances_misses_less"] > 0.0
    assert named["quarter_rows_misses_less"] < 0.0
    assert named["no_wait_misses_less"] == 0.0
