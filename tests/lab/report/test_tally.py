"""What belongs to a run, what counts in which figure, and that tallies of several processes add up."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.lab.report.result import Tally, make_result

# (due, sent this much later, answered this much after that, whether it failed)
times = st.floats(0.0, 20.0, allow_nan=False)
requests = st.lists(st.tuples(times, st.floats(0.0, 2.0), st.floats(0.0, 5.0), st.booleans()), max_size=60)
Requests = list[tuple[float, float, float, bool]]
START_AT, END_AT = 5.0, 15.5


def fill(tally: Tally, load: Requests) -> Tally:
    events = [(due + late, 0, due, failed) for due, late, _, failed in load]
    events += [(due + late + took, 1, due, failed) for due, late, took, failed in load]
    for now, ended, due, failed in sorted(events):
        if not ended:
            tally.sent_one(due, now)
        elif failed:
            tally.failed("timeout", due, now)
        else:
            tally.answered(due, now)
    return tally


def counted(load: Requests) -> Tally:
    return fill(Tally(START_AT, END_AT, objective_s=1.0), load)


@given(requests)
def test_a_request_belongs_if_it_was_due_in_the_run(load: Requests) -> None:
    tally = counted(load)
    inside = [(due + late + took, late + took, failed) for due, late, took, failed in load if START_AT <= due < END_AT]
    assert tally.sent == len(inside)
    assert tally.ok == sum(not failed for _, _, failed in inside)
    assert sum(tally.errors.values()) == sum(failed for _, _, failed in inside)
    assert tally.ok_by_end == sum(not failed and at <= END_AT for at, _, failed in inside)
    latencies = [latency for _, latency, failed in inside if not failed]
    if latencies:
        assert tally.latency_ms["max"] == pytest.approx(max(latencies) * 1e3, abs=1e-6)
        assert tally.histogram.count == len(latencies)
    else:
        assert tally.latency_ms == {}


@given(requests)
def test_the_seconds_add_up_to_the_totals(load: Requests) -> None:
    tally = counted(load)
    seconds = tally.timeline()
    assert sum(second.sent for second in seconds) == tally.sent
    assert sum(second.ok for second in seconds) == tally.ok
    assert sum(second.failed for second in seconds) == sum(tally.errors.values())
    assert [second.at_s for second in seconds] == sorted({second.at_s for second in seconds})
    for second in seconds:
        assert (second.p50_ms <= second.p99_ms) if second.ok else second.p50_ms == second.p99_ms == 0.0


@given(load=requests, parts=st.integers(2, 4), seed=st.integers(0, 1000))
def test_split_over_processes_and_merged_it_is_the_same(load: Requests, parts: int, seed: int) -> None:
    random = Random(seed)
    split: list[Requests] = [[] for _ in range(parts)]
    for request in load:
        random.choice(split).append(request)
    first, *others = [counted(part) for part in split]
    for other in others:
        first.merge(other)
    whole = counted(load)
    assert first.timeline() == whole.timeline()
    assert first.errors == whole.errors
    assert (first.sent, first.ok, first.ok_by_end) == (whole.sent, whole.ok, whole.ok_by_end)
    assert first.in_time_by_end == whole.in_time_by_end
    assert first.latency_ms == pytest.approx(whole.latency_ms)


def test_warm_up_is_left_out_and_counts_from_due_not_from_sent() -> None:
    tally = fill(Tally(1.0, 2.0), [(0.999, 0.5, 0.1, False), (1.0, 0.25, 0.5, False), (2.0, 0.0, 0.1, False)])
    assert (tally.sent, tally.ok) == (1, 1)
    assert tally.latency_ms["max"] == pytest.approx(750.0)


def test_a_late_answer_counts_in_the_latency_but_not_in_the_rate() -> None:
    tally = fill(Tally(0.0, 2.0), [(0.5, 0.0, 0.5, False), (1.5, 0.0, 9.0, False)])
    result = make_result(tally, kind="load test", started="", target="", setup={})
    assert (result.ok, result.rate_rps, result.goodput_rps) == (2, 0.5, 0.5)
    assert result.latency_ms["max"] == pytest.approx(9000.0)
    assert [second.at_s for second in result.timeline] == [0.0, 1.0, 10.0]


def test_goodput_counts_what_the_objective_allows_and_everything_without_one() -> None:
    load = [(0.0, 0.0, 0.25, False), (0.0, 0.0, 0.5, False), (0.0, 0.0, 0.75, False), (0.0, 0.0, 0.1, True)]
    goodputs = []
    for objective_s in (None, 1.0, 0.5, 0.1):
        tally = fill(Tally(0.0, 2.0, objective_s), load)
        goodputs.append(make_result(tally, kind="load test", started="", target="", setup={}).goodput_rps)
    assert goodputs == [1.5, 1.5, 1.0, 0.0]


def test_a_request_sent_before_the_start_lies_in_a_negative_second() -> None:
    tally = Tally(10.0, 12.0)
    tally.sent_one(10.0, 9.5)
    tally.answered(10.0, 10.5)
    assert [(second.at_s, second.sent, second.ok) for second in tally.timeline()] == [(-1.0, 1, 0), (0.0, 0, 1)]


def test_cut_ends_the_run_there() -> None:
    tally = Tally(0.0, 10.0)
    tally.sent_one(1.0, 1.0)
    tally.answered(1.0, 2.0)
    tally.sent_one(2.5, 2.5)
    tally.sent_one(4.0, 4.0)
    tally.cut(4.0)
    tally.answered(2.5, 4.5)
    tally.answered(4.0, 4.5)
    tally.sent_one(4.1, 4.6)
    tally.answered(4.1, 4.7)
    assert tally.duration_s == 4.0
    assert tally.sent == tally.ok == 3, "what was due at the cut had been sent; what was due after it does not belong"
    assert tally.ok_by_end == 1
    tally.cut(9.0)
    assert tally.duration_s == 4.0, "it does not become longer again"


def test_cut_in_the_warm_up_leaves_nothing_and_no_rates() -> None:
    tally = Tally(5.0, 10.0)
    tally.sent_one(1.0, 1.0)
    tally.cut(2.0)
    result = make_result(tally, kind="load test", started="", target="", setup={})
    assert (result.duration_s, result.sent, result.offered_rps, result.rate_rps) == (0.0, 0, 0.0, 0.0)
    assert (result.latency_ms, result.timeline) == ({}, [])


@pytest.mark.parametrize("scale_s", [1e-4, 1e-2, 3.0])
def test_the_quantiles_of_a_second_are_right_to_three_digits(scale_s: float) -> None:
    latencies = np.sort(np.random.default_rng(1).lognormal(np.log(scale_s), 0.5, 5000))
    tally = Tally(0.0, 1.0)
    for latency in latencies.tolist():
        tally.answered(0.0, latency)
    by_second = {second.at_s: second for second in tally.timeline()}
    for at_s, second in by_second.items():
        inside = latencies[np.floor(latencies) == at_s]
        for quantile, measured_ms in ((0.5, second.p50_ms), (0.99, second.p99_ms)):
            exact_ms = np.quantile(inside, quantile, method="inverted_cdf") * 1e3
            assert measured_ms == pytest.approx(exact_ms, rel=6e-3, abs=0.6e-3)
