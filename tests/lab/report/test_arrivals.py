"""Arrival processes: their mean rate and spread within what chance allows, the same stream twice, and traces of any kind."""

from collections.abc import Iterator
from datetime import UTC, datetime
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dlproxy.lab.load.arrivals import CHUNK, Arrivals, ArrivalsError, make_arrivals, read_trace

# (description, coefficient of variation of the counts per second over that of a Poisson process, at most)
PROCESSES = [
    ("constant", 1.0),
    ("poisson", 1.0),
    ("gamma:cv=0.5", 1.0),
    ("gamma:cv=4", 4.0),
    ("gamma", 4.47),
    ("mmpp", 10.0),
    ("mmpp:high=10,share=0.2,dwell=0.1", 5.0),
    ("daily:peak=2,period=10", 1.0),
    ("daily:peak=5,period=50,cv=2", 2.0),
]
each_process = pytest.mark.parametrize("spec", [spec for spec, _ in PROCESSES])


def instants(arrivals: Arrivals, until_s: float) -> NDArray[np.float64]:
    return np.concatenate(list(arrivals.chunks(until_s)))


@pytest.mark.parametrize(("spec", "spread"), PROCESSES)
@pytest.mark.parametrize("rate", [300.0, 5000.0])
def test_the_mean_rate_is_the_one_asked_for(spec: str, spread: float, rate: float) -> None:
    counts = [instants(make_arrivals(spec, rate=rate, seed=seed), 50.0).size for seed in range(8)]
    expected = rate * 50.0 * 8
    slack = 4.0 * spread * sqrt(expected)
    if spec.startswith("mmpp"):  # the spells, not the arrivals, are what varies
        slack += 0.12 * expected
    assert sum(counts) == pytest.approx(expected, abs=slack + 8)


@each_process
def test_instants_rise_and_end_below_the_limit(spec: str) -> None:
    arrivals = make_arrivals(spec, rate=2000.0, seed=3)
    whole = instants(arrivals, 20.0)
    assert np.all(np.diff(whole) >= 0.0)
    assert whole[0] >= 0.0
    assert whole[-1] < 20.0
    assert np.array_equal(instants(arrivals, 7.5), whole[whole < 7.5]), "a shorter run sees the same requests"
    assert max(chunk.size for chunk in arrivals.chunks(20.0)) < 2 * CHUNK


@each_process
def test_the_seed_decides_everything(spec: str) -> None:
    first, again, other = (instants(make_arrivals(spec, rate=500.0, seed=seed), 20.0) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert spec == "constant" or not np.array_equal(first, other)
    arrivals = make_arrivals(spec, rate=500.0, seed=1)
    assert np.array_equal(instants(arrivals, 20.0), instants(arrivals, 20.0)), "nor does iterating use anything up"


@pytest.mark.parametrize(("spec", "cv"), [("constant", 0.0), ("poisson", 1.0), ("gamma:cv=0.5", 0.5), ("gamma:cv=4", 4.0)])
def test_gaps_vary_as_they_should(spec: str, cv: float) -> None:
    gaps = np.diff(instants(make_arrivals(spec, rate=1000.0, seed=5), 400.0))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)


def test_poisson_counts_vary_like_their_mean() -> None:
    counts = np.histogram(instants(make_arrivals("poisson", rate=200.0, seed=1), 2000.0), bins=2000, range=(0.0, 2000.0))[0]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=4 * sqrt(2 / 2000))


def test_a_constant_stream_includes_its_start_and_not_its_end() -> None:
    assert instants(make_arrivals("constant", rate=4.0, seed=0), 1.0).tolist() == [0.0, 0.25, 0.5, 0.75]
    exact = make_arrivals("constant", rate=1.0, seed=0)
    assert instants(exact, float(CHUNK)).size == CHUNK, "where a chunk ends just below the limit"
    assert instants(exact, CHUNK + 1.0).size == CHUNK + 1
    assert instants(exact, 1e-9).size == 1


