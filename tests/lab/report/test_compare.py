"""Two runs side by side: ratios, what differed, and no more certainty than one pair gives."""

import re
from random import Random

import pytest

from dlproxy.lab.report.compare import compare
from dlproxy.lab.report.result import Result
from tests.lab.report import results


def row(text: str, name: str) -> list[str]:
    found = re.search(rf"^{re.escape(name)}   +(.+)$", text, re.MULTILINE)
    assert found is not None, text
    return re.split(r" {3,}", found[1])


def noisy(scale: float) -> Result:
    """Latencies whose level wanders from second to second."""
    level = [Random(second).uniform(0.8, 1.2) for second in range(20)]
    return results.ran(duration_s=20.0, latency=lambda random, due_at: 0.01 * scale * level[int(due_at)])


def test_both_values_and_their_ratio() -> None:
    a = results.ran(latency=lambda random, due_at: 0.01)
    b = results.ran(latency=lambda random, due_at: 0.025, error=lambda random, due_at: "timeout" if due_at >= 8.0 else None)
    b.batch_sizes = {2: 10}
    text = compare(a, b)
    assert row(text, "offered") == ["100 /s", "100 /s", "1.00"]
    assert row(text, "answered") == ["100 /s", "80 /s", "0.80"]
    assert row(text, "within objective") == ["100 /s", "0 /s", "0"]
    for quantile in ("p50", "p90", "p99", "p99.9", "max", "mean"):
        assert row(text, quantile) == ["10 ms", "25 ms", "2.50"]
    assert row(text, "errors") == ["0 %", "20 %", "-"]
    assert row(text, "mean batch") == ["6.1", "2", "0.33"]


def test_without_an_objective_there_is_nothing_within_it() -> None:
    without, having = results.ran(objective_s=None), results.ran()
    assert row(compare(without, having), "within objective")[::2] == ["-", "-"]
    assert "within objective" not in compare(without, without)


def test_only_the_differing_options_are_told() -> None:
    a = results.ran(setup={"loop": "open", "model": {"name": "digits"}, "rate": 100.0, "zipf": 1.1})
    b = results.ran(setup={"loop": "open", "model": {"name": "digits"}, "rate": 100.0, "processes": 2})
    text = compare(a, b)
    assert "zipf: 1.1 in a, not given in b" in text
    assert "processes: not given in a, 2 in b" in text
    assert "loop" not in text
    assert "same options" in compare(a, a)


def test_a_difference_within_the_spread_of_the_seconds_may_be_noise() -> None:
    assert re.search(r"^p50 .*\n +b .*overlap: may be noise$", compare(noisy(1.0), noisy(1.05)), re.MULTILINE)
    assert re.search(r"^p50 .*\n +b .*mostly apart$", compare(noisy(1.0), noisy(1.3)), re.MULTILINE)
    assert re.search(r"^p50 .*\n +b .*clear of each other$", compare(noisy(1.0), noisy(3.0)), re.MULTILINE)
    assert "cannot be seen in one pair" in compare(noisy(1.0), noisy(3.0)).replace("\n", " ")


def test_equal_runs_are_never_told_apart() -> None:
    text = compare(noisy(1.0), noisy(1.0))
    assert text.count("overlap: may be noise") == 3
    constant = results.ran(latency=lambda random, due_at: 0.01)
    assert compare(constant, constant).count("overlap: may be noise") == 3
    assert "warning" not in text


def test_a_short_run_says_nothing_about_noise() -> None:
    text = compare(results.ran(duration_s=4.5), results.ran())
    assert "Too short to tell a difference from noise" in text
    assert "second by second" not in text


def test_a_bad_second_shows_although_the_median_is_the_same() -> None:
    bad = results.ran(latency=lambda random, due_at: 0.9 if 6.0 <= due_at < 6.1 else 0.01)
    text = compare(results.ran(latency=lambda random, due_at: 0.01), bad)
    assert re.search(r"^p99 +a .* 10 ms\n +b .* 900 ms ", text, re.MULTILINE)


def changed(**changes: object) -> Result:
    result = results.ran()
    for name, value in changes.items():
        setattr(result, name, value)
    return result


@pytest.mark.parametrize(
    ("other", "warning"),
    [
        (changed(kind="simulation"), "not comparable: a is a load test, b a simulation"),
        (changed(setup={"model": {"name": "resnet"}}), "not comparable: the model is digits in a, resnet in b"),
        (changed(setup={"models": {"x": {}, "digits": {}}}), "not comparable: the model is digits in a, digits, x in b"),
        (changed(setup={"model": "digits", "loop": "closed"}), "not comparable: in an open loop"),
        (changed(offered_rps=200.0), "the offered rates differ"),
        (changed(duration_s=60.0), "the runs lasted 10 s and 60 s"),
        (changed(objective_ms=5.0), "the objectives differ"),
        (changed(interrupted=True), "b was interrupted"),
        (changed(warnings=["the load generator was the limit"]), "b: the load generator was the limit"),
        (results.all_failed(), "b has no successful request"),
    ],
)
def test_what_makes_runs_incomparable_is_told(other: Result, warning: str) -> None:
    text = compare(results.ran(), other)
    assert f"warning  {warning}" in text
    assert "warning" not in compare(results.ran(), results.ran(seed=2))


@pytest.mark.parametrize("a", [results.ran(), results.nothing_sent(), results.all_failed(), results.hostile()])
@pytest.mark.parametrize("b", [results.ran(), results.nothing_sent(), results.one_request(), results.hostile()])
def test_fits_the_terminal_whatever_is_compared(a: Result, b: Result) -> None:
    text = compare(a, b)
    assert max(map(len, text.splitlines())) <= 100
    assert text.replace("\n", "").isprintable()
    assert not re.search(r"\b(nan|inf)\b", text)
