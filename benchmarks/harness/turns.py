"""Sides that take turns, so that noise disturbs them alike, and how far apart their figures lie. Not aware of: the sides."""

from collections.abc import Sequence
from typing import TypeVar

Side = TypeVar("Side")


def in_turn(sides: Sequence[Side], number: int) -> list[Side]:
    """The order in this round: in each another is first."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Lowest to highest, for a note."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
