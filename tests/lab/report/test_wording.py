"""Numbers with units, and the sentence that sums a run up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.lab.report import wording
from tests.lab.report import results


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        (0.0, "0 ms"),
        (1e-6, "0.001 µs"),
        (0.35, "350 µs"),
        (0.9996, "1 ms"),
        (3.14159, "3.14 ms"),
        (9.996, "10 ms"),
        (99.96, "100 ms"),
        (123.4, "123 ms"),
        (999.6, "1 s"),
        (1234.5, "1.23 s"),
        (60_000.0, "60 s"),
        (1_200_000.0, "20 min"),
        (10_800_000.0, "3 h"),
        (1e12, "277,778 h"),
    ],
)
def test_durations_choose_their_unit(ms: float, said: str) -> None:
    assert wording.duration(ms) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (1234.6, "1,235"), (0.05, "0.05"), (7.0, "7"), (99.99, "100"), (1e9, "1,000,000,000"), (1e-9, "1e-09")],
)
def test_numbers_have_three_digits_or_all_before_the_point(value: float, said: str) -> None:
    assert wording.number(value) == said


@given(st.floats(1e-12, 1e12))
def test_a_number_says_what_it_is_to_half_a_percent(value: float) -> None:
    assert float(wording.number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)
    assert float(wording.number(-value).replace(",", "")) == pytest.approx(-value, rel=5.1e-3)


@given(whole=st.integers(1, 10**12), missing=st.integers(0, 10**6))
def test_a_share_is_all_or_nothing_only_if_it_is(whole: int, missing: int) -> None:
    missing = min(missing, whole)
    assert (wording.share(whole - missing, whole) == "100 %") == (missing == 0)
    assert (wording.share(missing, whole) == "0 %") == (missing == 0)


@pytest.mark.parametrize(
    ("part", "said"),
    [(0, "0 %"), (1, "0.0001 %"), (4120, "0.412 %"), (995_000, "99.5 %"), (999_999, "99.9999 %"), (1_000_000, "100 %")],
)
def test_shares(part: int, said: str) -> None:
    assert wording.share(part, 1_000_000) == said


def test_the_headline_tells_a_good_run() -> None:
    result = results.ran(rate=80.0, latency=lambda random, due_at: 0.01234)
    assert wording.headline(result) == (
        "80 requests/s answered, 99 % of them within 12.3 ms, no errors; the objective of 20 ms was met: 100 % in time."
    )


def test_the_headline_tells_what_went_wrong() -> None:
    slow = results.ran(latency=lambda random, due_at: 0.05 if due_at >= 9.0 else 0.005)
    assert "the objective of 20 ms was missed: 90 % in time instead of 99 %." in wording.headline(slow)
    slow.objective_share = 0.95
    assert "90 % in time instead of 95 %" in wording.headline(slow)
    slow.objective_share = 0.9
    assert "the objective of 20 ms was met" in wording.headline(slow)
    failing = results.ran(error=lambda random, due_at: "timeout" if due_at >= 9.0 else None)
    assert "10 % errors (timeout); the objective of 20 ms was missed: 90 %" in wording.headline(failing)
    assert wording.headline(results.all_failed()).startswith(
        "All 1,000 requests failed: timeout and 1 other kind; the objective"
    )


def test_the_headline_of_next_to_nothing() -> None:
    assert wording.headline(results.nothing_sent()) == "No requests were sent."
    assert "the only answer took" in wording.headline(results.one_request())
    waiting = results.nothing_sent()
    waiting.sent = 1
    assert wording.headline(waiting) == "None of 1 request ended before the run did."


def test_text_from_outside_stays_on_its_line() -> None:
    assert wording.plain("a\x1b[31m\n\tb") == "a [31m b"
    assert len(wording.plain("x" * 1000, 50)) == 50
    assert wording.setup_rows({"a": {"b": 1.0, "c": None}, "d": [1, "x"], "e": True, "f": ""}) == {
        "a.b": "1",
        "d": "1, x",
        "e": "yes",
    }
