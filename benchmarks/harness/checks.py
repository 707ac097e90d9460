"""Figures against their bands or goals, with verdicts; their tables and pages.

Made by the parts of a benchmark, printed and written by its command. Not aware of: what was measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from msgspec import Struct

COLUMNS = ("result", "expected", "band", "measured", "")


class Check(Struct):
    """`low` and `high` bound what passes; `expected` is what the source says. `unit` follows each number, which has so
    many `digits` after the point, -1: as many as it takes.

    `differs`: why it is known to lie elsewhere than the source. Such a check is shown and does not fail the run, and while
    it lies within the band it says nothing.
    """

    result: str
    low: float
    high: float
    measured: float
    group: str
    expected: float | None = None
    unit: str = ""
    digits: int = 2
    note: str = ""
    differs: str = ""

    @property
    def within(self) -> bool:
        return self.low <= self.measured <= self.high

    @property
    def verdict(self) -> str:
        return "pass" if self.within else "differs" if self.differs else "MISS"

    @property
    def missed(self) -> bool:
        """Outside of its band, and nobody said that it would be."""
        return self.verdict == "MISS"

    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        expected = "" if self.expected is None else self._number(self.expected)
        measured = self._number(self.measured) + (f" ({self.note})" if self.note else "")
        return (self.result, expected, self._band(), measured, self.verdict)

    def _number(self, value: float) -> str:
        return (f"{value:g}" if self.digits < 0 else f"{value:.{self.digits}f}") + self.unit

    def _band(self) -> str:
        if self.low == -inf:
            return f"<= {self._number(self.high)}"
        if self.high == inf:
            return f">= {self._number(self.low)}"
        return f"{self._number(self.low)} to {self._number(self.high)}"


class Outcome(Struct):
    """What one result module measured, and how many requests it simulated for that."""

    checks: list[Check]
    requests: int


def around(expected: float, *, relative: float = 0.0, absolute: float = 0.0) -> tuple[float, float]:
    """The band of this width on either side."""
    width = abs(expected) * relative + absolute
    return expected - width, expected + width


def as_text(checks: Sequence[Check]) -> str:
    """The table for a terminal."""
    rows = [COLUMNS, *(check.cells() for check in checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines: list[str] = []
    group = ""
    for check, row in zip([None, *checks], rows, strict=True):
        if check is not None and check.group != group:
            group = check.group
            lines += ["", group]
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return "\n".join(lines)


def as_markdown(checks: Iterable[Check]) -> str:
    """The rows of one group for a page."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(check.cells()) + " |" for check in checks]
    return "\n".join(lines)


def as_page(lead: Sequence[str], sections: Iterable[tuple[str, str, Iterable[Check], Sequence[str]]]) -> str:
    """`lead`: lines above. A section: its title, what it is, its figures, and lines below them."""
    lines = list(lead)
    for title, about, checks, details in sections:
        lines += ["", f"## {title}", "", about, "", as_markdown(checks)]
        lines += ["", *details] if details else []
    return "\n".join(lines) + "\n"


@dataclass
class Findings:
    """Of one part. `details`: lines of Markdown below its table."""

    title: str
    checks: list[Check] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def at_most(self, what: str, limit: float, measured: float, **more: Any) -> None:
        """One more figure that passes up to `limit`. `more`: as a Check has it."""
        self.checks.append(Check(what, -inf, limit, measured, self.title, **more))

    def at_least(self, what: str, limit: float, measured: float, **more: Any) -> None:
        """One that passes from `limit` on."""
        self.checks.append(Check(what, limit, inf, measured, self.title, **more))

    def none(self, what: str, count: int, note: str = "") -> None:
        """Something that must not happen at all."""
        self.at_most(what, 0.0, count, digits=0, note=note)
