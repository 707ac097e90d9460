"""An evaluation as text of at most 100 columns. Called by cli/evaluate.py. Not aware of: files, what figures mean."""

import textwrap
from collections.abc import Iterator

from dlproxy.lab.evaluate.evaluation import Evaluation
from dlproxy.lab.evaluate.wording import Group, Table, groups, headline
from dlproxy.lab.report import wording
from dlproxy.lab.report.table import WIDTH

_FIRST = 14  # columns of what a row is called
_LEAST = 20  # columns of how it was measured


def table(found: Evaluation) -> str:
    """The evaluation as lines of text, without a newline at the end."""
    length = wording.duration(found.seconds * 1e3)
    lines = [wording.plain(f"evaluation of {found.target}: {length}, started {found.started}", WIDTH)]
    lines += textwrap.wrap(headline(found), WIDTH)
    for number, group in enumerate(groups(found), start=1):
        lines += ["", *_group(number, group)]
    said = [f"warning: {warning}" for warning in found.warnings]
    if found.interrupted:
        said.append("interrupted: stopped early; what was measured until then is above")
    for one in said:
        lines += ["", *textwrap.wrap(wording.plain(one, 1000), WIDTH, subsequent_indent="  ")]
    return "\n".join(line.rstrip() for line in lines)


def _group(number: int, group: Group) -> Iterator[str]:
    yield f"{number}. {group.title}"
    for one in group.tables:
        yield from _lines(one)
    for remark in group.remarks:
        yield from _wrapped(f"Note: {remark}.")
    yield from _wrapped(f"This means: {group.meaning}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(wording.plain(text, 1000), WIDTH, initial_indent="   ", subsequent_indent="     ")


def _lines(shown: Table) -> Iterator[str]:
    rows = [shown.headings, *shown.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(shown.headings) - 1)]
    widths[0] = max(widths[0], _FIRST)
    room = max(WIDTH - 3 - sum(widths) - 2 * len(widths), _LEAST)
    for row in rows:
        first, *cells = row[:-1]
        start = f"   {first:<{widths[0]}}  " + "".join(
            f"{cell:>{width}}  " for cell, width in zip(cells, widths[1:], strict=True)
        )
        said, *more = textwrap.wrap(wording.plain(row[-1], 1000), room) or [""]
        yield start + said
        yield from (" " * len(start) + line for line in more)
