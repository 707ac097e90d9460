"""What is shown of an evaluation: five groups, every figure with how it was measured, and nothing claimed from too little."""

import pytest

from dlproxy.lab.evaluate.evaluation import Evaluation
from dlproxy.lab.evaluate.page import html
from dlproxy.lab.evaluate.table import table
from dlproxy.lab.evaluate.wording import groups, headline
from tests.lab.evaluate import found
from tests.lab.report.test_html import Reader

TITLES = ["Response time", "Throughput", "Utilisation", "Scalability", "Robustness"]
both = pytest.mark.parametrize("evaluation", [found.whole(), found.nothing()], ids=["whole", "nothing"])


@both
def test_five_groups_each_with_what_it_means(evaluation: Evaluation) -> None:
    shown = groups(evaluation)
    assert [group.title for group in shown] == TITLES
    for group in shown:
        assert group.meaning.endswith(".")
        for one in group.tables:
            assert all(len(row) == len(one.headings) for row in one.rows)
            assert all(row[-1] for row in one.rows)  # how it was measured


@both
def test_the_table_is_as_wide_as_a_terminal(evaluation: Evaluation) -> None:
    lines = table(evaluation).splitlines()
    assert max(map(len, lines)) <= 100
    assert [line[3:] for line in lines if line[:2] in {"1.", "2.", "3.", "4.", "5."}] == TITLES


@both
def test_the_page_is_well_formed(evaluation: Evaluation) -> None:
    page = html(evaluation)
    Reader(page)
    assert "<requests>" not in page
    assert page.count("<svg") == (4 if evaluation.faults else 0)  # two series, two faults that were measured


def test_the_sentence_names_the_rate_the_objective_and_the_worst_fault() -> None:
    assert headline(found.whole()) == (
        "1,000 requests/s with 99 % of the answers within 20 ms; under the worst fault (overload) 80 % of the goodput was kept."
    )
    assert headline(found.nothing()) == "Nothing was measured."


def test_bytes_are_rates_of_the_highest_rate() -> None:
    rows = {row[0]: row[1] for row in groups(found.whole())[1].tables[0].rows}
    assert (rows["in"], rows["out"], rows["an answer"]) == ("400 kB/s", "190 kB/s", "190 B")


def test_no_law_is_claimed_of_two_points() -> None:
    scalability = groups(found.whole())[3]
    assert any(remark.startswith("instances: 2 points, too few") for remark in scalability.remarks)
    assert "Over clients: lambda" in scalability.meaning
    assert "Over instances" not in scalability.meaning


def test_a_fault_that_does_not_apply_is_named() -> None:
    robustness = groups(found.whole())[4]
    assert [row[0] for row in robustness.tables[0].rows] == ["overload", "garbage"]
    assert robustness.remarks == ["killed worker: does not apply: batches run as 'inline'"]
    assert "not back afterwards from garbage" in robustness.meaning
