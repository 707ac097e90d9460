"""What a part of the benchmark found: figures against their goals, and further words for the page.

Made by the parts, printed and written by __main__.py. Not aware of: what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from benchmarks.known_results.checks import Check


@dataclass
class Findings:
    """Of one part. `details`: lines of Markdown below its table."""

    title: str
    checks: list[Check] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def at_most(
        self, what: str, limit: float, measured: float, *, unit: str = "", digits: int = 2, note: str = "", differs: str = ""
    ) -> None:
        """One more figure that passes up to `limit`. `differs`: why it is known to lie above, on some machines."""
        self._add(what, -inf, limit, measured, unit, digits, note, differs)

    def at_least(self, what: str, limit: float, measured: float, *, unit: str = "", digits: int = 2, note: str = "") -> None:
        """One that passes from `limit` on."""
        self._add(what, limit, inf, measured, unit, digits, note)

    def none(self, what: str, count: int, note: str = "") -> None:
        """Something that must not happen at all."""
        self._add(what, -inf, 0.0, float(count), "", 0, note)

    def _add(
        self, what: str, low: float, high: float, measured: float, unit: str, digits: int, note: str, differs: str = ""
    ) -> None:
        check = Check(
            group=self.title,
            result=what,
            expected=None,
            low=low,
            high=high,
            measured=measured,
            unit=unit,
            digits=digits,
            note=note,
            differs=differs,
        )
        self.checks.append(check)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Lowest to highest, for a note."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