def test_mmpp_spends_its_share_of_the_time_at_the_high_rate() -> None:
    arrivals = instants(make_arrivals("mmpp:high=20,share=0.25,dwell=5", rate=200.0, seed=2), 10_000.0)
    counts = np.histogram(arrivals, bins=20_000, range=(0.0, 10_000.0))[0] / 0.5
    low_rate = 200.0 / (1 + 0.25 * 19)
    busy = counts > 5 * low_rate
    assert busy.mean() == pytest.approx(0.25, abs=0.05)
    assert np.median(counts[busy]) == pytest.approx(20 * low_rate, rel=0.05)
    assert np.median(counts[~busy]) == pytest.approx(low_rate, rel=0.1)


def test_mmpp_has_its_mean_rate_in_short_runs_too() -> None:
    sizes = [
        instants(make_arrivals("mmpp:high=10,share=0.5,dwell=100", rate=100.0, seed=seed), 1.0).size for seed in range(400)
    ]
    assert np.mean(sizes) == pytest.approx(100.0, abs=4 * 82 / sqrt(400)), "it starts high as often as its share says"


def test_mmpp_keeps_long_spells_in_small_pieces() -> None:
    chunks: Iterator[NDArray[np.float64]] = make_arrivals("mmpp:dwell=1000", rate=1e5, seed=1).chunks(20.0)
    assert max(chunk.size for chunk in chunks) < 2 * CHUNK


@pytest.mark.parametrize("peak", [1.5, 3.0, 10.0])
def test_daily_swings_as_far_as_asked(peak: float) -> None:
    arrivals = instants(make_arrivals(f"daily:peak={peak},period=100,cv=0.01", rate=2000.0, seed=1), 300.0)
    counts = np.histogram(arrivals % 100.0, bins=200, range=(0.0, 100.0))[0]
    assert counts.max() / counts.mean() == pytest.approx(peak, rel=0.03)
    assert counts.argmax() * 0.5 == pytest.approx(25.0, abs=5.0), "the peak is a quarter of the period in"
    assert arrivals.size == pytest.approx(600_000, rel=0.001)


@pytest.mark.parametrize(
    ("spec", "rate", "said"),
    [
        ("burst", 1.0, "there is no arrival process 'burst'; choose from constant, poisson, gamma, mmpp, daily"),
        ("", 1.0, "choose from constant"),
        ("gamma:cw=2", 1.0, "there is no option 'cw'; the options of gamma are cv"),
        ("poisson:cv=2", 1.0, "there is no option 'cv'; poisson has no options"),
        ("gamma:4", 1.0, "the options of gamma are cv"),
        ("gamma:cv", 1.0, "cv takes a number, not ''"),
        ("gamma:cv=much", 1.0, "cv takes a number, not 'much'"),
        *((f"gamma:cv={value}", 1.0, "cv must be a number above 0") for value in ("nan", "inf", "0", "-1")),
        *((f"gamma:cv={value}", 1.0, "is out of range: 0") for value in ("1e-200", "1e200", "101")),
        ("daily:cv=1e200", 1.0, "out of range"),
        ("mmpp:share=1", 1.0, "below 1"),
        ("daily:peak=1", 1.0, "above 1 and up to 20"),
        ("daily:peak=21", 1.0, "above 1 and up to 20"),
        *(
            ("poisson", rate, "rate .* is out of range: give a positive number")
            for rate in (0.0, -1.0, float("nan"), float("inf"))
        ),
    ],
)
def test_what_makes_no_process_is_refused_with_a_hint(spec: str, rate: float, said: str) -> None:
    with pytest.raises(ArrivalsError, match=said) as refused:
        make_arrivals(spec, rate=rate, seed=0)
    assert "\n" not in str(refused.value)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1\n2\n4\n", [0, 1, 3]),
        ("seconds\n1\n2\n", [0, 1]),
        ("\ufeff5\n6\n8\n", [0, 1, 3]),
        ("\ufeffTIMESTAMP,Tokens\n5,1\n6,1\n", [0, 1]),
        ("id,TIMESTAMP,tokens\na,10,1\nb,10.5,1\n", [0, 0.5]),
        ("id,time\n7,1\n8,3\n", [0, 2]),
        ("1\n\n  \n2\n\n", [0, 1]),
        ("3\r\n4\r\n", [0, 1]),
        ("4\n1\n2\n", [0, 1, 3]),
        ("-5\n5\n5\n", [0, 10, 10]),
        ("2023-11-16 18:17:03.9799600\n2023-11-16 18:17:04.0319600\n", [0, 0.052]),
        ("2023-11-16T18:17:03Z\n2023-11-16T19:17:04+01:00\n", [0, 1]),
        ("2023-03-26 01:59:59\n2023-03-26 03:00:00\n", [0, 3601]),
    ],
    ids=range(13),
)
def test_traces_are_read(trace: Path, text: str, expected: list[float]) -> None:
    trace.write_bytes(text.encode())
    arrivals = read_trace(trace)
    assert arrivals.duration_s == pytest.approx(expected[-1])
    assert instants(arrivals, expected[-1] + 1e-6) == pytest.approx(np.array(expected), abs=2e-6)
    assert arrivals.rate == pytest.approx(len(expected) / expected[-1])
    assert arrivals.label == "trace.csv"


