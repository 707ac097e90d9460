"""Points of several objectives, all to be small: which are not dominated, and how much a set of them dominates.

Used by runs.py and benchmarks/learn/pareto.py. Not aware of: what the objectives are.
"""

from collections.abc import Sequence

Point = tuple[float, ...]


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one is at least as good as in everything and better in something; each once, sorted."""
    alone = sorted(set(points))
    return [one for one in alone if not any(other != one and all(map(_le, other, one)) for other in alone)]


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Of what lies between the points and the reference, beyond which nothing counts: Zitzler and Thiele, "Multiobjective
    evolutionary algorithms", IEEE Transactions on Evolutionary Computation 3, 1999. By slices along the last objective.
    """
    inside = front([point for point in points if all(value < most for value, most in zip(point, reference, strict=True))])
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - inside[0][0]
    heights = sorted({point[-1] for point in inside})
    total = 0.0
    for low, high in zip(heights, [*heights[1:], reference[-1]], strict=True):
        below = [point[:-1] for point in inside if point[-1] <= low]
        total += (high - low) * hypervolume(below, reference[:-1])
    return total


def _le(one: float, other: float) -> bool:
    return one <= other
