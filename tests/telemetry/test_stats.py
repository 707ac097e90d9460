"""The counters of one model: buckets, sums, what a batch adds."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import FailureKind
from dlproxy.telemetry.stats import BOUNDS_S, MOST_PLACES, AnsweredBatch, Histogram, ModelStats, StreamStats, Timings

durations = st.floats(0.0, 100.0)


def test_bounds_rise() -> None:
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        pytest.param(0.0, 0, id="nothing"),
        pytest.param(1e-5, 0, id="a bound belongs to its bucket (le)"),
        pytest.param(1.1e-5, 1, id="just above"),
        pytest.param(10.0, len(BOUNDS_S) - 1, id="the last bound"),
        pytest.param(10.1, len(BOUNDS_S), id="the open bucket"),
    ],
)
def test_counts_into_the_bucket_whose_bound_is_not_below(seconds: float, bucket: int) -> None:
    histogram = Histogram()
    histogram.add(seconds)
    assert histogram.counts.index(1) == bucket
    assert histogram.count == 1


@given(observed=st.lists(durations, max_size=50))
def test_add_all_is_add_one_by_one(observed: list[float]) -> None:
    together, apart = Histogram(), Histogram()
    together.add_all(observed)
    for seconds in observed:
        apart.add(seconds)
    assert together.counts == apart.counts
    assert together.count == len(observed)
    assert together.total_s == pytest.approx(apart.total_s)
    for bound in BOUNDS_S:
        assert sum(together.counts[: bisect_left(BOUNDS_S, bound) + 1]) == sum(seconds <= bound for seconds in observed)


@given(seconds=durations, times=st.integers(0, 1000))
def test_add_counts_many_of_one_length(seconds: float, times: int) -> None:
    histogram = Histogram()
    histogram.add(seconds, times)
    assert histogram.count == times
    assert histogram.total_s == pytest.approx(seconds * times)


def test_a_new_model_has_counted_nothing() -> None:
    stats = ModelStats()
    assert (stats.rows, stats.batches, stats.last_at_ms) == (0, 0, 0)
    assert set(stats.failures) == set(FailureKind)
    assert not any(stats.failures.values())
    for histogram in (stats.queue, stats.batch, stats.compute, stats.split, stats.request):
        assert (histogram.count, histogram.total_s) == (0, 0.0)


def test_a_batch_counts_once_per_request_and_by_its_size() -> None:
    stats = ModelStats()
    three_s = [0.001, 0.002, 0.003]
    stats.batch_answered(AnsweredBatch(5, three_s, after_s=0.3, batch_s=0.010, compute_s=0.200, split_s=0.004))
    stats.batch_answered(AnsweredBatch(5, [0.0], after_s=0.320, batch_s=0.010, compute_s=0.300, split_s=0.001))
    stats.batch_answered(AnsweredBatch(1, [0.0], after_s=0.120, batch_s=0.010, compute_s=0.100, split_s=0.001))
    stats.settle()
    stats.settle()  # and nothing twice
    assert (stats.rows, stats.batches) == (11, 3)
    counts = {name: getattr(stats, name).count for name in ("queue", "batch", "compute", "split", "request")}
    assert counts == dict.fromkeys(counts, 5), "every phase counts requests, so that their sums can be compared"
    assert stats.queue.total_s == pytest.approx(0.006)
    assert stats.batch.total_s == pytest.approx(3 * 0.010 + 0.010 + 0.010), "each request waited for its whole batch"
    assert stats.compute.total_s == pytest.approx(3 * 0.200 + 0.300 + 0.100)
    assert stats.split.total_s == pytest.approx(3 * 0.004 + 0.001 + 0.001)
    assert stats.request.total_s == pytest.approx(0.906 + 0.320 + 0.120)
    assert set(stats.batch_sizes) == {1, 5}
    of_five = stats.batch_sizes[5]
    assert of_five.batches == 2
    assert (of_five.batch_s, of_five.compute_s, of_five.split_s) == pytest.approx((0.020, 0.500, 0.005)), "once per batch"
    assert stats.last_at_ms > 0


def test_each_reader_gets_the_newest_latencies_and_counts_those_within_its_objective() -> None:
    stats = ModelStats()
    few, all_of_them = Timings(3, objective_s=0.65), Timings(100)
    for readers in ([], [few, all_of_them], [all_of_them]):
        stats.readers[:] = readers
        for _ in range(2):
            stats.batch_answered(AnsweredBatch(2, [0.1, 0.2], after_s=0.5, batch_s=0.0, compute_s=0.0, split_s=0.0))
        stats.settle()
    assert list(few.newest_s) == pytest.approx([0.7, 0.6, 0.7])
    assert (few.in_time, all_of_them.in_time) == (2, 8)
    assert len(all_of_them.newest_s) == 8
    assert stats.request.count == 12


def test_parts_count_by_their_place_and_the_gaps_between_them() -> None:
    streams = StreamStats()
    streams.sent(0, 2, compute_s=0.1, split_s=0.01, after_s=5.0)
    streams.sent(1, 2, compute_s=0.2, split_s=0.02, after_s=0.5)
    streams.sent(2, 1, compute_s=0.3, split_s=0.03, after_s=0.7)
    assert streams.parts == 5
    assert (streams.between.count, streams.between.total_s) == (3, pytest.approx(1.7)), "nothing lies before the first part"
    assert [place.sent for place in streams.places] == [2, 2, 1]
    assert [place.compute_s for place in streams.places] == pytest.approx([0.2, 0.4, 0.3])
    assert [place.split_s for place in streams.places] == pytest.approx([0.02, 0.04, 0.03])


def test_an_answer_of_many_parts_takes_a_bounded_place() -> None:
    streams = StreamStats()
    for number in range(10 * MOST_PLACES):
        streams.sent(number, 1, compute_s=0.0, split_s=0.0, after_s=0.0)
    streams.place(10**6).left += 1
    assert len(streams.places) == MOST_PLACES
    assert (streams.places[-1].sent, streams.places[-1].left) == (9 * MOST_PLACES + 1, 1)


def test_only_a_model_that_streams_has_counts_of_streams() -> None:
    stats = ModelStats()
    assert stats.streams is None
    assert stats.streaming() is stats.streams is stats.streaming()


def test_failures_count_by_kind() -> None:
    stats = ModelStats()
    stats.failed(FailureKind.DEADLINE, 0.5)
    stats.failed(FailureKind.DEADLINE, 0.25)
    stats.failed(FailureKind.CANCELLED, 1.0)
    assert stats.failures[FailureKind.DEADLINE] == 2
    assert stats.failures[FailureKind.CANCELLED] == 1
    assert sum(stats.failures.values()) == 3
    assert stats.failed_s == pytest.approx(1.75)