def test_times_without_a_zone_do_not_depend_on_where_they_are_read(trace: Path) -> None:
    trace.write_text("2023-07-01 00:00:00\n2023-07-01T00:00:10+00:00\n")
    assert read_trace(trace).duration_s == pytest.approx(10.0)
    assert datetime(2023, 7, 1, tzinfo=UTC).utcoffset() is not None


def test_a_trace_replays_faster_or_slower(trace: Path) -> None:
    trace.write_text("0\n1\n4\n")
    fast = read_trace(trace, speed=2.0)
    assert instants(fast, 10.0).tolist() == [0.0, 0.5, 2.0]
    assert fast.rate == pytest.approx(1.5)
    assert fast.label == "trace.csv at 2 times its speed"


def test_a_long_trace_comes_in_chunks(trace: Path) -> None:
    trace.write_text("\n".join(map(str, range(20_000))))
    assert instants(read_trace(trace), 15_000.0).tolist() == list(range(15_000))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no arrivals"),
        (b"\n\n", "holds no arrivals"),
        (b"TIMESTAMP\n", "holds no arrivals"),
        (b"7\n", "all of its 1 arrivals are at the same time"),
        (b"7\n7\n", "at least two times"),
        (b"1\nsoon\n3\n", "line 2: 'soon' is not a time"),
        (b"1\n\nsoon\n", "line 3: 'soon'"),
        (b"id,time\n1,2\n2\n", "line 3: nothing' is not a time|line 3: 'nothing'"),
        (b"1\nnan\n", "line 2: 'nan'"),
        (b"1\ninf\n", "line 2: 'inf'"),
        (b"\xff\xfe\x00\x81", "is not text"),
        (b"1\n" + b"x" * 200_000, "is not text|is not a time"),
        (b"1\n\x00\x01\x02\n", "is not a time|is not text"),
    ],
    ids=range(13),
)
def test_what_is_no_trace_is_refused_in_one_line(trace: Path, content: bytes, said: str) -> None:
    trace.write_bytes(content)
    with pytest.raises(ArrivalsError, match=said) as refused:
        read_trace(trace)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "trace.csv" in str(refused.value)


def test_a_missing_trace_and_impossible_speeds(trace: Path) -> None:
    with pytest.raises(ArrivalsError, match="cannot be read: No such file"):
        read_trace(trace)
    trace.write_text("1\n2\n")
    for speed in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ArrivalsError, match=r"speed .* is out of range"):
            read_trace(trace, speed=speed)
