"""What the searches share: a placement that is changed copy by copy and never breaks a constraint, and a budget.

Called by first_fit.py, annealing.py, genetic.py and ants.py. Not aware of: which search it serves.
"""

from collections.abc import Iterator
from math import inf
from time import perf_counter

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from dlproxy.lab.tune.placement.evaluate import Objective, Placement, evaluate
from dlproxy.lab.tune.placement.problem import Floats, Ints

LEAST_GAIN = 1e-12  # of the cost: less is rounding
SPREAD_MISSES = 2  # copies in a row per model that did not help, then filling spare resources ends


class Budget(Struct, frozen=True):
    """How long a search may take: `evaluations` (one is the cost of one model's copies), seconds, or both.

    Only with `seconds` infinite the same seed gives the same placement on another machine.
    """

    evaluations: float = 100_000
    seconds: float = inf


class Progress(Struct, frozen=True):
    """The best cost known after so many evaluations and seconds."""

    evaluations: int
    seconds: float
    cost: float


class Solution(Struct):
    """What a solver found. `bound`: no placement costs less.

    `status`: "optimal" (proven), "time limit", "budget spent" or "done" (no budget, nothing proven).
    `history`: each time the best became better; empty where a solver does not say.
    """

    solver: str
    placement: Placement
    bound: float
    status: str
    seconds: float
    evaluations: int = 0
    history: list[Progress] = field(default_factory=list)


