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
    lines += _folded(headline(found), WIDTH)
    for number, group in enumerate(groups(found), start=1):
        lines += ["", *_group(number, group)]
    said = [f"warning: {warning}" for warning in found.warnings]
    if found.interrupted:
        said.append("interrupted: stopped early; what was measured until then is above")
    for one in said:
        lines += ["", *_folded(one, WIDTH, "", "  ")]
    return "\n".join(line.rstrip() for line in lines)


def _group(number: int, group: Group) -> Iterator[str]:
    yield f"{number}. {group.title}"
    for one in group.tables:
        yield from _lines(one)
    for remark in group.remarks:
        yield from _folded(f"Note: {remark.rstrip('.')}{'' if remark.endswith('?') else '.'}", WIDTH, "   ", "     ")
    yield from _folded(f"This means: {group.meaning}", WIDTH, "   ", "     ")


def _folded(text: str, width: int, first: str = "", further: str = "") -> list[str]:
    """Lines of at most that width, with numbers beside their units, and what the first and the others begin with."""
    whole = wording.with_units(wording.plain(text, 1000))
    lines = textwrap.wrap(whole, width, initial_indent=first, subsequent_indent=further)
    return [line.replace(wording.NO_BREAK, " ") for line in lines]


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
        said, *more = _folded(row[-1], room) or [""]
        yield start + said
        yield from (" " * len(start) + line for line in more)
