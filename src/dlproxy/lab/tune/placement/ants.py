"""Ant colony optimisation: placements are built copy by copy along trails that good placements have left.

Stuetzle, Hoos, "MAX-MIN Ant System", Future Generation Computer Systems 16 (2000): one ant lays trail, and trails are bounded.
Not aware of: how a copy is priced.
"""

import numpy as np

from dlproxy.lab.tune.placement.evaluate import Objective
from dlproxy.lab.tune.placement.first_fit import start
from dlproxy.lab.tune.placement.problem import Floats, Ints
from dlproxy.lab.tune.placement.search import Budget, Run, Search, Solution, complete

ANTS = 8  # per round
KEPT = 0.9  # of a trail after a round: it remembers some ten rounds
GREED = 2.0  # exponent of the worth; that of the trail is 1
FAINTEST = 0.02  # no trail is weaker than this share of the strongest, so that nothing is ever out of reach


def send_ants(objective: Objective, budget: Budget, *, seed: int = 0) -> Solution:
    """Rounds of ants; the best of the round and the best of all take turns in laying trail."""
    random = np.random.default_rng(seed)
    run = Run(objective, budget)
    first = start(objective, run)
    run.offer(first)
    worth = objective.worth() ** GREED
    worth /= np.maximum(worth.max(axis=1, keepdims=True), np.finfo(float).tiny)
    trails = np.ones_like(worth)
    rounds = 0
    while run.spent() < 1.0:
        found: list[tuple[float, Ints]] = []
        while len(found) < ANTS and run.spent() < 1.0:
            ant = Search(objective, run)
            complete(ant, trails * worth, random)
            run.offer(ant)
            found.append((ant.cost, ant.copies))
        rounds += 1
        best = run.best() if rounds % 2 else min(found, key=lambda one: one[0])[1]
        trails = _lay(trails, best)
    return run.solution("ants")


def _lay(trails: Floats, copies: Ints) -> Floats:
    """Evaporate, add the share of a model's copies on each node, and keep within [FAINTEST, 1]."""
    shares = copies / np.maximum(copies.max(axis=1, keepdims=True), 1)
    laid: Floats = np.clip(KEPT * trails + (1.0 - KEPT) * shares, FAINTEST, 1.0)
    return laid
