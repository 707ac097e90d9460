"""The page: well-formed, self-contained, safe from what it shows, small for long runs, and right in its titles."""

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dlproxy.lab.report.chart import linear, logarithmic, seconds
from dlproxy.lab.report.html import html, save_html
from dlproxy.lab.report.result import Result, ResultError, Second, Tally, Trial, model_result
from tests.lab.report import results

VOID = {"meta"}


def long() -> Result:
    result = results.ran(rate=20.0, duration_s=600.0)
    result.duration_s = 3600.0
    result.timeline = [
        Second(at_s=float(at), sent=1000 + at % 7, ok=1000, failed=at % 5, p50_ms=3.0 + at % 3, p99_ms=9.0 + at % 11)
        for at in range(3605)
    ]
    return result


def fleet(nodes: int) -> Result:
    result = results.ran(kind="simulation")
    result.instances = results.fleet(nodes)
    return result


RUNS = {
    **results.RUNS,
    "part of a second": results.ran(rate=1000.0, duration_s=0.05),
    "long": long(),
    "few nodes": fleet(3),
    "many nodes": fleet(1000),
}
each_run = pytest.mark.parametrize("result", RUNS.values(), ids=RUNS)


class Reader(HTMLParser):
    """Checks that tags close in order; keeps the elements and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def charts(page: str) -> dict[str, ElementTree.Element]:
    """The SVG elements by their titles; raises where one is not XML."""
    parsed = [ElementTree.fromstring(text) for text in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]
    return {chart.findtext("title") or "": chart for chart in parsed}


def titles(result: Result) -> list[str]:
    return [unescape(title).replace("\u00a0", " ") for title in re.findall(r"<h2>(.*?)</h2>", html(result))]


@each_run
def test_is_well_formed_and_needs_nothing_from_elsewhere(result: Result) -> None:
    page = html(result)
    elements = Reader(page).elements
    names = {name for name, _ in elements}
    assert not names & {"script", "link", "img", "iframe", "object", "base"}
    for name, attributes in elements:
        assert not {key for key in attributes if key.startswith("on") or key in ("src", "href", "xlink:href")}, name
    assert "url(" not in page
    assert "@import" not in page
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


@each_run
def test_charts_are_xml_without_impossible_numbers_and_say_what_they_show(result: Result) -> None:
    page = html(result)
    drawn = charts(page)
    assert len(drawn) == page.count("<svg ")
    for title, chart in drawn.items():
        assert title
        assert chart.get("role") == "img"
        assert chart.get("aria-label") or chart.findtext("desc")
        for element in chart.iter():
            for value in element.attrib.values():
                assert not re.search(r"\b(nan|inf)\b", value)
            if element.tag == "rect":
                assert float(element.get("width", "0")) > 0.0
                assert float(element.get("height", "0")) >= 0.0


@each_run
def test_stays_small(result: Result) -> None:
    assert len(html(result).encode()) < 300_000


def test_nothing_from_outside_is_taken_for_markup() -> None:
    page = html(results.hostile())
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 8, "kind, target, options, errors, warnings and instances are all shown"
    result = results.hostile()
    result.instances = {f"{results.HOSTILE}{number}": {results.HOSTILE: number} for number in range(30)}
    summarised = html(result)
    assert "<script" not in summarised
    assert 'class="spark"' in summarised
    Reader(summarised)
    assert charts(summarised)


def test_long_runs_are_drawn_with_few_points_and_say_so() -> None:
    page = html(long())
    for chart in charts(page).values():
        for path in chart.iter("path"):
            assert path.get("d", "").count("L") <= 300
    assert "Each point covers 12 s" in page.replace("\u00a0", " ")
    assert "mean of 12 s" in page.replace("\u00a0", " ")


def test_many_instances_are_summarised_with_their_extremes() -> None:
    page = html(fleet(1000)).replace("\u00a0", " ")
    assert "1,000 instances" in page
    for extreme in ("0 %", "100 %", "50 %", "node-0 / thread-0", "node-999 / thread-0", "all the same"):
        assert extreme in page
    assert "node-500" not in page
    assert page.count('class="spark"') == 2
    few = html(fleet(3)).replace("\u00a0", " ")
    assert "node-1 / thread-0" in few
    assert "<td>50 %</td>" in few


def test_instances_without_figures_below_them_are_shown_too() -> None:
    result = results.ran()
    result.instances = {"thread-0": 0.5, "thread-1": {"state": "lost", "batches": 3}}
    page = html(result)
    for shown in ("thread-0", "0.5", "thread-1", "lost", ">3<"):
        assert shown in page


def test_titles_say_what_one_sees() -> None:
    steady = results.ran(rate=80.0, latency=lambda random, due_at: 0.0125)
    assert titles(steady)[:4] == [
        "Half of the answers took at most 12.5 ms, 99 % at most 12.5 ms, the slowest 12.5 ms",
        "p99 stayed at 12.5 ms",
        "The answers kept up with 80 requests per second",
        "The mean batch size is 6.1, the largest batch 8",
    ]
    peak = results.ran(latency=lambda random, due_at: 0.3 if 6.0 <= due_at < 6.5 else 0.01)
    assert "p99 was 10 ms in the median second and rose to 300 ms at 6 s" in titles(peak)
    failing = results.ran(error=lambda random, due_at: "timeout" if 3.0 <= due_at < 3.5 else None)
    assert "50 requests failed, at most 50 in one second (at 3 s)" in titles(failing)
    swamped = results.ran(latency=lambda random, due_at: 20.0 - due_at)
    assert "1,000 of 1,000 requests were not answered when the run ended" in titles(swamped)
    assert "No request succeeded" in titles(results.all_failed())
    assert "The only answer took" in titles(results.one_request())[0]


def test_a_backlog_answered_after_the_end_is_shaded_and_a_stray_answer_is_left_out() -> None:
    backlog = html(results.ran(latency=lambda random, due_at: 2.0))
    assert "Shaded: after the end" in backlog
    assert 'class="shade"' in backlog
    stray = html(results.ran(latency=lambda random, due_at: 2.0 if due_at > 9.985 else 0.001))
    assert "1 request that ended after the last whole second: not shown." in stray.replace("\u00a0", " ")
    assert 'class="shade"' not in stray


def test_warnings_and_interruption_are_on_the_page() -> None:
    result = results.ran()
    assert "Warnings" not in titles(result)
    result.warnings = ["the generator was the limit"]
    result.interrupted = True
    assert titles(result)[0] == "Warnings"
    assert "the generator was the limit" in html(result)
    assert "stopped early" in html(result)


def test_a_search_is_shown_trial_by_trial() -> None:
    result = results.ran()
    result.trials = [
        Trial(rate=100.0, duration_s=3.0, sent=300, failed=0, p99_ms=12.5, passed=True),
        Trial(rate=200.0, duration_s=3.0, sent=600, failed=9, p99_ms=None, passed=False, reason=results.HOSTILE),
    ]
    result.peak_rps = 100.0
    result.models = {results.HOSTILE: model_result(Tally(0.0, 1.0))}
    result.faults = [results.HOSTILE]
    page = html(result).replace("\u00a0", " ")
    Reader(page)
    assert "<script" not in page
    assert {"Models", "Faults"} <= set(titles(result))
    assert "The search for the highest rate" in titles(result)
    assert "2 trials: 100 /s held for a whole run, 200 /s did not" in page
    for cell in ("12.5 ms", "passed", "600", "failed: &lt;script"):
        assert f"<td>{cell}" in page


def test_is_written_or_refused_in_one_line(tmp_path: Path) -> None:
    save_html(results.ran(), tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text("utf-8") == html(results.ran())
    for path in (tmp_path, tmp_path / "missing" / "run.html", tmp_path / "nul\0.html"):
        with pytest.raises(ResultError, match="cannot write") as refused:
            save_html(results.ran(), path)
        assert "\n" not in str(refused.value)


def test_a_page_can_be_made_of_a_result_whose_histogram_is_lost() -> None:
    result = results.ran()
    result.histogram = ""
    Reader(html(result))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1004.0), (0.0, 0.0), (0.0, 1e-9), (0.0, 20.0), (0.0, 3e9)])
def test_a_linear_axis_covers_its_values_with_few_round_ticks(low: float, high: float) -> None:
    axis = linear(low, high, "x", str)
    assert axis.high >= high
    assert 2 <= len(axis.ticks) <= 7
    step = axis.ticks[1][0] - axis.ticks[0][0]
    assert f"{step:.0e}"[0] in "125"
    assert axis.share(high if high > low else axis.high) <= 1.0


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (3.0, 900.0), (1e-6, 1e7), (0.9, 1.1), (10.0, 200.0)])
def test_a_logarithmic_axis_covers_its_values(low: float, high: float) -> None:
    axis = logarithmic(low, high, "x", str)
    assert axis.low <= low * (1 + 1e-9)
    assert axis.high >= high * (1 - 1e-9)
    assert 2 <= len(axis.ticks) <= 9
    assert axis.share(0.0) == 0.0, "what a logarithm cannot show lies at the lower edge"


@pytest.mark.parametrize(
    ("length_s", "last"), [(1.0, "1 s"), (60.0, "60 s"), (100.0, "90 s"), (3600.0, "60 min"), (1e5, "24 h"), (1e7, "100 d")]
)
def test_a_time_axis_has_ticks_of_the_clock(length_s: float, last: str) -> None:
    axis = seconds(0.0, length_s, "time")
    assert axis.ticks[0][1].startswith("0")
    assert axis.ticks[-1][1] == last
    assert 2 <= len(axis.ticks) <= 7
