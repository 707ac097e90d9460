"""The terminal's summary: aligned, at most 100 columns, and readable for runs that went well, badly or not at all."""

import re
from itertools import pairwise

import pytest

from dlproxy.lab.report.html import html
from dlproxy.lab.report.result import Result, Tally, Trial, make_result, model_result
from dlproxy.lab.report.table import table
from tests.lab.report import results


def extreme() -> Result:
    result = results.ran()
    result.sent = result.ok = 10**13
    result.offered_rps = result.rate_rps = result.goodput_rps = 1.23e11
    result.latency_ms = {"p50": 1e-9, "p90": 1e-3, "p99": 1.0, "p99_9": 1e6, "max": 1e12, "mean": 0.0}
    result.variants = {"n" * 300: 10**13}
    result.errors = {"timeout": 10**12, **{f"kind {number} {'x' * 200}": 1 for number in range(100)}}
    result.batch_sizes = {2**number: 10**number for number in range(20)}
    result.objective_ms = 1e-6
    result.warnings = ["w" * 500, "a warning " * 60]
    result.setup = {f"option_{number}": "v" * 300 for number in range(100)}
    result.target = "t" * 1000
    return result


RUNS = {
    **results.RUNS,
    "extreme": extreme(),
    "simulation": results.ran(kind="simulation"),
}


@pytest.mark.parametrize("result", RUNS.values(), ids=RUNS)
def test_fits_the_terminal_and_holds_nothing_that_could_change_it(result: Result) -> None:
    text = table(result)
    for line in text.splitlines():
        assert len(line) <= 100
        assert line == line.rstrip()
    assert text.replace("\n", "").isprintable()
    assert not text.endswith("\n")
    assert "\n\n\n" not in text


@pytest.mark.parametrize("result", RUNS.values(), ids=RUNS)
def test_values_stand_right_below_their_headings(result: Result) -> None:
    lines = table(result).splitlines()
    for heading, values in pairwise(lines):
        if re.match(r" +(offered|p50) ", heading):
            ends = [match.end() for match in re.finditer(r"\S+(?: \S+)*", heading)]
            assert ends == [match.end() for match in re.finditer(r"\S+(?: \S+)*", values) if match.start() > 0]


def test_a_usual_run() -> None:
    text = table(results.ran(rate=80.0, latency=lambda random, due_at: 0.0125))
    assert text.startswith("load test of digits at http://host:8000: 10 s, started 2026-01-05T10:00:00")
    assert "rate 80, loop open, model.name digits" in text
    assert "requests     800 sent, 800 answered, 0 failed" in text
    assert re.search(r"rate +80 /s +80 /s +80 /s$", text, re.MULTILINE)
    assert re.search(r"latency +12\.5 ms +12\.5 ms +12\.5 ms +12\.5 ms +12\.5 ms +12\.5 ms$", text, re.MULTILINE)
    assert "errors       none" in text
    assert "batch size   mean 6.1 of 100 batches (1: 10 %, 4: 30 %, 8: 60 %)" in text
    assert "busiest process 25 % of a core; requests left 200 µs late at p99, 1.5 ms at most" in text
    assert "interrupted" not in text
    assert "warning" not in text


def test_answers_of_variants_are_counted_by_their_names() -> None:
    one, other = Tally(0.0, 10.0), Tally(0.0, 10.0)
    for tally in (one, other):
        for variant in (b"", b"m-int8", b"m%20\xc3"):
            tally.sent_one(1.0, 1.0)
            tally.answered(1.0, 1.5, variant)
        tally.answered(11.0, 11.5, b"m-int8")
    one.merge(other)
    result = make_result(one, kind="load test", started="", target="m", setup={})
    assert result.variants == {"m \xc3": 2, "m-int8": 2}
    assert "variant      m-int8: 2 of 6 answers, 33.3 %" in table(result)
    assert "m-int8" in html(result)
    assert "variant" not in table(results.ran())


