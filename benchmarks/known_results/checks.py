"""One compared figure: what was expected, the band around it, what was measured, and the verdict; and their table as text.

Made by the result modules, printed and written by __main__.py. Not aware of: how anything is simulated.
"""

from collections.abc import Iterable, Sequence
from math import inf

from msgspec import Struct

COLUMNS = ("result", "expected", "band", "measured", "")


class Check(Struct, kw_only=True):
    """`low` and `high` bound what passes; `expected` is what the source says. `unit` follows each number, which has so
    many `digits` after the point, -1: as many as it takes.

    `differs`: why it is known to lie elsewhere than the source. Such a check is shown and does not fail the run, and while
    it lies within the band it says nothing.
    """

    group: str
    result: str
    expected: float | None
    low: float
    high: float
    measured: float
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
