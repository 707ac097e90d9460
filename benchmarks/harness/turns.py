"""Sides that take turns, so that noise disturbs them alike, and how far apart their figures lie. Not aware of: what they do."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from benchmarks.harness.checks import Findings

Side = TypeVar("Side")


def in_turn(sides: Sequence[Side], number: int) -> list[Side]:
    """The order in this round: in each another is first."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Lowest to highest, for a note."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


class Timed(Protocol):
    """A side. `rates` (requests/s) and `costs` (CPU seconds a request, none where nobody tells): of each round."""

    name: str
    rates: list[float]
    costs: list[float]


def beside_the_first(findings: Findings, sides: Sequence[Timed], goals: Mapping[str, float | None]) -> None:
    """Rates by the first side's of the same round, against their goals (None: whatever it is; not there: not asked)."""
    first, *others = sides
    for side in others:
        if side.name in goals:
            ratios = [mine / its for mine, its in zip(side.rates, first.rates, strict=True)]
            what = f"{side.name}: rate by that of {first.name}"
            findings.at_least(what, goals[side.name] or 0.0, statistics.median(ratios), note=spread(ratios))
    for side in sides:
        words = f"- {side.name}: {statistics.median(side.rates):,.0f} requests/s"
        if side.costs and first.costs:
            times = [mine / its for mine, its in zip(side.costs, first.costs, strict=True)]
            words += f", {statistics.mean(side.costs) * 1e6:.1f} us of CPU a request"
            words += "" if side is first else f", {statistics.median(times):.2f} times {first.name}'s ({spread(times)})"
        findings.details.append(words)
