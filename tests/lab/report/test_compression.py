"""What is shown of a compression: every recipe with its figures and its reasons, well-formed, and safe from what it shows."""

from html import escape
from pathlib import Path

import pytest
from msgspec.structs import replace

from dlproxy.compress.gate import Bar
from dlproxy.compress.manifest import Report
from dlproxy.compress.metrics import Metric
from dlproxy.compress.recipe import Step
from dlproxy.lab.report import wording
from dlproxy.lab.report.compression import WIDTH, headline, html, lines, save_html
from tests.compress.findings import accuracy, candidate, measured, report, run, speed
from tests.lab.report.results import HOSTILE
from tests.lab.report.test_html import Reader, charts


def hostile() -> Report:
    """Names, notes, errors and labels that are markup and control characters."""
    lost = measured(accuracy=accuracy(metric=HOSTILE, worst_class=(HOSTILE, 0.5)))
    steps = [Step(HOSTILE, HOSTILE, {HOSTILE: HOSTILE})]
    named = [
        replace(candidate(HOSTILE, lost), steps=steps, notes=[HOSTILE]),
        replace(candidate(HOSTILE), failure=HOSTILE),
    ]
    return Report(run=run(source=HOSTILE, metric=Metric(HOSTILE, HOSTILE, HOSTILE)), candidates=named)


CASES = {
    "usual": report(),
    "nothing": report(candidates=[]),
    "failures": report(candidates=[candidate("qat"), candidate("prune")], interrupted=True),
    "one batch": report(candidates=[candidate("int8", measured(speeds=(speed(1),)))]),
    "no speed": report(candidates=[candidate("int8", measured(speeds=()))]),
    "small": report(run=run(bar=Bar(most_file_bytes=200_000, most_memory_bytes=10**9))),
    "gains": report(candidates=[candidate("int8", measured(accuracy=accuracy(loss=-0.02, low=-0.03, high=-0.01)))]),
    "hostile": hostile(),
}
each = pytest.mark.parametrize("shown", CASES.values(), ids=CASES)


@each
def test_the_page_is_well_formed_and_says_what_the_terminal_says(shown: Report) -> None:
    page, text = html(shown), "\n".join(lines(shown))
    Reader(page)
    drawn = charts(page)
    assert len(drawn) == page.count("<svg ")
    assert bool(drawn) == any(one.measured is not None and one.measured.speeds for one in shown.candidates)
    for foreign in ("<script", "\x1b"):
        assert foreign not in page
    assert "\x1b" not in text
    for one in shown.candidates:
        name = wording.plain(one.recipe, 40)
        assert name in text
        assert page.count(escape(name)) >= 3, "its figures, why, and how it was made"


def test_the_table_of_a_terminal() -> None:
    shown = list(lines(report()))
    assert shown[0] == "int8-dynamic is 2.10 times as quick for 0.1 % of accuracy, in 110 kB of 400 kB; 1 of 4 recipes accepted"
    heading, original, taken, _, _, failed = (line.split() for line in shown[2:8])
    assert " ".join(heading) == "recipe file accuracy lost batch 1 batch 32 speed-up memory"
    assert " ".join(original) == "original 400 kB 93 % 2.1 ms 67.2 ms 1 3 MB"
    assert " ".join(taken) == "int8-dynamic accepted 110 kB 92.9 % 0.1 % (-0.3..0.5) 1 ms 32 ms 2.10 / 2.10 1 MB"
    assert failed == ["qat", "failed", *"-" * 7]
    reasons = " ".join(" ".join(shown[9:]).split())
    assert "int8-static: loses 43 % of accuracy, 1 % is allowed; answers 98 % of the examples as the original does" in reasons
    assert "prune: 0.80 times as quick at batch 1 (0.70 to 0.90), 1.15 times is asked for; 1.10 times" in reasons
    assert "qat: ran out of memory" in reasons
    assert max(map(len, shown[1:])) <= WIDTH


def test_the_headline_where_nothing_was_taken() -> None:
    assert headline(CASES["failures"]) == "Of 2 recipes none pays: the original stays as it is"
    assert "and no less right" in headline(CASES["gains"])


def test_the_page_is_written(tmp_path: Path) -> None:
    save_html(report(), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8") == html(report())
