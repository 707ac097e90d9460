"""A genetic algorithm: placements are crossed model by model, repaired to fit, and the better ones live on.

Falkenauer, "A hybrid grouping genetic algorithm for bin packing", J. Heuristics 2 (1996): what is inherited is a group (all
copies of a model), and what is lost in crossing is placed anew by a packing rule. Not aware of: how a copy is priced.
"""

from math import inf

import numpy as np

from dlproxy.lab.tune.placement.evaluate import Objective
from dlproxy.lab.tune.placement.first_fit import start
from dlproxy.lab.tune.placement.problem import Floats, Ints
from dlproxy.lab.tune.placement.search import Budget, Run, Search, Solution, complete

POPULATION = 24
RIVALS = 3  # of a tournament: the best of three drawn becomes a parent
FORGOTTEN = 2.0  # models, in the mean, whose copies a child loses and places anew
GREED = 2.0  # exponent of the worth by which nodes are drawn


def evolve(objective: Objective, budget: Budget, *, seed: int = 0) -> Solution:
    """Steady state: each child replaces the worst of the population if it is better and not there yet."""
    random = np.random.default_rng(seed)
    run = Run(objective, budget)
    worth = objective.worth() ** GREED
    first = start(objective, run)
    run.offer(first)
    population = [(first.cost, first.copies)]
    while len(population) < POPULATION and run.spent() < 1.0:
        search = Search(objective, run)
        complete(search, worth, random)
        run.offer(search)
        population.append((search.cost, search.copies))
    while run.spent() < 1.0:
        child = _child(objective, run, [_parent(population, random) for _ in range(2)], worth, random)
        run.offer(child)
        worst = max(range(len(population)), key=lambda i: population[i][0])
        if child.cost < population[worst][0] and not any(np.array_equal(child.copies, copies) for _, copies in population):
            population[worst] = (child.cost, child.copies)
    return run.solution("genetic")


def _parent(population: list[tuple[float, Ints]], random: np.random.Generator) -> Ints:
    rivals = random.integers(len(population), size=RIVALS)
    best, cost = 0, inf
    for i in rivals:
        if population[i][0] < cost:
            best, cost = int(i), population[i][0]
    return population[best][1]


def _child(objective: Objective, run: Run, parents: list[Ints], worth: Floats, random: np.random.Generator) -> Search:
    """Each model's copies from one parent, as many as still fit; some models forgotten; the rest completed."""
    search = Search(objective, run)
    size = len(objective.problem.models)
    forgotten = random.random(size) < FORGOTTEN / size
    donor = random.integers(2, size=size)
    for m in random.permutation(size):
        if not forgotten[m]:
            search.put(int(m), parents[donor[m]][m])
    complete(search, worth, random)
    return search