class Search:
    """A placement under change. `copies` (m, n) keeps within all resources and most copies; `cost` is up to date."""

    def __init__(self, objective: Objective, run: "Run") -> None:
        self.objective, self.problem, self._run = objective, objective.problem, run
        self.copies: Ints = np.zeros_like(self.problem.most)
        self._allowed = self.problem.most > 0
        self._free = self.problem.has.copy()
        self._left = self.problem.most_copies.copy()
        self._costs: Floats = np.array([self._price(m) for m in range(len(self._left))])

    @property
    def cost(self) -> float:
        return float(self._costs.sum())

    @property
    def costs(self) -> Floats:
        """(m): what each model contributes."""
        return self._costs

    def fits(self, m: int) -> NDArray[np.bool_]:
        """(n): where one more copy may stand."""
        if self._left[m] <= 0:
            return np.zeros(self.copies.shape[1], dtype=bool)
        fits: NDArray[np.bool_] = self._allowed[m] & (self.problem.takes[m] <= self._free).all(axis=1)
        return fits

    def short(self, m: int) -> bool:
        """Whether the model's copies do not take all of its demand."""
        return float(self.problem.usable[m] @ self.copies[m]) < float(self.problem.rate[m]) * (1.0 - 1e-9)

    def move(self, steps: list[tuple[int, int, int]]) -> float:
        """Add `count` copies of m on n for each (m, n, count), below 0 to take away. What the cost changes by.

        The caller sees to it that they fit. move(undone(steps)) takes it back.
        """
        before = after = 0.0
        for m, n, count in steps:
            self.copies[m, n] += count
            self._free[n] -= count * self.problem.takes[m, n]
            self._left[m] -= count
        for m in {m for m, _, _ in steps}:
            before += float(self._costs[m])
            self._costs[m] = self._price(m)
            after += float(self._costs[m])
        return after - before

    def put(self, m: int, row: Ints) -> None:
        """Give a model that has no copy as many of those in `row` as fit."""
        room = np.where(self.problem.takes[m] > 0, self._free // np.maximum(self.problem.takes[m], 1), row[:, None]).min(axis=1)
        fitting = np.minimum(row, room)
        self.move([(m, int(n), int(fitting[n])) for n in np.flatnonzero(fitting)])

    def clear(self, m: int) -> None:
        """Take away all copies of a model."""
        self.move([(m, int(n), -int(self.copies[m, n])) for n in np.flatnonzero(self.copies[m])])

    def _price(self, m: int) -> float:
        self._run.evaluations += 1
        return self.objective.cost(m, self.copies[m])


def undone(steps: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return [(m, n, -count) for m, n, count in steps]


class Run:
    """One search under way: what is spent, and the best placement so far."""

    def __init__(self, objective: Objective, budget: Budget) -> None:
        self._objective, self._budget = objective, budget
        self._began_at = perf_counter()
        self.evaluations = 0
        self.best_cost = inf
        self._best = np.zeros_like(objective.problem.most)
        self._history: list[Progress] = []

    def spent(self) -> float:
        """The share of the budget that is used up; the search ends at 1."""
        seconds = (perf_counter() - self._began_at) / self._budget.seconds if self._budget.seconds < inf else 0.0
        return max(self.evaluations / self._budget.evaluations, seconds)

    def offer(self, search: Search) -> None:
        cost = search.cost
        if cost < self.best_cost - LEAST_GAIN * abs(cost):
            self.best_cost = cost
            self._best = search.copies.copy()
            self._history.append(Progress(self.evaluations, perf_counter() - self._began_at, cost))

    def best(self) -> Ints:
        return self._best.copy()

    def solution(self, solver: str, status: str = "budget spent") -> Solution:
        seconds = perf_counter() - self._began_at
        placement = Placement(self._best, evaluate(self._objective, self._best))
        floor = self._objective.floor()
        return Solution(solver, placement, floor, status, seconds, self.evaluations, self._history)


def difficulty(objective: Objective) -> Floats:
    """(m): how much of the nodes a model's demand takes: copies that it needs, times a copy's largest share of a mean node."""
    problem = objective.problem
    shares = (problem.takes / np.maximum(problem.has, 1)).max(axis=2)
    needed = problem.rate[:, None] / np.where(problem.most > 0, problem.usable, np.inf) * shares
    least: Floats = np.where(problem.most > 0, needed, np.inf).min(axis=1)
    return least


def complete(search: Search, worth: Floats, random: np.random.Generator, *, shake: float = 0.3) -> None:
    """Serve what is not served yet, on nodes drawn by `worth` (m, n), then make the best of what is left over.

    Models that need much come first; `shake` is the deviation of the noise on the logarithm of that order.
    """
    size = len(search.problem.models)
    hardest = difficulty(search.objective) * np.exp(shake * random.standard_normal(size))
    for m in np.argsort(-hardest, kind="stable"):
        while search.short(m) and (n := draw(worth[m] * search.fits(m), random)) is not None:
            search.move([(int(m), n, 1)])
    if search.objective.spreads:
        _spread(search, worth, random)
    else:
        trim(search, random)


def draw(weights: Floats, random: np.random.Generator) -> int | None:
    """An index with probability in proportion to its weight; None if all are 0."""
    sums = np.cumsum(weights)
    if not sums[-1] > 0.0:
        return None
    return min(int(np.searchsorted(sums, random.random() * sums[-1], side="right")), len(sums) - 1)


def trim(search: Search, random: np.random.Generator | None = None) -> None:
    """Take away every copy without which the cost is no higher."""
    pairs = np.argwhere(search.copies)
    for m, n in pairs if random is None else random.permutation(pairs):
        while search.copies[m, n] and not _kept(search, [(int(m), int(n), -1)]):
            pass


def _kept(search: Search, steps: list[tuple[int, int, int]]) -> bool:
    """Try steps; whether they were taken back because they cost."""
    if search.move(steps) <= 0.0:
        return False
    search.move(undone(steps))
    return True


def _spread(search: Search, worth: Floats, random: np.random.Generator) -> None:
    """Copies more than are needed, where they shorten the response, until spare resources run out or it stops helping."""
    for m in _by_cost(search, random):
        n = draw(worth[m] * search.fits(m), random)
        if n is not None and search.move([(m, n, 1)]) > -LEAST_GAIN * search.cost:
            search.move([(m, n, -1)])


def _by_cost(search: Search, random: np.random.Generator) -> Iterator[int]:
    """Models drawn by what they cost, until nothing fits any more or SPREAD_MISSES draws per model have not helped."""
    misses, size = 0, len(search.costs)
    while misses < SPREAD_MISSES * size:
        cost = search.cost
        m = draw(search.costs, random)
        if m is None:
            return
        yield m
        misses = 0 if search.cost < cost else misses + 1
