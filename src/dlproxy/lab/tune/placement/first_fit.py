"""First fit decreasing: the most demanding model first, each copy on the first node with room. The baseline.

Called by whoever wants a placement at once, and by the searches as their start. Not aware of: chance.
"""

from math import inf

import numpy as np

from dlproxy.lab.tune.placement.evaluate import Objective
from dlproxy.lab.tune.placement.search import LEAST_GAIN, Budget, Run, Search, Solution, difficulty, trim


def first_fit(objective: Objective) -> Solution:
    """Nodes are tried in their given order. Spare resources are dealt out one copy a model in turn, if that is worth it."""
    run = Run(objective, Budget(evaluations=inf))
    run.offer(start(objective, run))
    return run.solution("first fit", "done")


def start(objective: Objective, run: Run) -> Search:
    """The placement of first fit, to go on from."""
    search = Search(objective, run)
    order = [int(m) for m in np.argsort(-difficulty(objective), kind="stable")]
    for m in order:
        while search.short(m) and (fits := search.fits(m)).any():
            search.move([(m, int(fits.argmax()), 1)])
    if objective.spreads:
        _deal(search, order)
    else:
        trim(search)
    return search


def _deal(search: Search, order: list[int]) -> None:
    dealt = True
    while dealt:
        dealt = False
        for m in order:
            for n in np.flatnonzero(search.fits(m)):
                if search.move([(m, int(n), 1)]) < -LEAST_GAIN * search.cost:
                    dealt = True
                    break
                search.move([(m, int(n), -1)])
