"""Replicas on the nodes of a cluster (policy/placement/problem.py) as an integer program: the optimum, for `dlproxy place`
with the extra tune, and beside which the search of policy/placement/solve.py is judged.

Binary x[m,n]: a replica. Integer s[m]: replicas short; binary g[m]: none at all, a[m]: all in one domain. Continuous o[n]:
overload. Not aware of: nodes that are asked.
"""

import numpy as np

from dlproxy.lab.tune.placement.exact import GAP, STATUS, Rows, program
from dlproxy.lab.tune.placement.problem import Floats, PlacementError
from dlproxy.policy.placement.problem import ALONE, FULL, GONE, MOVE, OVERLOAD, SHORT, SLACK, Placement, Problem


def solve_cluster(problem: Problem, *, seconds: float = 10.0, gap: float = GAP) -> tuple[Placement, float]:
    """The best placement, or the best that was found within so many seconds, and what none can cost less than.

    Raises PlacementError without scipy, and where nothing was found in time.
    """
    if not problem.models or not problem.nodes:
        none: Placement = {name: frozenset() for name in problem.models}
        return none, problem.cost(none)
    models, nodes = list(problem.models.values()), list(problem.nodes.values())
    m, n = len(models), len(nodes)
    x = np.arange(m * n).reshape(m, n)
    short, gone, alone, over = (
        m * n + np.arange(m),
        m * n + m + np.arange(m),
        m * n + 2 * m + np.arange(m),
        m * n + 3 * m + np.arange(n),
    )
    wanted = np.array([model.replicas for model in models], dtype=float)
    share = np.array([model.share for model in models])
    capacity = np.array([node.capacity for node in nodes])
    rows, every, ones = Rows(), np.arange(m), np.ones(m * n)
    owner, place = np.divmod(np.arange(m * n), n)
    rows.add(m, [(owner, x.ravel(), ones), (every, short, np.ones(m))], wanted, wanted)
    rows.add(m, [(owner, x.ravel(), ones), (every, gone, np.ones(m))], np.minimum(wanted, 1.0), np.inf)
    for kind in sorted({kind for model in models for kind in model.takes}):
        takes = np.array([model.takes.get(kind, 0.0) for model in models])
        has = np.array([node.has.get(kind, 0.0) for node in nodes])
        rows.add(n, [(place, x.ravel(), takes[owner])], -np.inf, has + SLACK)
    size = np.where(capacity > 0, capacity, 1.0)
    full = np.where(capacity > 0, FULL, 0.0)
    rows.add(n, [(place, x.ravel(), share[owner] / size[place]), (np.arange(n), over, -np.ones(n))], -np.inf, full)
    spread = np.flatnonzero([problem.spreads(model) for model in models])
    for domain in sorted(set(problem.domains.values())):  # what is within - what there is + 1 <= alone
        within = np.array([problem.domains[node.name] == domain for node in nodes], dtype=float) - 1.0
        at = np.arange(spread.size)
        entries = (at.repeat(n), x[spread].ravel(), np.tile(within, spread.size))
        rows.add(spread.size, [entries, (at, alone[spread], -np.ones(spread.size))], -np.inf, -1.0)
    costs: Floats = np.concatenate(
        (_moves(problem), np.full(m, SHORT), np.full(m, GONE), np.full(m, ALONE), np.full(n, OVERLOAD))
    )
    upper = np.concatenate((np.ones(m * n), wanted, np.ones(2 * m), np.full(n, np.inf)))
    for at_m, model in enumerate(models):
        for at_n, node in enumerate(nodes):
            if node.name in model.barred:
                upper[x[at_m, at_n]] = 0.0
    result = program(costs, rows, whole=np.arange(costs.size) < m * n + 3 * m, upper=upper, seconds=seconds, gap=gap)
    if result.x is None:
        raise PlacementError(f"the integer program found nothing: {STATUS.get(result.status, result.message)}")
    placed = np.rint(result.x[: m * n]).reshape(m, n) > 0
    found = {model.name: frozenset(nodes[at].name for at in np.flatnonzero(placed[row])) for row, model in enumerate(models)}
    return found, float(result.mip_dual_bound)


def _moves(problem: Problem) -> Floats:
    there = [[node in problem.before[name] for node in problem.nodes] for name in problem.models]
    costs: Floats = np.where(np.array(there, dtype=bool), 0.0, MOVE).ravel()
    return costs
