"""Our histogram against numpy and against the HdrHistogram library whose format it shares."""

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dlproxy.lab.report.histogram import DIGITS, HIGHEST_US, LOWEST_US, Histogram, HistogramError

QUANTILES = (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0)
micros = st.lists(st.integers(LOWEST_US, HIGHEST_US), min_size=1, max_size=200)

few = settings(max_examples=25)  # the library takes 15 ms to encode


def filled(latencies_s: NDArray[np.float64]) -> Histogram:
    histogram = Histogram()
    histogram.add(latencies_s)
    return histogram


def seconds(values_us: list[int]) -> NDArray[np.float64]:
    return np.array(values_us, dtype=np.float64) * 1e-6


@pytest.mark.parametrize("scale_s", [1e-4, 1e-2, 1.0, 60.0])
@pytest.mark.parametrize("seed", range(3))
def test_quantiles_agree_with_numpy_to_a_thousandth(scale_s: float, seed: int) -> None:
    latencies = np.random.default_rng(seed).lognormal(np.log(scale_s), 1.0, 20_000)
    histogram = filled(latencies)
    for quantile in QUANTILES:
        exact = np.quantile(latencies, quantile, method="inverted_cdf")
        assert histogram.quantile_s(quantile) == pytest.approx(exact, rel=1e-3, abs=0.6e-6), quantile
    assert histogram.mean_s == pytest.approx(latencies.mean(), rel=1e-3)
    assert histogram.max_s == latencies.max()
    assert histogram.count == latencies.size


@few
@given(values=micros)
@example(values=[2047, 2048, 4095, 4096])
@example(values=[HIGHEST_US])
def test_counts_lie_where_the_library_puts_them(values: list[int]) -> None:
    library = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    for value in values:
        library.record_value(value)
    ours = filled(seconds(values))
    assert ours.encode() == library.encode().decode("ascii")
    assert Histogram.decode(library.encode().decode("ascii")).steps() == ours.steps()


@given(first=micros, second=micros)
def test_merging_is_adding_all_at_once(first: list[int], second: list[int]) -> None:
    merged = filled(seconds(first))
    merged.merge(filled(seconds(second)))
    whole = filled(seconds(first + second))
    assert merged.steps() == whole.steps()
    assert (merged.count, merged.max_s) == (whole.count, whole.max_s)
    assert merged.mean_s == pytest.approx(whole.mean_s)


@few
@given(values=micros)
def test_encoding_survives_a_round_trip(values: list[int]) -> None:
    histogram = filled(seconds(values))
    decoded = Histogram.decode(histogram.encode())
    assert decoded.steps() == histogram.steps()
    assert decoded.count == histogram.count
    assert decoded.encode() == histogram.encode()
    assert decoded.mean_s == pytest.approx(histogram.mean_s, rel=1e-3)
    assert decoded.max_s == pytest.approx(histogram.max_s, rel=1e-3)
    for quantile in QUANTILES:
        assert decoded.quantile_s(quantile) == pytest.approx(histogram.quantile_s(quantile), rel=1e-3)


def test_decoding_needs_no_room_for_every_request() -> None:
    library = HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
    library.record_value(5000, 10**12)
    decoded = Histogram.decode(library.encode().decode("ascii"))
    assert decoded.count == 10**12
    assert decoded.quantile_s(0.5) == pytest.approx(5e-3, rel=1e-3)


def test_an_empty_one_has_only_zeros() -> None:
    histogram = Histogram.decode(filled(np.array([])).encode())
    assert (histogram.count, histogram.max_s, histogram.mean_s, histogram.quantile_s(0.99)) == (0, 0.0, 0.0, 0.0)
    assert histogram.steps() == []
    assert histogram.share_within(1.0) == 0.0


def test_one_latency_is_every_quantile() -> None:
    histogram = filled(np.array([0.012345]))
    for quantile in QUANTILES:
        assert histogram.quantile_s(quantile) == pytest.approx(0.012345, rel=1e-3)


def test_below_a_microsecond_and_beyond_an_hour_nothing_is_lost() -> None:
    histogram = filled(np.array([0.0, 1e-9, 5000.0]))
    assert histogram.count == 3
    assert histogram.quantile_s(0.5) == pytest.approx(1e-6)
    assert histogram.quantile_s(1.0) == pytest.approx(3600.0, rel=1e-3)
    assert histogram.max_s == 5000.0


def test_no_quantile_is_above_the_largest_latency() -> None:
    histogram = filled(np.full(10, 3e-7))
    assert histogram.quantile_s(0.99) == 3e-7
    assert filled(np.full(10, 1.0000001)).quantile_s(0.5) <= 1.0000001


@given(values=micros, limit=st.integers(LOWEST_US, HIGHEST_US))
def test_the_share_within_a_limit_is_right_to_three_digits_of_the_limit(values: list[int], limit: int) -> None:
    within = filled(seconds(values)).share_within(limit * 1e-6)
    clearly = sum(value <= limit * (1 - 1e-3) for value in values) / len(values)
    perhaps = sum(value <= limit * (1 + 1e-3) for value in values) / len(values)
    assert clearly <= within <= perhaps


@pytest.mark.parametrize("text", ["", "no base64!", "é", "AAAA" * 30, Histogram().encode()[:-4], Histogram().encode()[4:]])
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(HistogramError) as refused:
        Histogram.decode(text)
    assert "\n" not in str(refused.value)


@given(st.binary(max_size=80))
def test_damage_is_refused_or_harmless(damage: bytes) -> None:
    text = Histogram().encode()[:12] + damage.decode("latin-1")
    try:
        decoded = Histogram.decode(text)
    except HistogramError:
        return
    assert decoded.count >= 0