def test_errors_are_listed_by_how_often_they_came() -> None:
    text = table(results.all_failed())
    found = re.findall(r"^ +(\d+) +([\d.]+) %  (.+)$", text, re.MULTILINE)
    assert [kind for _, _, kind in found] == ["timeout", "HTTP 503"]
    assert sum(int(times) for times, _, _ in found) == 1000
    assert sum(float(share) for _, share, _ in found) == pytest.approx(100.0, abs=0.1)
    assert "unknown: no request succeeded" in text


def test_what_qualifies_the_figures_comes_last() -> None:
    result = results.ran()
    result.warnings = ["the first", "the second"]
    result.interrupted = True
    assert [line.split()[0] for line in table(result).splitlines()[-3:]] == ["warning", "warning", "interrupted"]


def _trials(*told: tuple[float, bool, bool]) -> list[Trial]:
    """Of (rate, passed, whole)."""
    return [
        Trial(rate=rate, duration_s=3.0, sent=9, failed=0, p99_ms=1.0, passed=passed, whole=whole)
        for rate, passed, whole in told
    ]


@pytest.mark.parametrize(
    ("trials", "peak", "said"),
    [
        (
            _trials((100, True, False), (400, False, False), (200, True, False), (200, True, True)),
            200.0,
            "4 trials: 200 /s held for a whole run, 400 /s did not",
        ),
        (  # failed once, passed when it was tried again
            _trials((200, False, False), (200, True, False), (400, False, False), (200, True, True)),
            200.0,
            "4 trials: 200 /s held for a whole run, 400 /s did not",
        ),
        (  # a short trial passed where whole runs did not hold
            _trials((400, True, False), (400, False, True), (380, False, True), (342, True, True)),
            342.0,
            "4 trials: 342 /s held for a whole run, 380 /s did not",
        ),
        (
            _trials((150, False, False), (200, True, True)),
            200.0,
            "2 trials: 200 /s held for a whole run, no higher rate failed, lower rates that failed (150 /s) were disturbed",
        ),
        (
            _trials((24_520, True, False), (24_520, False, True), (23_480, False, True)),
            None,
            "3 trials: short trials passed at up to 24,520 /s, but no whole run did, 23,480 /s was the lowest tried",
        ),
        (_trials((100, False, False), (25, False, False)), None, "2 trials: no rate passed, 25 /s was the lowest tried"),
    ],
)
def test_a_search_is_summed_up_without_contradicting_itself(trials: list[Trial], peak: float | None, said: str) -> None:
    result = results.ran()
    result.trials, result.peak_rps = trials, peak
    assert f"search {said}; the figures are of the last run" in " ".join(table(result).split())


def test_models_and_faults_are_told_one_by_one() -> None:
    result = results.ran(kind="simulation")
    tally = Tally(0.0, 10.0, 0.02)
    for due_at in (0.0, 1.0, 2.0, 3.0):
        tally.sent_one(due_at, due_at)
    tally.answered(0.0, 0.010)
    tally.answered(1.0, 1.010)
    tally.answered(2.0, 2.5)
    tally.failed("deadline", 3.0, 3.1)
    result.models = {"small": model_result(tally), "idle": model_result(Tally(0.0, 10.0))}
    result.faults = ["slow:node=node-1: p99 9 ms in the median second"]
    lines = [line.split() for line in table(result).splitlines()]
    assert ["model", "sent", "answered", "failed", "p50", "p99", "in", "time"] in lines
    assert ["small", "4", "0.3", "/s", "1", "10", "ms", "500", "ms", "50", "%", "within", "20", "ms"] in lines
    assert ["idle", "0", "0", "/s", "0", "-", "-", "-"] in lines
    assert ["fault", "slow:node=node-1:", "p99", "9", "ms", "in", "the", "median", "second"] in lines


def test_requests_without_an_answer_are_told() -> None:
    result = results.ran()
    result.sent += 7
    assert "7 without an answer when the run ended" in table(result)
