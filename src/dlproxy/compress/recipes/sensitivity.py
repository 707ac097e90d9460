"""Which parts of a graph stay in floats: those that cost the most accuracy, as long as leaving them out pays. Pure.

Called by static.py. Not aware of: graphs, how an error is measured.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

Group = tuple[str, ...]
Measure = Callable[[Sequence[str]], float]

MOST_GROUPS = 12
ENOUGH = 0.02  # of the answers' size: whole numbers of 7 or 8 bits reach it where nothing is amiss
GAIN = 0.15  # of the error, that leaving a group out has to take away, and half as much again as one of equals would
MOST_MISSES = 2


class Left(Struct, frozen=True):
    """`names`: what stays in floats, `error`: with them, `at_first`: with none of them."""

    names: list[str]
    error: float
    at_first: float


def groups_of(names: Sequence[str]) -> list[Group]:
    """Neighbours together, so that there are few to try."""
    size = max(-(-len(names) // MOST_GROUPS), 1)
    return [tuple(names[start : start + size]) for start in range(0, len(names), size)]


def leave_out(groups: Sequence[Group], *, alone: Measure, without: Measure) -> Left:
    """Try the worst first: by the error if one group `alone` is quantised. `without`: the error if all are but those named."""
    at_first = error = without([])
    left: list[str] = []
    if error <= ENOUGH or len(groups) < 2:
        return Left(left, error, at_first)
    errors = [alone(group) for group in groups]
    gain, misses = max(GAIN, 1.5 / len(groups)), 0
    for number in sorted(range(len(groups)), key=lambda number: (-errors[number], number))[:-1]:
        found = without([*left, *groups[number]])
        if found <= error * (1 - gain):
            left, error, misses = [*left, *groups[number]], found, 0
        else:
            misses += 1
        if error <= ENOUGH or misses == MOST_MISSES:
            break
    return Left(left, error, at_first)
