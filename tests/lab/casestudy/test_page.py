"""What people read: the page, the Markdown, the lines on a terminal; the record that they are made of."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dlproxy.lab.casestudy import page, wording
from dlproxy.lab.casestudy.record import Study, append, load
from dlproxy.lab.casestudy.steps import NAMES, ladder
from dlproxy.lab.report.result import ResultError
from tests.lab.casestudy import stand_ins

ABLATED = ("FastAPI", *(side for side, _ in ladder(NAMES[:-1])[:-1]), "all steps")


class _Closed(HTMLParser):
    """Fails where an element is closed that is not open."""

    VOID = ("meta", "circle", "path", "rect", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_escapes_what_servers_say() -> None:
    shown = page.html(stand_ins.study())
    parser = _Closed()
    parser.feed(shown)
    assert not parser.open
    assert "degrades &lt;now&gt;" in shown
    assert "<now>" not in shown
    assert shown.count("<svg") == 4


def test_the_four_figures_stand_beside_what_is_asked_for() -> None:
    rows = wording.goals(stand_ins.study()).rows
    assert [row[5] for row in rows] == ["+30 %", "-40 %", "+20 %", "-15 %"]
    assert [row[6] for row in rows][:2] == ["reached", "reached"]


def test_one_round_reaches_nothing_surely() -> None:
    study = stand_ins.study(rounds=1)
    assert {row[4] for row in wording.goals(study).rows} == {"one round: no interval"}
    assert "reached" not in {row[6] for row in wording.goals(study).rows}
    assert wording.headline(study).startswith("0 of 4 figures reach what the case asks for, 4 more on average but not surely: ")
    assert any("round only" in said for said in page.doubts(study))


def test_what_went_wrong_and_who_else_had_the_cores_is_said() -> None:
    study = stand_ins.study()
    study.turns[0].errors = {"503 Service Unavailable": 5, "500 Internal Server Error": 2}
    study.turns[0].said = {"500 Internal Server Error": "stage 'mean' failed"}
    study.turns[1].others = 0.7
    disturbed, failed = page.doubts(study)
    assert "in 1 of 9 turns other programs had more than 0.1 of the cores, up to 0.7" in disturbed
    assert failed == "FastAPI: 2 requests failed (500 Internal Server Error: stage 'mean' failed)"


def test_a_worse_side_is_said_to_have_missed() -> None:
    study = stand_ins.study(("all steps", "dlproxy", "FastAPI"))
    assert {row[6] for row in wording.goals(study).rows} == {"missed"}
    assert wording.headline(study).startswith("0 of 4")


def test_the_ablation_has_two_rows_for_each_step_but_the_first() -> None:
    shown = wording.ablation(stand_ins.study(ABLATED, rounds=2))
    named = [row[0] for row in shown.rows]
    assert named.count("batching") == 1
    assert named.count("cache") == 2
    assert named.count("agent") == 0
    assert named[-1] == "all steps"
    assert len(wording.sums(stand_ins.study(ABLATED, rounds=2))) == 4


def test_a_step_that_is_left_out_breaks_no_chain() -> None:
    rows = wording.ablation(stand_ins.study(tuple(side for side in ABLATED if "variants" not in side), rounds=2)).rows
    assert [row[1] for row in rows if row[0] == "ensemble"] == ["by itself", "on top of those before"]
    assert not [row for row in rows if row[0] == "variants"]


def test_a_study_that_was_stopped_says_so(tmp_path: Path) -> None:
    study = stand_ins.study()
    study.turns = study.turns[:2]
    assert wording.headline(study).startswith("Too little was measured")
    assert [path.name for path in page.save(study, tmp_path)] == ["report.html", "RESULTS.md"]
    assert list(page.lines(study))


def test_markdown_tables_are_as_wide_as_their_heads() -> None:
    text = page.markdown(stand_ins.study(ABLATED, rounds=2))
    width = 0
    for line in text.splitlines():
        cells = len(re.findall(r"\|", line)) if line.startswith("|") else 0
        assert not (cells and width) or cells == width, line
        width = cells


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    study, path = stand_ins.study(), tmp_path / "runs.jsonl"
    append(path, study.day)
    for turn in study.turns:
        append(path, turn)
    assert load(path) == study
    append(path, study.day)
    assert load(path) == Study(day=study.day, turns=[])


@pytest.mark.parametrize("content", [b"", b"{}\n", b"\xff\n", b'{"type":"turn"}\n', b"not json\n"])
def test_what_is_no_record_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(content)
    with pytest.raises(ResultError, match="is no record"):
        load(path)
    with pytest.raises(ResultError, match="cannot read"):
        load(tmp_path / "missing")
