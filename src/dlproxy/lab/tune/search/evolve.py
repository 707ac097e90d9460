"""NSGA-II (Deb et al. 2002, by Optuna) over the points of a space: goodput, p99 and cores against each other; then a climb.

The one file that imports optuna. Called by tune.py and benchmarks/tune. Not aware of: how a point is valued.
"""

from collections.abc import Callable, Mapping
from math import log
from typing import Any

from dlproxy.lab.tune.search.problem import SAME_GOODPUT, Outcome, Point, Space, TuneError

POPULATION = 24
GENERATIONS = 20
LEAST_GAIN = 0.01  # of hypervolume, over
STALE = 3  # generations: less ends the search
NEAR_S, FAR = 1e-4, 10.0  # p99 counts from here to so many objectives, on a logarithmic scale

Archive = Mapping[Point, Outcome]


def evolve(
    space: Space, value: Callable[[Point], Outcome], *, objective_s: float, most: int, going: Callable[[], bool], seed: int = 0
) -> dict[Point, Outcome]:
    """Every point that was valued, of at most so many. It ends early when it finds nothing better, or `going` says no."""
    optuna = _optuna()
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    for arguments in space.defaults():
        study.enqueue_trial(arguments)
    found: dict[Point, Outcome] = {}
    volumes: list[float] = []
    for number in range(POPULATION * GENERATIONS):
        if len(found) >= most or not going():
            break
        trial = study.ask()
        point = space.point(**{name: trial.suggest_int(name, 0, size - 1) for name, size in space.sizes().items()})
        if point not in found:
            found[point] = value(point)
        outcome = found[point]
        study.tell(trial, (outcome.goodput, min(outcome.p99_s, FAR * objective_s), float(point.layout.cores)))
        if (number + 1) % POPULATION == 0:
            volumes.append(hypervolume(found, objective_s))
            if len(volumes) > STALE and volumes[-1] <= volumes[-1 - STALE] * (1.0 + LEAST_GAIN):
                break
    _climb(space, value, found, lambda: len(found) < most and going())
    return found


def _climb(space: Space, value: Callable[[Point], Outcome], found: dict[Point, Outcome], going: Callable[[], bool]) -> None:
    """From the best point of each layout, the best layout first, to one that no neighbour in a single knob is better than.

    A genetic search that has converged may have missed by one step: of twenty seeds one or two had, by up to a quarter.
    """

    def worth(point: Point) -> tuple[float, float]:
        return found[point].goodput, -found[point].p99_s

    bests = {point.layout: point for point in sorted(found, key=worth)}
    for best in sorted(bests.values(), key=worth, reverse=True):
        before = None
        while best != before:
            before = best
            for point in space.neighbours(before):
                if point not in found:
                    if not going():
                        return
                    found[point] = value(point)
                best = max(best, point, key=worth)


def front(archive: Archive) -> list[Point]:
    """Those that no other beats in one of goodput, p99 and cores without losing in another; the most goodput first."""
    best = max((outcome.goodput for outcome in archive.values()), default=0.0)

    def costs(point: Point) -> tuple[int, float, int]:
        outcome = archive[point]
        lost = int((best - outcome.goodput) / (SAME_GOODPUT * best)) if best else 0
        return lost, outcome.p99_s, point.layout.cores

    kept: list[Point] = []
    for point in sorted(archive, key=lambda one: (*costs(one), one)):
        own = costs(point)
        if archive[point].good > 0.0 and not any(all(a <= b for a, b in zip(costs(other), own, strict=True)) for other in kept):
            kept.append(point)
    return kept


def hypervolume(archive: Archive, objective_s: float) -> float:
    """The part of the unit cube that the front dominates: goodput over the best, p99 on a logarithmic scale, cores."""
    best = max((outcome.goodput for outcome in archive.values()), default=0.0)
    most = max((point.layout.cores for point in archive), default=1)
    if best <= 0.0:
        return 0.0
    span = log(FAR * objective_s / NEAR_S)
    gains = [
        (
            1.0 - (point.layout.cores - 1) / most,
            outcome.goodput / best,
            min(max(log(FAR * objective_s / max(outcome.p99_s, NEAR_S)) / span, 0.0), 1.0),
        )
        for point in front(archive)
        for outcome in (archive[point],)
    ]
    depths = sorted({gain[0] for gain in gains}, reverse=True)
    slices = zip(depths, [*depths[1:], 0.0], strict=True)
    return sum((depth - next_) * _area([gain[1:] for gain in gains if gain[0] >= depth]) for depth, next_ in slices)


def _area(gains: list[tuple[float, float]]) -> float:
    """That is dominated in two dimensions."""
    area, height = 0.0, 0.0
    for width, tall in sorted(gains, reverse=True):
        if tall > height:
            area += width * (tall - height)
            height = tall
    return area


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise TuneError("dlproxy tune needs Optuna: pip install 'dlproxy[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
