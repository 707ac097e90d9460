"""Simulated annealing: small random changes, worse ones kept with a probability that falls as the budget is spent.

Kirkpatrick, Gelatt, Vecchi, "Optimization by Simulated Annealing", Science 220 (1983). Not aware of: what a copy is worth.
"""

from collections.abc import Callable
from math import exp

import numpy as np

from dlproxy.lab.tune.placement.evaluate import Objective
from dlproxy.lab.tune.placement.first_fit import start
from dlproxy.lab.tune.placement.search import Budget, Run, Search, Solution, draw, undone

Steps = list[tuple[int, int, int]]

HOTTEST = 0.05  # temperature as a share of the first cost: a change for the worse by 5 % is kept every third time
COLDEST = 1e-6  # and at the end, when nothing that can be told apart is kept
OWN_PLACE_GIVEN_UP = 0.5  # how often a model that takes a place leaves one of its own


def anneal(objective: Objective, budget: Budget, *, seed: int = 0) -> Solution:
    """From first fit, cooling geometrically from HOTTEST to COLDEST over the budget; returns the best seen."""
    random = np.random.default_rng(seed)
    run = Run(objective, budget)
    search = start(objective, run)
    run.offer(search)
    unit = run.best_cost
    while (spent := run.spent()) < 1.0:
        temperature = unit * HOTTEST * (COLDEST / HOTTEST) ** spent
        taken: Steps = []
        change = _change(search, random, taken)
        if change <= 0.0 or random.random() < exp(-change / temperature):
            run.offer(search)
        else:
            search.move(undone(taken))
    return run.solution("annealing")


def _change(search: Search, random: np.random.Generator, taken: Steps) -> float:
    """One random change, noted in `taken`; what the cost changes by."""
    kind = KINDS[int(random.integers(len(KINDS)))]
    return kind(search, random, taken)


def _add(search: Search, random: np.random.Generator, taken: Steps) -> float:
    m = int(random.integers(search.copies.shape[0]))
    n = _any(search.fits(m), random)
    return 0.0 if n is None else _take(search, [(m, n, 1)], taken)


def _remove(search: Search, random: np.random.Generator, taken: Steps) -> float:
    m, n = _placed(search, random)
    return 0.0 if n is None else _take(search, [(m, n, -1)], taken)


def _shift(search: Search, random: np.random.Generator, taken: Steps) -> float:
    """A copy to another node."""
    m, n = _placed(search, random)
    if n is None:
        return 0.0
    change = _take(search, [(m, n, -1)], taken)
    fits = search.fits(m)
    fits[n] = False
    other = _any(fits, random)
    return change if other is None else change + _take(search, [(m, other, 1)], taken)


def _intrude(search: Search, random: np.random.Generator, taken: Steps) -> float:
    """A model that costs much takes a place; random copies leave that node until it fits, and go wherever they fit."""
    m = draw(search.costs, random)
    n = None if m is None else _any(search.problem.most[m] > search.copies[m], random)
    if m is None or n is None:
        return 0.0
    change, driven_out = 0.0, []
    all_out = search.copies[m].sum() >= search.problem.most_copies[m]
    own = _any(search.copies[m] > 0, random)
    if own is not None and (all_out or random.random() < OWN_PLACE_GIVEN_UP):
        change += _take(search, [(m, own, -1)], taken)
    while not search.fits(m)[n]:
        other = draw(search.copies[:, n] * (np.arange(len(search.costs)) != m), random)
        if other is None:
            return change
        change += _take(search, [(other, n, -1)], taken)
        driven_out.append(other)
    change += _take(search, [(m, n, 1)], taken)
    for other in driven_out:
        refuge = _any(search.fits(other), random)
        if refuge is not None:
            change += _take(search, [(other, refuge, 1)], taken)
    return change


KINDS: tuple[Callable[[Search, np.random.Generator, Steps], float], ...] = (_add, _remove, _shift, _intrude)


def _take(search: Search, steps: Steps, taken: Steps) -> float:
    taken += steps
    return search.move(steps)


def _placed(search: Search, random: np.random.Generator) -> tuple[int, int | None]:
    """A random model, and a random node that has a copy of it."""
    m = int(random.integers(search.copies.shape[0]))
    return m, _any(search.copies[m] > 0, random)


def _any(where: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], random: np.random.Generator) -> int | None:
    found = np.flatnonzero(where)
    return int(found[random.integers(found.size)]) if found.size else None
